"""Trigger inversion: for every class, the smallest patch that sends other images there; a backdoor's is far smaller.

Neural Cleanse, Wang et al., S&P 2019 (cards 2.14). A class is anomalous whose mask is smaller
than the others' by more than two of their (normalised) median absolute deviations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit import ops
from bdaudit.errors import UsageError
from bdaudit.inputs import scratch
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import Runtime
from bdaudit.training.metrics import Rate, predict
from bdaudit.training.progress import track

MOST_IMAGES, MOST_VALUES = 512, 1 << 23
"""Images, and pixel values, in one forward pass, at most; at least one class is searched at a time."""
STALE = 10
"""Checks without a smaller mask after which a class is done."""
NORMAL = 1.4826
"""Makes the median absolute deviation of a normal distribution its standard deviation."""
LEAST_SPREAD = 0.01
"""Masks that agree to the percent make no difference between them an anomaly."""


@dataclass(frozen=True)
class Search:
    """How long and how hard to look. The paper: 1,000 checks after 31 steps of 32 images each, patience 5.

    cost: first price of a unit of mask. It is doubled once `patience` checks in a row found at least `threshold` of
    the images in the class, and divided by 2^1.5 once as many found fewer. check: steps between two checks.
    anomaly, scale: the index above which a class is flagged, and what of the masks' sizes it is counted on.
    """

    steps: int = 160
    batch_size: int = 16
    lr: float = 0.1
    cost: float = 1e-3
    patience: int = 1
    check: int = 5
    threshold: float = 0.99
    anomaly: float = 2.0
    scale: Literal["log", "linear"] = "log"


@dataclass(frozen=True)
class Inversion:
    """What was found, a row a class, on the CPU.

    masks: float (K, H, W) in [0, 1]. patterns: uint8 (K, C, H, W). l1: float (K,), the masks' sums. reached: bool (K,),
    whether the search met its threshold. success: over held-out images of other classes. index: float (K,), positive
    where the mask is smaller than the median one. anomaly: the index above which a class is flagged.
    """

    masks: Tensor
    patterns: Tensor
    l1: Tensor
    reached: Tensor
    success: tuple[Rate, ...]
    index: Tensor
    anomaly: float

    @property
    def flagged(self) -> tuple[int, ...]:
        """The anomalous classes, most anomalous first."""
        order = self.index.argsort(descending=True).tolist()
        return tuple(c for c in order if self.reached[c] and self.index[c] > self.anomaly)

    @property
    def target(self) -> int | None:
        """The most anomalous class, if any is."""
        return self.flagged[0] if self.flagged else None

    def ordinary(self, count: int, besides: int) -> list[int]:
        """The classes whose masks are nearest to the median one: what inversion finds without a backdoor."""
        order = self.index.abs().argsort(stable=True).tolist()
        return [c for c in order if c != besides and c not in self.flagged][:count]


def invert(
    model: Classifier, rows: Pool, held_out: Pool, rng: torch.Generator, search: Search | None = None
) -> Inversion:
    """Search a trigger for every class on `rows`, and count on `held_out` how often it works.

    At most K * steps * batch_size images go forward and backward. Classes are searched together, which changes none
    of them: the model is frozen in eval mode, so that each class's images, loss and Adam moments are its own.
    """
    search = search or Search()
    frozen = model.clone().eval().requires_grad_(False)
    runtime = Runtime.of(model.device)
    runtime.place(frozen)
    lone = [c for c in range(model.num_classes) for pool in (rows, held_out) if not (pool.labels != c).any()]
    if lone:
        raise UsageError(
            f"trigger inversion needs clean images of other classes than {lone[0]}, among the {len(rows)} to search with "
            f"and among the {len(held_out)} held out to test with"
        )
    values = rows.shape[0] * rows.shape[1] * rows.shape[2]
    together = max(1, min(MOST_IMAGES, MOST_VALUES // values) // search.batch_size)
    groups = torch.split(torch.arange(model.num_classes), together)
    with track("inverting triggers", len(groups) * search.steps) as advance:
        found = [_search(frozen, runtime, rows, group, search, rng, advance) for group in groups]
    masks, patterns, reached = (torch.cat(parts) for parts in zip(*found, strict=True))
    l1 = masks.flatten(1).sum(1)
    success = tuple(
        _success(frozen, c, masks[c], patterns[c], held_out.take(held_out.labels != c)) for c in range(len(masks))
    )
    return Inversion(masks, patterns, l1, reached, success, anomaly_index(l1, search.scale), search.anomaly)


def squash(free: Tensor) -> Tensor:
    """Map any number into [0, 1], as the paper's code does."""
    return torch.tanh(free) / (2 + 1e-7) + 0.5


