"""I-BAU: implicit backdoor adversarial unlearning."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Grading, JudgedBy, Tuning, judged_by
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import spawn
from bdaudit.training.implicit import through_solution
from bdaudit.training.loop import batches, tune


class IBAU(Tuning, Grading):
    """Unlearn the one perturbation that fools the model on most images, foreseeing how it would change in turn.

    Zeng et al., ICLR 2022, Algorithm 1: min over w of max over d of E CE(f(x + d), y). In each round d is found by
    ascent from zero, and w descends the hypergradient, which counts how the worst d moves with w.
    """

    name = "i-bau"
    presets = {"backdoorbench": {"lr": 1e-4, "batch_size": 256}, "ss": {"lr": 1e-4, "batch_size": 256, "epochs": 20}}
    quick_options = {"epochs": 1, "batch_size": 32, "fixed_points": 2}

    epochs: int = option(5, "rounds: a perturbation, and a pass over the clean pool", cite="I-BAU", ge=1)
    lr: float = option(
        1e-3, "Adam's learning rate, at most, falling to zero on a cosine", cite="I-BAU; BackdoorBench: 1e-4", gt=0
    )
    batch_size: int = option(100, "images a step", cite="I-BAU", ge=2)
    share: float = option(
        0.01, "share of each batch that is perturbed; at least one image is", cite="I-BAU", gt=0, le=1
    )
    ascent_lr: float = option(10.0, "learning rate of the ascent on the perturbation", cite="I-BAU", gt=0)
    bound: float = option(0.18, "root mean square of the perturbation, at most", cite="ours: docs/deviations.md", gt=0)
    shrinkage: float = option(1e-3, "price of the perturbation's squared norm", cite="I-BAU", ge=0)
    judged_by: JudgedBy = judged_by("bound")
    fixed_points: int = option(5, "iterations that invert the inner Hessian", cite="I-BAU", ge=1)
    fixed_point_lr: float = option(0.01, "step of these iterations", cite="ours: docs/deviations.md; I-BAU: .1", gt=0)

    def purify(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Classifier:
        held, tuning = self.parts(clean, rng)
        rates = [self.lr / part for part in (1, 3, 10, 30)]

        def unlearnt(rate: float) -> Classifier:
            return self.unlearn(model.clone(), tuning, rate, spawn(rng))

        return self.strongest(rates, unlearnt, model, held, "learning rate")[0]

    def unlearn(self, model: Classifier, clean: Pool, lr: float, rng: torch.Generator) -> Classifier:
        """Go through all rounds at one learning rate."""
        recipe = self.recipe(clean, lr=lr, optimizer="adam", as_in_use=True)
        worst = self.worst(model, clean, rng)

        def unlearning(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            pixels = x / 255
            chosen = torch.zeros(len(x), 1, 1, 1, device=x.device)
            chosen[torch.randperm(len(x), generator=rng)[: max(1, int(self.share * len(x)))]] = 1
            return through_solution(
                lambda d: F.cross_entropy(model(pixels + chosen * d), y),
                lambda d: self.shrinkage * d.square().sum() - F.cross_entropy(model(pixels + d), y),
                worst,
                steps=self.fixed_points,
                lr=self.fixed_point_lr,
                project=self.project,
            )

        def next_round(epoch: int, model: Classifier) -> None:
            if epoch < self.epochs:
                worst.copy_(self.worst(model, clean, rng))

        # Attention's fused kernels cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            return tune(model, clean, recipe, rng, loss=unlearning, on_epoch=next_round, what=self.name)

    def worst(self, model: Classifier, clean: Pool, rng: torch.Generator) -> Tensor:
        """Ascend CE(f(x + d), f(x)) - shrinkage ||d||^2 from d = 0 in one pass; d is (1, C, H, W), pixels in [0, 1]."""
        model.eval()
        d = torch.zeros(1, *clean.shape, device=model.device)
        for x, _ in batches(clean.to(model.device), self.recipe(clean).batch_for(len(clean)), rng):
            d.requires_grad_()
            with torch.no_grad():
                predicted = model(x).argmax(1)
            gain = F.cross_entropy(model(x / 255 + d), predicted) - self.shrinkage * d.square().sum()
            d = self.project(d + self.ascent_lr * torch.autograd.grad(gain, [d])[0]).detach()
        return d

    def project(self, d: Tensor) -> Tensor:
        """Shrink a perturbation to its bound."""
        # A sure model's gradients are so small that their squares are 0: there a root has no slope, and a norm has 0.
        rms: Tensor = torch.linalg.vector_norm(d) / d.numel() ** 0.5
        return d * (self.bound / rms.clamp(min=self.bound))


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [IBAU]
