"""timm's networks by name: built without weights, imported only when asked for, and missed in one clear line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm as installed
import torch

from bdaudit.errors import CheckpointError, UsageError
from bdaudit.inputs.architectures import fit, fresh, known, match, parse, timm
from bdaudit.inputs.architectures.skeleton import Unallocated
from bdaudit.inputs.checkpoint import read_checkpoint, save_checkpoint
from bdaudit.inputs.classifier import ArchSpec, Classifier
from bdaudit.inputs.normalisation import usual_preprocessing
from bdaudit.runtime import generator


def shapes_of(name: str, **arguments: Any) -> dict[str, tuple[int, ...]]:
    with Unallocated():
        body = installed.create_model(name, pretrained=False, **arguments)
    return {n: tuple(t.shape) for n, t in body.state_dict().items()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("resnet10t", 32, {}),
        ("mobilenetv3_small_050", 32, {}),
        ("vit_tiny_patch16_224", 32, {"image_size": 32}),
    ],
)
def test_a_network_of_timm_is_read_and_written_by_name(
    name: str, size: int, options: dict[str, int], channels: int, tmp_path: Path
) -> None:
    spec = parse(f"timm:{name}" + "".join(f":{k}={v}" for k, v in options.items()))
    model = fresh(spec, usual_preprocessing((channels, size, size)), "abcde", generator(0)).eval()
    torch.save(model.body.state_dict(), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    found = checkpoint.match(f"timm:{name}")
    assert (found.arch, found.num_classes, found.channels) == (spec, 5, channels)
    read = checkpoint.classifier(arch=found, preprocessing=model.preprocessing)
    x = torch.randint(256, (2, channels, size, size), dtype=torch.uint8)
    torch.testing.assert_close(read(x), model(x))
    save_checkpoint(model, tmp_path / "ours.pt")
    assert read_checkpoint(tmp_path / "ours.pt").classifier().arch == spec


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_small_patch14_reg4_dinov2", 42), ("deit3_small_patch16_224", 64), ("eva02_tiny_patch14_224", 28)],
)
def test_a_transformers_image_size_is_read_off_its_position_embedding(name: str, size: int) -> None:
    """With class token and registers, without either, and with a class token in the embedding."""
    found = fit(ArchSpec(f"timm:{name}"), shapes_of(name, num_classes=4, in_chans=1, img_size=size))
    assert found.arch == ArchSpec(f"timm:{name}", {"image_size": size})
    assert (found.num_classes, found.channels) == (4, 1)


def test_a_network_that_computes_with_its_weights_while_it_is_built_is_known_too() -> None:
    assert not timm.family("vitamin_small_224").weightless
    with pytest.raises(CheckpointError, match=r"do not fit timm:vitamin_small_224: head.weight is missing"):
        fit(parse("timm:vitamin_small_224"), {"w": (1,)})


def test_a_plain_name_is_timms_only_where_nobody_else_has_it() -> None:
    assert parse("resnet10t") == ArchSpec("timm:resnet10t")
    assert parse("resnet10t.c3_in1k").name == "timm:resnet10t.c3_in1k"
    assert parse("resnet18") == ArchSpec("resnet18")
    assert parse("mobilenet_v2").name == "mobilenet_v2"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet10", "timm has no network 'resnet10'; did you mean"),
        ("timm:", "timm has no network ''"),
        ("timm:resnet10t.nope", "timm cannot build resnet10t.nope"),
        ("timm:resnetv2_50", r"does not end in one linear layer.*is a Conv2d"),
        ("timm:crossvit_9_240", r"does not end in one linear layer.*is a ModuleList"),
        ("timm:deit_tiny_distilled_patch16_224", r"does not end in one linear layer.*is a tuple"),
        ("timm:resnet10t:image_size=32", "has no option 'image_size'"),
    ],
)
def test_what_timm_does_not_have_is_one_line(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as e:
        parse(name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "name", ["hf-hub:a/b", "hf_hub:a/b", "local-dir:/tmp", "resnet10t.a/../b", "resnet10t.hf-hub:x"]
)
def test_names_that_point_outside_timm_never_reach_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "create_model", lambda *_, **__: pytest.fail("timm was asked for it"))
    for text in (f"timm:{name}", name):
        with pytest.raises(UsageError):
            parse(text)
    with pytest.raises(UsageError):
        timm.family(name)


def test_weights_are_never_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = installed.create_model

    def recorded(name: str, **arguments: Any) -> Any:
        asked.append(arguments["pretrained"])
        return create(name, **arguments)

    monkeypatch.setattr(installed, "create_model", recorded)
    timm.family.cache_clear()
    fresh(parse("timm:resnet10t"), usual_preprocessing((3, 32, 32)), "ab", generator(0))
    assert asked and not any(asked)


def test_timm_is_imported_only_when_one_of_its_names_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert not any(name.startswith("timm") for name in known())
    assert parse("resnet18:width=4").name == "resnet18"
    with pytest.raises(CheckpointError, match="timm:NAME"):
        match({"w": (3, 3)})


def test_without_timm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = fresh(parse("timm:resnet10t"), usual_preprocessing((3, 32, 32)), "ab", generator(0))
    save_checkpoint(model, tmp_path / "m.pt")
    monkeypatch.setitem(sys.modules, "timm", None)
    timm.family.cache_clear()
    line = r"timm:resnet10t needs timm, which is not installed: pip install 'bdaudit\[timm\]'"
    with pytest.raises(UsageError, match=line):
        parse("timm:resnet10t")
    with pytest.raises(CheckpointError, match=line):
        read_checkpoint(tmp_path / "m.pt")
    with pytest.raises(UsageError, match="unknown architecture 'resnet10t'"):
        parse("resnet10t")


def test_a_classifier_takes_its_head_from_timm() -> None:
    body = installed.create_model("resnet10t", pretrained=False, num_classes=3)
    assert Classifier(body, usual_preprocessing((3, 32, 32))).head is body.get_classifier()
