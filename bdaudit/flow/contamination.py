"""Pools as a defender really has them: some of the clean images triggered, some of the flagged ones clean (PL section 5)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from bdaudit.errors import UsageError
from bdaudit.flow.run import Run, open_run
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator


@dataclass(frozen=True, order=True)
class Contamination:
    """Which shares of the two pools are wrong: clean images that are triggered and labelled with the target, and flagged
    images that are clean."""

    clean: float = 0.0
    flagged: float = 0.0

    def __str__(self) -> str:
        if self.clean == self.flagged:
            return f"{self.clean:g}"
        return f"clean {self.clean:g}, flagged {self.flagged:g}"


def defender_pools(
    run: Run,
    contamination: Contamination,
    seed: int,
    *,
    budget: int | None = None,
    flagged: int | None = None,
) -> tuple[Pool, Pool]:
    """Draw the clean and the flagged pool that a defense is given; the sizes do not change with the contamination.

    budget: clean images (None: all of the run's). flagged: flagged images (None: as many as in the run's flagged/).
    Triggered training rows take the places of clean images; the clean images among the flagged ones are no longer in the
    clean pool, and are training rows where it can spare none. Before contamination, a smaller budget is the beginning of
    a larger one.
    """
    rng = generator(seed)
    clean = run.pool("clean").shuffled(rng)
    triggered = _training_rows(run.folder, poisoned=True).shuffled(rng)
    size = len(clean) if budget is None else budget
    count = run.record.rows["flagged"] if flagged is None else flagged
    into_clean, into_flagged = round(contamination.clean * size), round(contamination.flagged * count)
    wanted = count - into_flagged + into_clean
    if size > len(clean) or wanted > len(triggered):
        raise UsageError(
            f"a budget of {size} clean and {count} flagged images at contamination {contamination} takes {wanted} "
            f"triggered images; the run has {len(clean)} clean and {len(triggered)} triggered ones"
        )
    malicious, mislabelled, _ = triggered.split(count - into_flagged, into_clean)
    apart = max(into_clean, into_flagged)
    if apart + size - into_clean <= len(clean):
        spare, kept = clean.first(into_flagged), clean.split(apart)[1]
    else:
        spare, kept = _training_rows(run.folder, poisoned=False).sample(into_flagged, rng), clean.split(into_clean)[1]
    tuning = Pool.concat([kept.first(size - into_clean), mislabelled])
    handed = Pool.concat([malicious, spare])
    return tuning, handed if run.goal.target is None else handed.labelled(run.goal.target)


@cache
def _training_rows(folder: Path, *, poisoned: bool) -> Pool:
    """Read training rows, labels as given: those left alone, or the poisoned ones that are mislabelled (all of them where
    the attack is clean-label)."""
    with (folder / "train.csv").open(newline="", encoding="utf-8") as file:
        everything = list(csv.DictReader(file))
    rows = [r for r in everything if (r["poisoned"] == "1") == poisoned and (poisoned or r["cover"] == "0")]
    if poisoned:
        rows = [r for r in rows if r["label"] != r["true_label"]] or rows
    train = open_run(folder).pool("train")
    place = {int(Path(name).stem): row for row, name in enumerate(train.origin)}
    return train.take(torch.tensor([place[int(r["image"])] for r in rows]))
