"""Plugins are found through entry points, built-ins included, and a broken one stops no other."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from bdaudit import plugins
from bdaudit.errors import UsageError

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
    with pytest.raises(UsageError, match=r"no defense named 'fts'; did you mean ft or fst"):
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


def test_a_strangers_defense_is_installed_and_used_by_name(tmp_path: Path, run: object) -> None:
    """pip installs plugins/bdaudit-example into a fresh environment, where the command line runs it."""
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    # The fresh environment sees this one's packages, pip and torch included; what is new goes into its own.
    here = sysconfig.get_paths()["purelib"]
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (Path(purelib) / "parent.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "src/bdaudit_example/__init__.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((EXAMPLE / name).read_bytes())
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", source],
        check=True,
    )  # fmt: skip
    code = "from bdaudit.cli.main import main; main()"
    listed = subprocess.run(
        [python, "-c", code, "plugins", "list", "--json"], capture_output=True, text=True, check=True
    )
    [row] = [r for r in json.loads(listed.stdout) if r["name"] == "head-reset"]
    assert (row["distribution"], row["needs"]) == ("bdaudit-example", ["model", "clean", "rng"])
    out = tmp_path / "out.pt"
    model = run.model_path  # type: ignore[attr-defined]
    used = subprocess.run(
        [python, "-c", code, "purify", model, "--defense", "head-reset", "-o", "epochs=1", "--out", out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert used.returncode == 0, used.stderr
    assert out.is_file()
    assert "head-reset" not in plugins.names("defense"), "it leaked into this environment"
