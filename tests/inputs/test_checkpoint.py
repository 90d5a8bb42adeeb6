"""Checkpoints: strangers' files are read without running code, and written back as they came."""

import argparse
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bdaudit.errors import BdauditError, CheckpointError, OutputError, UsageError
from bdaudit.inputs.architectures import build, fresh, parse
from bdaudit.inputs.checkpoint import read_checkpoint, save_checkpoint
from bdaudit.inputs.classifier import ArchSpec, Classifier, Preprocessing
from bdaudit.inputs.files import sha256

FAMILIES = (
    "resnet18:width=4",
    "preactresnet18:width=4",
    "vgg19_bn:width=4",
    "vgg19_bn:width=4,linears=1",
    "small_cnn:width=4",
    "torchvision:shufflenet_v2_x0_5",
)
GREY = Preprocessing(channels=1, height=32, width=32, mean=(0.286,), std=(0.353,))
CLASSES = ("cat", "dog", "Ærø")


def model_of(arch="small_cnn:width=4", seed=0):
    return fresh(parse(arch), GREY, CLASSES, torch.Generator().manual_seed(seed)).eval()


def plain_state(model):
    return model.body.state_dict()


WRAPPINGS = {
    "plain": lambda s: s,
    "plain dict": dict,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "best": 0.5},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: torch.ones(2)}, "lr": 0.1}, "name": "resnet"},
    "net": lambda s: {"net": s, "acc": 93.1},
    "nested": lambda s: {"checkpoint": {"model": s, "epoch": 1}, "args": {"lr": 0.1}},
    "DataParallel": lambda s: OrderedDict((f"module.{k}", v) for k, v in s.items()),
    "compiled DataParallel": lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "parameters": lambda s: {
        k: torch.nn.Parameter(v) if v.is_floating_point() and "running" not in k else v for k, v in s.items()
    },
    "no counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "legacy": lambda s: s,
}


def flatten(value, at=""):
    """List every leaf with its path and type, to compare two documents."""
    if isinstance(value, dict):
        return [(at, type(value).__name__)] + [x for k, v in value.items() for x in flatten(v, f"{at}/{k}")]
    if isinstance(value, torch.Tensor):
        return [(at, type(value).__name__, value.dtype, tuple(value.shape), value.requires_grad)]
    return [(at, value)]


def refused(path):
    """Read a bad file: one line, no warning, and the path in it."""
    with pytest.raises(CheckpointError) as e:
        read_checkpoint(path)
    text = str(e.value)
    assert "\n" not in text
    assert text.startswith(str(path)[:100])
    return text


def saved(tmp_path, document, name="m.pt", **options):
    path = tmp_path / name
    torch.save(document, path, **options)
    return path


# Round trips


# A wrapping is no different around another network: every one on the small one, three on the others.
@pytest.mark.parametrize(
    ("arch", "wrapping"),
    [(a, w) for a in FAMILIES for w in WRAPPINGS if "small" in a or w in ("plain", "model", "compiled DataParallel")],
)
def test_a_torch_file_is_written_back_as_it_came(tmp_path, arch, wrapping):
    model = model_of(arch)
    path = saved(tmp_path, WRAPPINGS[wrapping](plain_state(model)), _use_new_zipfile_serialization=wrapping != "legacy")
    checkpoint = read_checkpoint(path)
    form = "legacy" if wrapping == "legacy" else "torch"
    assert (checkpoint.format, checkpoint.header, checkpoint.sha256) == (form, None, sha256(path))
    notes = []
    again = checkpoint.classifier(preprocessing=GREY, classes=CLASSES, notes=notes)
    assert again.arch == model.arch
    assert any("recognised" in note for note in notes)
    weights = plain_state(model)
    for name, tensor in plain_state(again).items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-2 if wrapping == "half" else 0, rtol=0)

    with torch.no_grad():
        for p in again.body.parameters():
            p.add_(1)
    save_checkpoint(again, tmp_path / "out.pt", like=checkpoint, provenance={"ignored": "by strangers' files"})
    before, after = (torch.load(p, weights_only=True) for p in (path, tmp_path / "out.pt"))
    assert zipfile.is_zipfile(tmp_path / "out.pt") == zipfile.is_zipfile(path) == (form == "torch")
    assert flatten(before) == flatten(after)
    assert getattr(before, "_metadata", None) == getattr(after, "_metadata", None)
    back = read_checkpoint(tmp_path / "out.pt").classifier(preprocessing=GREY)
    torch.testing.assert_close(back.head.weight, model.head.weight + 1, atol=1e-2, rtol=0)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("arch", FAMILIES)
