"""Every reader of strangers' files, with sound files to start from and the ways in which to damage them."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torchvision  # noqa: F401 - imported late where no other architecture fits
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from bdaudit.attacks.triggers import patch, save_trigger
from bdaudit.cli.main import _run
from bdaudit.errors import CheckpointError, UnusedFiles
from bdaudit.flow.choices import load_policy
from bdaudit.flow.run import AttackRecord, open_run
from bdaudit.inputs import checkpoint_read, unpack
from bdaudit.inputs.architectures import build
from bdaudit.inputs.checkpoint import read_checkpoint
from bdaudit.inputs.folders import read_folder
from bdaudit.inputs.jail import JailError
from bdaudit.inputs.sources import open_source
from bdaudit.inputs.unpickle import Refused
from bdaudit.report.schema import Exhibit, Finding, Granted, Policy, Report

from . import mutate
from .oracle import Outcome, judge

Files = dict[str, bytes]
"""An input: contents by path. A content that starts with LINK is a symbolic link, PIPE a pipe."""

LINK, PIPE = b"\0link:", b"\0pipe"
CLASSES = ("0", "1", "cat")


@dataclass(frozen=True)
class Target:
    """A reader. make: an input, from a generator. run: read it where it lies. sound: inputs that must be used."""

    make: Callable[[random.Random], Files]
    run: Callable[[Path], object]
    sound: Callable[[], list[Files]]
    allowed: tuple[type[BaseException], ...] = ()
    share: float = 1.0
    cheap: int = 100


def try_input(target: Target, files: Files, base: Path) -> Outcome:
    """Lay an input out in a folder of its own, judge what its reader does, and clean up."""
    folder = base / "in"
    try:
        lay_out(files, folder)
        return judge(lambda: target.run(folder), folder, target.allowed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lay_out(files: Files, folder: Path) -> None:
    """Write an input; names that no file can have are left out."""
    folder.mkdir()
    for name, content in files.items():
        path = folder / os.fsdecode(name.encode("utf-8", "surrogatepass"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if content.startswith(LINK):
                path.symlink_to(os.fsdecode(content[len(LINK) :]))
            elif content == PIPE:
                os.mkfifo(path)
            else:
                path.write_bytes(content)
        except (OSError, ValueError):
            continue


# Model files


@functools.cache
def checkpoints() -> dict[str, bytes]:
    """Small sound model files of each form."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = build("small_cnn", width=2, num_classes=3, channels=1).state_dict()
    found = {"plain": _saved(state), "legacy": _saved(state, legacy=True)}
    nested = {
        "epoch": 3,
        "model": {
            f"module.{k}": torch.nn.Parameter(v, False) if v.is_floating_point() else v for k, v in state.items()
        },
    }
    found["nested"] = _saved(nested | {"s": {1, 2}, "d": torch.float16, "z": torch.Size([2]), "b": b"x"})
    header = {
        "version": 1,
        "arch": {"name": "small_cnn", "options": {"width": 2}},
        "classes": list(CLASSES),
        "provenance": {"a": [1]},
    }
    found["own"] = _saved({"bdaudit": header, "state_dict": state})
    flat = {k: v.contiguous() for k, v in state.items()}
    found["safetensors"] = safetensors_bytes(flat, {"bdaudit": json.dumps(header)})
    return found


