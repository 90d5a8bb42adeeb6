"""Print the table of audits that `benchmarks.flow` measured: a row an attack and defense, over all their seeds.

    python -m benchmarks.flow_table benchmarks/results/flow_*.json

Cells are the mean over seeds, in percent, with the least and the largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

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
    for file in parser.parse_args().files:
        for row in json.loads(file.read_text()):
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
    """Write the mean and, of several, the range: `12.3 (4.5 to 67.8)`."""
    if not values:
        return ""
    scale, digits = (1, 2) if "t_asr20" in column else (100, 1)
    mean, least, most = (f"{scale * v:.{digits}f}" for v in (statistics.fmean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
