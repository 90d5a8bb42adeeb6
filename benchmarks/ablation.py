"""Measure `sep` with each of its steps removed or replaced, on the pools of `benchmarks.defenses`.

    python -m benchmarks.ablation RUN [RUN ...] --json FILE --clean 1000 --eps 0.1 --images 1000 --ra
    python -m benchmarks.ablation --table FILE [FILE ...]

What the names of the rows mean: `VARIANTS`. The screening by depth alone is `benchmarks.screening`.
"""

from __future__ import annotations

import argparse

import torch

from bdaudit.defenses.base import Defense
from bdaudit.defenses.fst import FST
from bdaudit.defenses.sep import SEP
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator
from bdaudit.training.loop import tune
from bdaudit.training.path_aware import path_aware, weights_to_go_back_to
from benchmarks.defenses import measure_all, with_pools


class FirstByFST(SEP):
    """FST makes the model that guesses labels."""

    def first_pass(self, model: Classifier, clean: Pool, malicious: Pool, rng: torch.Generator) -> Classifier:
        return FST(batch_size=self.batch_size).run({"model": model, "clean": clean, "rng": rng})


class FirstPassAlone(SEP):
    """Steps 3 and 4 removed: PL on the screened pools is the result."""

    def last_pass(self, model: Classifier, first: Classifier, both: Pool, rng: torch.Generator) -> Classifier:
        return first.eval()


class FirstPassGoesOn(SEP):
    """The first-pass model is tuned in step 4, and not the suspect."""

    def last_pass(self, model: Classifier, first: Classifier, both: Pool, rng: torch.Generator) -> Classifier:
        return super().last_pass(first, first, both, rng)


class WrongLabels(SEP):
    """Flagged images get any class other than t, drawn evenly: of ten classes, eight labels of nine are wrong."""

    def guessed(self, first: Classifier, clean: Pool, malicious: Pool, target: int, rng: torch.Generator) -> Pool:
        drawn = torch.randint(first.num_classes - 1, (len(malicious),), generator=generator(0))
        return malicious.labelled(drawn + (drawn >= target))


class PathAware(SEP):
    """Step 4 is taken at a point on the way back to the suspect (PAM's step, rho .5)."""

    def last_pass(self, model: Classifier, first: Classifier, both: Pool, rng: torch.Generator) -> Classifier:
        loss = path_aware(weights_to_go_back_to(model), 0.5)
        return tune(model, both, self.recipe(both), rng, loss=loss, what=self.name)


class AnythingElse(SEP):
    """No label is guessed: step 4 lowers the probability of t alone for flagged images."""

    def guessed(self, first: Classifier, clean: Pool, malicious: Pool, target: int, rng: torch.Generator) -> Pool:
        return malicious.labelled(first.num_classes + target)

    def last_pass(self, model: Classifier, first: Classifier, both: Pool, rng: torch.Generator) -> Classifier:
        return tune(model, both, self.recipe(both), rng, loss=or_anything_else, what=self.name)


class GuessedByThat(SEP):
    """The model of `AnythingElse`'s step 4 guesses the labels, in place of PL's."""

    def first_pass(self, model: Classifier, clean: Pool, malicious: Pool, rng: torch.Generator) -> Classifier:
        both = Pool.concat([clean, malicious.labelled(malicious.labels + model.num_classes)])
        return tune(model, both, self.recipe(both), rng, loss=or_anything_else, what=f"{self.name}: first pass")


class WrongTarget(SEP):
    """The defender takes the class after t for t."""

    def purify(self, model: Classifier, clean: Pool, malicious: Pool, target: int, rng: torch.Generator) -> Classifier:
        wrong = (target + 1) % model.num_classes
        return super().purify(model, clean, malicious.labelled(wrong), wrong, rng)


def or_anything_else(model: Classifier, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with label y < K; for y = K + t, -log(1 - p_t): any class but t."""
    logits = model(x).float()
    free = y >= model.num_classes
    chosen = logits.gather(1, (y % model.num_classes)[:, None])[:, 0]
    rest = logits.scatter(1, (y % model.num_classes)[:, None], -torch.inf).logsumexp(1)
    every = logits.logsumexp(1)
    return (every - torch.where(free, rest, chosen)).mean()


VARIANTS: dict[str, Defense] = {
    "sep": SEP(),
    "sep without screening": SEP(screening=False),
    "sep without the first pass": SEP(first_epochs=0),
    "sep, first pass by FST": FirstByFST(),
    "sep rounds=0": SEP(rounds=0),
    "sep first_epochs=0 rounds=0": SEP(first_epochs=0, rounds=0),
    "sep, wrong labels": WrongLabels(),
    "sep, no labels": AnythingElse(),
    "sep, labels by the model of no labels": GuessedByThat(),
    "sep without the last step": FirstPassAlone(),
    "sep, first pass tuned on": FirstPassGoesOn(),
    "sep, path-aware": PathAware(),
    "sep, wrong t": WrongTarget(),
    "sep depth=0.25": SEP(depth=0.25),
    "sep depth=0.75": SEP(depth=0.75),
}
"""Rows by name; without the first pass the suspect guesses the labels itself."""


def main() -> None:
    """Measure what is missing, or print the table of what was measured."""
    args = with_pools(argparse.ArgumentParser(description=__doc__.partition("\n")[0]))
    if args:
        measure_all(args, VARIANTS)


if __name__ == "__main__":
    main()