def test_a_safetensors_file_is_written_back_as_it_came(tmp_path, arch, prefix):
    model = model_of(arch)
    path = tmp_path / "m.bin"  # what decides is the content, not the name
    metadata = {"format": "pt", "author": "ü", "b": '"'}
    save_file({prefix + k: v.contiguous() for k, v in plain_state(model).items()}, path, metadata)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.format, checkpoint.prefix, dict(checkpoint.metadata)) == ("safetensors", prefix, metadata)
    again = checkpoint.classifier(preprocessing=GREY)
    for out in ("a", "b"):
        save_checkpoint(again, tmp_path / out, like=checkpoint)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert flatten(load_file(tmp_path / "a")) == flatten(load_file(path))
    assert read_checkpoint(tmp_path / "a").metadata == metadata


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_our_own_file_says_everything_itself(tmp_path, arch, name):
    model = model_of(arch)
    save_checkpoint(model, tmp_path / name, provenance={"attack": "badnets", "rate": 0.05, "seeds": [1, 2]})
    checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint.format == ("safetensors" if name.endswith("safetensors") else "torch")
    assert (checkpoint.arch, checkpoint.preprocessing, checkpoint.classes) == (model.arch, GREY, CLASSES)
    assert checkpoint.provenance == {"attack": "badnets", "rate": 0.05, "seeds": [1, 2]}
    notes = []
    again = checkpoint.classifier(notes=notes)
    assert notes == []
    assert not again.training
    weights = plain_state(model)
    assert all(torch.equal(v, weights[k]) for k, v in plain_state(again).items())
    save_checkpoint(again, tmp_path / f"out-{name}", like=checkpoint, provenance={"defense": "pl"})
    out = read_checkpoint(tmp_path / f"out-{name}")
    assert out.provenance == {"attack": "badnets", "rate": 0.05, "seeds": [1, 2], "defense": "pl"}
    assert (out.arch, out.preprocessing, out.classes) == (model.arch, GREY, CLASSES)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_the_same_model_gives_the_same_bytes(tmp_path, name):
    for place in ("x", "y"):
        save_checkpoint(model_of(), tmp_path / place / name, provenance={"b": 1, "a": {"z": 1, "y": 2}})
    assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_our_own_file_opens_with_plain_torch(tmp_path):
    model = model_of()
    save_checkpoint(model, tmp_path / "m.pt")
    document = torch.load(tmp_path / "m.pt", weights_only=True)
    assert set(document) == {"bdaudit", "state_dict"}
    body = build("small_cnn", width=4, num_classes=3, channels=1)
    body.load_state_dict(document["state_dict"])


def test_a_classifiers_own_state_dict_is_understood(tmp_path):
    model = model_of()
    checkpoint = read_checkpoint(saved(tmp_path, model.state_dict()))
    assert checkpoint.prefix == "body."
    assert checkpoint.match().arch == model.arch


