"""Image files below a folder: which are read, which are not, and why."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bdaudit.errors import ImageError, UnusedFiles, one_line
from bdaudit.inputs import scratch
from bdaudit.inputs.images import decode, peek, quiet_pillow
from bdaudit.inputs.opening import Unusable, open_below, open_folder
from bdaudit.inputs.pool import UNKNOWN, Pool, evenly

NAMED = 3
"""How many files a warning names for each reason."""


class Unused:
    """The files that are not used, counted by reason; only the first few of each are remembered by name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return self._counts.total()

    def add(self, path: str, why: Unusable) -> None:
        """Count one file."""
        self._counts[why.reason] += 1
        names = self._names.setdefault(why.reason, [])
        if len(names) < NAMED:
            names.append(one_line(path, 40) + (f": {one_line(why.detail, 60)}" if why.detail else ""))

    def copy(self) -> Unused:
        other = Unused()
        other._counts = self._counts.copy()
        other._names = {reason: list(names) for reason, names in self._names.items()}
        return other

    def __str__(self) -> str:
        """Reasons, the most frequent one first, each with its count and a few names."""
        return "; ".join(
            f"{reason} ({count}: {', '.join(self._names[reason])}{', …' if count > NAMED else ''})"
            for reason, count in self._counts.most_common()
        )


@dataclass(frozen=True)
class Listing:
    """Images to read, by their paths below a folder, and what was found beside them.

    where: the folder, or the index that named the images. labels: as they are written, None where nothing says.
    """

    folder: Path
    where: Path
    paths: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    unused: Unused = field(default_factory=Unused)

    @property
    def shown(self) -> str:
        """What messages call it."""
        return one_line(self.where, 100)

    def classes(self) -> tuple[str, ...]:
        """Name the classes that occur, sorted (numerically, if they are numbers)."""
        names = {label for label in self.labels if label is not None}
        # Python turns no text of thousands of digits into a number.
        return tuple(sorted(names, key=int if all(n.isdecimal() and len(n) < 100 for n in names) else None))

    def shape(self) -> tuple[int, int, int] | None:
        """Take the first usable image's size; colour if any of the first few of a class is. None: no image."""
        seen: Counter[str | None] = Counter()
        shapes = []
        with open_folder(self.folder) as folder, quiet_pillow():
            for path, label in zip(self.paths, self.labels, strict=True):
                if seen[label] == NAMED:
                    continue
                try:
                    with open_below(folder, path) as file:
                        shapes.append(peek(file))
                except Unusable:
                    continue  # named when it is read
                seen[label] += 1
        return (max(s[0] for s in shapes), *shapes[0][1:]) if shapes else None

    def sizes(self, most: int) -> set[tuple[int, int]]:
        """Heights and widths of at most so many images, evenly spread; unusable ones are left out."""
        found = set()
        with open_folder(self.folder) as folder, quiet_pillow():
            for row in evenly(len(self.paths), most):
                with suppress(Unusable), open_below(folder, self.paths[row]) as file:
                    found.add(peek(file)[1:])
        return found

    def read(
        self,
        *,
        classes: Sequence[str],
        shape: tuple[int, int, int],
        notes: list[str] | None = None,
        most: int | None = None,
    ) -> Pool:
        """Read the images, converted to a shape; warn of all files that are not used, and add that to `notes`.

        most: read at most so many, evenly spread, and warn of nothing: that is for when all are read.
        Raises ImageError if a label is none of the classes, or if no image is left.
        """
        numbers = {name: label_number(name, classes, self.shown) for name in dict.fromkeys(self.labels)}
        if most is not None:
            rows = evenly(len(self.paths), most)
            some = replace(self, paths=[self.paths[r] for r in rows], labels=[self.labels[r] for r in rows])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnusedFiles)
                return some.read(classes=classes, shape=shape)
        unused = self.unused.copy()
        used: list[int] = []
        images = scratch.empty(len(self.paths), shape)
        with open_folder(self.folder) as folder, quiet_pillow():
            for part in scratch.parts(len(self.paths), shape):
                for row in range(part.start, part.stop):
                    try:
                        with open_below(folder, self.paths[row]) as file:
                            images[len(used)] = decode(file, shape)
                    except Unusable as e:
                        unused.add(self.paths[row], e)
                    else:
                        used.append(row)
                scratch.release(images)
        if not used:
            raise ImageError(f"{self.shown}: no " + (f"usable images in it: {unused}" if unused else "images in it"))
        if unused:
            total = len(used) + len(unused)
            warn_unused(self.where, f"{len(unused):,} of {total:,} entries are not used: {unused}", notes)
        labels = torch.tensor([numbers[self.labels[row]] for row in used])
        return Pool(images[: len(used)], labels, tuple(one_line(self.paths[row]) for row in used))


def warn_unused(where: Path, text: str, notes: list[str] | None) -> None:
    """Warn of files that are not used; note it for a report, which need not tell where things lie on this machine."""
    warnings.warn(f"{one_line(where, 100)}: {text}", UnusedFiles, stacklevel=3)
    if notes is not None:
        notes.append(f"{one_line(where.absolute().name, 60)}: {text}")


def label_number(name: str | None, classes: Sequence[str], where: str) -> int:
    """Find a class by its name or else its number; None is `UNKNOWN`."""
    if name is None:
        return UNKNOWN
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and len(name) < 10 and int(name) < len(classes):
        return int(name)
    listed = ", ".join(one_line(c, 20) for c in classes[:12]) + (", …" if len(classes) > 12 else "")
    raise ImageError(
        f"{where}: the model has no class {one_line(name, 40)!r}; sub-folders and labels are named after its "
        f"{len(classes)} classes ({listed}) or their numbers 0..{len(classes) - 1}"
    )
