"""Files and folders appear whole or not at all."""

import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bdaudit.errors import OutputError
from bdaudit.inputs import aside as places
from bdaudit.inputs import files
from bdaudit.inputs.aside import aside, is_living, is_partial, sweep
from bdaudit.inputs.files import atomic_file, atomic_folder, check_writable, sha256


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "out.bin"
    with atomic_file(target) as partial:
        partial.write_bytes(b"whole")
        assert not target.exists()
        assert is_partial(partial.parent)
        assert partial.parent.parent == target.parent
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


@pytest.fixture
def no_exchange(monkeypatch):
    """As on NFS, and on Linux before 3.15."""
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)


def test_a_failed_swap_puts_the_old_folder_back(tmp_path, monkeypatch, no_exchange):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.rename

    def interrupted(self, to):
        if to == target and (self / "new").exists() and not target.exists():
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, replace_if=lambda _: True) as partial:
        (partial / "new").write_text("new")
    assert names(tmp_path) == ["run"]
    assert names(target) == ["old"]


def test_folders_change_places_where_the_system_cannot_exchange_them(tmp_path, no_exchange):
    target = tmp_path / "run"
    for text in ("1", "2"):
        with atomic_folder(target, replace_if=lambda _: True) as partial:
            (partial / text).write_text(text)
    assert names(target) == ["2"]
    assert names(tmp_path) == ["run"]


def test_a_mount_point_is_refused_before_any_work():
    with pytest.raises(OutputError, match="give a folder in it"), atomic_folder("/proc", replace_if=lambda _: True):
        raise AssertionError("must not start")


def test_a_file_is_no_place_for_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path / "file", Path("/")):
        with pytest.raises(OutputError), atomic_folder(bad, replace_if=lambda _: True):
            raise AssertionError("must not start")


def test_sha256_is_the_usual_one(tmp_path):
    data = os.urandom(1000)
    (tmp_path / "f").write_bytes(data)
    assert sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


# Killed runs, and several at once

KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from bdaudit.inputs import files
from bdaudit.inputs.files import atomic_file, atomic_folder

kind, base = sys.argv[1], Path(sys.argv[2])
if kind == "two steps":
    files._exchange = lambda a, b: False
steps = -1  # not counting
def step(event, _):
    global steps
    if steps >= 0 and (event.startswith(("os.", "shutil.", "ctypes.", "fcntl.")) or event == "open"):
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(step)

def write(target, text):
    if kind == "file":
        with atomic_file(target) as partial:
            with partial.open("w") as file:
                for character in text:
                    file.write(character)
                    file.flush()
        return
    with atomic_folder(target, replace_if=lambda _: True) as partial:
        for name in ("a", "b"):
            (partial / name).write_text(text)

def read(target):
    if not target.exists():
        return None
    if kind == "file":
        return target.read_text()
    assert sorted(p.name for p in target.iterdir()) == ["a", "b"]
    (text,) = {p.read_text() for p in target.iterdir()}
    return text

for before in (None, "old"):
    for at in range(1, 1000):
        folder = base / f"{before}-{at}"
        folder.mkdir()
        target = folder / "out"
        if before:
            write(target, before)
        child = os.fork()
        if child == 0:
            steps = at
            write(target, "new")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        allowed = (before, "new") + ((None,) if kind == "two steps" else ())
        assert read(target) in allowed, (before, at, read(target))
        visible = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
        assert visible <= {"out"}, (before, at, visible)
        if kind == "two steps" and before:
            files.sweep(target)
            assert read(target) in (before, "new"), (before, at)
        write(target, "again")
        assert read(target) == "again"
        assert os.listdir(folder) == ["out"], (before, at, os.listdir(folder))
        if status == 0:
            break
    assert 10 < at < 999, at
    print(before, at)
"""


@pytest.mark.parametrize("kind", ["file", "folder", "two steps"])
def test_a_run_killed_before_any_of_its_steps_leaves_the_old_or_the_new(tmp_path, kind):
    """SIGKILL before every single system call that writing makes, then a second run that must clean up."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_STEP, kind, tmp_path], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(tmp_path):
    (tmp_path / ".out.partial-0123456789ab").mkdir()
    (tmp_path / ".out.partial-0123456789ab" / "new").write_text("half")
    (tmp_path / ".out.partial-0123456789ac").mkdir()  # killed before it had a lock
    (tmp_path / ".other.partial-0123456789ab").mkdir()
    (tmp_path / ".out.partial-notes").mkdir()  # not ours
    with atomic_file(tmp_path / "out") as first:
        first.write_text("first")
        with atomic_file(tmp_path / "out") as second:  # as from another process: a lock belongs to its opening
            assert is_living(first.parent)
            second.write_text("second")
        assert (tmp_path / "out").read_text() == "second"
    assert (tmp_path / "out").read_text() == "first"
    assert names(tmp_path) == [".other.partial-0123456789ab", ".out.partial-notes", "out"]


