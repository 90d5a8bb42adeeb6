"""The architectures by name: one row per family.

To add one, write the network in a file of its own and add its row to `_OWN`. timm's networks and the user's own
are no rows: they are looked up when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import nn

from bdaudit.errors import UsageError, did_you_mean, one_line
from bdaudit.inputs.architectures import own, timm, torchvision
from bdaudit.inputs.architectures.family import Family, Option, Shapes
from bdaudit.inputs.architectures.resnet import PreActResNet18, ResNet18
from bdaudit.inputs.architectures.skeleton import untouched_rng
from bdaudit.inputs.architectures.small import SmallCNN
from bdaudit.inputs.architectures.vgg import VGG19BN
from bdaudit.inputs.classifier import ArchSpec, Classifier, Preprocessing

MAX_WIDTH = 1024
MAX_CLASSES = 100_000


def _stem_width(shapes: Shapes) -> dict[str, int]:
    return {"width": shapes["conv1.weight"][0]}


def _vgg_options(shapes: Shapes) -> dict[str, int]:
    return {"width": shapes["features.0.weight"][0], "linears": 1 if "classifier.weight" in shapes else 3}


_OWN = (
    Family(
        name="resnet18",
        make=ResNet18,
        stem="conv1.weight",
        heads=("linear.weight",),
        size=32,
        min_size=8,
        tensors=102,
        options={"width": Option(64, 1, MAX_WIDTH)},
        infer=_stem_width,
    ),
    Family(
        name="preactresnet18",
        make=PreActResNet18,
        stem="conv1.weight",
        heads=("linear.weight",),
        size=32,
        min_size=8,
        tensors=86,
        options={"width": Option(64, 1, MAX_WIDTH)},
        infer=_stem_width,
    ),
    Family(
        name="vgg19_bn",
        make=VGG19BN,
        stem="features.0.weight",
        heads=("classifier.6.weight", "classifier.weight"),
        size=32,
        min_size=32,
        options={"width": Option(64, 1, MAX_WIDTH), "linears": Option(3, 1, 3)},
        infer=_vgg_options,
    ),
    Family(
        name="small_cnn",
        make=SmallCNN,
        stem="conv1.weight",
        heads=("linear.weight",),
        size=32,
        min_size=8,
        tensors=17,
        options={"width": Option(16, 1, MAX_WIDTH)},
        infer=_stem_width,
    ),
)


@cache
def registry() -> Mapping[str, Family]:
    """Every family by its canonical name: torchvision's carry `torchvision:` where the plain name is ours."""
    rows = {family.name: family for family in _OWN}
    for family in torchvision.families():
        rows[torchvision.PREFIX + family.name if family.name in rows else family.name] = family
    return rows


def known() -> tuple[str, ...]:
    """Name every architecture, bdaudit's own first."""
    return tuple(registry())


def canonical(name: str) -> str:
    """Spell a name as the registry does, as `torchvision:` may stand before any of torchvision's networks.

    Names of timm's networks start with `timm:`. Unknown names raise UsageError with the close ones.
    """
    if ArchSpec(name).is_code or name.startswith(timm.PREFIX):
        return name
    rows = registry()
    plain = name.removeprefix(torchvision.PREFIX)
    for candidate in (name, plain):
        if candidate in rows and (candidate == name or rows[candidate] not in _OWN):
            return candidate
    raise UsageError(f"unknown architecture '{one_line(name, 60)}'{did_you_mean(name, rows)}")


def find(name: str) -> Family:
    """Look a family up by name; unknown names raise UsageError with the close ones.

    No code is run for a name: a function of the user's own is found only where `from_user` has been given it.
    """
    if ArchSpec(name).is_code:
        return own.family(name)
    if name.startswith(timm.PREFIX):
        return timm.family(name.removeprefix(timm.PREFIX))
    return registry()[canonical(name)]


def from_user(text: str) -> ArchSpec:
    """Read what a user typed: as `parse` does, or `path/to/models.py:make_model:width=16`, whose file is then run.

    Never give it what a file said. Raises UsageError as `parse` does, and for whatever goes wrong in that file.
    """
    if not own.NAMED.search(text):
        return parse(text)
    name, options = own.load(text)
    return _checked(name, options)


