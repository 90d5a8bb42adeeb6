"""Write the tables of docs/sep.md from the committed results, each between two comments that name it.

python -m benchmarks.sep_tables            # writes docs/sep.md
python -m benchmarks.sep_tables --check    # exit code 1 if its tables are not what the results say
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks import rows_of, spread

PAGE = Path(__file__).parent.parent / "docs" / "sep.md"
RESULTS = Path(__file__).parent / "results"
CLEAN, FLAGGED = 1000, 108
"""Images in every table but those of few flagged ones."""
METRICS = ("c_acc", "o_asr", "p_asr", "robust_acc")

Row = dict[str, Any]


def main() -> int:
    """Write the tables, or compare them with the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    text = PAGE.read_text()
    new = filled(text, RESULTS)
    if parser.parse_args().check:
        return int(new != text)
    PAGE.write_text(new)
    return 0


def filled(text: str, folder: Path) -> str:
    """Replace what stands between `<!-- table: NAME -->` and `<!-- end -->`; every table must have its place."""
    measured = rows_of(*sorted(folder.glob("contaminated_*.json")))
    rows = {
        "few": [row for row in measured if row["flagged"] < FLAGGED],
        "ablation": rows_of(*sorted(folder.glob("ablation_*.json"))),
        "innocent": rows_of(*sorted(folder.glob("innocent_*.json"))),
        "audits": rows_of(*sorted(folder.glob("flow_sep_*.json"))),
    }
    usual = [row for row in measured if (row["clean"], row["flagged"]) == (CLEAN, FLAGGED)]
    for name, table in TABLES.items():
        body = table(rows.get(name, usual))
        text, count = re.subn(
            rf"(<!-- table: {name} -->\n).*?(<!-- end -->)",
            lambda m, b=body: f"{m[1]}{b}\n{m[2]}",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise SystemExit(f"docs/sep.md has {count} places for the table {name}")
    return text


def contaminated(rows: list[Row]) -> str:
    """One line an attack: the suspect, EP on pure pools, `sep` and `pl` by the share exchanged."""
    columns = [("", 0.0), ("ep", 0.0), *(("sep", eps) for eps in (0.0, 0.1, 0.2, 0.3)), ("pl", 0.0), ("pl", 0.1)]
    heads = ["suspect", "EP", "`sep`, 0", ".1", ".2", ".3", "`pl`, 0", ".1"]
    lines = [
        [f"{attack} ({seeds(rows, attack)})", *(cell(rows, attack, name, eps) for name, eps in columns)]
        for attack in attacks(rows, "sep")
    ]
    return laid_out(lines, ["", *heads])


def peers(rows: list[Row]) -> str:
    """One line an attack that all of these defenses were measured on, a tenth of both pools exchanged."""
    names = ("sep", "pl", "ft", "fst", "d3", "bti-dbf", "pam")
    there = [attack for attack in attacks(rows, "sep") if all(found(rows, attack, name, 0.1) for name in names)]
    return laid_out([[a, *(cell(rows, a, n, 0.1) for n in names)] for a in there], ["", *(f"`{n}`" for n in names)])


def goals(rows: list[Row]) -> str:
    """One line a goal of issue 10: how many attacks meet it, and by how much the others miss."""

    def judged(name: str, most: float, of: Callable[[str], float | None]) -> list[str]:
        values = {attack: value for attack in attacks(rows, "sep") if (value := of(attack)) is not None}
        missed = [f"{attack} {100 * value:.1f}" for attack, value in values.items() if value > most]
        return [name, f"{len(values) - len(missed)} of {len(values)}", ", ".join(missed)]

    def o_asr(eps: float) -> Callable[[str], float | None]:
        return lambda attack: mean(rows, attack, "sep", eps, "o_asr")

    def above_ep(attack: str) -> float | None:
        return difference(found(rows, attack, "sep", 0.1), found(rows, attack, "ep", 0.0), "p_asr")

    def below_ft(attack: str) -> float | None:
        return difference(found(rows, attack, "ft", 0.1), found(rows, attack, "sep", 0.1), "c_acc")

    lines = [
        judged("O-ASR at most 3% at eps .1", 0.03, o_asr(0.1)),
        judged("O-ASR at most 5% at eps .2", 0.05, o_asr(0.2)),
        judged("P-ASR at eps .1 at most 2 points above EP's on pure pools", 0.02, above_ep),
        judged("C-ACC at eps .1 at most 2 points below FT's on the same pools", 0.02, below_ft),
    ]
    return laid_out(lines, ["goal", "met by", "missed by, with the figure"])


def ablation(rows: list[Row]) -> str:
    """One line a variant, one column a run; the fourth figure is robust accuracy, where it was measured."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    lines = [
        [name, *(figures([r for r in rows if (r["run"], r["defense"]) == (run, name)]) for run in runs)]
        for name in dict.fromkeys(row["defense"] for row in rows if row["defense"])
    ]
    return laid_out(lines, ["", *(run.rpartition("-")[0] for run in runs)])


def adaptive(rows: list[Row]) -> str:
    """One line a defense against the attacker who knows the screening."""
    there = [row for row in rows if row["attack"] == "sep-adaptive"]
    keys = dict.fromkeys((row["defense"], row["eps"]) for row in there)
    lines = [[name or "suspect", eps if name else "", cell(there, "sep-adaptive", name, eps)] for name, eps in keys]
    return laid_out(lines, ["", "eps", "C-ACC, O-ASR, P-ASR"])


def robust(rows: list[Row]) -> str:
    """One line an attack: robust accuracy before, after EP on pure pools, after `sep`, and with its first guess."""
    columns = [("", 0.0), ("ep", 0.0), ("sep", 0.1), ("sep rounds=0", 0.1)]
    lines = [
        [attack, *(spread(100 * v for v in values(rows, attack, *column, "robust_acc")) for column in columns)]
        for attack in attacks(rows, "sep")
    ]
    return laid_out(lines, ["", "suspect", "EP", "`sep`, eps .1", "`-o rounds=0`"])


def by_seed(rows: list[Row]) -> str:
    """One line an attack: what each seed's victim leaves at eps .1, and what RA makes of it and of EP's."""
    columns = [("sep", 0.1, "o_asr"), ("sep", 0.1, "p_asr"), ("ep", 0.0, "p_asr")]
    lines = [
        [attack, *(", ".join(f"{100 * v:.1f}" for v in values(rows, attack, *column)) for column in columns)]
        for attack in attacks(rows, "sep")
    ]
    return laid_out(lines, ["", "`sep`: O-ASR", "`sep`: P-ASR", "EP: P-ASR"])


def audits(rows: list[Row]) -> str:
    """One line a whole audit: the verdict, and every reactivation beside the clean twin's."""
    pairs = [f"{probe}.{subject}.p_asr" for probe in ("retune", "qra") for subject in ("purified", "reference")]
    lines = [
        [
            f"{row['attack']}-{row['seed']}",
            row["verdict"],
            *(f"{100 * row[key]:.1f}" for key in ("purified.c_acc", "purified.o_asr", *pairs, "qra.purified.c_asr")),
        ]
        for row in sorted(rows, key=lambda row: (row["attack"], row["seed"]))
    ]
    return laid_out(lines, ["", "verdict", "C-ACC", "O-ASR", "RA", "of the twin", "QRA", "of the twin", "C-ASR of QRA"])


def few(rows: list[Row]) -> str:
    """One line an attack and size of the pools; EP's is pure, of the same size."""
    places = dict.fromkeys((row["attack"], row["clean"], row["flagged"]) for row in rows)
    lines = []
    for attack, clean, flagged in places:
        there = [row for row in rows if (row["clean"], row["flagged"]) == (clean, flagged)]
        lines.append([attack, clean, flagged, cell(there, attack, "sep", 0.1), cell(there, attack, "ep", 0.0)])
    return laid_out(lines, ["", "clean", "flagged", "`sep`, eps .1", "EP"])


def innocent(rows: list[Row]) -> str:
    """One line a class and number of innocent images flagged: C-ACC before and after, and that of the class."""
    keys = ("c_acc_before", "c_acc_after", "of_class_before", "of_class_after")
    lines = [
        [row["flagged"], row["class"], *(f"{100 * row[key]:.1f}" for key in keys)]
        for row in rows
        if row["defense"] == "sep"
    ]
    return laid_out(lines, ["flagged", "of class", "C-ACC", "after `sep`", "of the class", "after `sep`"])


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "goals": goals,
    "contaminated": contaminated,
    "peers": peers,
    "ablation": ablation,
    "adaptive": adaptive,
    "robust": robust,
    "few": few,
    "innocent": innocent,
    "seeds": by_seed,
    "audits": audits,
}


