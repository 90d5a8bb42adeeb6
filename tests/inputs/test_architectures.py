"""Architectures by name, and recognised from their weights."""

import itertools
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import models

from bdaudit.errors import CheckpointError, UsageError
from bdaudit.inputs import architectures
from bdaudit.inputs.architectures import build, complete, find, fit, fresh, known, match, matching, parse
from bdaudit.inputs.architectures.matching import COUNTER
from bdaudit.inputs.architectures.skeleton import Unallocated
from bdaudit.inputs.architectures.torchvision import TABLE
from bdaudit.inputs.checkpoint_layout import common_prefix
from bdaudit.inputs.classifier import ArchSpec, Classifier, Preprocessing
from bdaudit.inputs.normalisation import (
    NORMALISATIONS,
    normalisation,
    normalisations,
    rank_normalisations,
    usual_preprocessing,
)

OWN = ("resnet18", "preactresnet18", "vgg19_bn", "small_cnn")


def shapes_of(name, *, num_classes=7, channels=3, **options):
    with Unallocated():
        body = build(name, num_classes=num_classes, channels=channels, **options)
    return {k: tuple(v.shape) for k, v in body.state_dict().items()}


def pixels(channels=3, side=32):
    return usual_preprocessing((channels, side, side))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 9, 28, 32])
def test_our_networks_take_any_size_from_their_least(name, channels, side):
    rng = torch.Generator().manual_seed(0)
    spec = ArchSpec(name, {"width": 4})
    if side < find(name).min_size:
        with pytest.raises(UsageError, match="32x32 pixels or more"):
            fresh(spec, pixels(channels, side), "abc", rng)
        return
    model = fresh(spec, pixels(channels, side), "abc", rng).eval()
    x = torch.randint(256, (2, channels, side, side), dtype=torch.uint8)
    assert model(x).shape == (2, 3)
    assert model.features(x).shape == (2, model.head.in_features)
    assert model.arch == ArchSpec(name, architectures.complete(spec).options)


def test_resnet18_has_the_size_of_the_paper_and_the_names_of_the_field():
    body = build("resnet18", num_classes=10, channels=3)
    assert sum(p.numel() for p in body.parameters()) == 11_173_962
    names = body.state_dict()
    for name in ("conv1.weight", "bn1.weight", "layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.weight"):
        assert name in names
    assert names["layer4.1.conv2.weight"].shape == (512, 512, 3, 3)
    assert names["linear.weight"].shape == (10, 512)


def test_preactresnet18_has_the_names_of_the_field():
    body = build("preactresnet18", num_classes=10, channels=3)
    assert sum(p.numel() for p in body.parameters()) == 11_171_146
    names = body.state_dict()
    assert "bn1.weight" not in names
    assert "layer2.0.shortcut.0.weight" in names
    assert "layer2.0.shortcut.1.weight" not in names


def test_an_identity_shortcut_bypasses_a_silent_block():
    """With the residual branch at zero, a block hands on its input: raw in PreAct, rectified in ResNet."""
    for name, expected in (("preactresnet18", lambda x: x), ("resnet18", torch.relu)):
        block = build(name, num_classes=2, channels=1, width=4).get_submodule("layer1.0").eval()
        torch.nn.init.zeros_(block.get_parameter("conv2.weight"))
        x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(block(x), expected(x))


def test_vgg19_bn_has_sixteen_convolutions_and_one_or_three_linear_layers():
    for linears, last in ((3, "classifier.6"), (1, "classifier")):
        body = build("vgg19_bn", num_classes=5, channels=3, width=4, linears=linears)
        kinds = [type(m).__name__ for m in body.modules()]
        assert kinds.count("Conv2d") == 16
        assert kinds.count("Linear") == linears
        assert body.get_submodule(last).out_features == 5


def test_weights_depend_on_the_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (
        fresh(ArchSpec("small_cnn"), pixels(1, 16), "ab", rng)
        for rng in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1), torch.Generator())
    )
    assert torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.head.weight, c.head.weight)
    assert torch.equal(state, torch.get_rng_state())
    rng = torch.Generator().manual_seed(1)
    first, second = (fresh(ArchSpec("small_cnn"), pixels(1, 16), "ab", rng) for _ in range(2))
    assert not torch.equal(first.head.weight, second.head.weight)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(OWN),
    width=st.integers(1, 96),
    num_classes=st.integers(1, 200),
    channels=st.sampled_from([1, 3]),
    linears=st.sampled_from([1, 3]),
    counters=st.booleans(),
)
def test_matching_recovers_family_width_classes_and_channels(name, width, num_classes, channels, linears, counters):
    options = {"width": width} | ({"linears": linears} if name == "vgg19_bn" else {})
    shapes = shapes_of(name, num_classes=num_classes, channels=channels, **options)
    if not counters:
        shapes = {k: v for k, v in shapes.items() if not k.endswith(COUNTER)}
    found = match(shapes)
    assert (found.arch, found.num_classes, found.channels) == (ArchSpec(name, options), num_classes, channels)


