"""docs/report.md: its commands run as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from reports import audited

from bdaudit.cli.main import _run
from bdaudit.report.formats import FORMATS

PAGE = (Path(__file__).parents[2] / "docs" / "report.md").read_text()


def test_its_commands_do_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each ends with the first report's exit code and leaves the file that it names."""
    monkeypatch.chdir(tmp_path)
    for name, verdict in (("fst", "fail"), ("pl", "pass"), ("ep", "inconclusive")):
        Path(f"audit-{name}").mkdir()
        report = audited().model_copy(update={"verdict": verdict, "exhibits": []})
        Path(f"audit-{name}", "report.json").write_text(report.to_json())
    commands = [
        c for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for c in block.splitlines()
    ]
    assert len(commands) == 7
    for command in commands:
        words = shlex.split(command)
        assert _run(words[1:], debug=False) == 1
        if "--out" in words:
            assert Path(words[words.index("--out") + 1]).stat().st_size > 500
        else:
            assert "FAIL" in capsys.readouterr().out


def test_it_names_every_format() -> None:
    """None is missing from its table."""
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == {*FORMATS}