def test_a_view_does_not_take_its_whole_storage_into_the_file(tmp_path):
    model = model_of()
    model.head.weight.data = torch.zeros(1000, 16)[:3]
    save_checkpoint(model, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").stat().st_size < 20_000


def test_reading_draws_no_random_numbers(tmp_path):
    path = saved(tmp_path, plain_state(model_of()))
    state = torch.get_rng_state()
    read_checkpoint(path).classifier()
    assert torch.equal(state, torch.get_rng_state())


# What the file leaves open


def test_what_was_assumed_is_said(tmp_path):
    notes = []
    path = saved(tmp_path, {"state_dict": plain_state(model_of()), "ema": {"w": torch.ones(2)}, "n": torch.tensor(1)})
    model = read_checkpoint(path).classifier(notes=notes)
    assert model.preprocessing == Preprocessing(channels=1, height=32, width=32, mean=(0.0,), std=(1.0,))
    assert model.classes == ("0", "1", "2")
    assert len(notes) == 3
    assert "tensors under ema: kept" in notes[0]
    assert "recognised from the weights: small_cnn(width=4)" in notes[1]
    assert "assumed 32x32 pixels, mean 0 and std 1" in notes[2]


@pytest.mark.parametrize(
    "beside",
    [
        lambda s: s,
        lambda s: {"module": {f"module.{k}": v for k, v in s.items()}, "decay": 0.999},
        lambda s: [{"shadow": dict(s)}],
    ],
)
def test_a_second_copy_of_the_weights_is_warned_of(tmp_path, beside):
    """Whoever loads the averaged weights of a purified file would load the backdoor."""
    state = plain_state(model_of())
    notes = read_checkpoint(
        saved(tmp_path, {"model": state, "ema": beside(state), "optimizer": {"m": torch.ones(3)}})
    ).notes
    assert any(n.startswith("warning: ") and "again under ema: nothing purifies those" in n for n in notes)
    assert any("tensors under optimizer: kept as they are" in n for n in notes)


def test_the_file_wins_over_what_is_given_and_says_so(tmp_path):
    save_checkpoint(model_of(), tmp_path / "m.pt")
    other = Preprocessing(channels=1, height=8, width=8, mean=(0.0,), std=(1.0,))
    notes = []
    model = read_checkpoint(tmp_path / "m.pt").classifier(preprocessing=other, classes=("x", "y", "z"), notes=notes)
    assert (model.preprocessing, model.classes) == (GREY, CLASSES)
    assert len(notes) == 2


def test_an_explicit_architecture_overrides_the_file(tmp_path):
    save_checkpoint(model_of(), tmp_path / "m.pt")
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert checkpoint.classifier(arch="small_cnn").arch == ArchSpec("small_cnn", {"width": 4})
    with pytest.raises(CheckpointError, match=r"do not fit small_cnn\(width=8\): conv1.weight is \(4, 1, 3, 3\)"):
        checkpoint.classifier(arch="small_cnn:width=8")
    with pytest.raises(CheckpointError, match="do not fit resnet18"):
        checkpoint.classifier(arch=ArchSpec("resnet18"))
    with pytest.raises(UsageError, match=r"did you mean .*small_cnn"):
        checkpoint.classifier(arch="small_cn")


def test_an_unknown_architecture_lists_close_ones(tmp_path):
    state = {k.replace("layer4", "layer5"): v for k, v in plain_state(model_of("resnet18:width=4")).items()}
    checkpoint = read_checkpoint(saved(tmp_path, state))
    with pytest.raises(CheckpointError, match=r"closest: resnet18 .*; give --arch") as e:
        checkpoint.classifier()
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 700


def test_what_contradicts_the_weights_is_refused(tmp_path):
    checkpoint = read_checkpoint(saved(tmp_path, plain_state(model_of())))
    with pytest.raises(CheckpointError, match="3 outputs, but 2 class names"):
        checkpoint.classifier(classes=("a", "b"))
    rgb = Preprocessing(channels=3, height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(CheckpointError, match="takes 1 channels, its preprocessing 3"):
        checkpoint.classifier(preprocessing=rgb)


# Files that are refused


class Payload:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


def as_torch(payload, path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": payload}, path)


def as_legacy(payload, path):
    torch.save({"w": torch.ones(2), "x": payload}, path, _use_new_zipfile_serialization=False)


def as_pickle(protocol):
    def write(payload, path):
        path.write_bytes(pickle.dumps({"x": payload}, protocol))

    return write


WRITERS = [as_torch, as_legacy, as_pickle(0), as_pickle(2), as_pickle(4), as_pickle(5)]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, write, name):
    place = tmp_path / "pwned"
    write(Payload(place), tmp_path / name)
    text = refused(tmp_path / name)
    assert f"contains code ({os.system.__module__}.system): refused, nothing was run" in text
    assert not place.exists()
    # The payload is a real one.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (tmp_path / name).open("rb") as file:
            torch.load(file, weights_only=False) if write in WRITERS[:2] else pickle.load(file)
    assert place.exists()


def test_an_object_beside_the_weights_is_called_one(tmp_path):
    """Training scripts save their arguments so; it is no attack, and is refused all the same."""
    state = plain_state(model_of())
    text = refused(saved(tmp_path, {"state_dict": state, "args": argparse.Namespace(lr=0.1)}))
    assert "holds a Python object (argparse.Namespace), and reading one can run code: refused, nothing was run" in text


def test_refusals_print_nothing_themselves(tmp_path, capfd):
    path = tmp_path / "m.pt"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "pwned"), 4))
    refused(path)
    assert capfd.readouterr() == ("", "")


def test_whole_pickled_models_are_refused_with_advice(tmp_path):
    text = refused(saved(tmp_path, model_of().body))
    assert "whole pickled model" in text
    assert "save model.state_dict() instead" in text


