"""The feature maps with which a network's stages end, whatever its architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor

from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.training.split import Layout, maps_of, with_channels


@dataclass(frozen=True)
class Stage:
    """A module whose output all that the logits know of an image passes through. channels: the map's axis of them."""

    name: str
    channels: int


def find_stages(model: Classifier, most: int) -> tuple[Stage, ...]:
    """Name the last maps of up to `most` stages, early ones first, by running the network; UsageError if it has none.

    A stage is a run of layers whose maps have the same places. Where there are too few of them, as in a vision
    transformer, whose tokens stay as many as they are, the longest is cut into equal parts.
    """
    frozen = model.clone().eval().requires_grad_(False)
    shape = frozen.preprocessing.shape
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(frozen.device)
    with torch.no_grad():
        found, _ = maps_of(frozen, images)
    maps = with_channels([(n, out.shape) for n, (out, _) in found.items() if len(out) == len(images)], shape)
    runs = [list(run) for _, run in groupby(maps, key=lambda m: _places(m[1], m[2]))]
    # A map of one place attends to nothing, and a single layer is no stage but the way into one.
    runs = [run for run in runs if _places(run[0][1], run[0][2]).numel() > 1 and len(run) > 1][-most:]
    if runs and len(runs) < most:
        longest = max(range(len(runs)), key=lambda i: len(runs[i]))
        runs[longest : longest + 1] = _parts(runs[longest], most - len(runs) + 1)
    stages = []
    for run in runs:
        # Blocks before single layers: behind a stage's last block the next one begins, with a normalisation perhaps.
        ends = sorted(run, key=lambda m: any(frozen.body.get_submodule(m[0]).children()))
        end = next(((name, axis) for name, _, axis in reversed(ends) if _decides(frozen, name, images[:1])), None)
        if end is not None:
            stages.append(Stage(*end))
    if not stages:
        raise UsageError(f"{type(model.body).__name__} has no maps of features that its logits pass through")
    return tuple(stages)


def lack_of_stages(model: Classifier) -> str:
    """Say why a network has no stages; '' where it has."""
    try:
        find_stages(model, most=1)
    except UsageError as e:
        return str(e)
    return ""


def staged(model: Classifier, stages: Sequence[Stage], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Map pixels to the stages' maps, each (N, channels, places), and the logits (N, K), in one pass and in fp32."""
    seen: list[Tensor] = []
    hooks = [
        model.body.get_submodule(s.name).register_forward_hook(lambda _, __, out: seen.append(out)) for s in stages
    ]
    try:
        logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    maps = [m.float().movedim(s.channels, 1).flatten(2) for s, m in zip(stages, seen, strict=True)]
    return maps, logits.float()


def _decides(frozen: Classifier, name: str, image: Tensor) -> bool:
    """Whether no path leads from the image to the logits but through this module."""
    hook = frozen.body.get_submodule(name).register_forward_hook(lambda _, __, out: out.detach())
    try:
        return not frozen(image.clone().requires_grad_()).requires_grad
    finally:
        hook.remove()


def _places(out: torch.Size, channels: int) -> torch.Size:
    return torch.Size(n for axis, n in enumerate(out) if axis not in (0, channels))


def _parts(run: list[Layout], count: int) -> list[list[Layout]]:
    ends = [round(len(run) * i / count) for i in range(count + 1)]
    return [run[a:b] for a, b in pairwise(ends) if b > a]
