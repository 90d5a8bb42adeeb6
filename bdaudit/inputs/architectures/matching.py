"""Recognise an architecture from the names and shapes of a state's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor, nn

from bdaudit.errors import CheckpointError, UsageError, one_line
from bdaudit.inputs.architectures.family import Family, Shapes
from bdaudit.inputs.architectures.registry import build, complete, find, registry
from bdaudit.inputs.architectures.skeleton import Unallocated, first_layer, untouched_rng
from bdaudit.inputs.checkpoint_layout import common_prefix
from bdaudit.inputs.classifier import ArchSpec, last_linear

COUNTER = "num_batches_tracked"
"""BatchNorm's counter: never used in inference, absent from checkpoints older than PyTorch 0.4.1."""


@dataclass(frozen=True)
class Match:
    """An architecture together with what the shapes say of its input and output.

    recognised: nobody named it, it was found by the weights.
    """

    arch: ArchSpec
    num_classes: int
    channels: int
    recognised: bool = False


def match(shapes: Shapes) -> Match:
    """Find the one architecture that a state of these shapes loads into strictly.

    shapes: name -> shape, without wrappers' prefixes; BatchNorm's counters may be missing.
    Raises CheckpointError naming the closest known architectures when none fits.
    """
    size = _count(shapes)
    near = [(name, family) for name, family in registry().items() if family.plausible(shapes)]
    for name, family in near:
        if family.tensors in (size, None):
            try:
                return replace(fit(ArchSpec(name), shapes), recognised=True)
            except CheckpointError:
                continue
    raise CheckpointError(
        f"its architecture is not known ({_closest(shapes)}); give --arch: a name, timm:NAME, or your own FILE.py:FUNCTION"
    )


def fit(spec: ArchSpec, shapes: Shapes) -> Match:
    """Check that a state of these shapes loads strictly into `spec`; its open options are read off them.

    Raises CheckpointError naming the first weight that differs; UsageError for an unknown architecture or
    option.
    """
    found = _sized(spec, _surveyed(spec, shapes), shapes)
    wrong = _first_difference(_expected(found), shapes)
    if wrong:
        raise CheckpointError(f"its weights do not fit {found.arch}: {wrong}")
    return found


def _surveyed(spec: ArchSpec, shapes: Shapes) -> Family:
    """Learn the names of the first and the last weight by building the network, where its family does not say."""
    family = find(spec.name)
    if family.heads:
        return family
    # A guess, as a function may take nothing but what its weights have; what counts is read off by name.
    first, last = ([s for s in shapes.values() if len(s) == n] for n in (4, 2))
    channels = first[0][1] if first and first[0][1] in (1, 3) else 3
    num_classes = last[-1][0] if last else 10
    with untouched_rng():
        body = build(spec.name, num_classes=num_classes, channels=channels, **spec.options)
    prefix = common_prefix(body.state_dict())
    stem, head = (f"{name}.weight".removeprefix(prefix) for name in (first_layer(body), last_linear(body)[0]))
    return replace(family, stem=stem, heads=(head,))


def _sized(spec: ArchSpec, family: Family, shapes: Shapes) -> Match:
    """Read options, classes and channels off the stem and the head."""
    head = family.head(shapes)
    if head is None or not family.plausible(shapes):
        lacking = family.heads[0] if head is None else family.stem
        raise CheckpointError(f"its weights do not fit {spec.label}: {lacking} is {_described(shapes, lacking)}")
    channels, num_classes = _channels(shapes[family.stem]), shapes[head][0]
    if channels not in (1, 3):
        raise CheckpointError(f"its first layer takes {channels} channels; bdaudit knows images of 1 or 3")
    try:
        arch = complete(spec, family.infer(shapes))
    except UsageError as e:
        raise CheckpointError(str(e)) from e
    return Match(arch, num_classes, channels)


def _channels(stem: tuple[int, ...]) -> int:
    """Read the channels of an image off the first weight, a convolution's or a linear layer's."""
    if len(stem) == 4:
        return stem[1]
    # It takes a square of pixels from each channel, and three times a square number is never a square number.
    return next((c for c in (1, 3) if c * math.isqrt(stem[1] // c) ** 2 == stem[1]), stem[1])


def _expected(found: Match) -> dict[str, tuple[int, ...]]:
    """The shapes that a network's state has, by name and without the prefix of a wrapper around all of it."""
    try:
        with Unallocated() if find(found.arch.name).weightless else untouched_rng():
            body = build(found.arch.name, num_classes=found.num_classes, channels=found.channels, **found.arch.options)
    except UsageError as e:
        raise CheckpointError(str(e)) from e
    return {name: tuple(t.shape) for name, t in plain_state(body).items()}


def plain_state(body: nn.Module) -> dict[str, Tensor]:
    """A network's weights by name, as `unwrap` names those of a file: without the prefix of a wrapper around all."""
    state = body.state_dict()
    prefix = common_prefix(state)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _first_difference(expected: Shapes, shapes: Shapes) -> str | None:
    for name, shape in expected.items():
        got = shapes.get(name)
        if got != shape and not (got is None and name.endswith(COUNTER)):
            return f"{name} is {_described(shapes, name)}, {shape} expected"
    surplus = next((name for name in shapes if name not in expected), None)
    return surplus and f"{one_line(surplus, 80)} is in the file and not in the architecture"


def _described(shapes: Shapes, name: str) -> str:
    return f"{shapes[name]} in the file" if name in shapes else "missing from the file"


def _count(shapes: Shapes) -> int:
    return sum(not name.endswith(COUNTER) for name in shapes)


def _closest(shapes: Shapes, most: int = 3) -> str:
    """Describe the architectures that share most weights with the file."""
    size = _count(shapes)
    rows = [(name, f) for name, f in registry().items() if len(shapes.get(f.stem, ())) == 4]
    # Building networks is what takes time, so only those of about the right length are.
    rows.sort(key=lambda row: abs((row[1].tensors or size) - size))
    scores: list[tuple[float, str]] = []
    for name, family in rows[:6]:
        head = family.head(shapes)
        try:
            arch = complete(ArchSpec(name), family.infer(shapes))
            expected = _expected(Match(arch, shapes[head][0] if head else 10, shapes[family.stem][1]))
        except (CheckpointError, UsageError):
            continue
        names = {n for n in (*expected, *shapes) if not n.endswith(COUNTER)}
        share = sum(expected.get(n) == shapes.get(n) for n in names) / len(names)
        # Rounded down: what did not match is never called 100%.
        scores.append((share, f"{name} ({int(share * 100)}% of keys; {_first_difference(expected, shapes)})"))
    scores = sorted((s for s in scores if s[0] >= 0.2), reverse=True)[:most]
    if not scores:
        return "no known architecture is close"
    return "closest: " + ", ".join(text for _, text in scores)
