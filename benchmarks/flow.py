"""Measure the whole flow on Fashion-MNIST: attacks, the defenses of the first release, and their audits.

    python -m benchmarks.flow --out DIR [--attack badnets blended] [--defense ft fst pl ep] [--seeds 1] [--json FILE]

Ten thousand training images, ResNet-18 of width 16, 5% poison. Each row is one audit as `bdaudit audit` makes it,
with a clean twin of the same training as the reference. Figures come from the report; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bdaudit import api
from bdaudit.flow.implant import Sizes
from bdaudit.flow.run import is_run, open_run
from bdaudit.report.schema import Report
from bdaudit.training.progress import progress_shown


def main() -> None:
    """Run what is asked for and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--attack", nargs="+", default=["badnets", "blended"])
    parser.add_argument("--defense", nargs="+", default=["ft", "fst", "pl", "ep"])
    parser.add_argument("--probe", nargs="*", default=["retune", "qra"])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--arch", default="resnet18:width=16")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("-o", dest="options", action="append", default=[], help="probe.name=value")
    args = parser.parse_args()
    options = dict(o.split("=", 1) for o in args.options)
    rows: list[dict[str, Any]] = []
    with progress_shown():
        for attack in args.attack:
            for seed in range(args.seeds):
                folder = args.out / f"{attack}-{seed}"
                start = time.perf_counter()
                if not is_run(folder):
                    api.attack(
                        attack,
                        data="fashion-mnist",
                        out=folder,
                        arch=args.arch,
                        sizes=Sizes(train=args.images),
                        epochs=args.epochs,
                        with_reference=True,
                        seed=seed,
                        device=args.device,
                    )
                trained = time.perf_counter() - start
                record = open_run(folder).record
                base = {"attack": attack, "seed": seed, "attack_seconds": round(trained, 1)}
                base |= {"clean_twin_c_acc": record.metrics.get("reference", {}).get("c_acc")}
                for defense in args.defense:
                    start = time.perf_counter()
                    report = api.audit(
                        folder / "model.pt",
                        defense=defense,
                        run=folder,
                        malicious=folder / "flagged",
                        probes=args.probe,
                        options=options,
                        seed=seed,
                        device=args.device,
                    )
                    rows.append(base | {"defense": defense} | figures(report))
                    rows[-1]["audit_seconds"] = round(time.perf_counter() - start, 1)
                    print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    print(tabulate(rows, headers="keys", floatfmt=".3f"))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def figures(report: Report) -> dict[str, Any]:
    """Flatten the figures of one report into columns."""
    columns: dict[str, Any] = {"verdict": report.verdict}
    for f in report.findings:
        name = f"{f.probe}.{f.subject}.{f.metric}".removeprefix("evaluation.")
        columns[name + (f"[{f.variant}]" if f.variant else "")] = f.value
    columns["purify_seconds"] = report.provenance["times"]["seconds"].get("purify")
    return columns


if __name__ == "__main__":
    main()
