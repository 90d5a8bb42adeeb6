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
from bdaudit.flow.run import Run, open_run
from bdaudit.inputs.classifier import Classifier
from bdaudit.probes.base import retuned, retuning_recipe
from bdaudit.runtime import generator
from bdaudit.training.metrics import accuracy, attack_rates

PLAN: tuple[tuple[str, dict[str, str], int, bool], ...] = (
    ("fst", {}, 0, True),
    ("ep", {}, 0, True),
    ("pl", {}, 1, False),
    ("pl", {}, 0, False),
    ("fst", {}, 1, True),
    ("fst", {"alpha": "0.5", "epochs": "15"}, 1, True),
    ("fst", {"alpha": "0.5", "epochs": "15"}, 0, True),
    ("ft", {}, 0, False),
    ("ft", {}, 1, False),
)
"""Defense, options, run (0: BadNets, 1: Blended), whether to retune."""


def main() -> None:
    """Print one line a model; P-ASR is RA with 5 poisoned images among 1,000."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs=2, type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    seen: set[int] = set()
    for name, options, which, retune in PLAN:
        run = open_run(args.runs[which])
        suspect = api.load(run.model_path).classifier
        models = {} if which in seen else {"suspect": (suspect, False)}
        seen.add(which)
        if name == "ep" and run.reference_path is not None:
            models["clean twin"] = (api.load(run.reference_path).classifier, True)
        available = {
            "model": suspect,
            "clean": run.pool("clean"),
            "malicious": run.pool("flagged").labelled(0),
            "trigger": run.trigger,
            "rng": generator(3),
        }
        label = " ".join([name, *(f"{k}={v}" for k, v in options.items())])
        models[label] = (plugins.get("defense", name).parse(options).run(available), retune)
        for label, (model, again) in models.items():
            rows.append({"attack": run.record.attack, "model": label} | measure(run, model, again))
            print(rows[-1], flush=True)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(run: Run, model: Classifier, retune: bool) -> dict[str, float]:
    """C-ACC and O-ASR on a thousand test images, and P-ASR if asked for."""
    rng = generator(0)
    benign, test = run.pool("reserve").shuffled(rng), run.pool("test").shuffled(rng).first(1000)
    backdoor = known_backdoor(run.trigger, run.goal, benign, test)
    asr, _ = attack_rates(model, backdoor.evaluation, backdoor.goal)
    row = {"c_acc": accuracy(model, test).value, "o_asr": asr.value}
    if retune:
        sample = benign.first(1000)
        after = retuned(model, sample, backdoor.draw(5, generator(1)), retuning_recipe(sample), generator(2))
        row["p_asr"] = attack_rates(after, backdoor.evaluation, backdoor.goal)[0].value
    return row | {"n": asr.n}


if __name__ == "__main__":
    main()
