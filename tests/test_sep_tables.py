"""The tables of docs/sep.md say what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.sep_tables import PAGE, RESULTS, TABLES, by_seed, filled, goals


def row(attack: str, defense: str, eps: float, c_acc: float, o_asr: float, p_asr: float) -> dict[str, object]:
    rates = {"c_acc": c_acc, "o_asr": o_asr, "p_asr": p_asr}
    return {
        "run": f"{attack}-1",
        "attack": attack,
        "defense": defense,
        "eps": eps,
        "clean": 1000,
        "flagged": 108,
        **rates,
    }


def test_the_tables_are_what_the_results_say() -> None:
    text = PAGE.read_text()
    assert filled(text, RESULTS) == text, "run python -m benchmarks.sep_tables"


def test_a_goal_counts_attacks_and_names_those_that_miss_it() -> None:
    """One attack meets all; the other has 4% left at eps .1 and is 5 points above EP and 3 below FT."""
    rows = [
        *(row("lf", name, 0.1, 0.89, 0.02, 0.03) for name in ("sep", "ft")),
        row("lf", "ep", 0.0, 0.89, 0.02, 0.02),
        row("wanet", "sep", 0.1, 0.86, 0.04, 0.08),
        row("wanet", "ft", 0.1, 0.89, 0.9, 0.9),
        row("wanet", "ep", 0.0, 0.89, 0.02, 0.03),
        row("wanet", "sep", 0.2, 0.86, 0.04, 0.08),
    ]
    cells = [[c.strip() for c in line.split("|")[2:4]] for line in goals(rows).splitlines()[2:]]
    assert cells == [["1 of 2", "wanet 4.0"], ["1 of 1", ""], ["1 of 2", "wanet 5.0"], ["1 of 2", "wanet 3.0"]]


def test_seeds_stand_side_by_side_in_their_order() -> None:
    rows = [row("lf", "sep", 0.1, 0.9, s / 100, s / 10) | {"run": f"lf-{s}"} for s in (2, 1, 3)]
    rows += [row("lf", "ep", 0.0, 0.9, 0.01, 0.05), row("lf", "sep", 0.2, 0.9, 0.5, 0.5)]
    [line] = by_seed(rows).splitlines()[2:]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["lf", "1.0, 2.0, 3.0", "10.0, 20.0, 30.0", "5.0"]


def test_a_page_without_a_place_for_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "contaminated_x.json").write_text(json.dumps([row("lf", "sep", 0.1, 0.9, 0.0, 0.0)]))
    page = "".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in TABLES)
    assert "old" not in filled(page, tmp_path)
    with pytest.raises(SystemExit, match="0 places for the table goals"):
        filled(page.replace("table: goals", "table: other"), tmp_path)