def attacks(rows: list[Row], defense: str) -> Iterator[str]:
    """Name the attacks that a defense was measured on, from A to Z."""
    yield from sorted({row["attack"] for row in rows if row["defense"] == defense})


def seeds(rows: list[Row], attack: str) -> str:
    """Say how many victims `sep` was measured on."""
    count = len({row["run"] for row in rows if (row["attack"], row["defense"]) == (attack, "sep")})
    return f"{count} seed{'s' * (count > 1)}"


def found(rows: list[Row], attack: str, name: str, eps: float) -> list[Row]:
    """Take the rows of a defense on the pools of an attack."""
    return [row for row in rows if (row["attack"], row["defense"], row["eps"]) == (attack, name, eps)]


def values(rows: list[Row], attack: str, name: str, eps: float, metric: str) -> list[float]:
    """List a metric of a defense's rows, seed by seed."""
    there = sorted(found(rows, attack, name, eps), key=lambda row: str(row["run"]))
    return [row[metric] for row in there if metric in row]


def mean(rows: list[Row], attack: str, name: str, eps: float, metric: str) -> float | None:
    """Average a metric over them; None where there are none."""
    there = values(rows, attack, name, eps, metric)
    return statistics.fmean(there) if there else None


def difference(a: list[Row], b: list[Row], metric: str) -> float | None:
    """Average a - b over the runs that both were measured on; None where there are none."""
    first, second = ({row["run"]: row[metric] for row in rows} for rows in (a, b))
    both = first.keys() & second.keys()
    return statistics.fmean(first[run] - second[run] for run in both) if both else None


def cell(rows: list[Row], attack: str, name: str, eps: float) -> str:
    """Write what a defense makes of the pools of an attack."""
    return figures(found(rows, attack, name, eps), METRICS[:3])


def figures(rows: list[Row], metrics: tuple[str, ...] = METRICS) -> str:
    """Write metrics in percent, means over the rows; '' for no rows, - for what none of them has."""
    values = [[row[m] for row in rows if m in row] for m in metrics]
    return ", ".join(f"{100 * statistics.fmean(v):.1f}" if v else "-" for v in values) if rows else ""


def laid_out(lines: list[list[str]], heads: list[str]) -> str:
    """Lay out a table in Markdown."""
    return str(tabulate(lines, heads, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    sys.exit(main())
