"""Labels for images that share a trigger: what they share is taken out of the features, then the model guesses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.training.metrics import at_once, predict_logits

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
EPS = 1e-5


def best_but(logits: Tensor, target: int) -> Tensor:
    """The best class other than t of each row (int64, (N,), on the CPU)."""
    return logits.cpu().index_fill(1, torch.tensor(target), -torch.inf).argmax(1)


def relabelled(model: Classifier, shared: Pool, clean: Pool, target: int, rounds: int, rng: torch.Generator) -> Pool:
    """Label images that share a trigger with the model's best class other than t, as it were without the trigger.

    Ours (docs/sep.md, step 3). The model's own guess is the first. In each round clean images of just the guessed
    classes run beside the others, whose channels are brought to their mean and deviation before every normalisation:
    what sets the two apart is then the trigger, as the classes are the same; it is gone when the model guesses anew.
    AdaBN (Li et al. 2016) has no such companions: from images of few classes it takes the classes too.

    shared: images that carry the trigger; their labels are not read. rounds: 0 for the model's own guess.
    """
    labels = best_but(predict_logits(model, shared.images), target)
    for _ in range(rounds):
        labels = best_but(logits_like(model, shared.images, companions(clean, labels, rng).images), target)
    return shared.labelled(labels)


def companions(pool: Pool, labels: Tensor, rng: torch.Generator) -> Pool:
    """Draw an image of the pool for each label, with that label; where it has none, any other."""
    have = pool.labels.cpu()
    every = torch.arange(len(pool))
    rows = {y: every[have == y] if (have == y).any() else every for y in set(labels.tolist())}
    draws = torch.rand(len(labels), generator=rng).tolist()
    return pool.take([int(rows[y][int(u * len(rows[y]))]) for y, u in zip(labels.tolist(), draws, strict=True)])


def logits_like(model: Classifier, images: Tensor, beside: Tensor) -> Tensor:
    """Logits (N, K) of images (N, C, H, W) whose channels are brought to the statistics of N others.

    So before every normalisation over the batch and the places, and before the head over the batch. A network without
    normalisations is matched at its head alone.
    """
    parts = max(1, -(-len(images) // at_once(model.device)))
    found = []
    for ours, theirs in zip(images.tensor_split(parts), beside.tensor_split(parts), strict=True):
        with channels_matched(model, len(ours)):
            found.append(predict_logits(model, torch.cat([ours, theirs]), batch_size=2 * len(ours))[: len(ours)])
    return torch.cat(found)


@contextmanager
def channels_matched(model: Classifier, n: int) -> Iterator[None]:
    """Inside the block, the first n images of a batch of 2n take the channel statistics of the others."""

    def match(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, *rest = args
        if len(h) != 2 * n:  # not images first: tokens, or windows of them
            return args
        return as_the_second_half(h, -1 if isinstance(layer, (nn.LayerNorm, nn.Linear)) else 1), *rest

    layers = [m for m in model.body.modules() if isinstance(m, NORMS)]
    hooks = [m.register_forward_pre_hook(match) for m in [*layers, model.head]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def as_the_second_half(h: Tensor, channel: int) -> Tensor:
    """Shift and scale the first half of a batch (2N, ...) to the second's mean and deviation, for each channel."""
    over = [d for d in range(h.ndim) if d != channel % h.ndim]
    ours, theirs = h.float().chunk(2)
    (s, m), (s2, m2) = (torch.std_mean(part, over, correction=0, keepdim=True) for part in (ours, theirs))
    return torch.cat([(ours - m) * ((s2 + EPS) / (s + EPS)) + m2, theirs]).to(h.dtype)
