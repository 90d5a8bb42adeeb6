"""Plugins are found through entry points, built-ins included, and a broken one stops no other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from support import fresh_environment

import bdaudit
from bdaudit import hookspecs, plugins
from bdaudit.errors import UsageError
from bdaudit.flow.run import Run

EXAMPLE = Path(__file__).parent.parent / "plugins" / "bdaudit-example"


def test_built_ins_arrive_through_entry_points() -> None:
    found = plugins.registry()
    assert not found.broken
    assert {"badnets", "blended"} <= set(found.of_kind("attack"))
    assert {"ft", "fst", "pl", "ep"} <= set(found.of_kind("defense"))
    assert {"retune", "qra"} <= set(found.of_kind("probe"))
    assert all(f.origin.distribution for f in found.found.values())


def test_names_for_completion_agree_with_what_loads() -> None:
    for kind in plugins.KINDS:
        assert plugins.names(kind) == list(plugins.registry().of_kind(kind))


def test_an_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(UsageError, match=r"no defense named 'fts'; did you mean ft or .*fst"):
        plugins.get("defense", "fts")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('on import')", "RuntimeError: on import"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("x = 1", "returns no plugin"),
        ("def (:", "SyntaxError"),
        (
            "from bdaudit.hookspecs import hookimpl\n@hookimpl\ndef bdaudit_defenses():\n    return [int]",
            "not a subclass of Defense",
        ),
        (
            "from bdaudit.hookspecs import hookimpl\n@hookimpl\ndef bdaudit_defenses():\n    raise ValueError('no')",
            "ValueError: no",
        ),
        (
            "from bdaudit.hookspecs import hookimpl\n@hookimpl\ndef bdaudit_defenses(wrong_argument):\n    return []",
            "PluginValidationError",
        ),
        (
            "from bdaudit.hookspecs import hookimpl\nfrom bdaudit.defenses.ft import FT\n"
            "@hookimpl\ndef bdaudit_defenses():\n    return [FT]",
            "already provided by",
        ),
    ],
)
def test_a_broken_plugin_is_reported_and_skipped(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [*entry_points(group=plugins.GROUP), EntryPoint("defense.broken", name, plugins.GROUP)]
    found = plugins.load(points)
    assert "fst" in found.of_kind("defense")
    [(label, why)] = found.broken.items()
    assert label.startswith("defense.broken")
    assert reason in why
    assert "\n" not in why


def plugin_of(
    folder: Path, name: str, source: str = "", *, distribution: str = "", point: str = "defense.thing"
) -> None:
    """Lay out an installed distribution with one module and one entry point."""
    distribution = distribution or name
    (folder / f"{name}.py").write_text(source or THING)
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[bdaudit]\n{point} = {name}\n")


THING = """
from bdaudit.defenses.base import Defense
from bdaudit.hookspecs import hookimpl

class Thing(Defense):
    "Does nothing."
    name = "thing"
    def purify(self, model):
        return model

@hookimpl
def bdaudit_defenses():
    return [Thing]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path for plugins of this test alone."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    plugins.registry.cache_clear()
    plugins.package_digest.cache_clear()
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    plugins.registry.cache_clear()