def anomaly_index(l1: Tensor, scale: Literal["log", "linear"] = "log") -> Tensor:
    """By how many normalised median absolute deviations each mask is smaller than the median one (negative: larger).

    On the paper's linear scale nothing can lie more than median / (1.4826 MAD) below, which is often less than two:
    sizes are positive and skewed. Their logarithms are neither.
    """
    size = l1.clamp(min=1e-6)
    size = size.log() if scale == "log" else size / size.quantile(0.5)
    below = size.quantile(0.5) - size
    return below / (NORMAL * below.abs().quantile(0.5).clamp(min=LEAST_SPREAD))


class Costs:
    """The price of a unit of mask, a class a row: it rises while the trigger works and falls while it does not."""

    def __init__(self, classes: int, search: Search) -> None:
        self.search = search
        self.price = torch.full((classes,), search.cost)
        self._worked = torch.zeros(classes, dtype=torch.int64)
        self._failed = torch.zeros(classes, dtype=torch.int64)

    def update(self, works: Tensor) -> None:
        """Count one check, bool (classes,), and change the prices whose patience is over."""
        self._worked = torch.where(works, self._worked + 1, 0)
        self._failed = torch.where(works, 0, self._failed + 1)
        up, down = self._worked >= self.search.patience, self._failed >= self.search.patience
        self.price = torch.where(up, self.price * 2, torch.where(down, self.price / 2**1.5, self.price))
        self._worked[up] = 0
        self._failed[down] = 0


def _search(
    model: Classifier,
    runtime: Runtime,
    rows: Pool,
    classes: Tensor,
    search: Search,
    rng: torch.Generator,
    advance: Callable[[], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Search the triggers of some classes; return masks (k, H, W), patterns uint8 (k, C, H, W), and if they work."""
    k, device = len(classes), model.device
    channels, height, width = rows.shape
    start = torch.rand(k, 1 + channels, height, width, generator=rng).clamp(1e-3, 1 - 1e-3)
    free = torch.atanh(2 * start - 1).to(device).requires_grad_()
    optimizer = torch.optim.Adam([free], search.lr, betas=(0.5, 0.9))
    costs = Costs(k, search)
    others = (rows.labels.cpu() != classes[:, None]).float()
    best = squash(free.detach()).cpu()
    smallest, stale = torch.full((k,), torch.inf), torch.zeros(k, dtype=torch.int64)
    active, hits = torch.arange(k), torch.zeros(k)
    for step in range(search.steps):
        drawn = others[active].multinomial(search.batch_size, replacement=True, generator=rng)
        x = (rows.images[drawn.to(rows.device)].to(device)).float() / 255
        scratch.release(rows.images)
        now = squash(free[active.to(device)])
        mask, pattern = now[:, :1], now[:, 1:]
        stamped = x * (1 - mask[:, None]) + pattern[:, None] * mask[:, None]
        with runtime.autocast():
            logits = model(stamped.flatten(0, 1)).float()
        wanted = classes[active].repeat_interleave(search.batch_size).to(device)
        error = F.cross_entropy(logits, wanted, reduction="sum") / search.batch_size
        loss = error + (costs.price[active].to(device) * mask.flatten(1).sum(1)).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        advance()
        hits[active] += (logits.argmax(1) == wanted).view(len(active), -1).float().mean(1).cpu()
        if (step + 1) % search.check:
            continue
        works = hits / search.check >= search.threshold
        hits.zero_()
        costs.update(works)
        found = squash(free.detach()).cpu()
        sizes = found[:, 0].flatten(1).sum(1)
        better = works & (sizes < smallest)
        stale = torch.where(better & (sizes < 0.99 * smallest), 0, stale + 1)
        smallest = torch.where(better, sizes, smallest)
        # What never worked is kept as it was last: nothing smaller can be said of it.
        newer = better | smallest.isinf()
        best[newer] = found[newer]
        active = (smallest.isinf() | (stale < STALE)).nonzero().flatten()
        if not len(active):
            break
    return best[:, 0], (best[:, 1:] * 255).round().to(torch.uint8), smallest.isfinite()


def _success(model: Classifier, wanted: int, mask: Tensor, pattern: Tensor, others: Pool) -> Rate:
    """Count how often the trigger, as whole pixel values, sends images of other classes to the class."""
    stamped = ops.blend(others.images, pattern.to(others.device), mask.to(others.device))
    return Rate.of(predict(model, stamped) == wanted)
