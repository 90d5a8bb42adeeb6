"""Pools beyond the limit: on disk, the same bits, and no copy of them in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support import make_tiny

from bdaudit import api, plugins
from bdaudit.attacks.triggers import patch
from bdaudit.errors import OutputError, UsageError
from bdaudit.flow.run import Run
from bdaudit.inputs import scratch
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.folders import write_folder
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool, overlap, without
from bdaudit.inputs.sources import open_source
from bdaudit.runtime import generator
from bdaudit.training.loop import batches, endless
from bdaudit.training.metrics import predict_logits

SHAPE = (3, 9, 7)


@pytest.fixture
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pool is large, and is worked on three images at a time."""
    monkeypatch.setenv(scratch.LIMIT, "0")
    monkeypatch.setattr(scratch, "CHUNK", 3 * 3 * 9 * 7)


def pool(n: int = 20, seed: int = 0) -> Pool:
    images = torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=generator(seed))
    return Pool.of(images, torch.arange(n) % 4, f"seed{seed}")


def mapped(images: torch.Tensor) -> bool:
    return images.untyped_storage().data_ptr() in scratch._mapped


OPERATIONS: dict[str, Callable[[Pool], Pool]] = {
    "take": lambda p: p.take([5, 3, 3, 19]),
    "take by mask": lambda p: p.take(p.labels == 2),
    "take none": lambda p: p.take([]),
    "shuffled": lambda p: p.shuffled(generator(1)),
    "sample": lambda p: p.sample(7, generator(1)),
    "first": lambda p: p.first(5),
    "split": lambda p: Pool.concat(p.split(5, 9)[::-1]),
    "concat": lambda p: Pool.concat([p, pool(5, 1), p.first(2)]),
    "labelled": lambda p: p.labelled(3),
    "to": lambda p: p.to("cpu"),
    "map": lambda p: p.map(lambda x: 255 - x),
    "map of some rows": lambda p: p.map(lambda x: 255 - x, p.labels == 3),
    "map of no rows": lambda p: p.map(lambda x: x[:0], p.labels == 9),
    "a trigger": lambda p: patch(SHAPE, torch.full((2, 2), 255, dtype=torch.uint8), 1, 1).on(p),
    "without": lambda p: without(p, pool(20).take([4, 6]), pool(3, 1)),
    "without nothing": lambda p: without(p, pool(3, 1)),
    "of floats": lambda p: Pool.of(p.images.float() / 255, p.labels, "seed0"),
}