def test_long_names_that_begin_alike_have_places_of_their_own(tmp_path):
    one, two = tmp_path / ("n" * 240 + "1"), tmp_path / ("n" * 240 + "2")
    with aside(one) as place:
        (place / "old").mkdir()
        (place / "old" / "x").touch()
        sweep(two)
        assert is_partial(place)
    assert names(tmp_path) == []


def test_strangers_links_among_the_leftovers_are_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    case = tmp_path / "case"
    case.mkdir()
    (case / ".out.partial-000000000000").symlink_to(precious)
    for k, bait in enumerate(("link", "fifo", "folder"), start=1):
        place = case / f".out.partial-{k:012d}"
        place.mkdir()
        (place / "new").symlink_to(precious)
        if bait == "link":
            (place / "lock").symlink_to(tmp_path / "made")
        elif bait == "fifo":
            os.mkfifo(place / "lock")
        else:
            (place / "lock").mkdir()
    with atomic_file(case / "out") as partial:
        partial.write_text("ours")
    assert names(tmp_path) == ["case", "precious"]
    assert names(precious) == ["file"]
    assert (case / "out").read_text() == "ours"


def test_without_locks_nothing_is_taken_for_a_leftover(tmp_path, monkeypatch):
    (tmp_path / ".out.partial-0123456789ab").mkdir()

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with atomic_file(tmp_path / "out") as partial:
        partial.write_text("x")
    assert names(tmp_path) == [".out.partial-0123456789ab", "out"]


def test_a_folder_in_which_another_run_writes_is_not_replaced(tmp_path):
    """A new demo over an old one, while an audit inside the old one is still running."""
    target = tmp_path / "run"
    target.mkdir()
    refused = pytest.raises(OutputError, match="another run is writing in it")
    with atomic_folder(target / "audit"), refused, atomic_folder(target):
        raise AssertionError("must not start")
    (target / "audit").rmdir()
    with atomic_folder(target) as partial:
        (partial / "x").touch()
    assert names(target) == ["x"]


def test_who_waited_for_the_lock_of_a_removed_place_does_not_own_it(tmp_path, monkeypatch):
    """A run that makes a place may lose it to a sweep: from the moment it gets the lock it must see that."""
    place = tmp_path / ".out.partial-0123456789ab"
    place.mkdir()
    lock = places._lock_dead(place)
    waiting = os.open(place / "lock", os.O_RDWR)
    with pytest.raises(OSError):
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
    owned, close = [], os.close

    def close_and_look(handle):
        close(handle)
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owned.append(places._is_at(waiting, place / "lock"))

    with monkeypatch.context() as patched:
        patched.setattr(places.os, "close", close_and_look)
        places._remove(place, lock)
    close(waiting)
    assert owned == [False]
    assert not place.exists()


def test_a_sweep_that_comes_late_to_a_lock_leaves_the_place_to_its_new_owner(tmp_path, monkeypatch):
    """Between opening the lock and getting it, another sweep removes it and a run makes it anew."""
    place = tmp_path / ".out.partial-0123456789ab"
    place.mkdir()
    flock = fcntl.flock

    def late(handle, how):
        (place / "lock").unlink()
        (place / "lock").touch()
        flock(handle, how)

    with monkeypatch.context() as patched:
        patched.setattr(places.fcntl, "flock", late)
        assert places._lock_dead(place) is None
    assert not is_living(place)


def test_of_many_writers_of_one_target_the_last_wins_whole(tmp_path):
    """Threads that replace one folder and sweep each other's places; a reader never sees a mix."""
    target, failures = tmp_path / "out", []

    def write(who):
        try:
            for turn in range(8):
                with atomic_folder(target, replace_if=lambda _: True) as partial:
                    for name in "abc":
                        (partial / name).write_text(f"{who} {turn}")
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        try:
            handle = os.open(target, os.O_RDONLY)  # the folder that is there now, even if it is replaced meanwhile
        except FileNotFoundError:
            continue
        try:
            found = [Path(f"/proc/self/fd/{handle}/{name}").read_text() for name in "abc"]
        except FileNotFoundError:
            continue  # replaced, and being removed
        finally:
            os.close(handle)
        assert len(set(found)) <= 1
    assert failures == []
    assert names(tmp_path) == ["out"]
    assert len({(target / name).read_text() for name in "abc"}) == 1
