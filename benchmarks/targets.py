"""Measure which class an in-training defense takes for the target, whatever the target is (BSD, Table 12).

    python -m benchmarks.targets --json FILE [--targets 0 1 2] [--attack badnets blended] [--images 2500]
        [--defense "NAME option=value ..."]

Fashion-MNIST. By default `bsd` warms up as ever, which is what finds the target, and does next to nothing afterwards.
Rows that FILE holds are not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path

from bdaudit import api, plugins
from bdaudit.flow.audit import fresh_like
from bdaudit.flow.implant import Sizes
from bdaudit.runtime import generator
from bdaudit.training.progress import progress_shown
from benchmarks import Rows, named

SHORT = "bsd warm_up=1 settling=1 completing=1 dropping=0 iterations=1"


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--attack", nargs="+", default=["badnets"], metavar='"NAME option=value ..."')
    parser.add_argument("--defense", nargs="+", default=[SHORT], metavar='"NAME option=value ..."')
    parser.add_argument("--targets", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--arch", default="resnet18:width=16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows = Rows(args.json)
    for attack, target, spec in product(args.attack, args.targets, args.defense):
        at = {"attack": attack, "target": target, "images": args.images, "seed": args.seed, "defense": spec}
        if rows.holds(at):
            continue
        rows.add(at | {"found": found(attack, target, spec, args)})


def found(attack: str, target: int, spec: str, args: argparse.Namespace) -> int | None:
    """Poison a training set and say which class the defense takes for the target."""
    (name, options), (by, settings) = named(attack), named(spec)
    with tempfile.TemporaryDirectory() as folder, progress_shown():
        # The victim is not used: one epoch will do.
        run = api.attack(
            name,
            data="fashion-mnist",
            out=Path(folder) / "run",
            arch=args.arch,
            options=options,
            target=target,
            sizes=Sizes(train=args.images, test=100),
            epochs=1,
            seed=args.seed,
        )
        fresh = fresh_like(api.load(run.model_path).classifier, generator(args.seed))
        inputs = {"fresh": fresh, "train": run.pool("train"), "clean": run.pool("clean"), "rng": generator(args.seed)}
        made = plugins.get("defense", by).parse(settings).conduct(inputs)
    return made.division.target if made.division else None


if __name__ == "__main__":
    main()