def _saved(document: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def damaged_checkpoint(rng: random.Random) -> Files:
    """A model file, damaged in the way of its format."""
    name = rng.choice(sorted(checkpoints()))
    given = checkpoints()[name]
    how = {"legacy": mutate.pickled, "safetensors": mutate.safetensors}.get(name, mutate.zipped)
    return {"model.pt": how(given, rng)}


def parse(folder: Path) -> None:
    """The parser that runs in the sandboxed child, here in this process."""
    path = folder / "model.pt"
    with path.open("rb") as file:
        unpack.describe(file, path.stat().st_size, numpy=True).to_json()


@contextmanager
def no_child() -> Iterator[None]:
    """Describe model files in this process, hundreds of times faster."""

    def ask(module: str, arguments: list[str], file: IO[bytes], limits: object) -> bytes:
        try:
            return unpack.main(file, os.fstat(file.fileno()).st_size, arguments)
        except MemoryError as e:  # the child ends with a status that says so
            raise JailError("needs too much memory to be understood") from e

    before = checkpoint_read.ask
    checkpoint_read.ask = ask  # type: ignore[assignment]
    try:
        yield
    finally:
        checkpoint_read.ask = before


def load(folder: Path) -> None:
    """A model file as every command opens it, but for the child process."""
    with no_child():
        read_checkpoint(folder / "model.pt").classifier()


# Images


@functools.cache
def images() -> dict[str, bytes]:
    """One small image of each kind."""
    noise = Image.effect_noise((12, 10), 60)
    found = {}
    for name, mode, options in (
        ("a.png", "L", {}), ("b.png", "P", {}), ("c.png", "RGBA", {}), ("d.png", "I;16", {}), ("e.jpg", "RGB", {}), ("f.bmp", "RGB", {}),
        ("g.gif", "P", {}), ("h.webp", "RGB", {}), ("i.tif", "RGB", {"compression": "tiff_lzw"}), ("j.ppm", "RGB", {}), ("k.tif", "L", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        image = noise.convert("I").convert("I;16") if mode == "I;16" else noise.convert(mode)
        image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(name[2:], name[2:].upper()), **options)
        found[name] = buffer.getvalue()
    return found


def image_folder(rng: random.Random) -> Files:
    """A few images, one or two of them damaged or misnamed, with other things among them."""
    kinds = images()
    files: Files = {}
    for _ in range(rng.choice((1, 2, 3))):
        name = rng.choice(sorted(kinds))
        content = kinds[name]
        if rng.random() < 0.8:
            content = (
                mutate.png(content, rng)
                if name.endswith("png") and rng.random() < 0.7
                else mutate.data(content, rng, kinds["e.jpg"])
            )
        parent = rng.choice(("0/", "0/", "cat/", "2/", "dog/", "", "0/1/"))
        stem = rng.choice(("x", "y", "x", rng.choice(mutate.WORDS)))
        files[f"images/{parent}{stem}{rng.choice((name[1:], name[1:], '.png', '.PNG', '.txt'))}"] = content
    if rng.random() < 0.3:
        odd = rng.choice(
            (
                LINK + b"/etc/passwd",
                LINK + b"../../..",
                LINK + b"odd.png",
                PIPE,
                b"",
                b"%!PS\n(/etc/passwd) run",
                b"<svg/>",
            )
        )
        files[f"images/{rng.choice(('', '0/'))}odd.png"] = odd
    return files


def read_images(folder: Path) -> None:
    """A pool, as --clean, --malicious and --train read it."""
    (folder / "images").mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusedFiles)  # one, with a count of the files that are not used
        read_folder(folder / "images", classes=CLASSES, shape=(3, 8, 8))


@functools.cache
def tables() -> dict[str, Files]:
    """Sound .npz and .csv files."""
    pixels = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
    found: dict[str, Files] = {}
    for name, save in (("plain", np.savez), ("small", np.savez_compressed)):
        buffer = io.BytesIO()
        save(buffer, images=pixels, labels=np.array([0, 1, 2, -1]), classes=np.array(CLASSES))
        found[name] = {"pool.npz": buffer.getvalue()}
    found["index"] = {"pool.csv": b'path,label\na.png,0\n"c.png",cat\nb.png,\n', **images()}
    return found


def damaged_table(rng: random.Random) -> Files:
    """An .npz file or a .csv index, damaged in the way of its format."""
    files = dict(tables()[rng.choice(sorted(tables()))])
    if "pool.npz" in files:
        return {"pool.npz": mutate.zipped(files["pool.npz"], rng)}
    lines = files["pool.csv"].split(b"\n")
    for _ in range(rng.choice((1, 2))):
        path, label = (rng.choice(mutate.WORDS).encode("utf-8", "surrogatepass") for _ in range(2))
        lines.insert(
            rng.randrange(len(lines)),
            rng.choice((path + b"," + label, path, b'"' + path, b"a.png," * 9, b"," * 70_000)),
        )
    return files | {"pool.csv": mutate.data(b"\n".join(lines), rng) if rng.random() < 0.3 else b"\n".join(lines)}


def read_table(folder: Path) -> None:
    """A pool from a file, as --data, --clean and the like read it."""
    (path,) = folder.glob("pool.*")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusedFiles)
        source = open_source(path)
        source.shape(), source.sizes(3)
        source.read(classes=source.classes() or CLASSES, shape=(3, 8, 8))


# bdaudit.toml, policies


OPTIONS = [
    "seed",
    "device",
    "quiet",
    "json",
    "arch",
    "normalise",
    "option",
    "o",
    "target",
    "defense",
    "clean",
    "out",
    "config",
    "malicious",
]


def configuration(rng: random.Random) -> Files:
    """A bdaudit.toml, and where it lies."""
    return {
        "bdaudit.toml": mutate.toml_text(OPTIONS, ["purify", "audit", "x", "purify.option"], rng),
        "which": rng.choice((b"beside", b"config")),
    }


def configured(folder: Path) -> None:
    """A command with a bdaudit.toml beside its model, or given; the model is not there, so that it ends early."""
    line = [
        "purify",
        str(folder / "model.pt"),
        "--defense",
        "ft",
        "--out",
        str(folder / "o.pt"),
        "--clean",
        str(folder / "clean"),
    ]
    if (folder / "which").read_bytes() == b"config":
        (folder / "bdaudit.toml").rename(folder / "mine.toml")
        line += ["--config", str(folder / "mine.toml")]
    with suppress(CheckpointError):
        _command(line, {2})


