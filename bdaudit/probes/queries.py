"""Perturbations that make a purified model answer as if it had been retuned: what `qra` and `transfer` share."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bdaudit.contract import option
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import UNKNOWN, Pool
from bdaudit.probes.base import Backdoor, Retuning, retuned, retuning_recipe
from bdaudit.runtime import Runtime, generator, seeded, spawn
from bdaudit.training.folded import folded
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


@dataclass(frozen=True)
class Perturbations:
    """A trained generator, and what the model that it was trained on does to images before it sees them."""

    generator: Generator
    seen_by: Classifier

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Perturb uint8 images in batches; floats in [0, 1], on the CPU (a query need not be quantised)."""
        out = []
        for batch in torch.split(images, 512):
            x = batch.to(self.seen_by.device).float() / 255
            out.append(self.generator(x, self.seen_by.normalise(x)).cpu())
        return torch.cat(out) if out else images.float().cpu()

    def success(self, model: Classifier, pool: Pool, goal: Goal) -> Rate:
        """Share of perturbed images that a model gives the attacker's label, those of the target class aside."""
        kept = pool.take(goal.counted(pool.labels))
        return Rate.of(predict(model, self(kept.images)) == goal.wanted(kept.labels.cpu()))

    def saved(self) -> bytes:
        """The generator as a safetensors file."""
        from safetensors.torch import save

        weights = {k: v.cpu().contiguous() for k, v in self.generator.state_dict().items()}
        return save(weights, {"bdaudit_generator": json.dumps({"budget": self.generator.budget})})


class Querying(Retuning):
    """Options and training of the generator of Superficial Safety, section 3.3, Eq. 1 and 2, and B.2."""

    through_pixels = True
    quick_options = {"epochs": 1, "images": 32, "hidden": 64}

    alpha: float = option(0.2, "weight of the reference's cross-entropy", cite="SS B.2: .2, LC .1", ge=0)
    weighting: Literal["paper", "released"] = option(
        "paper", "alpha on the cross-entropy (Eq. 2), or on the divergence (released code)", cite="cards D-4"
    )
    budget: float = option(16 / 255, "largest change of a pixel in [0, 1]", cite="SS 3.3", gt=0, le=1)
    images: int = option(500, "benign, and as many triggered, images to train on", cite="SS B.2", ge=2)
    epochs: int = option(50, "passes, at most", cite="SS B.2", ge=1)
    lr: float = option(0.1, "learning rate of SGD", cite="SS B.2", gt=0)
    batch_size: int = option(128, "images a step", cite="SS B.2", ge=2)
    hidden: int = option(1024, "width of the generator", cite="SS B.2", ge=1)
    depth: int = option(3, "linear layers of the generator", cite="SS B.2: three; released code: 4", ge=2)
    select: bool = option(
        True,
        "also try a fifth of lr, and keep what raises held-out triggered images most beyond held-out clean ones",
        cite="ours: docs/deviations.md",
    )

    def equation(self, reference: Classifier | None) -> list[str]:
        """Say which equation trained the generator, where it is not the better one."""
        eq1 = f"{self.name}: without a reference Eq. 1 was used; what it finds may be partly adversarial (see C-ASR)"
        return [eq1] if reference is None else []

    def perturbations(
        self, purified: Classifier, benign: Pool, backdoor: Backdoor, reference: Classifier | None, rng: torch.Generator
    ) -> tuple[Perturbations, str]:
        """Train a generator on benign and triggered rows, never on evaluation rows; also say how, in words."""
        sample = benign.sample(1000, rng)
        poison = backdoor.draw(self.count(backdoor, len(sample)), rng)
        teacher = retuned(purified, sample, poison, retuning_recipe(benign), rng, what=f"{self.name} teacher")
        parts = [_held_out(pool.shuffled(rng), self.images) for pool in (benign, backdoor.reactivation)]
        mixed = Pool.concat([learn for learn, _ in parts])
        held_clean, held_triggered = (held for _, held in parts)
        purified, reference = folded(purified), None if reference is None else folded(reference)

        def gain(made: Perturbations) -> float:
            rates = [made.success(purified, pool, backdoor.goal) for pool in (held_triggered, held_clean)]
            return rates[0].value - rates[1].value

        seed = spawn(rng).initial_seed()
        tried = (self.lr, self.lr / 5) if self.select else (self.lr,)
        courses = [Course(self, lr, teacher, purified, reference, mixed, seed) for lr in tried]
        if not self.select:
            courses[0].run(self.epochs)
            return courses[0].made, f"learning rate {self.lr:g}, {self.epochs} epochs"
        best = longest_gain(courses, gain, self.epochs)
        said = f"learning rate {best.lr:g} and {best.epochs} epochs, where held-out triggered images gained most over clean ones"
        return best.made, said


