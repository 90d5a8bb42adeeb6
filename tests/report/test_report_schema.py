"""The report document: what it accepts, how it reads files from outside, and that its schema is published."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError
from reports import audited, empty, row

from bdaudit.errors import InputError
from bdaudit.report.schema import ExitCode, Finding, Policy, Report, json_schema, read_report

PUBLISHED = Path(__file__).parents[2] / "docs" / "report.schema.json"
REGENERATE = (
    'python -c "import json; from bdaudit.report.schema import json_schema; '
    'print(json.dumps(json_schema(), indent=2))" > docs/report.schema.json'
)


def test_published_schema_is_current() -> None:
    """docs/report.schema.json says what the code does."""
    assert json.loads(PUBLISHED.read_text()) == json_schema(), f"out of date; run: {REGENERATE}"


@pytest.mark.parametrize("report", [audited(), empty()], ids=["audited", "empty"])
def test_written_report_satisfies_the_published_schema(report: Report) -> None:
    """What is written validates against what is published, by a validator that is not pydantic."""
    schema = json.loads(PUBLISHED.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(report.to_json()))


def test_schema_refuses_an_unknown_key_and_a_wrong_verdict() -> None:
    """The published schema is not so loose that everything satisfies it."""
    validator = jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text()))
    document = json.loads(empty().to_json())
    assert not validator.is_valid({**document, "surprise": 1})
    assert not validator.is_valid({**document, "verdict": "fine"})


def test_report_survives_a_round_trip(tmp_path: Path) -> None:
    """Reading what was written gives the same report."""
    path = tmp_path / "report.json"
    path.write_text(audited().to_json())
    assert read_report(path) == audited()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "{}",
        "null",
        '{"\x1b[31m\\n": 1}',
        "[" * 100_000,
        '{"verdict": "pass", "value": "\\ud800"}',
        json.dumps({**json.loads(empty().to_json()), "schema_version": "99"}),
        json.dumps({**json.loads(empty().to_json()), "extra\n\x1b[2J": 1}),
    ],
)
def test_unusable_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    """A file that is no report raises InputError with one printable line."""
    path = tmp_path / "report\n.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not a bdaudit report of schema 1") as caught:
        read_report(path)
    assert str(caught.value).isprintable()


def test_bytes_and_missing_files_are_refused(tmp_path: Path) -> None:
    """Neither binary rubbish nor a missing file gives a traceback of another kind."""
    (tmp_path / "a.json").write_bytes(b"\x89PNG\xff\xfe")
    for name in ("a.json", "absent.json"):
        with pytest.raises(InputError):
            read_report(tmp_path / name)


def test_findings_hold_numbers_only() -> None:
    """NaN and infinity are refused: they would compare as neither above nor below a bound."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            row("retune", "purified", "p_asr", value, low=0, high=1)
    with pytest.raises(ValidationError):
        Finding.model_validate(
            {"probe": "p", "subject": "stranger", "metric": "asr", "value": 1, "low": 0, "high": 1, "n": 1}
        )


def test_policy_bounds_are_fractions() -> None:
    """A percentage given for a fraction is refused."""
    with pytest.raises(ValidationError):
        Policy(max_o_asr=10)


def test_find_returns_the_first_match() -> None:
    """find looks for exact keys and gives None where nothing was measured."""
    found = audited().find("p_asr", probe="retune")
    assert found is not None
    assert found.value == 0.94
    assert audited().find("p_asr", probe="lmc") is None


def test_exit_codes() -> None:
    """0 pass, 1 fail, 4 inconclusive: neither of the latter looks like a pass."""
    codes = {v: empty().model_copy(update={"verdict": v}).exit_code for v in ("pass", "fail", "inconclusive")}
    assert codes == {"pass": ExitCode.PASS, "fail": ExitCode.FAIL, "inconclusive": ExitCode.INCONCLUSIVE}
    assert [int(c) for c in codes.values()] == [0, 1, 4]


def test_checks_pair_reasons_with_outcomes_or_admit_ignorance() -> None:
    """A list of outcomes that does not fit the reasons is not guessed at."""
    assert [outcome for outcome, _ in audited().checks] == ["fail", "inconclusive", "pass", "pass"]
    short = audited().model_copy(update={"outcomes": ["pass"]})
    assert {outcome for outcome, _ in short.checks} == {None}
