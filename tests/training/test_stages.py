"""Where the stages of a network end, family by family."""

from __future__ import annotations

import pytest
import torch
from families import COLOUR, FAMILIES, member
from support import make_tiny
from torch import nn
from torchvision.models import SwinTransformer

from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.runtime import generator
from bdaudit.training.stages import Stage, find_stages, staged

ENDS = {
    "resnet18": ("layer2", "layer3", "layer4"),
    "preactresnet18": ("layer2", "layer3", "layer4"),
    "small_cnn": ("bn1", "bn2", "bn3"),
    "vgg19_bn": ("features.25", "features.38", "features.51"),
    "resnet50": ("layer1", "layer2", "layer3"),  # the last one's maps have one place
    "densenet161": ("features.relu0", "features.denseblock1", "features"),
    "mobilenet_v2": ("features.4.conv.0", "features.7.conv.0", "features.14.conv.0"),
    "swin_t": ("features.1", "features.2", "features"),
    "vit_b_16": ("encoder.dropout", "encoder.layers.encoder_layer_0", "encoder"),
}
X = torch.rand(4, 3, 32, 32, generator=generator(1))


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_familys_stages_end_where_all_that_is_known_of_an_image_passes(arch: str) -> None:
    """With another image's map put in its place, a stage's end gives the other image's logits."""
    model = member(arch)
    stages = find_stages(model, most=3)
    assert tuple(s.name for s in stages) == ENDS[arch]
    with torch.no_grad():
        expected = model(X.flip(0))
        for stage in stages:
            module, kept = model.body.get_submodule(stage.name), []
            hook = module.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out.clone()))
            model(X.flip(0))
            hook.remove()
            hook = module.register_forward_hook(lambda _, __, ___, kept=kept: kept[0])
            assert torch.allclose(model(X), expected, atol=1e-4), stage
            hook.remove()


@pytest.mark.parametrize("arch", FAMILIES)
def test_maps_come_as_channels_by_places_whatever_the_layout(arch: str) -> None:
    """Channels last in Swin, tokens in ViT: a model's width tells which axis is which."""
    model = member(arch)
    with torch.no_grad():
        maps, logits = staged(model, find_stages(model, most=3), X)
        assert torch.allclose(logits, model(X), atol=1e-5)
    sizes = [tuple(m.shape[1:]) for m in maps]
    by_hand = {
        "resnet18": [(8, 256), (16, 64), (32, 16)],
        "swin_t": [(8, 256), (16, 64), (16, 64)],
        "vit_b_16": [(16, 17)] * 3,
        "vgg19_bn": [(16, 64), (32, 16), (32, 4)],
    }
    assert sizes == by_hand.get(arch, sizes)
    assert all(m.shape[0] == 4 and m.shape[2] > 1 for m in maps)


def test_a_map_as_deep_as_it_is_wide_has_the_layout_of_the_next() -> None:
    """Swin's first maps are 16 x 16 x 16 here, and its second 8 x 8 x 32."""
    body = SwinTransformer([2, 2], 16, [1, 1], [1, 2], [4, 4], num_classes=10)
    assert [s.channels for s in find_stages(Classifier(body, COLOUR), most=3)] == [3, 3, 3]


def test_finding_stages_leaves_the_model_as_it_was() -> None:
    model = make_tiny().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert [s.channels for s in find_stages(model, most=2)] == [1, 1]
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_network_without_maps_is_an_error() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 10))
    with pytest.raises(UsageError, match="Sequential has no maps of features"):
        find_stages(Classifier(body, make_tiny().preprocessing), most=3)


def test_a_module_that_a_shortcut_goes_round_is_no_stage() -> None:
    """In a residual block neither convolution is, but the block that adds them up."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.two(self.one(x).relu())

    body = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    model = Classifier(body, make_tiny().preprocessing)
    assert find_stages(model, most=1) == (Stage("1", 1),)
