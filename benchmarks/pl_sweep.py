"""Choose PL's learning rate, which its paper does not give, without looking at any test image.

    python -m benchmarks.pl_sweep RUN [RUN ...] [--json FILE]

For each run folder and each setting: purify with half of the flagged images, then measure what a defender can
measure: clean accuracy on clean images kept back, and the share of flagged images kept back that still go to the
target. One default must hold on every run. Test ASR is printed last, for the record; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from tabulate import tabulate

from bdaudit import api
from bdaudit.defenses.pl import PL
from bdaudit.flow.run import open_run
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.metrics import Rate, accuracy, attack_rates, predict

RATES = (1e-4, 3e-4, 1e-3, 2e-3, 3e-3)


def main() -> None:
    """Run the sweep and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--lr", nargs="+", type=float, default=RATES)
    parser.add_argument("--alpha", nargs="+", type=float, default=(0.2,))
    parser.add_argument("--epochs", nargs="+", type=int, default=(10,))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for folder in args.runs:
        run = open_run(folder)
        suspect = api.load(run.model_path).classifier
        goal = run.goal
        target = goal.target
        assert target is not None
        clean, kept_clean, test = run.pool("clean"), run.pool("reserve"), run.pool("test")
        flagged = run.pool("flagged").labelled(target)
        used, kept_flagged = flagged.split(len(flagged) // 2)
        counted = test.take(goal.counted(test.labels))
        triggered: Pool = run.trigger.on(counted)
        for lr, alpha, epochs, seed in (
            (lr, a, e, s) for lr in args.lr for a in args.alpha for e in args.epochs for s in range(args.seeds)
        ):
            start = time.perf_counter()
            defense = PL(lr=lr, alpha=alpha, epochs=epochs)
            model = defense.run({"model": suspect, "clean": clean, "malicious": used, "rng": generator(seed)})
            rows.append(
                {
                    "run": folder.name,
                    "lr": lr,
                    "alpha": alpha,
                    "epochs": epochs,
                    "seed": seed,
                    "held_out_clean_accuracy": accuracy(model, kept_clean).value,
                    "held_out_flagged_to_target": Rate.of(predict(model, kept_flagged.images) == target).value,
                    "seconds": round(time.perf_counter() - start, 1),
                    "test_asr_for_the_record": attack_rates(model, triggered, goal)[0].value,
                }
            )
    print(tabulate(rows, headers="keys", floatfmt=".4g"))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