@pytest.fixture(scope="module")
def built_once():
    """Build each network once for all tests, as that is what takes their time."""
    once = cache(lambda name, options: build(name, **dict(options)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "build", lambda name, **options: once(name, tuple(sorted(options.items()))))
        yield


@pytest.mark.parametrize("name", known())
def test_every_network_is_recognised_by_its_weights_behind_wrappers_prefixes(name, built_once):
    with Unallocated():
        body = matching.build(name, num_classes=7, channels=1, **complete(ArchSpec(name)).options)
    saved = {f"module._orig_mod.{n}": tuple(t.shape) for n, t in body.state_dict().items()}
    prefix = common_prefix(saved)  # as DataParallel and torch.compile leave it
    found = match({n.removeprefix(prefix): shape for n, shape in saved.items()})
    assert prefix == "module._orig_mod."
    assert (found.arch, found.num_classes, found.channels) == (complete(ArchSpec(name)), 7, 1)
    assert found.recognised


def test_backdoorbenchs_names_are_known():
    """Its ResNet-18 and VGG-19-BN are torchvision's, its PreAct-ResNet-18 has ours, and its ViT stands in a Sequential
    behind a resize."""
    for name in ("torchvision:resnet18", "torchvision:vgg19_bn", "densenet161", "mobilenet_v2", "swin_t", "vit_b_16"):
        assert name in known()
    names = set(shapes_of("preactresnet18"))
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for layer, block in itertools.product((1, 2, 3, 4), (0, 1)):
        here = f"layer{layer}.{block}"
        expected = {f"{here}.conv{i}.weight" for i in (1, 2)} | {f"{here}.bn{i}.{k}" for i in (1, 2) for k in bn}
        expected |= {f"{here}.shortcut.0.weight"} if layer > 1 and block == 0 else set()
        assert {n for n in names if n.startswith(here)} == expected
    assert {n for n in names if not n.startswith("layer")} == {"conv1.weight", "linear.weight", "linear.bias"}
    assert common_prefix([f"1.{n}" for n in shapes_of("vit_b_16")]) == "1."


def test_the_table_knows_every_network_of_torchvision_with_a_linear_head():
    listed = {name for name in models.list_models(module=models) if not name.startswith("squeezenet")}
    assert {name for counts in TABLE.values() for name in counts} == listed


def test_a_transformer_is_recognised_at_any_image_size():
    assert match(shapes_of("vit_b_32", image_size=64)).arch == ArchSpec("vit_b_32", {"image_size": 64})


def test_torchvisions_networks_take_grey_images():
    rng = torch.Generator().manual_seed(0)
    model = fresh(parse("torchvision:resnet18"), pixels(1, 32), "abcd", rng).eval()
    assert model(torch.zeros(1, 1, 32, 32, dtype=torch.uint8)).shape == (1, 4)
    assert match({k: tuple(v.shape) for k, v in model.body.state_dict().items()}).channels == 1


def test_a_near_miss_names_the_closest_and_what_differs():
    shapes = shapes_of("resnet18", width=16) | {"layer4.0.conv1.weight": (64, 64, 3, 3)}
    with pytest.raises(CheckpointError, match=r"closest: resnet18 .99% of keys") as e:
        match(shapes)
    text = str(e.value)
    assert "layer4.0.conv1.weight is (64, 64, 3, 3) in the file, (128, 64, 3, 3) expected" in text
    assert "--arch" in text
    shapes = {k.replace("linear.", "fc2."): v for k, v in shapes_of("resnet18", width=16).items()}
    with pytest.raises(CheckpointError, match=r"linear.weight is missing from the file"):
        match(shapes)
    with pytest.raises(CheckpointError, match=r"extra.weight is in the file and not in the architecture"):
        match(shapes_of("small_cnn") | {"extra.weight": (1,)})


@pytest.mark.parametrize(
    "change",
    [
        {"conv1.weight": (10**9, 3, 3, 3)},
        {"linear.weight": (10**15, 64)},
        {"linear.weight": (0, 64)},
        {"conv1.weight": (16, 4, 3, 3)},
        {"conv1.weight": ()},
        {"linear.weight": (5,)},
    ],
)
def test_hostile_shapes_end_in_one_clear_line(change):
    shapes = shapes_of("small_cnn") | change
    for call in (lambda: match(shapes), lambda: fit(ArchSpec("small_cnn"), shapes)):
        with pytest.raises(CheckpointError) as e:
            call()
        assert "\n" not in str(e.value)


def test_nothing_like_it_is_said_plainly():
    with pytest.raises(CheckpointError, match="no known architecture is close"):
        match({"w": (3, 3)})


def test_names_are_parsed_with_their_options():
    assert parse("resnet18") == ArchSpec("resnet18")
    assert parse("resnet18:width=16") == ArchSpec("resnet18", {"width": 16})
    assert parse("vgg19_bn:width=8,linears=1") == ArchSpec("vgg19_bn", {"width": 8, "linears": 1})
    assert parse("torchvision:resnet18") == ArchSpec("torchvision:resnet18")
    assert parse("torchvision:mobilenet_v2") == ArchSpec("mobilenet_v2")
    assert parse("torchvision:vit_b_16:image_size=32") == ArchSpec("vit_b_16", {"image_size": 32})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet81", "did you mean .*resnet18"),
        ("torchvision:small_cnn", "unknown architecture"),
        ("", "unknown architecture"),
        ("resnet18:widht=3", "did you mean width"),
        ("resnet18:width=0", "1 to 1024, got 0"),
        ("resnet18:width=-4", "option=number"),
        ("resnet18:width", "option=number"),
        ("resnet18:width=99999999999", "option=number"),
        ("mobilenet_v2:width=3", "it takes: none"),
    ],
)
def test_what_cannot_be_built_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_build_checks_what_it_is_given():
    for wrong in ({"num_classes": 0}, {"channels": 4}, {"width": 5000}):
        with pytest.raises(UsageError):
            build("small_cnn", **({"num_classes": 2, "channels": 1} | wrong))
    with pytest.raises(UsageError, match="cannot be built"):
        build("vit_b_16", num_classes=2, channels=3, image_size=33)


