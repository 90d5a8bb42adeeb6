"""timm's classification networks by timm's own names, where the extra `timm` is installed.

timm takes seconds to import, so that happens only when one of its names is asked for. Weights are never
downloaded: networks are built with `pretrained=False`, and names that point to a hub are not known here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from bdaudit.errors import UsageError, did_you_mean, one_line
from bdaudit.inputs.architectures.family import Family, Option, Shapes
from bdaudit.inputs.architectures.skeleton import Unallocated, first_layer, untouched_rng
from bdaudit.inputs.classifier import last_linear

PREFIX = "timm:"
MAX_TOKENS = 16
"""Position embeddings of more tokens than this beside the patches are not taken for such."""

_PROBED_CLASSES = 7


def knows(name: str) -> bool:
    """Whether timm is installed and has a network of this plain name, with a tag or without."""
    return find_spec("timm") is not None and _listed(name)


@cache
def family(name: str) -> Family:
    """Describe one of timm's networks, named without the prefix, by building it once without its weights.

    Raises UsageError where timm is not installed or has no such network, and where the network does not end in
    one linear layer.
    """
    timm = _timm(name)
    if not _listed(name):
        raise UsageError(f"timm has no network '{one_line(name, 60)}'{did_you_mean(name, timm.list_models())}")
    body, weightless = _skeleton(name)
    settings: Mapping[str, Any] = body.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every network
    size = int((settings.get("input_size") or (224,))[-1])
    stem = f"{first_layer(body)}.weight"
    return Family(
        name=PREFIX + name,
        make=partial(_make, name, size),
        stem=stem,
        heads=(f"{_head(name, body)}.weight",),
        size=size,
        options={"image_size": Option(size, 1, 2048)} if settings.get("fixed_input_size") else {},
        infer=_image_size({n: tuple(t.shape) for n, t in body.state_dict().items()}, stem, size),
        weightless=weightless,
        source=f"timm {timm.__version__}",
    )


def _listed(name: str) -> bool:
    # timm itself also takes names that point to a hub or to a folder.
    return re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII) is not None and bool(_timm(name).is_model(name))


def _timm(name: str) -> Any:
    try:
        return import_module("timm")
    except ImportError as e:
        if e.name == "timm":
            raise UsageError(
                f"{PREFIX}{one_line(name, 60)} needs timm, which is not installed: pip install 'bdaudit[timm]'"
            ) from None
        raise UsageError(f"timm is installed and cannot be imported ({one_line(e, 160)})") from e


def _make(name: str, size: int, *, num_classes: int, channels: int, image_size: int | None = None) -> nn.Module:
    resized = {} if image_size in (None, size) else {"img_size": image_size}
    body: nn.Module = _timm(name).create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=channels, **resized
    )
    return body


def _skeleton(name: str) -> tuple[nn.Module, bool]:
    """Build a network without memory for its weights, or with it where its constructor computes with them."""
    arguments = {"num_classes": _PROBED_CLASSES, "channels": 3}
    try:
        try:
            with Unallocated():
                return _make(name, 0, **arguments), True
        except RuntimeError:
            with untouched_rng():
                return _make(name, 0, **arguments), False
    except Exception as e:  # an unknown tag, or whatever else timm's constructors raise
        raise UsageError(f"timm cannot build {name} ({one_line(e, 160)})") from e


def _head(name: str, body: nn.Module) -> str:
    """Name the linear layer that a network ends in."""
    head: object = body.get_classifier()  # type: ignore[operator]  # every network of timm has it
    layers = list(head.modules()) if isinstance(head, nn.Module) else []
    ends = [m for m in layers if isinstance(m, nn.Linear) and m.out_features == _PROBED_CLASSES]
    found, last = last_linear(body) if ends else ("", None)
    if len(ends) != 1 or ends[0] is not last:
        raise UsageError(
            f"{PREFIX}{name} does not end in one linear layer, which many defenses need (its classifier is a {type(head).__name__})"
        )
    return found


def _image_size(usual: Shapes, stem: str, size: int) -> Callable[[Shapes], dict[str, int]]:
    """Make the function that reads the image size off a position embedding (1, patches + others, features)."""
    patch, tokens = usual[stem][-1], usual.get("pos_embed", ())
    others = tokens[1] - (size // patch) ** 2 if len(tokens) == 3 else -1

    def infer(shapes: Shapes) -> dict[str, int]:
        tokens = shapes.get("pos_embed", ())
        if len(tokens) != 3 or not 0 <= others <= MAX_TOKENS:
            return {}
        return {"image_size": math.isqrt(max(tokens[1] - others, 1)) * patch}

    return infer
