"""A tiny member of every architecture family, for 32 x 32 colour images and ten classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import nn
from torchvision.models import DenseNet, MobileNetV2, ResNet, SwinTransformer, VisionTransformer
from torchvision.models.resnet import Bottleneck

from bdaudit.inputs.architectures.resnet import PreActResNet18, ResNet18
from bdaudit.inputs.architectures.small import SmallCNN
from bdaudit.inputs.architectures.vgg import VGG19BN
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.runtime import generator, seeded

COLOUR = Preprocessing(channels=3, height=32, width=32, mean=(0.5,) * 3, std=(0.25,) * 3)


class NarrowBottleneck(Bottleneck):
    """Of 64 to 512 channels instead of 256 to 2,048, which took a third of the time of all families together."""

    expansion = 1


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: ResNet18(num_classes=10, channels=3, width=4),
    "preactresnet18": lambda: PreActResNet18(num_classes=10, channels=3, width=4),
    "small_cnn": lambda: SmallCNN(num_classes=10, channels=3, width=4),
    "vgg19_bn": lambda: VGG19BN(num_classes=10, channels=3, width=4),
    "resnet50": lambda: ResNet(NarrowBottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=8),
    "densenet161": lambda: DenseNet(4, (2, 2), 8, num_classes=10),
    "mobilenet_v2": lambda: MobileNetV2(num_classes=10, width_mult=0.1),
    "swin_t": lambda: SwinTransformer([2, 2], 8, [1, 1], [1, 2], [4, 4], num_classes=10),
    "vit_b_16": lambda: VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10),
}

TRANSFORMERS = ("swin_t", "vit_b_16")


def member(family: str) -> Classifier:
    """An untrained one, in eval mode, whose logits depend on its features."""
    return _member(family).clone()


@cache
def _member(family: str) -> Classifier:
    with seeded(generator(0)):
        model = Classifier(FAMILIES[family](), COLOUR).eval()
        nn.init.normal_(model.head.weight)  # torchvision's ViT starts with zeros
    return model
