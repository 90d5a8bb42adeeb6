"""Files and folders appear whole or not at all."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from bdaudit.errors import OutputError
from bdaudit.inputs.files import atomic_file, atomic_folder, check_writable, is_partial, sha256


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "out.bin"
    with atomic_file(target) as partial:
        partial.write_bytes(b"whole")
        assert not target.exists()
        assert is_partial(partial)
        assert partial.parent == target.parent
    assert target.read_bytes() == b"whole"
    assert names(tmp_path) == ["out.bin"]
    assert not is_partial(target)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_file(target) as partial:
        partial.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_parents_are_created_on_success_and_removed_on_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a" / "b" / "out") as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    with atomic_file(tmp_path / "a" / "b" / "out") as partial:
        partial.write_bytes(b"whole")
    assert (tmp_path / "a" / "b" / "out").read_bytes() == b"whole"


def test_a_new_file_gets_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_bytes(b"")
    with atomic_file(tmp_path / "ours") as partial:
        partial.write_bytes(b"")
    usual, ours = (stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("usual", "ours"))
    assert ours == usual


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_file(tmp_path / "link") as partial:
        partial.write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@pytest.mark.parametrize("place", ["/dev/null", "."])
def test_what_is_no_file_is_never_replaced(place):
    with pytest.raises(OutputError, match="not a file"), atomic_file(place):
        raise AssertionError("must not start")
    assert Path(place).exists()


def test_errors_of_the_block_keep_their_own_words(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out"):
        (tmp_path / "input").read_bytes()
    with pytest.raises(OutputError, match="cannot be written"), atomic_file(tmp_path / "out") as partial:
        partial.mkdir()
        partial.write_bytes(b"")


@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_below_a_regular_file_nothing_can_be_written(tmp_path, writer):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OutputError, match="cannot be written") as e, writer(tmp_path / "file" / "a" / "b"):
        raise AssertionError("must not start")
    assert "\n" not in str(e.value)
    assert names(tmp_path) == ["file"]


def test_check_writable_tells_up_front_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    check_writable(tmp_path / "new" / "deep" / "out.pt")
    check_writable(tmp_path / "file")
    assert names(tmp_path) == ["file"]
    for bad in (tmp_path / "file" / "out", tmp_path / "file" / "a" / "b", tmp_path / ("n" * 300), "/proc/out.pt"):
        with pytest.raises(OutputError, match=r"cannot be written.*") as e:
            check_writable(bad)
        assert "\n" not in str(e.value)
    with pytest.raises(OutputError):
        check_writable(tmp_path / "null\0byte")


def test_a_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "run"
    with atomic_folder(target) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("whole")
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "whole"
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(error), atomic_folder(target, replace_if=lambda _: True) as partial:
        (partial / "new").write_text("half")
        raise error
    assert names(tmp_path) == ["run"]
    assert names(target) == ["old"]


def test_only_empty_folders_and_our_own_are_replaced(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    with atomic_folder(target) as partial:
        (partial / "report.json").write_text("1")
    with pytest.raises(OutputError, match="holds something else"), atomic_folder(target):
        raise AssertionError("must not start")
    with atomic_folder(target, replace_if=lambda old: (old / "report.json").is_file()) as partial:
        (partial / "other").write_text("2")
    assert names(target) == ["other"]
    assert names(tmp_path) == ["run"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "run"
    with pytest.raises(OutputError, match="holds something else"), atomic_folder(target) as partial:
        (partial / "ours").write_text("1")
        target.mkdir()
        (target / "theirs").write_text("2")
    assert names(target) == ["theirs"]
    assert names(tmp_path) == ["run"]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.rename

    def interrupted(self, to):
        if to == target and (self / "new").exists():
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, replace_if=lambda _: True) as partial:
        (partial / "new").write_text("new")
    assert names(tmp_path) == ["run"]
    assert names(target) == ["old"]


def test_a_file_is_no_place_for_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path / "file", Path("/")):
        with pytest.raises(OutputError), atomic_folder(bad, replace_if=lambda _: True):
            raise AssertionError("must not start")


def test_sha256_is_the_usual_one(tmp_path):
    data = os.urandom(1000)
    (tmp_path / "f").write_bytes(data)
    assert sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()