def test_an_image_that_a_network_cannot_take_is_said():
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(UsageError, match=r"vit_b_32\(image_size=32\) takes images of 32x32 pixels, got 64x64"):
        fresh(ArchSpec("vit_b_32", {"image_size": 32}), pixels(3, 64), "ab", rng)
    with pytest.raises(UsageError, match=r"alexnet fails on a 3x16x16 image \(RuntimeError"):
        fresh(ArchSpec("alexnet"), pixels(3, 16), "ab", rng)


def test_known_lists_our_own_first_and_prefixes_what_clashes():
    assert known()[:4] == OWN
    assert {"torchvision:resnet18", "torchvision:vgg19_bn", "mobilenet_v2", "swin_t", "densenet161"} <= {*known()}


class Threshold(torch.nn.Module):
    """Says 1 where normalised pixels exceed 0, and so is right only with the mean that made the labels."""

    def __init__(self):
        super().__init__()
        self.answer = torch.nn.Linear(1, 2)
        self.answer.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)})

    def forward(self, x):
        return self.answer(x.mean((1, 2, 3))[:, None])


def test_normalisations_are_ranked_by_accuracy():
    images = torch.arange(0, 256, 4, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    labels = (images[:, 0, 0, 0] > 0.6 * 255).long()
    model = Classifier(Threshold(), pixels(1, 8)).train()
    candidates = {f"mean {m}": ((m,), (0.5,)) for m in (0.0, 0.3, 0.6, 0.8)} | {"the same": ((0.6,), (0.5,))}
    ranking = rank_normalisations(model, images, labels, candidates)
    assert [name for name, _ in ranking] == ["mean 0.6", "mean 0.8", "mean 0.3", "mean 0.0"]
    assert ranking[0][1].all() and int(ranking[1][1].sum()) < len(images)
    assert model.training
    assert model.preprocessing == pixels(1, 8)
    for nothing in ({}, candidates):
        with pytest.raises(UsageError, match="no normalisation"):
            rank_normalisations(model, images[:0], labels[:0], nothing)


def test_normalisations_are_looked_up_by_name_and_channels():
    assert normalisation("[-1,1]", 3) == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation("mnist", 1) == ((0.1307,), (0.3081,))
    assert list(normalisations(1))[:2] == ["[0,1]", "[-1,1]"]
    assert "cifar10" not in normalisations(1)
    with pytest.raises(UsageError, match="is for 3 channels, the images have 1"):
        normalisation("cifar10", 1)
    with pytest.raises(UsageError, match=r"known are \[0,1\].*did you mean imagenet"):
        normalisation("imagnet", 3)


def test_the_table_of_normalisations_is_sound():
    for mean, std in NORMALISATIONS.values():
        Preprocessing(channels=len(mean), height=1, width=1, mean=mean, std=std)