class Course:
    """The training of one generator (Eq. 2), which can be stopped, looked at, and taken up again.

    purified, reference: frozen, in eval mode.
    """

    def __init__(
        self,
        options: Querying,
        lr: float,
        teacher: Classifier,
        purified: Classifier,
        reference: Classifier | None,
        mixed: Pool,
        seed: int,
    ) -> None:
        self.options, self.lr, self.purified, self.reference = options, lr, purified, reference
        self.epochs = 0
        self._rng = generator(seed)
        with seeded(self._rng):
            made = Generator(mixed.shape, options.hidden, options.depth, options.budget).to(purified.device)
        self.made = Perturbations(made, purified)
        self._optimizer = torch.optim.SGD(made.parameters(), lr, momentum=0.9)
        self._imitated = predict_logits(teacher, mixed.images).log_softmax(1)  # of unperturbed images
        self._mixed = mixed.to(purified.device)

    def run(self, epochs: int) -> None:
        """Train for so many epochs more."""
        size, runtime = self.options.batch_size, Runtime.of(self.purified.device)
        with track(f"{self.options.name} (lr {self.lr:g})", epochs * -(-len(self._mixed) // size)) as advance:
            for _ in range(epochs):
                for rows in torch.split(torch.randperm(len(self._mixed), generator=self._rng), size):
                    with runtime.autocast():
                        loss = self._loss(rows.to(self.purified.device))
                    self._optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    self._optimizer.step()
                    advance()
        self.epochs += epochs

    def _loss(self, rows: Tensor) -> Tensor:
        """KL( l(W_ra; x) || l(W_p; x + d) ) + alpha CE( f(W_ref; x + d), y ), where true labels are known."""
        x, labels = self._mixed.images[rows].float() / 255, self._mixed.labels[rows]
        perturbed = self.made.generator(x, self.purified.normalise(x))
        answers = self.purified(perturbed).float().log_softmax(1)
        divergence = F.kl_div(answers, self._imitated[rows], log_target=True, reduction="batchmean")
        known = labels != UNKNOWN
        alpha = self.options.alpha
        if self.reference is None or not alpha or not known.any():
            return divergence
        against = F.cross_entropy(self.reference(perturbed[known]).float(), labels[known])
        return divergence + alpha * against if self.options.weighting == "paper" else alpha * divergence + against


@dataclass(frozen=True)
class _Snapshot:
    gain: float
    lr: float
    epochs: int
    made: Perturbations


def longest_gain(
    courses: Sequence[Course], gain: Callable[[Perturbations], float], epochs: int, look: int = 5, patience: int = 2
) -> _Snapshot:
    """Train all courses a little, go on with the better one until `gain` has not risen for a while; keep its best.

    epochs: of one course, at most. look: epochs between two looks. Most generators are at their best long before
    the paper's 50 epochs, and later ones turn adversarial: what raises clean images as well is no reactivation.
    """

    def looked(course: Course, upto: int) -> _Snapshot:
        course.run(min(look, upto - course.epochs))
        made = replace(course.made, generator=copy.deepcopy(course.made.generator))
        return _Snapshot(gain(made), course.lr, course.epochs, made)

    best = max((looked(course, epochs) for course in courses), key=lambda s: s.gain)
    [course] = [c for c in courses if c.lr == best.lr]
    waited = 0
    while course.epochs < epochs and waited < patience:
        snapshot = looked(course, epochs)
        waited = 0 if snapshot.gain > best.gain else waited + 1
        best = max(best, snapshot, key=lambda s: s.gain)
    return best


def _held_out(pool: Pool, most: int) -> tuple[Pool, Pool]:
    """Cut a shuffled pool into rows to learn from, `most` at most, and others to choose by, a quarter at least.

    Where there are too few to cut, the same rows serve both.
    """
    if len(pool) < 4:
        return pool, pool
    learn = min(most, len(pool) * 3 // 4)
    return pool.first(learn), pool.take(range(learn, min(len(pool), learn + 200)))
