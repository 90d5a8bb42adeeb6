"""SEP: self-labelled exact purification."""

from collections.abc import Iterable

import torch

from bdaudit.contract import option
from bdaudit.defenses.base import Defense, Tuning
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import spawn
from bdaudit.training.loop import tune
from bdaudit.training.partition import partition
from bdaudit.training.progress import say, warn
from bdaudit.training.relabel import relabelled
from bdaudit.training.screening import screen


class SEP(Tuning):
    """Purify on the flagged images themselves, with labels that a first purified model guesses.

    Ours (docs/sep.md). Exact purification (Superficial Safety 3.1) tunes on triggered images with their true labels,
    which takes an oracle. Here (1) both pools are screened against each other, (2) PL gives a first pass, (3) each
    flagged image gets that model's best class other than t, with what the flagged images share taken out of its
    features, and (4) the suspect is tuned on both pools.
    """

    name = "sep"
    quick_options = {**Tuning.quick_options, "first_epochs": 1}

    screening: bool = option(True, "screen the pools against each other first", cite="docs/sep.md")
    depth: float = option(0.5, "how far up the network the pools are compared", cite="docs/sep.md", gt=0, le=1)
    first_epochs: int = option(
        10, "passes over the clean pool in the first pass; 0: the suspect guesses labels itself", cite="PL B", ge=0
    )
    first_lr: float = option(5e-4, "Adam's learning rate in the first pass", cite="PL's default here", gt=0)
    alpha: float = option(0.2, "weight of the malicious loss in the first pass", cite="PL section 5", ge=0)
    rounds: int = option(
        5,
        "how often labels are guessed anew beside clean images of the classes guessed before",
        cite="docs/sep.md",
        ge=0,
    )

    def purify(self, model: Classifier, clean: Pool, malicious: Pool, target: int, rng: torch.Generator) -> Classifier:
        first_rng, last_rng, screen_rng, guess_rng = (spawn(rng) for _ in range(4))
        if self.screening:
            found = screen(model, clean, malicious, target, screen_rng, depth=self.depth)
            say(f"sep: {found}")
            if found.by_class:
                warn(
                    "sep: flagged images look like any others of the target class, so nothing was unlearned and the model "
                    "was tuned on the clean images alone; if they do carry a trigger, use -o screening=false"
                )
                return tune(model, clean, self.recipe(clean), last_rng, what=self.name)
            clean, malicious = found.pools(clean, malicious)
        first = self.first_pass(model.clone(), clean, malicious, first_rng)
        both = Pool.concat([clean, self.guessed(first, clean, malicious, target, guess_rng)])
        return self.last_pass(model, first, both, last_rng)

    # What follows are the steps that benchmarks/ablation.py replaces.

    def first_pass(self, model: Classifier, clean: Pool, malicious: Pool, rng: torch.Generator) -> Classifier:
        """Make the model that guesses labels, by PL with capped ascent; with no epochs it is the suspect itself."""
        if not self.first_epochs:
            return model
        recipe = self.recipe(clean, optimizer="adam", epochs=self.first_epochs, lr=self.first_lr)
        return partition(model, clean, malicious, recipe, rng, alpha=self.alpha, cap=True, what="sep: first pass")

    def guessed(self, first: Classifier, clean: Pool, malicious: Pool, target: int, rng: torch.Generator) -> Pool:
        """Label each flagged image with the first-pass model's best class other than t."""
        return relabelled(first, malicious, clean, target, self.rounds, rng)

    def last_pass(self, model: Classifier, first: Classifier, both: Pool, rng: torch.Generator) -> Classifier:
        """Tune the suspect, and not the first-pass model, on both pools."""
        return tune(model, both, self.recipe(both), rng, what=self.name)


@hookimpl
def bdaudit_defenses() -> Iterable[type[Defense]]:
    return [SEP]
