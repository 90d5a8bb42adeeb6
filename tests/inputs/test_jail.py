"""The sandboxed child: what it may do, how it ends, and that nothing it says is believed."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import jsonschema  # noqa: F401 - makes a heavy module loaded here, which must not reach the child
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs.jailed import TRICKS
from safetensors.torch import save_file

from bdaudit.errors import CheckpointError
from bdaudit.inputs import checkpoint_read
from bdaudit.inputs.checkpoint_read import open_checkpoint
from bdaudit.inputs.jail import JailError, Limits, ask, strength

ROOT = Path(__file__).parents[2]


def tried(what: str, *rest: str, content: bytes = b"", tmp_path: Path, limits: Limits | None = None) -> bytes:
    place = tmp_path / "input"
    place.write_bytes(content)
    with place.open("rb") as file:
        return ask("tests.inputs.jailed", [what, *rest], file, limits or Limits())


def test_the_child_reads_the_file_and_answers(tmp_path: Path) -> None:
    assert tried("echo", content=b"hello", tmp_path=tmp_path) == b"hello"


def test_the_child_can_do_nothing_else(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    outcome = json.loads(tried("tricks", str(victim), tmp_path=tmp_path))
    assert set(outcome) == set(TRICKS)
    assert "worked" not in outcome.values(), outcome
    assert victim.read_text() == "kept"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux filters system calls")
def test_doctor_can_tell_how_strong_it_is() -> None:
    assert strength() == "limits and system calls"


@pytest.mark.parametrize(
    ("what", "limits", "message"),
    [
        ("memory", Limits(), "needs more than 1024 MiB"),
        ("hoard", Limits(memory=64 << 20), "needs more than 64 MiB"),
        ("spin", Limits(cpu=1), "took more than 1 s"),
        ("spin", Limits(wall=0.5), "took more than 0.5 s"),
        ("talk", Limits(answer=1 << 20), "holds more than 1 MiB besides"),
        ("crash", Limits(), "made its reader fail"),
        ("nonsense", Limits(), "made its reader fail"),
    ],
)
def test_a_child_that_misbehaves_is_ended_with_a_reason(
    what: str, limits: Limits, message: str, tmp_path: Path
) -> None:
    with pytest.raises(JailError, match=message):
        tried(what, tmp_path=tmp_path, limits=limits)


def test_the_parser_imports_the_standard_library_alone() -> None:
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); import bdaudit.inputs.unpack, bdaudit.inputs.jail; "
        "print(sorted({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names - {'__main__'}))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['bdaudit']"


# What is read is what torch reads

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(min_size=1, max_size=5)
    | st.sampled_from([torch.float16, torch.Size([2, 3]), torch.device("cpu")])
    | st.sampled_from(["float32", "float16", "bfloat16", "float64", "int64", "uint8", "bool", "complex64"]).map(
        lambda name: torch.arange(24).to(getattr(torch, name)).reshape(2, 3, 4)
    )
    | st.sampled_from(
        [
            lambda t: t.t(), lambda t: t[1:, ::2], lambda t: t[:0], lambda t: t[1, 2], lambda t: t.expand(2, 4, 6),
            lambda t: torch.nn.Parameter(t, requires_grad=False), lambda t: t.clone().requires_grad_(),
        ]
    ).map(lambda view: view(torch.randn(4, 6, generator=torch.Generator().manual_seed(0))))
)  # fmt: skip
keys = st.text(max_size=3) | st.integers(-3, 300) | st.tuples(st.integers(0, 3), st.text(max_size=2))
documents = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.sets(st.integers(0, 9), max_size=3)
        | inner.map(lambda shared: [shared, {"again": shared}])
    ),
    max_leaves=8,
)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and (type(a), a.dtype, a.shape, a.stride(), a.requires_grad, a.storage_offset())
            == (type(b), b.dtype, b.shape, b.stride(), b.requires_grad, b.storage_offset())
            and a.untyped_storage().nbytes() == b.untyped_storage().nbytes()
            and torch.equal(a, b)
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("zipped", [True, False])
@given(document=documents)
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_file_reads_as_torch_itself_reads_it(
    zipped: bool, document: object, in_this_process: None, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt"
    torch.save(document, path, _use_new_zipfile_serialization=zipped)
    ours = open_checkpoint(path)
    assert ours.format == ("torch" if zipped else "legacy")
    assert same(ours.document, torch.load(path, weights_only=True))


def test_tensors_that_share_memory_still_do(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    torch.save({"a": whole, "b": whole[2:4]}, tmp_path / "m.pt")
    document = open_checkpoint(tmp_path / "m.pt").document
    assert isinstance(document, dict)
    document["a"][2] = 9
    assert document["b"][0] == 9


def test_a_state_dicts_metadata_is_kept(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).state_dict()
    torch.save(state, tmp_path / "m.pt")
    read = open_checkpoint(tmp_path / "m.pt").document
    assert read._metadata == state._metadata  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool"])
def test_a_safetensors_file_reads_as_its_library_reads_it(dtype: str, tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6).to(getattr(torch, dtype)).reshape(2, 3),
        "a": torch.zeros(0, 4),
        "s": torch.ones(()),
    }
    save_file(tensors, tmp_path / "m.safetensors", {"note": "é"})
    read = open_checkpoint(tmp_path / "m.safetensors")
    assert (read.format, read.metadata) == ("safetensors", {"note": "é"})
    assert isinstance(read.document, dict)
    assert read.document.keys() == tensors.keys()
    assert all(same(read.document[name], tensors[name]) for name in tensors)


# numpy's numbers, for records of other tools

NUMPY = {
    "int": np.int64(-5), "uint": np.uint8(200), "float": np.float32(0.5), "half": np.float16(0.25), "bool": np.bool_(True),
    "text": np.str_("né"), "array": np.arange(6).reshape(2, 3), "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"), "empty": np.zeros((0, 2)), "flags": np.array([True, False]),
}  # fmt: skip


def test_numpy_values_are_read_only_when_asked_for(tmp_path: Path) -> None:
    torch.save(NUMPY, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"holds numpy objects \(numpy.*\), not tensors: refused"):
        open_checkpoint(tmp_path / "m.pt")
    read = open_checkpoint(tmp_path / "m.pt", numpy=True).document
    assert isinstance(read, dict)
    for name, value in NUMPY.items():
        if isinstance(value, np.ndarray):
            assert torch.equal(read[name], torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))), name
        else:
            assert type(read[name]) in (int, float, bool, str)
            assert read[name] == value.item(), name


@pytest.mark.parametrize(
    "value",
    [
        np.array([{"a": 1}], dtype=object),
        np.array([("a", 1)], dtype=[("n", "U3"), ("k", "i4")]),
        np.datetime64("2020-01-01"),
        np.array(["a"]),
        np.complex64(1j),
    ],
    ids=["objects", "records", "dates", "text", "complex"],
)
def test_numpy_values_of_other_kinds_are_refused(value: object, tmp_path: Path) -> None:
    torch.save({"x": value}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"numpy|damaged"):
        open_checkpoint(tmp_path / "m.pt", numpy=True)


# A child that was taken over

SOUND = {"format": "torch", "root": [0], "nodes": [["dict", []]], "storages": [], "metadata": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"format": "exe"},
        {"root": [1]},
        {"root": [-1]},
        {"root": {"a": 1}},
        {"nodes": [["eval", "1"]]},
        {"nodes": [["dict", [[[0], 1]]]]},
        {"nodes": [["list", []], ["dict", [[[0], 1]]]], "root": [1]},
        {"nodes": [["tensor", 0, "float32", 0, [1], [1], False]]},
        {"nodes": [["tensor", 0, "float32", 0, [2], [1], False]], "storages": [[0, 4]]},
        {"nodes": [["tensor", 0, "float32", -1, [1], [1], False]], "storages": [[0, 4]]},
        {"nodes": [["tensor", 0, "float32", 0, [1, 2], [1], False]], "storages": [[0, 4]]},
        {"nodes": [["tensor", 0, "float32", 0, [2], [-1], False]], "storages": [[0, 4]]},
        {"nodes": [["tensor", 0, "load", 0, [1], [1], False]], "storages": [[0, 4]]},
        {"nodes": [["tensor", 0, "__class__", 0, [1], [1], False]], "storages": [[0, 4]]},
        {"storages": [[0, 1 << 40]]},
        {"storages": [[-4, 4]]},
        {"storages": [[0, 8], [0, 8]]},
        {"storages": [[4, 8]]},
        {"storages": [["0", 8]]},
        {"nodes": [["array", "O", [1], False, "AAAAAAAAAAA="]]},
        {"nodes": [["array", "<i8", [1 << 40], False, "AAAAAAAAAAA="]]},
        {"nodes": [["parameter", 3, True]]},
        {"nodes": [["device", "nowhere"]]},
        {"nodes": [["dtype", 3]]},
        {"nodes": [["tuple", []], *(["tuple", [[row]]] for row in range(1000)), ["set", [[1000]]]], "root": [1001]},
        {"metadata": {"bdaudit": 3}},
        {"metadata": []},
        {"nodes": 3},
        {"nodes": None},
    ],
    ids=lambda change: str(change)[:80],
)  # fmt: skip
def test_nothing_that_a_child_says_is_believed(
    change: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(bytes(10))
    monkeypatch.setattr(checkpoint_read, "ask", lambda *_: json.dumps(SOUND).encode())
    assert open_checkpoint(path).document == {}
    monkeypatch.setattr(checkpoint_read, "ask", lambda *_: json.dumps(SOUND | change).encode())
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


@pytest.mark.parametrize("answer", [b"", b"[]", b"3", b"{", b"[" * 100_000, b"\xff"], ids=repr)
def test_an_answer_that_is_none_is_refused(answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(bytes(10))
    monkeypatch.setattr(checkpoint_read, "ask", lambda *_: answer)
    with pytest.raises(CheckpointError, match=r"nonsense|unsound"):
        open_checkpoint(path)


def test_a_file_that_shrinks_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(10_000)}, path)

    def shrinking(*arguments: object) -> bytes:
        answer = ask(*arguments)  # type: ignore[arg-type]
        os.truncate(path, 100)
        return answer

    monkeypatch.setattr(checkpoint_read, "ask", shrinking)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        open_checkpoint(path)


# Bombs


def opcodes(*parts: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + b"".join(parts)


def billion_laughs() -> bytes:
    """A list of ten of a list of ten of ..., which is small in memory and endless when walked as a tree."""
    out = io.BytesIO()
    out.write(b"\x80\x04]")
    for level in range(40):
        out.write(b"\x94" + b"]" + b"(" + (b"h" + bytes([level])) * 10 + b"e")
    out.write(b".")
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (opcodes(b"\x95" + (1 << 62).to_bytes(8, "little")), "damaged"),
        (opcodes(b"\x8d" + (1 << 62).to_bytes(8, "little"), b"x"), "damaged"),
        (opcodes(b"\x96" + (1 << 45).to_bytes(8, "little"), b"x"), "damaged|MiB"),
        (opcodes(b"]" * 3_000_000, b"."), "did not write"),
        (opcodes(b"\x8b" + (1 << 20).to_bytes(4, "little") + b"\x7f" * (1 << 20), b"."), "did not write"),
        (billion_laughs(), "did not write|no tensors|dictionary"),
    ],
    ids=["frame", "string", "bytearray", "lists", "number", "laughs"],
)  # fmt: skip
def test_a_bomb_is_refused_within_its_limits(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path, limits=Limits(memory=256 << 20, cpu=10, wall=20))


def test_shared_containers_are_described_once(tmp_path: Path) -> None:
    """A small file of ever more shared lists neither grows nor takes long."""
    inner: object = [torch.ones(1)]
    for _ in range(60):
        inner = [inner, inner]
    torch.save({"w": torch.ones(2), "x": inner}, tmp_path / "m.pt")
    document = open_checkpoint(tmp_path / "m.pt", limits=Limits(cpu=5)).document
    assert isinstance(document, dict)
    assert document["x"][0] is document["x"][1]


def test_a_container_within_itself_is_refused(tmp_path: Path) -> None:
    loop: list[object] = [torch.ones(1)]
    loop.append(loop)
    torch.save({"x": loop}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="contains itself"):
        open_checkpoint(tmp_path / "m.pt")