def archive(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return path


def test_archives_of_code_are_refused_by_what_they_are(tmp_path):
    path = tmp_path / "m.pt"
    assert "TorchScript" in refused(archive(path, "m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"))
    assert ".pt2" in refused(archive(path, "m/archive_format", "m/models/model.json", "m/data.pkl"))
    assert "zip archive that torch.save did not write" in refused(archive(path, "word/document.xml"))


def test_a_pipe_put_in_a_files_place_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "m.pt")
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert "not a file" in refused(tmp_path / "m.pt")


def test_what_is_no_model_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "missing.pt")
    assert "is a folder" in refused(tmp_path)
    assert "not a regular file" in refused("/dev/null")
    path = tmp_path / "m.pt"
    for content, message in [
        (b"", "is empty"),
        (b"hello world", "neither a torch nor a safetensors file"),
        (b"cat\ndog\n", "neither a torch nor a safetensors file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "neither a torch nor a safetensors file"),
        (b"\x80", "truncated, damaged or no model file"),
        (b"PK\x03\x04", "truncated or damaged"),
        (struct.pack("<Q", 1 << 33) + b"{", "truncated or damaged safetensors"),
        (struct.pack("<Q", 2) + b"{}", "holds an empty dictionary"),
        (pickle.dumps({"a": 3}, 4), "pickle that torch.save did not write"),
    ]:
        path.write_bytes(content)
        assert message in refused(path)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "legacy.pt"])
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, name, keep):
    path = tmp_path / name
    if name == "legacy.pt":
        torch.save(plain_state(model_of()), path, _use_new_zipfile_serialization=False)
    else:
        save_checkpoint(model_of(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert "damaged" in refused(path)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "legacy.pt"])
def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path, name, in_this_process):
    path = tmp_path / name
    if name == "legacy.pt":
        torch.save(plain_state(model_of()), path, _use_new_zipfile_serialization=False)
    else:
        save_checkpoint(model_of(), path)
    whole = path.read_bytes()
    rng = torch.Generator().manual_seed(0)
    for _ in range(150):
        bad = bytearray(whole)
        for at in torch.randint(min(len(bad), 4000), (3,), generator=rng).tolist():
            bad[at] = int(torch.randint(256, (), generator=rng))
        path.write_bytes(bad)
        try:
            read_checkpoint(path)
        except CheckpointError as e:
            assert "\n" not in str(e)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, value):
    state = plain_state(model_of())
    state["bn2.running_var"][3] = value
    for path in (saved(tmp_path, state), tmp_path / "m.safetensors"):
        if path.suffix == ".safetensors":
            save_file(state, path)
        assert "bn2.running_var holds NaN or infinite values" in refused(path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (torch.ones(2), "holds a Tensor, expected a dictionary"),
        ([torch.ones(2)], "holds a list"),
        (3, "holds an int"),
        ({}, "empty dictionary"),
        ({"epoch": 3, "lr": 0.1}, "holds no tensors (it has: epoch, lr)"),
        ({"w": torch.ones(2), "epoch": 3}, "holds an int as 'epoch'"),
        ({3: torch.ones(2)}, "entry named 3"),
        ({"x" * 500: torch.ones(2)}, "expected the name of a weight"),
        ({"w": torch.ones(2, dtype=torch.int64)}, "no floating-point weights"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "type torch.complex64"),
        ({"w": torch.eye(3).to_sparse()}, "more than plain tensors (torch._utils._rebuild_sparse_tensor)"),
        ({"w": torch.ones(2, device="meta")}, "more than plain tensors (torch._utils._rebuild_meta_tensor_no_storage)"),
        ({"w": torch.zeros(1).expand(10**12)}, "absurd size"),
        ({f"w{i}": torch.zeros(10).expand(9000, 10) for i in range(2000)}, "absurd size"),
        ({"a": {"w": torch.ones(2)}, "b": {"w": torch.ones(2)}}, "no entry that clearly is the weights"),
        ({"model": {"model": {"model": {"model": {"model": {"w": torch.ones(1)}}}}}}, "4 dictionaries deep"),
    ],
)
def test_unusable_contents_are_refused_by_name(tmp_path, document, message):
    assert message in refused(saved(tmp_path, document))


