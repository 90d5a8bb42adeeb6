"""Tables that are more than a list of rows."""

from __future__ import annotations

from reports import audited, row

from bdaudit.report import tables
from bdaudit.report.controls import MADE_ON, TRIED_ON
from bdaudit.report.render import render
from bdaudit.report.schema import Finding

NAMES = ("this model", "pam.pt", "reference")


def travelled(*made_on: str) -> list[Finding]:
    """Perturbations made on some models, each tried on all others and the reference: .1 on the first, .2 next."""
    rows = []
    for made in made_on:
        for i, tried in enumerate(NAMES, 1):
            if tried != made:
                rows.append(
                    row("transfer", "purified", "transfer_p_asr", i / 10, variant=f"{MADE_ON}{made}{TRIED_ON}{tried}")
                )
        rows.append(row("transfer", "reference", "transfer_p_asr", 0.0, variant=f"{MADE_ON}{made}"))
    return rows


def test_what_was_made_on_several_models_becomes_a_matrix() -> None:
    """A file that is called `reference` is not the reference."""
    report = audited().model_copy(update={"findings": travelled(*NAMES)})
    [matrix] = tables.summary(report)
    assert matrix.headers == ["made on", *NAMES, "reference (no backdoor)"]
    figures = [[line[0], *(cell.partition(" ")[0] for cell in line[1:])] for line in matrix.rows]
    assert figures == [
        ["this model", "", "20.0%", "30.0%", "0.0%"],
        ["pam.pt", "10.0%", "", "30.0%", "0.0%"],
        ["reference", "10.0%", "20.0%", "", "0.0%"],
    ]
    for format in ("text", "markdown", "html", "latex"):
        assert "made on (down) and tried on (across)" in render(report, format)


def test_what_was_made_on_one_model_stays_a_list() -> None:
    [table] = tables.summary(audited().model_copy(update={"findings": travelled("this model")}))
    assert [line[0].partition(": ")[2] for line in table.rows] == [
        "made on this model, tried on pam.pt",
        "made on this model, tried on reference",
        "made on this model",
    ]
