"""MixMatch (Berthelot et al. 2019): learn from rows with labels, and from others by what the model makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import permutation
from bdaudit.training.augment import Augment
from bdaudit.training.loop import Recipe, Training, endless, falling_at_last
from bdaudit.training.progress import Advance, say, still


@dataclass(frozen=True)
class MixMatch:
    """How to learn with and without labels.

    iterations: steps in an epoch, each of `batch_size` rows with and as many without labels. views: augmentations of
    a row without label, whose mean prediction, sharpened by `temperature`, becomes its label. beta: of the mixing
    weights' Beta(beta, beta). weight: lambda_u, reached after `ramp` epochs. decay: last part of all epochs, over which
    the learning rate falls to zero. even: deal labelled rows as if each class among them had as many. accompanied: deal
    about as many labelled rows among those without (all, where they are fewer), since BatchNorm takes from features
    what a whole batch has in common, and suspected rows may be of one class.
    """

    iterations: int = 1024
    batch_size: int = 64
    lr: float = 2e-3
    views: int = 2
    temperature: float = 0.5
    beta: float = 0.75
    weight: float = 15.0
    ramp: int = 120
    decay: float = 0.0
    even: bool = False
    accompanied: bool = False
    augment: Augment = field(default_factory=Augment)


class SemiSupervised:
    """A model in training on one pool, of which a part that may change from epoch to epoch is taken at its labels."""

    def __init__(self, model: Classifier, pool: Pool, how: MixMatch, epochs: int, rng: torch.Generator) -> None:
        """epochs: how many there will be in all."""
        self.how, self.rng = how, rng
        self.pool = pool.to(model.device)
        recipe = Recipe(epochs, how.lr, how.batch_size, optimizer="adam", schedule=falling_at_last(how.decay))
        self.training = Training(model, recipe, epochs * how.iterations)

    def epoch(
        self, labelled: Tensor, advance: Advance = still, what: str = "", *, others: Tensor | None = None
    ) -> None:
        """Train for an epoch.

        labelled: bool (N,), on the CPU, the rows whose labels are learnt, as `what` says. others: bool (N,), those
        learnt without their labels, by default all that are left.
        """
        said = f"{int(labelled.sum()):,} of {len(labelled):,} images in the clean pool"
        if what:
            say(f"{what}: {said}")
        advance(0, said)
        how, rng = self.how, self.rng
        if not labelled.any():
            raise UsageError("no image is left to learn with its label: every row of the training set is suspected")
        rows = labelled.nonzero().flatten()
        deal = endless(self.pool, rng, how.augment, evened(rows, self.pool.labels.cpu()) if how.even else rows)
        rest = (~labelled if others is None else others).nonzero().flatten()
        if how.accompanied and len(rest):
            rest = torch.cat([rest.repeat(max(1, round(len(rows) / len(rest)))), rows])
        deal_rest = endless(self.pool, rng, None, rest) if len(rest) else None

        def loss(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
            views = []
            if deal_rest is not None:
                unlabelled, _ = deal_rest(len(x))
                views = [how.augment(unlabelled, rng) for _ in range(how.views)]
            done = self.training.step / (how.ramp * how.iterations)
            return mixmatch_loss(model, x, y, views, how, how.weight * min(1.0, done), rng)

        dealt = (deal(how.batch_size) for _ in range(how.iterations))
        self.training.epoch(dealt, loss, advance=advance)


def mixmatch_loss(
    model: Classifier, x: Tensor, y: Tensor, views: list[Tensor], how: MixMatch, weight: float, rng: torch.Generator
) -> Tensor:
    """Cross-entropy on mixed labelled rows, and `weight` times the squared error on mixed guessed ones (Eq. 2 to 5).

    x, y: uint8 pixels with labels. views: augmentations of the same rows without labels, () for none.
    """
    targets = F.one_hot(y, model.num_classes).float()
    if views:
        guessed = guess(model, views, how.temperature)
        targets = torch.cat([targets, *([guessed] * len(views))])
    pixels, targets = mix(torch.cat([x, *views]).float() / 255, targets, how.beta, rng)
    # One pass over all: the released code interleaves batches, so that BatchNorm sees both kinds.
    logits = model(pixels).float()
    supervised: Tensor = -(targets[: len(x)] * F.log_softmax(logits[: len(x)], 1)).sum(1).mean()
    if not views:
        return supervised
    error: Tensor = (logits[len(x) :].softmax(1) - targets[len(x) :]).square().mean()
    return supervised + weight * error


def evened(rows: Tensor, labels: Tensor) -> Tensor:
    """Repeat rows of classes with fewer until each has as many as the largest; int64 (M,). labels: of all rows."""
    classes = [rows[labels[rows] == label] for label in sorted(set(labels[rows].tolist()))]
    most = max(map(len, classes))
    return torch.cat([own.repeat(math.ceil(most / len(own)))[:most] for own in classes])


@torch.no_grad()
def guess(model: Classifier, views: list[Tensor], temperature: float) -> Tensor:
    """Average the predictions over augmentations of the same rows and sharpen them (Eq. 6 and 7); (N, K)."""
    p = model(torch.cat(views)).float().softmax(1).unflatten(0, (len(views), -1)).mean(0)
    return sharpen(p, temperature)


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """Raise probabilities (N, K) to the power of 1/T and normalise them (Eq. 7)."""
    powers = p ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def mix(pixels: Tensor, targets: Tensor, beta: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mix every row with a random one of all, the row itself by at least half (Eq. 8 to 11)."""
    from scipy.special import betaincinv  # here, because it takes a second that most runs need not spend

    n = len(pixels)
    # By the inverse of the distribution function, since torch draws from Beta by its global generator alone.
    drawn = torch.from_numpy(betaincinv(beta, beta, torch.rand(n, generator=rng, dtype=torch.float64).numpy()))
    share = torch.maximum(drawn, 1 - drawn).float().to(pixels.device)
    order = permutation(n, rng).to(pixels.device)
    s = share[:, None, None, None]
    return s * pixels + (1 - s) * pixels[order], share[:, None] * targets + (1 - share[:, None]) * targets[order]