def _command(line: list[str], codes: set[int]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = _run(line, debug=True)
    if code not in codes:
        raise AssertionError(f"exit code {code}, expected {sorted(codes)}")
    lines = err.getvalue().splitlines()
    if any(not text.isprintable() for text in lines) or len(lines) > 3:
        raise AssertionError(f"not one clear line: {err.getvalue()[:200]!r}")


def policy(rng: random.Random) -> Files:
    """A policy of known and unknown bounds."""
    names = [*Policy.model_fields, "max_asr"]
    return {"policy.toml": mutate.toml_text(names, ["policy", "require"], rng)}


# Reports


@functools.cache
def report() -> bytes:
    """A sound report with everything in it."""
    buffer = io.BytesIO()
    Image.effect_noise((8, 8), 50).save(buffer, "PNG")
    import base64

    exhibits = [
        Exhibit(probe="retune", metric="p_asr", title="t", x=[0.0, 1.0], curves={"a": [0.1, 0.2]}, x_label="epoch"),
        Exhibit(probe="qra", metric="p_asr", title="t", picture=base64.b64encode(buffer.getvalue()).decode()),
    ]
    row = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
    findings = [
        Finding(probe=p, subject=s, metric=m, **row)  # type: ignore[arg-type]
        for p, s, m in (
            ("evaluation", "suspect", "o_asr"), ("evaluation", "purified", "o_asr"), ("evaluation", "purified", "c_acc"),
            ("retune", "purified", "p_asr"), ("retune", "reference", "p_asr"), ("retune", "null", "p_asr"),
        )
    ]  # fmt: skip
    made = Report(
        verdict="fail", reasons=["it is back"], outcomes=["fail"], findings=findings, exhibits=exhibits, notes=["n"],
        inputs={"model": {"path": "m.pt", "sha256": "00"}}, granted=[Granted(plugin="ft", input="clean", source="clean/")],
        policy=Policy(), provenance={"seed": 0, "times": {"total": 1.0}},
    )  # fmt: skip
    return made.to_json().encode()


def damaged_report(rng: random.Random) -> Files:
    """A report of which some places are changed, and the form to show it in."""
    form = rng.choice(("text", "text", "markdown", "junit", "json", "html"))
    return {"report.json": mutate.json_text(report(), rng), "form": form.encode()}


def show_report(folder: Path) -> None:
    """`bdaudit report FILE` in one of its forms."""
    form = (folder / "form").read_text()
    _command(["report", str(folder / "report.json"), "--format", form], {0, 1, 4})


# Run folders


@functools.cache
def run_folder() -> dict[str, bytes]:
    """A sound run folder with one clean image."""
    import tempfile

    record = {
        "attack": "badnets", "options": {"size": 3}, "target": 0, "classes": list(CLASSES), "shape": [1, 8, 8], "rows": {"train": 3},
        "metrics": {"suspect": {"c_acc": 0.9, "n": 3}}, "data": "digits", "arch": "small_cnn", "recipe": {"lr": 0.1}, "provenance": {"seed": 0},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "t"
        save_trigger(patch((1, 8, 8), torch.full((2, 2), 255, dtype=torch.uint8), 0, 0), place)
        trigger = place.read_bytes()
    return {
        AttackRecord.FILE: json.dumps(record).encode(),
        "trigger.safetensors": trigger,
        "clean/0/a.png": images()["a.png"],
    }


def damaged_run(rng: random.Random) -> Files:
    """A run folder of which some files are damaged."""
    files = dict(run_folder())
    if rng.random() < 0.6:
        files[AttackRecord.FILE] = mutate.json_text(files[AttackRecord.FILE], rng)
    if rng.random() < 0.5:
        files["trigger.safetensors"] = mutate.safetensors(files["trigger.safetensors"], rng)
    if rng.random() < 0.1:
        files[rng.choice(sorted(files))] = rng.choice((LINK + b"/etc/passwd", PIPE, b""))
    return files


def use_run(folder: Path) -> None:
    """A run folder as --attack opens it: record, trigger, a pool, the trigger on the pool."""
    with no_child(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusedFiles)
        run = open_run(folder)
        run.trigger.on(run.pool("clean"))


TARGETS: dict[str, Target] = {
    "parser": Target(
        damaged_checkpoint, parse, lambda: [{"model.pt": c} for c in checkpoints().values()], (Refused, MemoryError), share=3, cheap=500
    ),
    "checkpoint": Target(damaged_checkpoint, load, lambda: [{"model.pt": c} for c in checkpoints().values()], share=2, cheap=200),
    "images": Target(image_folder, read_images, lambda: [{f"images/0/{n}": c} for n, c in images().items()], share=3, cheap=250),
    "tables": Target(damaged_table, read_table, lambda: list(tables().values()), share=2, cheap=250),
    "configuration": Target(configuration, configured, lambda: [{"bdaudit.toml": b"seed = 5\n", "which": b"beside"}], cheap=150),
    "policy": Target(
        policy, lambda folder: load_policy(folder / "policy.toml"), lambda: [{"policy.toml": b"max_o_asr = 0.5\n"}], cheap=200
    ),
    "report": Target(damaged_report, show_report, lambda: [{"report.json": report(), "form": f} for f in (b"text", b"html")], cheap=120),
    "run": Target(damaged_run, use_run, lambda: [run_folder()], cheap=150),
}  # fmt: skip
"""cheap: how many inputs the tests try. share: of the time of a longer run."""