def test_names_from_a_file_cannot_write_on_the_terminal(tmp_path):
    text = refused(saved(tmp_path, {"\x1b[31mred\n": 3, "w": torch.ones(1)}))
    assert text.isprintable()


def test_a_bomb_is_refused_before_it_unpacks(tmp_path):
    path = saved(tmp_path, {"w": torch.zeros(10**6)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert "is compressed" in refused(tmp_path / "b.pt")


@pytest.mark.parametrize("extra", ["data/0", "Data/0", "DATA.PKL"])
def test_a_file_that_could_be_two_models_is_refused(tmp_path, extra):
    """torch's reader takes no notice of case and may pick the other entry."""
    path = saved(tmp_path, plain_state(model_of()))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
        warnings.simplefilter("ignore")
        file.writestr(f"{file.namelist()[0].partition('/')[0]}/{extra}", b"x" * 16)
    assert "entries of one name" in refused(path)


def test_a_record_shorter_than_its_tensor_is_refused(tmp_path):
    """Otherwise reading the tensor would read beyond its memory."""
    path = saved(tmp_path, {"w": torch.ones(100_000)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, data[:64] if entry.filename.endswith("data/0") else data)
    assert "damaged" in refused(tmp_path / "b.pt")


def test_attributes_that_hide_a_dictionarys_methods_do_no_harm(tmp_path):
    state = OrderedDict(plain_state(model_of()))
    state.itemz = state.keyz = state.valuez = 3
    path = saved(tmp_path, OrderedDict(state_dict=state))
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                for name in (b"item", b"key", b"value"):
                    assert name + b"z" in data
                    data = data.replace(name + b"z", name + b"s")
            new.writestr(entry.filename, data)
    assert read_checkpoint(tmp_path / "b.pt").match().arch.name == "small_cnn"


# Hostile headers

HEADER = {
    "version": 1,
    "arch": {"name": "small_cnn", "options": {"width": 4}},
    "preprocessing": {"channels": 1, "height": 32, "width": 32, "mean": [0.5], "std": [0.5]},
    "classes": ["a", "b", "c"],
    "provenance": {},
}


def with_header(tmp_path, header, form):
    state = plain_state(model_of())
    if form == "torch":
        return saved(tmp_path, {"bdaudit": header, "state_dict": state})
    save_file(state, tmp_path / "m.safetensors", {"bdaudit": json.dumps(header)})
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_a_sound_header_is_read(tmp_path, form):
    model = read_checkpoint(with_header(tmp_path, HEADER | {"unknown": 1}, form)).classifier()
    assert model.classes == ("a", "b", "c")


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2, this bdaudit reads 1: update it"),
        ({"version": 0}, "version 0, expected 1"),
        ({"version": "1"}, "version: Input should be a valid integer"),
        ({"version": True}, "version"),
        ({"arch": "resnet18"}, "arch"),
        ({"arch": {"name": "resnet81", "options": {}}}, "unknown architecture 'resnet81'; did you mean"),
        ({"arch": {"name": "../../etc", "options": {}}}, "unknown architecture"),
        ({"arch": {"name": "small_cnn", "options": {"width": -4}}}, "width must be 1 to 1024, got -4"),
        ({"arch": {"name": "small_cnn", "options": {"width": 10**30}}}, "width"),
        ({"arch": {"name": "small_cnn", "options": {"width": 4.5}}}, "arch.options.width"),
        ({"arch": {"name": "small_cnn", "options": {"weights": 1}}}, "no option 'weights'"),
        ({"preprocessing": {"channels": 1}}, "preprocessing.height"),
        ({"preprocessing": HEADER["preprocessing"] | {"height": -3}}, "preprocessing.height"),
        ({"preprocessing": HEADER["preprocessing"] | {"height": 10**9}}, "preprocessing.height"),
        ({"preprocessing": HEADER["preprocessing"] | {"channels": 7}}, "1 or 3 channels"),
        ({"preprocessing": HEADER["preprocessing"] | {"std": [0.0]}}, "positive std"),
        ({"preprocessing": HEADER["preprocessing"] | {"std": [float("nan")]}}, "preprocessing.std"),
        ({"preprocessing": HEADER["preprocessing"] | {"mean": [0.5] * 3}}, "one mean"),
        ({"preprocessing": HEADER["preprocessing"] | {"mean": ["0"]}}, "preprocessing.mean"),
        ({"classes": []}, "classes"),
        ({"classes": "abc"}, "classes"),
        ({"classes": ["a", 2, "c"]}, "classes.1"),
        ({"classes": ["a", "", "c"]}, "classes.1"),
        ({"classes": ["a", "b\x1b[2J", "c"]}, "class 1 has a name with control characters"),
        ({"classes": ["x" * 201] * 3}, "classes.0"),
        ({"classes": ["x"] * 100_001}, "classes"),
        ({"provenance": [1]}, "provenance"),
        ({"provenance": {"x": "y" * (5 << 20)}}, "longer than 4 MiB"),
    ],
)
def test_hostile_headers_end_in_one_clear_line(tmp_path, form, change, message):
    assert message in refused(with_header(tmp_path, HEADER | change, form))


@pytest.mark.parametrize("header", [None, 3, "x", [], {}, {"version": None}])
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_headers_that_are_none_are_refused(tmp_path, header, form):
    assert "its header" in refused(with_header(tmp_path, header, form))


def test_headers_are_checked_against_the_weights(tmp_path):
    for change, message in [
        ({"classes": ["a", "b"]}, "3 outputs, but 2 class names"),
        ({"arch": {"name": "small_cnn", "options": {"width": 1000}}}, "conv1.weight is"),
        ({"arch": {"name": "resnet18", "options": {"width": 4}}}, "do not fit resnet18"),
        ({"preprocessing": HEADER["preprocessing"] | {"channels": 3, "mean": [0] * 3, "std": [1] * 3}}, "channels"),
    ]:
        checkpoint = read_checkpoint(with_header(tmp_path, HEADER | change, "torch"))
        with pytest.raises(CheckpointError, match=message):
            checkpoint.classifier()


def test_a_header_without_bottom_is_refused(tmp_path):
    deep: dict = {}
    for _ in range(500):
        deep = {"x": deep}
    assert "its header" in refused(with_header(tmp_path, HEADER | {"provenance": deep}, "safetensors"))


def test_a_header_that_is_no_json_is_refused(tmp_path):
    save_file(plain_state(model_of()), tmp_path / "m.safetensors", {"bdaudit": "{"})
    assert "no JSON" in refused(tmp_path / "m.safetensors")
    save_file(plain_state(model_of()), tmp_path / "m.safetensors", {"bdaudit": "[" * 100_000})
    assert "no JSON" in refused(tmp_path / "m.safetensors")


# Writing


def test_a_model_that_is_not_finite_is_not_written(tmp_path):
    model = model_of()
    checkpoint = read_checkpoint(saved(tmp_path, WRAPPINGS["half"](plain_state(model))))
    with torch.no_grad():
        model.head.weight[0, 0] = 1e30  # finite, but not in the file's half precision
    save_checkpoint(model, tmp_path / "own.pt")
    with pytest.raises(BdauditError, match=r"linear.weight holds NaN or infinite values as torch.float16"):
        save_checkpoint(model, tmp_path / "out.pt", like=checkpoint)
    assert not (tmp_path / "out.pt").exists()


def test_a_model_with_other_weights_does_not_go_back_into_the_file(tmp_path):
    checkpoint = read_checkpoint(saved(tmp_path, plain_state(model_of())))
    for arch in ("small_cnn:width=8", "resnet18:width=4"):
        with pytest.raises(BdauditError, match="not saved"):
            save_checkpoint(model_of(arch), tmp_path / "out.pt", like=checkpoint)
    assert not (tmp_path / "out.pt").exists()


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(UsageError, match="provenance"):
        save_checkpoint(model_of(), tmp_path / "out.pt", provenance={"x": object()})
    strange = Classifier(model_of().body, GREY, classes=("a", "b", "c\n"))
    with pytest.raises(UsageError, match="class 2"):
        save_checkpoint(strange, tmp_path / "out.pt")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(document, file, **options):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(model_of(), tmp_path / "deep" / "out.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
def test_where_nothing_can_be_written_is_told_in_one_line(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        save_checkpoint(model_of(), tmp_path / "file" / name)


def test_a_checkpoint_may_be_overwritten_by_its_purified_self(tmp_path):
    path = saved(tmp_path, {"model": plain_state(model_of()), "optimizer": {"m": torch.arange(9.0)}})
    checkpoint = read_checkpoint(path)
    save_checkpoint(checkpoint.classifier(), path, like=checkpoint)
    assert torch.load(path, weights_only=True)["optimizer"]["m"].tolist() == list(range(9))
    assert read_checkpoint(path).sha256 == sha256(path)
