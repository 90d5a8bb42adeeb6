"""What a defense refuses before any work, in one line, and small or odd inputs that it takes."""

from __future__ import annotations

import pytest
import torch
from families import TRANSFORMERS, member
from support import make_tiny
from torch import nn

from bdaudit import plugins
from bdaudit.defenses.asd import ASD
from bdaudit.defenses.d3 import D3
from bdaudit.defenses.d_br import DBR
from bdaudit.defenses.fst import FST
from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.report.inversion import FEWEST, cleanse_measurement
from bdaudit.runtime import generator
from bdaudit.training.inversion import Inversion, anomaly_index
from bdaudit.training.metrics import Rate


def digits_classifier(*layers: nn.Module) -> Classifier:
    return Classifier(nn.Sequential(*layers), make_tiny().preprocessing).eval()


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("defense", [FST(layers="all"), D3(layers="all")], ids=lambda d: d.name)
def test_all_layers_of_a_network_with_linear_layers_inside_are_refused(defense: FST | D3, family: str) -> None:
    """Redrawing the blocks of a transformer is no purification."""
    with pytest.raises(UsageError, match=r"moves all layers .* of a linear classifier alone"):
        defense.check_model(member(family))
    type(defense)().check_model(member(family))


@pytest.mark.parametrize("family", ["resnet18", "vgg19_bn", "densenet161", "mobilenet_v2"])
def test_all_layers_of_a_convolutional_network_are_its_classifier(family: str) -> None:
    model = member(family)
    FST(layers="all").check_model(model)
    assert FST(layers="all").moved(model) == [m for m in model.body.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("name", ["fe-tuning", "d-st", "d-br"])
def test_a_network_of_one_layer_has_no_features_to_tune(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} tunes what comes before the last linear layer"):
        plugins.get("defense", name).parse({}).check_model(digits_classifier(nn.Flatten(), nn.Linear(256, 10)))


def test_nad_wants_maps() -> None:
    layers = nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 10)
    with pytest.raises(UsageError, match="nad compares maps of features, and Sequential has no maps"):
        plugins.get("defense", "nad").parse({}).check_model(digits_classifier(*layers))


def test_clp_wants_a_variance() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    layers = nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)
    with pytest.raises(UsageError, match="clp needs BatchNorm layers that follow convolutions and keep a variance"):
        plugins.get("defense", "clp").parse({}).check_model(digits_classifier(*layers))


@pytest.mark.parametrize("rho", [-0.5, -0.99])
def test_a_radius_is_not_negative(rho: float) -> None:
    with pytest.raises(UsageError, match="rho"):
        plugins.get("defense", "ft-sam").parse({"rho": rho})


def test_d_br_takes_a_set_of_twenty(digits: Pool) -> None:
    """One row of them is flagged, and BatchNorm wants two images."""
    train = digits.first(20)
    quick = DBR.parse(DBR.quick_options)
    model = quick.run({"fresh": make_tiny(), "train": train, "rng": generator(0)})
    assert all(t.isfinite().all() for t in model.state_dict().values())


def test_asd_keeps_scores_of_its_first_stage(digits: Pool) -> None:
    quick = ASD.parse({**ASD.quick_options, "halving": 0, "meta": 0})
    _, division = quick.divide(make_tiny(), digits.first(60), digits.take(range(100, 130)), generator(0))
    assert all(len(scores.unique()) > 30 for scores in division.scores.values())


@pytest.mark.parametrize("classes", [2, FEWEST])
def test_neural_cleanse_concludes_nothing_of_few_classes(classes: int) -> None:
    """Of two, both lie .67 deviations from their middle, however small one's mask is."""
    l1 = torch.tensor([0.01, *([500.0] * (classes - 1))])
    masks, patterns = torch.zeros(classes, 16, 16), torch.zeros(classes, 1, 16, 16, dtype=torch.uint8)
    success = tuple(Rate(9, 10) for _ in range(classes))
    found = Inversion(masks, patterns, l1, torch.ones(classes, dtype=torch.bool), success, anomaly_index(l1), 2.0)
    [note] = cleanse_measurement(found, [str(c) for c in range(classes)], patterns[:1], "nc").notes
    assert ("concludes nothing" in note) == (classes == 2)
