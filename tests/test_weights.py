"""The probe weights: distances by layer, as D3's Fig. 3 (c) has them by entry."""

from __future__ import annotations

import math

import pytest
import torch
from support import make_tiny

from bdaudit.inputs.classifier import Classifier
from bdaudit.probes.weights import Weights, blocks_of
from bdaudit.report.schema import Measurement
from bdaudit.testing import soundness


def moved(model: Classifier, name: str, change: torch.Tensor) -> Classifier:
    """A copy, one of whose parameters is changed by so much."""
    copy = model.clone()
    with torch.no_grad():
        copy.body.get_parameter(name).add_(change)
    return copy


def distances(result: Measurement, subject: str = "purified") -> dict[str, float]:
    return {f.variant: f.value for f in result.findings if f.subject == subject}


def test_a_layer_s_distance_is_the_norm_of_its_change_in_parts_of_its_norm(tiny: Classifier) -> None:
    """||W - W_suspect||_F / ||W_suspect||_F, of the layer that moved and of no other."""
    before = tiny.body.get_parameter("conv2.weight").detach()
    change = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    purified = moved(tiny, "conv2.weight", change)
    result = Weights().run({"suspect": tiny, "purified": purified, "reference": tiny})
    [chart] = result.exhibits
    # bn2's scale and shift count with conv2.
    after = [tiny.body.get_parameter(f"bn2.{n}").detach() for n in ("weight", "bias")]
    norm = math.sqrt(sum(float(t.square().sum()) for t in (before, *after)))
    by_layer = dict(zip(chart.x_names, chart.curves["purified"], strict=True))
    assert by_layer.pop("conv2") == pytest.approx(float(change.norm()) / norm, rel=1e-5)
    assert set(by_layer.values()) == {0.0}
    assert chart.curves["reference"] == [0.0] * 4
    assert f"lies {float(change.norm()):.3g} from the suspect; conv2 moved most" in chart.caption
    assert soundness.measurement(result, "weights") == ""


def test_head_and_body_are_told_apart(tiny: Classifier) -> None:
    """A defense that only takes a new head has left the body where the backdoor is."""
    head = tiny.head.weight.detach()
    result = Weights().run({"suspect": tiny, "purified": moved(tiny, "linear.weight", -head)})
    found = distances(result)
    assert found["body"] == 0
    assert found["head"] == pytest.approx(
        float(head.norm()) / math.hypot(float(head.norm()), float(tiny.head.bias.detach().norm())), rel=1e-5
    )
    assert 0 < found[""] < found["head"]
    assert distances(result, "reference") == {}
    assert any("reference" in note for note in result.notes)


def test_layers_stand_in_the_network_s_order_with_their_normalisation(tiny: Classifier) -> None:
    [chart] = Weights().run({"suspect": tiny, "purified": make_tiny(seed=1)}).exhibits
    assert chart.x_names == ["conv1", "conv2", "conv3", "linear"]


def test_a_deep_network_is_shown_by_blocks_and_no_parameter_is_lost() -> None:
    """A ResNet-50 has 54 layers with weights: too many for a telephone's width, so its 16 blocks stand for them."""
    from torchvision.models import resnet50

    with torch.device("meta"):
        network = resnet50()
    dimensions = {name: p.ndim for name, p in network.named_parameters()}
    layers = blocks_of(dimensions, 1000)
    assert len(layers) == 54
    assert layers["layer1.0.conv1"] == ["layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias"]
    blocks = blocks_of(dimensions, 48)
    assert len(blocks) == 18
    assert list(blocks)[:4] == ["conv1", "layer1.0", "layer1.1", "layer1.2"]
    assert list(blocks)[-1] == "fc"
    assert [name for names in blocks.values() for name in names] == list(dimensions)


def test_what_was_nothing_has_moved_by_its_whole(tiny: Classifier) -> None:
    """A layer of zeros has no length to divide by: the figure stays finite, and says that it moved."""
    zero = moved(tiny, "linear.weight", -tiny.head.weight.detach())
    zero = moved(zero, "linear.bias", -tiny.head.bias.detach())
    assert distances(Weights().run({"suspect": zero, "purified": tiny}))["head"] == 1.0
    assert distances(Weights().run({"suspect": zero, "purified": zero}))["head"] == 0.0


def test_another_architecture_has_no_distance_and_is_named(tiny: Classifier) -> None:
    """Weights of other shapes cannot be compared; the audit goes on."""
    other = make_tiny("small_cnn:width=8")
    result = Weights().run({"suspect": tiny, "purified": tiny, "reference": other})
    assert {f.subject for f in result.findings} == {"purified"}
    assert any(
        "no distance of the reference from the suspect: their architectures differ (body.conv1.weight is" in n
        for n in result.notes
    )
    result = Weights().run({"suspect": tiny, "purified": other})
    assert not result.findings
    assert not result.exhibits