def parse(text: str) -> ArchSpec:
    """Read `resnet18`, `resnet18:width=16`, `torchvision:resnet18` or `timm:NAME` into the options that were typed.

    A plain name may also be one that only timm knows, where that is installed. Unknown architectures and options,
    and values out of range, raise UsageError; so does a Python file, which only `from_user` runs.
    """
    prefix = next((p for p in (torchvision.PREFIX, timm.PREFIX) if text.startswith(p)), "")
    name, _, options = text.removeprefix(prefix).partition(":")
    if own.NAMED.search(text):
        name, options = text, ""
    elif not prefix and name not in registry() and timm.knows(name):
        prefix = timm.PREFIX
    return _checked(canonical(prefix + name), options)


def _checked(name: str, text: str) -> ArchSpec:
    options: dict[str, int] = {}
    for item in text.split(",") if text else ():
        key, _, value = item.partition("=")
        if not (value.isascii() and value.isdecimal() and len(value) < 10):
            raise UsageError(f"--arch: expected option=number after ':', got '{one_line(item, 60)}'")
        options[key.strip()] = int(value)
    spec = ArchSpec(name, options)
    complete(spec)
    return spec


def complete(spec: ArchSpec, inferred: Mapping[str, int] | None = None) -> ArchSpec:
    """Fill in the options that `spec` leaves open, from `inferred` or else the defaults; check them all.

    Unknown architectures and options, and values out of range, raise UsageError.
    """
    family = find(spec.name)
    defaults = {key: o.default for key, o in family.options.items() if o.default is not None}
    options = {**defaults, **(inferred or {}), **spec.options}
    for key, value in options.items():
        option = family.options.get(key, family.any_option)
        if option is None:
            takes = ", ".join(family.options) or "none"
            raise UsageError(
                f"{spec.label} has no option '{one_line(key, 60)}' (it takes: {takes})"
                f"{did_you_mean(key, family.options)}"
            )
        if not option.low <= value <= option.high:
            raise UsageError(f"{spec.label}: {key} must be {option.low} to {option.high}, got {value}")
    return ArchSpec(canonical(spec.name), options)


def build(name: str, *, num_classes: int, channels: int, **options: int) -> nn.Module:
    """Build a network by name with torch's default initialisation, drawn from the global generator.

    num_classes: 1 or more. channels: of the images, 1 or 3. options: such as `width`.
    Anything unknown or out of range raises UsageError.
    """
    spec = complete(ArchSpec(name, options))
    if not 1 <= num_classes <= MAX_CLASSES:
        raise UsageError(f"{spec.label}: the number of classes must be 1 to {MAX_CLASSES}, got {num_classes}")
    if channels not in (1, 3):
        raise UsageError(f"{spec.label}: images have 1 or 3 channels, got {channels}")
    try:
        return find(name).make(num_classes=num_classes, channels=channels, **spec.options)
    except (AssertionError, ValueError, TypeError, RuntimeError) as e:  # an image size that the patches do not divide
        raise UsageError(f"{spec} cannot be built: {one_line(e, 160)}") from e


def fresh(spec: ArchSpec, preprocessing: Preprocessing, classes: Sequence[str], rng: torch.Generator) -> Classifier:
    """Build an untrained classifier on the CPU whose weights depend on `rng` alone.

    Advances `rng` by one draw and leaves torch's global generators as they were. Raises UsageError for an
    unknown architecture or option, no classes, or images that the architecture does not take.
    """
    spec = complete(spec)
    check_size(spec, preprocessing)
    seed = int(torch.randint(2**62, (), generator=rng, device=rng.device).item())
    with untouched_rng(seed):
        body = build(spec.name, num_classes=len(classes), channels=preprocessing.channels, **spec.options)
    model = Classifier(body, preprocessing, arch=spec, classes=tuple(classes))
    model.check()
    return model


def check_size(spec: ArchSpec, preprocessing: Preprocessing) -> None:
    """Make sure that an architecture takes images of a size; raises UsageError."""
    least, only = find(spec.name).min_size, spec.options.get("image_size")
    height, width = preprocessing.height, preprocessing.width
    if min(height, width) < least:
        raise UsageError(f"{spec.label} takes images of {least}x{least} pixels or more, got {height}x{width}")
    if only is not None and (height, width) != (only, only):
        raise UsageError(f"{spec} takes images of {only}x{only} pixels, got {height}x{width}")
