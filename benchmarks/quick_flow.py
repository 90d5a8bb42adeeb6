"""Measure a defense and its reactivation on run folders in minutes: a sample of test images, no null triggers.

    python -m benchmarks.quick_flow RUN [RUN ...] [--defense "NAME option=value ..." ...] [--seed 3] [--json FILE]

O-ASR, then P-ASR: RA with 5 poisoned images among 1,000, one draw. Each run's suspect and, where it has one, its
clean twin come first. `benchmarks.flow` makes whole audits and takes minutes each; this is the short form.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bdaudit import api, plugins
from bdaudit.flow.run import Run, open_run
from bdaudit.inputs.classifier import Classifier
from bdaudit.probes.base import known_backdoor, poison_count, retuned, retuning_recipe
from bdaudit.runtime import generator
from bdaudit.training.metrics import accuracy, attack_rates
from benchmarks import named


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--defense", nargs="*", default=["ft", "fst", "pl", "ep"], metavar='"NAME option=value ..."')
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def record(run: Run, label: str, model: Classifier, *, retune: bool) -> None:
        rows.append({"run": run.folder.name, "model": label, "seed": args.seed} | measure(run, model, retune=retune))
        print(rows[-1], flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")

    for run in map(open_run, args.runs):
        suspect = api.load(run.model_path).classifier
        record(run, "suspect", suspect, retune=False)
        if run.reference_path is not None:
            record(run, "clean twin", api.load(run.reference_path).classifier, retune=True)
        for defense in args.defense:
            name, options = named(defense)
            available = {
                "model": suspect,
                "clean": run.pool("clean"),
                "malicious": run.pool("flagged").labelled(run.record.target),
                "trigger": run.trigger,
                "rng": generator(args.seed),
            }
            chosen = plugins.get("defense", name).parse(options)
            record(run, defense, chosen.run(available), retune=True)


def measure(run: Run, model: Classifier, *, retune: bool, poisoned: int = 5, images: int = 1000) -> dict[str, float]:
    """C-ACC, O-ASR and robust accuracy on so many test images; on request P-ASR, so many of a thousand poisoned."""
    rng = generator(0)
    benign, test = run.pool("reserve").shuffled(rng), run.pool("test").sample(images, rng)
    backdoor = known_backdoor(run.trigger, run.goal, benign, test)
    asr, robust = attack_rates(model, backdoor.evaluation, backdoor.goal)
    row = {"c_acc": accuracy(model, test).value, "o_asr": asr.value, "robust_acc": robust.value}
    if retune:
        sample = benign.first(1000)
        poison = backdoor.draw(poison_count(poisoned, len(sample)), generator(1))
        after = retuned(model, sample, poison, retuning_recipe(sample), generator(2))
        row["p_asr"] = attack_rates(after, backdoor.evaluation, backdoor.goal)[0].value
    return row | {"n": asr.n}


if __name__ == "__main__":
    main()
