"""Pools as a defender really has them: some clean images triggered, some flagged ones clean (PL section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from bdaudit.errors import InputError, UsageError, one_line
from bdaudit.flow.run import INDEX, Run, training_rows
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import generator


@dataclass(frozen=True, order=True)
class Contamination:
    """Which shares of the two pools are wrong.

    clean: of images that are triggered and labelled with the target. flagged: of images that are clean.
    """

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
    donor: Run | None = None,
) -> tuple[Pool, Pool]:
    """Draw the clean and the flagged pool that a defense is given; the sizes do not change with the contamination.

    budget: clean images (None: all of the run's). flagged: flagged images (None: as many as in flagged/).
    donor: the run whose triggered images are flagged, of the same data, sizes and seed (None: the run itself); those
    among the clean images carry the run's own trigger.
    Triggered training rows take the places of clean images; the clean images among the flagged ones are no longer in
    the clean pool, and are training rows where it can spare none. Before contamination, a smaller budget is the
    beginning of a larger one.
    """
    rng = generator(seed)
    clean, train = run.pool("clean").shuffled(rng), run.pool("train")
    poisoned, untouched = _kinds(run, train)
    triggered = train.take(poisoned).shuffled(rng)
    size = len(clean) if budget is None else budget
    count = (donor or run).record.rows["flagged"] if flagged is None else flagged
    into_clean, into_flagged = round(contamination.clean * size), round(contamination.flagged * count)
    asked = f"a budget of {size} clean and {count} flagged images at contamination {contamination} takes"
    if donor is None:
        theirs, own = _cut(triggered, asked, count - into_flagged, into_clean)
    else:
        (own,) = _cut(triggered, asked, into_clean)
        images = donor.pool("train")
        (theirs,) = _cut(images.take(_kinds(donor, images)[0]).shuffled(rng), asked, count - into_flagged)
    if size > len(clean):
        raise UsageError(f"{asked} {size - into_clean} clean images; the run has {len(clean)}")
    apart = max(into_clean, into_flagged)
    if apart + size - into_clean <= len(clean):
        spare, kept = clean.first(into_flagged), clean.split(apart)[1]
    else:
        spare, kept = train.take(untouched).sample(into_flagged, rng), clean.split(into_clean)[1]
    tuning = Pool.concat([kept.first(size - into_clean), own])
    handed = Pool.concat([theirs, spare])
    return tuning, handed if run.goal.target is None else handed.labelled(run.goal.target)


def _cut(triggered: Pool, asked: str, *sizes: int) -> list[Pool]:
    """Take disjoint parts of the triggered images, or say how many were asked for."""
    if sum(sizes) > len(triggered):
        raise UsageError(f"{asked} {sum(sizes)} triggered images; the run has {len(triggered)}")
    return triggered.split(*sizes)[:-1]


def _kinds(run: Run, train: Pool) -> tuple[list[int], list[int]]:
    """Find the poisoned rows of a training set that are mislabelled (all of them if none is), and those left alone."""
    place = {PurePosixPath(origin).stem: row for row, origin in enumerate(train.origin)}
    rows = training_rows(run.folder)
    if missing := [row.image for row in rows if row.image not in place]:
        raise InputError(f"{one_line(run.folder / INDEX)}: image {one_line(missing[0], 40)} is not in train/")
    poisoned = [row for row in rows if row.poisoned]
    chosen = [row for row in poisoned if row.label != row.true_label] or poisoned
    others = [row for row in rows if not (row.poisoned or row.cover)]
    return [place[row.image] for row in chosen], [place[row.image] for row in others]