@pytest.mark.parametrize("name", ["adaptive-blend", "bpp", "input-aware", "wanet"])
def test_cover_rows_are_the_same_bits_beyond_the_limit(name: str, request: pytest.FixtureRequest) -> None:
    """They draw from other images and from the generator, and pieces of three images change neither."""
    cls = plugins.get("attack", name)
    options = {**cls.quick_options, "rate": 0.2, **({"cover_rate": 0.3} if name == "adaptive-blend" else {})}
    attack, train = cls(**options), load_dataset("digits").train.first(40)
    model = make_tiny()
    available = {"shape": train.shape, "train": train, "target": 0, "fresh": model, "rng": generator(0)}
    trigger = attack.make_trigger(**attack.grant(available))
    expected = attack.poison(train, trigger, Goal(0, 10), model, generator(1))
    request.getfixturevalue("tiny_pieces")
    got = attack.poison(train.take(range(40)), trigger, Goal(0, 10), model, generator(1))
    assert mapped(got.pool.images)
    assert expected.cover.any()
    assert torch.equal(got.pool.images, expected.pool.images)
    assert torch.equal(got.cover, expected.cover)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_gives_the_same_bits_beyond_the_limit(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    expected = OPERATIONS[name](pool())
    request.getfixturevalue("tiny_pieces")
    large = pool().take(range(20))
    assert mapped(large.images)
    got = OPERATIONS[name](large)
    assert mapped(got.images) or not len(got)
    assert torch.equal(got.images, expected.images)
    assert torch.equal(got.labels, expected.labels)
    assert got.origin == expected.origin
    assert got.digest() == expected.digest()
    assert list(got.fingerprints()) == list(expected.fingerprints())
    assert overlap(got, large) == overlap(expected, pool())
    assert torch.equal(large.images, pool().images)


def test_batches_deals_and_predictions_are_the_same_beyond_the_limit(
    tiny: Classifier, digits: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(p: Pool) -> list[torch.Tensor]:
        deal = endless(p, generator(1))
        parts = [t for batch in batches(p, 32, generator(0)) for t in batch] + [t for _ in range(3) for t in deal(70)]
        return [*parts, predict_logits(tiny, p.images)]

    small = digits.first(200)
    expected = drawn(small)
    monkeypatch.setenv(scratch.LIMIT, "1k")
    large = small.take(range(200))
    assert mapped(large.images)
    assert all(torch.equal(a, b) for a, b in zip(drawn(large), expected, strict=True))


def test_a_whole_purification_gives_the_same_weights_beyond_the_limit(
    run: Run, suspect: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def purified() -> dict[str, torch.Tensor]:
        made = api.purify(
            suspect,
            clean=run.folder / "clean",
            malicious=run.folder / "flagged",
            defense="pl",
            options={"epochs": 1},
            device="cpu",
        )
        return made.state_dict()

    expected = purified()
    monkeypatch.setenv(scratch.LIMIT, "0")
    monkeypatch.setattr(scratch, "CHUNK", 5_000)
    made: list[int] = []
    inner = scratch._map
    monkeypatch.setattr(scratch, "_map", lambda size: (made.append(size), inner(size))[1])
    assert all(torch.equal(a, b) for a, b in zip(purified().values(), expected.values(), strict=True))
    assert len(made) >= 2


@pytest.mark.parametrize("kind", ["folder", "npz"])
@pytest.mark.parametrize("shape", [(3, 9, 7), (1, 5, 5)])
def test_what_is_read_is_the_same_beyond_the_limit(
    tmp_path: Path, kind: str, shape: tuple[int, int, int], request: pytest.FixtureRequest
) -> None:
    if kind == "folder":
        write_folder(pool(), tmp_path / "x")
    else:
        np.savez(tmp_path / "x.npz", images=pool().images.numpy(), labels=pool().labels.numpy())
    where = next(tmp_path.iterdir())
    expected = open_source(where).read(classes=tuple("0123"), shape=shape)
    request.getfixturevalue("tiny_pieces")
    got = open_source(where).read(classes=tuple("0123"), shape=shape)
    assert mapped(got.images)
    assert torch.equal(got.images, expected.images)
    assert got.origin == expected.origin


def test_scratch_files_have_no_name_and_go_with_their_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(scratch.LIMIT, "0")
    monkeypatch.setattr(scratch, "folder", lambda: tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    large = pool().shuffled(generator(0))
    assert mapped(large.images)
    assert not list(tmp_path.iterdir())
    part = large.first(3)
    expected = part.images.clone()
    del large
    scratch.release(part.images)
    assert torch.equal(part.images, expected)
    del part
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 2 * 1024**3), ("0", 0), ("4096", 4096), ("3k", 3072), ("2G", 2 * 1024**3), (" 1M ", 1024**2)],
)
def test_the_limit_is_bytes_or_a_number_with_a_unit(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv(scratch.LIMIT, text)
    assert scratch.limit() == size


@pytest.mark.parametrize("text", ["x", "-1", "1T", "1.5G", "٣", "9" * 30, "1\n2"])
def test_a_limit_that_is_none_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(scratch.LIMIT, text)
    with pytest.raises(UsageError, match="expected bytes, or a number with K, M or G, such as 512M"):
        scratch.limit()


@pytest.mark.parametrize("rows", [10**6, 10**15])
def test_a_disk_without_the_room_is_said_before_anything_is_written(rows: int) -> None:
    with pytest.raises(OutputError, match=r"no room for .* GiB of images .*; set TMPDIR") as caught:
        scratch.empty(rows, (3, 2000, 2000))
    assert caught.value.exit_code == 2


def test_a_disk_that_is_full_all_the_same_is_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota, or somebody who was faster: nothing may be written to a file whose space is not reserved."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv(scratch.LIMIT, "0")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left on device"):
        scratch.empty(1, SHAPE)


def test_the_place_is_tmpdir_or_else_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert scratch.folder() == tmp_path
    monkeypatch.delenv("TMPDIR")
    assert scratch.folder() == Path("/var/tmp")


WORK = """
import os, resource, sys
import torch
from bdaudit.attacks.triggers import patch
from bdaudit.inputs.pool import Pool, without
from bdaudit.inputs.sources import open_source
from bdaudit.runtime import generator
from bdaudit.training.loop import batches

def status(key):
    return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) * 1024

def work(path):
    pool = open_source(path).read(classes=(), shape=(3, 64, 64)).shuffled(generator(0))
    first, rest = pool.split(4)
    pool = Pool.concat([rest, first]).take(range(len(pool)))
    pool = patch(pool.shape, torch.full((3, 3), 255, dtype=torch.uint8), 2, 2).on(pool)
    pool = without(pool, first)
    for _ in batches(pool, 128, generator(0)):
        pass
    return len(pool)

large, small = sys.argv[1:]
work(small)  # what is set up once
resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + 48_000_000, -1))
os.environ["BDAUDIT_POOL_LIMIT"] = "2G"
try:
    work(large)
except (MemoryError, RuntimeError) as e:
    print("refused" if "allocate" in str(e) else e)
os.environ["BDAUDIT_POOL_LIMIT"] = "4M"
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
print(work(large), status("VmHWM") - before)
"""


def test_memory_stays_bounded_beyond_the_limit(tmp_path: Path) -> None:
    """A child that may take 48 MB for itself handles 98 MB of images, several times over; without the limit, no."""
    images = np.random.default_rng(0).integers(0, 256, (8_000, 64, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", images=images)
    np.savez(tmp_path / "small.npz", images=images[:20])
    command = [sys.executable, "-c", WORK, str(tmp_path / "large.npz"), str(tmp_path / "small.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused, rows, peak = done.stdout.split()
    assert (refused, rows) == ("refused", "8000")
    assert int(peak) < 80_000_000
