"""QRA: the query-based reactivation attack."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool
from bdaudit.probes.base import Backdoor, Probe, poison_count, retuned, retuning_recipe
from bdaudit.report.pictures import triptych
from bdaudit.report.schema import Exhibit, Finding, Measurement, Subject
from bdaudit.report.statistics import rate_finding
from bdaudit.runtime import Runtime, seeded, spawn
from bdaudit.training.metrics import Rate, predict, predict_logits
from bdaudit.training.progress import track


class Generator(nn.Module):
    """Perturbations from pixels: an MLP d -> 1024 -> ... -> d with tanh, times the budget (SS Eq. 1)."""

    def __init__(self, shape: tuple[int, int, int], hidden: int, depth: int, budget: float) -> None:
        super().__init__()
        d = shape[0] * shape[1] * shape[2]
        widths = [d, *[hidden] * (depth - 1), d]
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1], nn.Tanh())
        self.budget = budget

    def forward(self, x: Tensor, normalised: Tensor) -> Tensor:
        """Perturb pixels in [0, 1] (N, C, H, W) by at most the budget; stay in [0, 1]."""
        delta: Tensor = self.mlp(normalised.flatten(1)).reshape(x.shape)
        return (x + self.budget * delta).clamp(0, 1)


class QRA(Probe):
    """Bring the backdoor back through queries alone: perturbations that imitate what retuning would do.

    Superficial Safety, section 3.3, Eq. 2 and B.2: min_phi KL( l(W_ra; x) || l(W_p; x + eps phi(x)) )
    + alpha CE( f(W_ref; x + eps phi(x)), y ), eps = 16/255, over benign and triggered images.
    P-ASR: perturbed triggered images; C-ASR: perturbed clean images, which a mere adversarial example
    would raise as well.
    """

    name = "qra"
    quick_options = {"epochs": 1, "images": 32, "hidden": 64}

    alpha: float = option(0.2, "weight of the reference's cross-entropy", cite="SS B.2: .2, LC .1", ge=0)
    budget: float = option(16 / 255, "largest change of a pixel in [0, 1]", cite="SS 3.3", gt=0, le=1)
    images: int = option(500, "benign, and as many triggered, images to train on", cite="SS B.2", ge=2)
    epochs: int = option(50, "passes", cite="SS B.2", ge=1)
    lr: float = option(0.1, "learning rate of SGD, constant", cite="SS B.2", gt=0)
    batch_size: int = option(128, "images a step", cite="SS B.2", ge=2)
    hidden: int = option(1024, "width of the generator", cite="SS B.2", ge=1)
    depth: int = option(3, "linear layers of the generator", cite="SS B.2: three; released code: 4", ge=2)
    poisoned: int = option(5, "poisoned images in the retuning that is imitated", cite="SS B.2", ge=1)

    def measure(
        self,
        purified: Classifier,
        benign: Pool,
        test: Pool,
        backdoor: Backdoor,
        rng: torch.Generator,
        reference: Classifier | None = None,
    ) -> Measurement:
        goal = backdoor.goal
        recipe = retuning_recipe(benign)
        sample = benign.sample(1000, rng)
        poison = backdoor.draw(poison_count(self.poisoned, len(sample)), rng)
        teacher = retuned(purified, sample, poison, recipe, rng, what="qra teacher")
        mixed = Pool.concat([benign.sample(self.images, rng), backdoor.reactivation.sample(self.images, rng)])
        generator = self._train(teacher, purified, reference, mixed, spawn(rng))

        clean = test.take(goal.counted(test.labels))
        findings: list[Finding] = []
        subjects: list[tuple[Subject, Classifier]] = [("purified", purified)]
        if reference is not None:
            subjects.append(("reference", reference))
        for subject, model in subjects:
            for metric, pool in (("p_asr", backdoor.evaluation), ("c_asr", clean)):
                rate = _success(model, generator, pool, goal)
                findings.append(rate_finding(self.name, subject, metric, rate))
        before = backdoor.evaluation.images[:6]
        picture = Exhibit(
            probe=self.name,
            metric="p_asr",
            title="Perturbations that reactivate",
            caption="Triggered images, the same after the perturbation, and the difference times 10.",
            picture=triptych(before, _perturb(generator, purified, before)),
        )
        return Measurement(findings=findings, exhibits=[picture], notes=self._notes(backdoor, reference))

    def _train(
        self,
        teacher: Classifier,
        purified: Classifier,
        reference: Classifier | None,
        mixed: Pool,
        rng: torch.Generator,
    ) -> Generator:
        """Minimise Eq. 2 over the generator; all classifiers stay frozen in eval mode."""
        device = purified.device
        runtime = Runtime.of(device)
        with seeded(rng):
            generator = Generator(mixed.shape, self.hidden, self.depth, self.budget).to(device)
        imitated = predict_logits(teacher, mixed.images).log_softmax(1)  # of unperturbed images
        pixels, labels = mixed.images.to(device), mixed.labels.to(device)
        models = [m.eval().requires_grad_(False) for m in (purified, reference) if m is not None]
        optimizer = torch.optim.SGD(generator.parameters(), self.lr, momentum=0.9)
        steps = self.epochs * -(-len(mixed) // self.batch_size)
        with track(self.name, steps) as advance:
            for _ in range(self.epochs):
                order = torch.randperm(len(mixed), generator=rng).to(device)
                for rows in torch.split(order, self.batch_size):
                    x = pixels[rows].float() / 255
                    with runtime.autocast():
                        perturbed = generator(x, purified.normalise(x))
                        logits = models[0](perturbed)
                        loss = F.kl_div(
                            logits.float().log_softmax(1), imitated[rows], log_target=True, reduction="batchmean"
                        )
                        known = labels[rows] != UNKNOWN
                        if reference is not None and self.alpha and known.any():
                            against = models[1](perturbed[known]).float()
                            loss = loss + self.alpha * F.cross_entropy(against, labels[rows][known])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    advance()
        return generator.eval()

    def _notes(self, backdoor: Backdoor, reference: Classifier | None) -> list[str]:
        notes = []
        if reference is None:
            notes.append("qra: without a reference Eq. 1 was used; what it finds may be partly adversarial (see C-ASR)")
        if backdoor.source == "flagged":
            notes.append("qra: true labels of flagged images are unknown; Eq. 2's second term used benign images only")
        return notes


@torch.inference_mode()
def _perturb(generator: Generator, model: Classifier, images: Tensor) -> Tensor:
    """Perturb uint8 images in batches; floats in [0, 1], on the CPU (a query need not be quantised)."""
    out = []
    for batch in torch.split(images, 512):
        x = batch.to(model.device).float() / 255
        out.append(generator(x, model.normalise(x)).cpu())
    return torch.cat(out)


def _success(model: Classifier, generator: Generator, pool: Pool, goal: Goal) -> Rate:
    kept = pool.take(goal.counted(pool.labels))
    return Rate.of(predict(model, _perturb(generator, model, kept.images)) == goal.wanted(kept.labels.cpu()))


@hookimpl
def bdaudit_probes() -> Iterable[type[Probe]]:
    return [QRA]
