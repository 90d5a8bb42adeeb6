"""Measure the whole flow on Fashion-MNIST: attacks, the defenses of the first release, and their audits.

    python -m benchmarks.flow --out DIR [--attack badnets blended] [--defense ft fst "ft-sam rho=8"] [--seeds 0 1 2]
        [--probe retune qra] [-o retune.draws=1] [--clean-twin N] [--json FILE]

Ten thousand training images, ResNet-18 of width 16, 5% poison. Each row is one audit as `bdaudit audit` makes it,
with a clean twin of the same training as the reference: trained with BadNets' victim, and the same for every attack
of that seed, whose rows are the same. Figures come from the report; nothing is chosen by them. --clean-twin audits the
next seed's clean twin instead, as if it had been purified, which must never fail.
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
from bdaudit.flow.run import is_run
from bdaudit.report.schema import Report
from bdaudit.training.progress import progress_shown
from benchmarks import named


def main() -> None:
    """Run what is asked for and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--attack", nargs="+", default=["badnets", "blended"])
    parser.add_argument("--defense", nargs="+", default=["ft", "fst", "pl", "ep"])
    parser.add_argument("--probe", nargs="*", default=["retune", "qra"])
    parser.add_argument("--transfer-to", nargs="*", default=[], metavar="DEFENSE", help="for the probe transfer")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--arch", default="resnet18:width=16")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--clean-twin", type=int, default=0, metavar="N", help="audit a clean twin with N seeds instead"
    )
    parser.add_argument("--evaluate", type=int, default=2000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("-o", dest="options", action="append", default=[], help="probe.name=value")
    args = parser.parse_args()
    options = dict(o.split("=", 1) for o in args.options)
    rows: list[dict[str, Any]] = []
    with progress_shown():
        for seed in args.seeds:
            for attack in args.attack:
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
                        with_reference=attack == "badnets",
                        seed=seed,
                        device=args.device,
                    )
                base = {"attack": attack, "seed": seed, "attack_seconds": round(time.perf_counter() - start, 1)}
                twins = [args.out / f"badnets-{s}" / "reference.pt" for s in (seed, seed + 1, seed - 1)]
                reference, *others = [p for p in twins if p.is_file()] or [None]
                trials: list[tuple[str, dict[str, Any]]] = []
                for spec in args.defense if not args.clean_twin else ():
                    name, own = named(spec)
                    trials.append((spec, {"defense": name, "options": options | own, "seed": seed}))
                twin = [{"purified": others[0], "options": options, "seed": i} for i in range(args.clean_twin)]
                trials += [("clean twin", settings) for settings in twin]
                for spec, settings in trials:
                    start = time.perf_counter()
                    report = api.audit(
                        folder / "model.pt",
                        run=folder,
                        malicious=folder / "flagged",
                        reference=reference,
                        others=[other for other in args.transfer_to if other != settings.get("defense")],
                        probes=args.probe,
                        evaluate=args.evaluate,
                        device=args.device,
                        **settings,
                    )
                    rows.append(base | {"defense": spec, "audit_seed": settings["seed"]} | figures(report))
                    rows[-1]["audit_seconds"] = round(time.perf_counter() - start, 1)
                    print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
                    if args.json:
                        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(tabulate(rows, headers="keys", floatfmt=".3f"))


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
