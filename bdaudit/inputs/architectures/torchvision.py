"""torchvision's classification networks, by torchvision's own names.

The table spares the import of torchvision where only names are wanted, and tells from a state's first and
last weight and its length which few networks are worth building to compare. SqueezeNet is left out: it ends
in a convolution, and many defenses need a linear head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from bdaudit.inputs.architectures.family import Family, Option, Shapes

PREFIX = "torchvision:"

# (first convolution, last linear layer): number of weights in the state, BatchNorm's counters left out.
TABLE: dict[tuple[str, str], dict[str, int]] = {
    ("features.0.weight", "classifier.6.weight"): {
        "alexnet": 16,
        "vgg11": 22,
        "vgg11_bn": 54,
        "vgg13": 26,
        "vgg13_bn": 66,
        "vgg16": 32,
        "vgg16_bn": 84,
        "vgg19": 38,
        "vgg19_bn": 102,
    },
    ("features.0.0.weight", "classifier.2.weight"): {
        "convnext_base": 344,
        "convnext_large": 344,
        "convnext_small": 344,
        "convnext_tiny": 182,
    },
    ("features.conv0.weight", "classifier.weight"): {
        "densenet121": 606,
        "densenet161": 806,
        "densenet169": 846,
        "densenet201": 1006,
    },
    ("features.0.0.weight", "classifier.1.weight"): {
        "efficientnet_b0": 311,
        "efficientnet_b1": 439,
        "efficientnet_b2": 439,
        "efficientnet_b3": 496,
        "efficientnet_b4": 610,
        "efficientnet_b5": 738,
        "efficientnet_b6": 852,
        "efficientnet_b7": 1037,
        "efficientnet_v2_l": 1331,
        "efficientnet_v2_m": 963,
        "efficientnet_v2_s": 672,
        "mobilenet_v2": 262,
    },
    ("conv1.conv.weight", "fc.weight"): {"googlenet": 287},
    ("Conv2d_1a_3x3.conv.weight", "fc.weight"): {"inception_v3": 472},
    ("stem.0.0.weight", "classifier.5.weight"): {"maxvit_t": 548},
    ("layers.0.weight", "classifier.1.weight"): {
        "mnasnet0_5": 262,
        "mnasnet0_75": 262,
        "mnasnet1_0": 262,
        "mnasnet1_3": 262,
    },
    ("features.0.0.weight", "classifier.3.weight"): {"mobilenet_v3_large": 266, "mobilenet_v3_small": 210},
    ("stem.0.weight", "fc.weight"): {
        "regnet_x_16gf": 357,
        "regnet_x_1_6gf": 297,
        "regnet_x_32gf": 372,
        "regnet_x_3_2gf": 402,
        "regnet_x_400mf": 357,
        "regnet_x_800mf": 267,
        "regnet_x_8gf": 372,
        "regnet_y_128gf": 540,
        "regnet_y_16gf": 369,
        "regnet_y_1_6gf": 540,
        "regnet_y_32gf": 407,
        "regnet_y_3_2gf": 426,
        "regnet_y_400mf": 331,
        "regnet_y_800mf": 293,
        "regnet_y_8gf": 350,
    },
    ("conv1.weight", "fc.weight"): {
        "resnet101": 522,
        "resnet152": 777,
        "resnet18": 102,
        "resnet34": 182,
        "resnet50": 267,
        "resnext101_32x8d": 522,
        "resnext101_64x4d": 522,
        "resnext50_32x4d": 267,
        "wide_resnet101_2": 522,
        "wide_resnet50_2": 267,
    },
    ("conv1.0.weight", "fc.weight"): {
        "shufflenet_v2_x0_5": 282,
        "shufflenet_v2_x1_0": 282,
        "shufflenet_v2_x1_5": 282,
        "shufflenet_v2_x2_0": 282,
    },
    ("features.0.0.weight", "head.weight"): {
        "swin_b": 353,
        "swin_s": 353,
        "swin_t": 185,
        "swin_v2_b": 449,
        "swin_v2_s": 449,
        "swin_v2_t": 233,
    },
    ("conv_proj.weight", "heads.head.weight"): {
        "vit_b_16": 152,
        "vit_b_32": 152,
        "vit_h_14": 392,
        "vit_l_16": 296,
        "vit_l_32": 296,
    },
}

# Without these the two return several outputs while training.
_SINGLE_OUTPUT = {"aux_logits": False, "init_weights": True}
_ARGUMENTS: dict[str, dict[str, bool]] = {"googlenet": _SINGLE_OUTPUT, "inception_v3": _SINGLE_OUTPUT}
_SIZES = {"inception_v3": 299}


def families() -> Iterator[Family]:
    """List torchvision's networks as rows for the registry, named without the prefix."""
    for (stem, head), counts in TABLE.items():
        for name, count in counts.items():
            transformer = name.startswith("vit_")
            yield Family(
                name=name,
                make=partial(_make, name),
                stem=stem,
                heads=(head,),
                size=_SIZES.get(name, 224),
                tensors=count,
                options={"image_size": Option(224, 1, 1024)} if transformer else {},
                infer=_image_size if transformer else lambda shapes: {},
            )


def _make(name: str, *, num_classes: int, channels: int, **options: int) -> nn.Module:
    from torchvision import models  # here, because it takes a second that most runs need not spend

    arguments: dict[str, Any] = {**_ARGUMENTS.get(name, {}), **options}
    body: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    if channels != 3:
        _replace_stem(body, channels)
    return body


def _replace_stem(body: nn.Module, channels: int) -> None:
    """Let the first convolution take another number of channels, as people do by hand for grey images."""
    name, old = next((n, m) for n, m in body.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]  # torch declares its own attribute too widely
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    body.set_submodule(name, new)


def _image_size(shapes: Shapes) -> dict[str, int]:
    """Read a vision transformer's image size off its position embedding, (1, patches + 1, features)."""
    patches = shapes.get("encoder.pos_embedding", (1, 2, 1))
    side = math.isqrt(max(patches[1] - 1, 1)) if len(patches) == 3 else 1
    return {"image_size": side * shapes["conv_proj.weight"][-1]}
