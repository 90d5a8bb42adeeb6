"""Measure the first release's claims on Fashion-MNIST in minutes: one draw, a sample of test images, no null triggers.

    python -m benchmarks.quick_flow BADNETS_RUN BLENDED_RUN [--json FILE]

`benchmarks.flow` makes whole audits and takes about three minutes each on two idle cores; this is the short form.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bdaudit import api, plugins
from bdaudit.flow.evidence import known_backdoor
from bdaudit.flow.run import open_run
from bdaudit.inputs.classifier import Classifier
from bdaudit.probes.base import retuned, retuning_recipe
from bdaudit.runtime import generator
from bdaudit.training.metrics import accuracy, attack_rates

PLAN = (("fst", 0, True), ("ep", 0, True), ("pl", 1, False), ("pl", 0, False), ("fst", 1, False), ("ft", 0, False))


def main() -> None:
    """Print one line a model; P-ASR is RA with 5 poisoned images among 1,000."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs=2, type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for name, which, retune in PLAN:
        run = open_run(args.runs[which])
        rng = generator(0)
        benign, test = run.pool("reserve").shuffled(rng), run.pool("test").shuffled(rng).first(1000)
        backdoor = known_backdoor(run.trigger, run.goal, benign, test)

        def measure(model: Classifier, label: str, retune: bool) -> None:
            asr, _ = attack_rates(model, backdoor.evaluation, backdoor.goal)  # noqa: B023 - called at once
            row = {
                "attack": run.record.attack,
                "model": label,
                "c_acc": accuracy(model, test).value,
                "o_asr": asr.value,
            }  # noqa: B023
            if retune:
                sample = benign.first(1000)  # noqa: B023
                poison = backdoor.draw(5, generator(1))  # noqa: B023
                after = retuned(model, sample, poison, retuning_recipe(sample), generator(2))
                row["p_asr"] = attack_rates(after, backdoor.evaluation, backdoor.goal)[0].value  # noqa: B023
            rows.append(row | {"n": asr.n})
            print(rows[-1], flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")

        suspect = api.load(run.model_path).classifier
        available = {
            "model": suspect,
            "clean": run.pool("clean"),
            "malicious": run.pool("flagged").labelled(0),
            "trigger": run.trigger,
            "rng": generator(3),
        }
        if name == "fst":
            measure(suspect, "suspect", False)
        if name == "ep" and run.reference_path is not None:
            measure(api.load(run.reference_path).classifier, "clean twin", True)
        measure(plugins.get("defense", name).parse().run(available), name, retune)


if __name__ == "__main__":
    main()
