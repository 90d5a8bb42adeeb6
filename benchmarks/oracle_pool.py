"""Train by MixMatch on a share of each class drawn at random from the rows that are not poisoned: what BSD could reach.

    python -m benchmarks.oracle_pool RUN --json FILE [--share 0.6] [--epochs 12] [--iterations 128]

Options that are not named are `bsd`'s defaults. No defense: it knows the poisoned rows. C-ACC on 2,000 test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bdaudit import api
from bdaudit.defenses.bsd import BSD
from bdaudit.flow.audit import fresh_like
from bdaudit.flow.run import known_poison, open_run
from bdaudit.runtime import generator, seeded
from bdaudit.training.metrics import accuracy
from bdaudit.training.mixmatch import SemiSupervised
from bdaudit.training.progress import progress_shown, track
from bdaudit.training.samples import largest
from benchmarks import Rows


def main() -> None:
    """Measure what is missing, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=BSD().iterations)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows, run = Rows(args.json), open_run(args.run)
    row = {"run": run.folder.name, "share": args.share, "epochs": args.epochs, "iterations": args.iterations}
    if rows.holds(row):
        return
    train, test = run.pool("train"), run.pool("test").first(2000)
    poisoned, rng = known_poison(run.folder, train), generator(0)
    if poisoned is None:
        parser.error(f"{run.folder} does not say which rows are poisoned")
    drawn, clean = torch.rand(len(train), generator=rng), torch.zeros(len(train), dtype=torch.bool)
    for label in set(train.labels.tolist()):
        clean |= largest(drawn, args.share, (train.labels == label) & ~poisoned)
    model = fresh_like(api.load(run.model_path).classifier, generator(0))
    how = BSD(iterations=args.iterations).mixmatch(train, args.epochs)
    learner = SemiSupervised(model, train, how, args.epochs, rng)
    with seeded(rng), progress_shown(), track("oracle's pool", args.epochs * args.iterations) as advance:
        for _ in range(args.epochs):
            learner.epoch(clean, advance)
    rows.add(row | {"c_acc": accuracy(model.eval(), test).value, "n": len(test)})


if __name__ == "__main__":
    main()