@pytest.mark.parametrize(
    ("allowed", "used"),
    [
        (None, True),
        ("none", False),
        ("", False),
        ("bdaudit", False),
        ("something-else, bdaudit-example", False),
        ("My.Plugin", True),
        ("bdaudit my_plugin", True),
    ],
)
def test_only_allowed_distributions_are_imported(
    allowed: str | None, used: bool, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BDAUDIT_PLUGINS names the distributions; the others' modules are not run, and completion does not name them."""
    plugin_of(site, "allow_me", THING, distribution="my-plugin")
    monkeypatch.delenv(plugins.ALLOW, raising=False)
    if allowed is not None:
        monkeypatch.setenv(plugins.ALLOW, allowed)
    found = plugins.registry()
    assert ("thing" in found.of_kind("defense")) == used
    assert ("allow_me" in sys.modules) == used
    assert ("thing" in plugins.names("defense")) == used
    assert ("defense.thing (from my-plugin 1.2)" in found.left_out) != used
    assert "fst" in found.of_kind("defense")
    if not used:
        with pytest.raises(UsageError, match=r"defense\.thing \(from my-plugin 1\.2\) is left out by BDAUDIT_PLUGINS"):
            plugins.get("defense", "thing")


def test_the_list_says_how_many_are_left_out(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bdaudit.cli.main import _run

    plugin_of(site, "left_out", THING, distribution="my-plugin")
    monkeypatch.setenv(plugins.ALLOW, "none")
    assert _run(["plugins", "list", "--json"], debug=True) == 0
    out, err = capsys.readouterr()
    assert "thing" not in {row["name"] for row in json.loads(out)}
    assert err == "BDAUDIT_PLUGINS leaves out 1: defense.thing (from my-plugin 1.2)\n"


def test_a_misspelt_name_in_the_allow_list_is_pointed_out(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bdaudit.cli.main import _run

    plugin_of(site, "misspelt", THING, distribution="my-plugin")
    monkeypatch.setenv(plugins.ALLOW, "my-plugin my-plugni bdaudit")
    assert _run(["plugins", "list", "--json"], debug=True) == 0
    assert capsys.readouterr().err == "BDAUDIT_PLUGINS allows my-plugni, which is not installed\n"


def test_what_a_plugin_prints_on_import_is_no_part_of_the_answer(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bdaudit.cli.main import _run

    plugin_of(site, "talkative", "print('hello')\n" + THING, distribution="my-plugin")
    monkeypatch.delenv(plugins.ALLOW, raising=False)
    assert _run(["plugins", "list", "--json"], debug=True) == 0
    out, err = capsys.readouterr()
    assert "thing" in {row["name"] for row in json.loads(out)}
    assert err == "hello\n"


def test_only_the_plugin_that_was_asked_for_is_owned_up_to() -> None:
    broken = {"attack.quit (from brk 0.1)": "SystemExit: 3", "defense.brk (from brk 0.1)": "ModuleNotFoundError: x"}
    found = plugins.Registry({}, broken)
    assert found.why_not("brk") == "; defense.brk (from brk 0.1) was skipped: ModuleNotFoundError: x"
    assert found.why_not("b") == ""


@pytest.mark.parametrize(("kind", "shown"), [([], "bdaudit 0.1.0"), (["--kind", "attack"], "dirty-label")])
def test_a_narrow_terminal_gets_lines_that_fit(
    kind: list[str], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bdaudit.cli.main import _run

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    assert _run(["plugins", "list", *kind], debug=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(shown in line for line in lines)


def test_a_file_beside_a_suspect_allows_nothing(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bdaudit.cli.main import _run

    plugin_of(site, "beside_me", THING, distribution="my-plugin")
    monkeypatch.setenv(plugins.ALLOW, "none")
    (tmp_path / "model.pt").write_bytes(b"")
    for setting in ('plugins = "my-plugin"', 'BDAUDIT_PLUGINS = "my-plugin"', '[plugins]\nallow = ["my-plugin"]'):
        (tmp_path / "bdaudit.toml").write_text(setting)
        assert _run(["purify", str(tmp_path / "model.pt"), "--defense", "thing"], debug=False) == 2
        assert "is left out by BDAUDIT_PLUGINS" in capsys.readouterr().err
    assert "beside_me" not in sys.modules


@pytest.mark.parametrize("line", ["BDAUDIT_HOOKSPEC = 2", "BDAUDIT_HOOKSPEC: int = 2"])
def test_a_plugin_made_for_other_hooks_is_skipped_with_one_line_and_not_run(
    line: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bdaudit.cli.main import _run

    plugin_of(site, "from_the_future", f"{line}\nfrom bdaudit.hookspecs import what_is_not_there_yet\n")
    assert _run(["plugins", "list"], debug=True) == 0
    assert capsys.readouterr().err == (
        "warning: plugin defense.thing (from from_the_future 1.2) was skipped: it is made for version 2 of "
        f"bdaudit's hooks, this bdaudit {bdaudit.__version__} offers version 1\n"
    )
    assert "from_the_future" not in sys.modules


def test_a_plugin_made_for_these_hooks_is_used(site: Path) -> None:
    plugin_of(site, "of_today", f"BDAUDIT_HOOKSPEC = {hookspecs.VERSION}\n{THING}")
    assert "thing" in plugins.registry().of_kind("defense")


def test_the_hash_is_of_the_packages_files_and_of_nothing_else(site: Path) -> None:
    """The same code has the same hash wherever it lies; one changed byte, in any file, another."""

    def hashed(where: str, helper: str = "x = 1\n", cache: bool = False) -> str:
        package = site / where / "hash_me"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "mine.py").write_text("from hash_me import helper\n")
        (package / "helper.py").write_text(helper)
        if cache:
            (package / "__pycache__").mkdir()
            (package / "__pycache__" / "mine.pyc").write_text(where)
        sys.path.insert(0, str(site / where))
        try:
            import_module("hash_me.mine")
            plugins.package_digest.cache_clear()
            return plugins.fingerprint("hash_me.mine")
        finally:
            sys.path.remove(str(site / where))
            for name in [n for n in sys.modules if n.partition(".")[0] == "hash_me"]:
                del sys.modules[name]

    first = hashed("a")
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert hashed("b", cache=True) == first
    assert hashed("c", helper="x = 2\n") != first


def test_a_package_is_hashed_once_however_many_plugins_it_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.package_digest.cache_clear()
    built_in = [f.origin for f in plugins.registry().found.values() if f.origin.distribution == plugins.BUILT_IN]
    hashed: list[Path] = []
    usual = plugins.sha256
    monkeypatch.setattr(plugins, "sha256", lambda path: hashed.append(path) or usual(path))
    assert len({origin.sha256 for origin in built_in}) == 1
    assert len(set(hashed)) == len(hashed) > len(built_in) > 1


def test_provenance_names_every_plugin_that_was_imported_with_its_hash(site: Path) -> None:
    from bdaudit.flow.provenance import environment

    plugin_of(site, "seen", THING, distribution="my-plugin")
    sha256 = plugins.registry().found["defense", "thing"].origin.sha256
    assert environment()["plugins"] == [f"my-plugin 1.2 sha256:{sha256}"]


def test_one_module_may_stand_behind_several_names(site: Path) -> None:
    both = THING + "@hookimpl\ndef bdaudit_result(report):\n    pass\n"
    plugin_of(site, "both", both, distribution="my-plugin")
    points = site / "both-1.2.dist-info" / "entry_points.txt"
    points.write_text(points.read_text() + "defense.other = both\ntracker.notes = both\n")
    found = plugins.registry()
    assert not found.broken
    assert "thing" in found.of_kind("defense")
    assert found.trackers["notes"].arguments == ("report",)


def test_a_strangers_defense_is_installed_and_used_by_name(tmp_path: Path, run: Run) -> None:
    """pip installs plugins/bdaudit-example into a fresh environment, where the command line runs it."""
    environment = fresh_environment(tmp_path / "env")
    shutil.copytree(EXAMPLE, tmp_path / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))

    def command(*arguments: object) -> None:
        done = subprocess.run(
            [str(a) for a in arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    command("pip", "install", "-q", "--no-deps", tmp_path / "source")
    out = tmp_path / "out.pt"
    command("bdaudit", "purify", run.model_path, "--defense", "head-reset", "-o", "epochs=1", "--out", out)
    assert out.is_file()
    assert "head-reset" not in plugins.names("defense"), "it leaked into this environment"


def test_the_check_ends_with_its_verdict(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 where every check that applies is ok, 1 where one fails, 2 where there is no such plugin."""
    from bdaudit.cli.main import _run

    plugin_of(site, "kept", THING, distribution="good")
    plugin_of(
        site, "broke", THING.replace('"thing"', '"noise"').replace("return model", "return None"), point="defense.noise"
    )
    assert _run(["plugins", "check", "thing", "--json"], debug=True) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["name"], row["distribution"]) == ("defense", "thing", "good")
    assert {c["state"] for c in row["checks"]} == {"ok", "not applicable"}
    assert _run(["plugins", "check", "noise"], debug=True) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("noise (defense, from broke 1.2)\n")
    assert re.search(
        r"^  result +FAILED: noise.purify returned NoneType, expected a Classifier or Purified$", printed, re.MULTILINE
    )
    assert re.search(r"^  trigger +not applicable: it is no attack$", printed, re.MULTILINE)
    assert _run(["plugins", "check", "thng"], debug=False) == 2
    assert "no plugin named 'thng'; did you mean thing" in capsys.readouterr().err
    assert _run(["plugins", "check", "thing", "--kind", "attack"], debug=False) == 2
    assert "no attack named 'thing'" in capsys.readouterr().err
