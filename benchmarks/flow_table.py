"""Print the table of audits that `benchmarks.flow` measured: a row an attack and defense, over all their seeds.

    python -m benchmarks.flow_table benchmarks/results/flow_*.json

Cells are the mean over seeds, in percent, with the least and the largest.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks import rows_of, spread

COLUMNS = {
    "C-ACC before": "suspect.c_acc",
    "after": "purified.c_acc",
    "O-ASR": "purified.o_asr",
    "RA": "retune.purified.p_asr",
    "RA, reference": "retune.reference.p_asr",
    "QRA": "qra.purified.p_asr",
    "its C-ASR": "qra.purified.c_asr",
    "QRA, reference": "qra.reference.p_asr",
    "t at ASR 20%": "lmc.purified.t_asr20[from the suspect]",
}


def main() -> None:
    """Group the rows of all files and print one GitHub table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    groups: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows_of(*parser.parse_args().files):
        groups[row["attack"], row["defense"]].append(row)
    table = [[*key, *_cells(rows)] for key, rows in sorted(groups.items())]
    print(
        tabulate(table, ["attack", "defense", "audits", "verdicts", *COLUMNS], tablefmt="github", disable_numparse=True)
    )


def _cells(rows: list[dict[str, Any]]) -> list[str]:
    verdicts = Counter(row["verdict"] for row in rows)
    said = ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items()))
    return [str(len(rows)), said, *(_range([r[c] for r in rows if c in r], c) for c in COLUMNS.values())]


def _range(values: list[float], column: str) -> str:
    """Show rates in percent, and how far along a path as it is."""
    return spread(values, digits=2) if "t_asr20" in column else spread(100 * v for v in values)


if __name__ == "__main__":
    main()
