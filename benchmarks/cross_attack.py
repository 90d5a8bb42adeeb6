"""Measure a defense against attacks that it was not shown (PL, appendix E), on run folders of the same data and seed.

    python -m benchmarks.cross_attack RUN RUN [RUN ...] --json FILE [--defense pl] [--clean 1000] [--eps 0]

Each run's model is purified with its own flagged images and with those of every other run; each that comes out is
measured under every run's trigger, and so is the model as it was (`donor` is ''). PL's Table 4 has one C-ACC a row, so
one model a row: what it shows is a model purified with the images of its own attack under the triggers of others
(`donor` is the run itself). The harder question is whether the images of one attack unlearn another's backdoor (`donor`
is another run, `trigger` the run's own). eps contaminates both pools, the clean one with the run's own trigger. Rows
that FILE holds are not measured again.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from bdaudit import api, plugins
from bdaudit.defenses.base import Defense
from bdaudit.flow.contamination import Contamination
from bdaudit.flow.run import Run, open_run
from bdaudit.inputs.classifier import Classifier
from bdaudit.runtime import generator
from bdaudit.training.metrics import accuracy, attack_rates
from bdaudit.training.progress import progress_shown
from benchmarks import Rows, named
from benchmarks.defenses import given

IMAGES = 1000


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--defense", default="pl", metavar='"NAME option=value ..."')
    parser.add_argument("--clean", type=int, default=1000)
    parser.add_argument("--flagged", type=int, default=108)
    parser.add_argument("--eps", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows, runs = Rows(args.json), [open_run(folder) for folder in args.runs]
    for run, donor in product(runs, [None, *runs]):
        name = donor.folder.name if donor else ""
        at = {"run": run.folder.name, "donor": name, "defense": args.defense if donor else "", "eps": args.eps}
        if rows.holds(at):
            continue
        model = purified(run, donor, args) if donor else api.load(run.model_path).classifier
        for other in runs:
            rows.add(at | {"trigger": other.folder.name} | under(run, other, model))


def purified(run: Run, donor: Run, args: argparse.Namespace) -> Classifier:
    """Purify a run's model with another's flagged images."""
    other = None if donor is run else donor
    known = given(run, args.clean, Contamination(args.eps, args.eps), args.flagged, args.seed, other)
    name, options = named(args.defense)
    defense: Defense = plugins.get("defense", name).parse(options)
    with progress_shown():
        return defense.run({"model": api.load(run.model_path).classifier, **known})


def under(run: Run, other: Run, model: Classifier) -> dict[str, Any]:
    """C-ACC, and how often a run's test images go to its target under another's trigger."""
    test = run.pool("test").sample(IMAGES, generator(0))
    triggered = other.trigger.on(test.take(run.goal.counted(test.labels)))
    asr, _ = attack_rates(model, triggered, run.goal)
    return {"c_acc": accuracy(model, test).value, "asr": asr.value, "n": asr.n}


if __name__ == "__main__":
    main()
