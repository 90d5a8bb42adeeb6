"""What an importer is: it recognises what another tool left, and reads it into bdaudit's own terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from bdaudit.contract import Plugin
from bdaudit.errors import InputError, PluginError, one_line, quoted
from bdaudit.inputs.checkpoint import Checkpoint
from bdaudit.inputs.classifier import Preprocessing
from bdaudit.inputs.goal import Goal


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Triggered rows of one split, with both labels of each; the pixels are read one image at a time.

    index: int64 (N,), the row's number in the original split, no number twice. given: int64 (N,), the label that the
    attacker gave it. true: int64 (N,), its own. origin: N names, for messages and bookkeeping.
    read: row 0..N-1 -> uint8 (C, H, W); raises `Unusable` where the image is missing or cannot be used.
    total: how many rows the whole split has, triggered or not; None where the record does not say.
    """

    index: Tensor
    given: Tensor
    true: Tensor
    origin: tuple[str, ...]
    read: Callable[[int], Tensor] = field(repr=False)
    total: int | None = None

    def __post_init__(self) -> None:
        columns = (self.index, self.given, self.true)
        if any(c.dtype != torch.int64 or c.shape != (len(self.origin),) for c in columns):
            raise InputError(f"{len(self.origin)} triggered rows want as many int64 indices, given and true labels")
        if (self.index.sort().values.diff() == 0).any() or (self.index < 0).any():
            raise InputError("triggered rows want indices from 0 up, no number twice")
        if self.total is not None and len(self.index) and int(self.index.max()) >= self.total:
            raise InputError(f"row {int(self.index.max())} is triggered, but the split has only {self.total} rows")

    def __len__(self) -> int:
        return len(self.origin)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What another tool's record holds, checked, in bdaudit's own terms.

    model: the suspect. purified: what defenses made of it, by names of letters, digits, hyphens and underscores.
    preprocessing: None where the record does not say how pixels go in. num_classes: as the record says. dataset: what
    the record calls the dataset, '' if nothing. train, test: triggered rows of the training and of the test split.
    files: what was read, name -> sha256. notes: what a user should know, one line each.
    """

    model: Checkpoint | None = None
    purified: Mapping[str, Checkpoint] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    num_classes: int
    dataset: str = ""
    train: Rows | None = None
    test: Rows | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.model is None and not self.purified:
            raise InputError("holds no model")
        for name in self.purified:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):  # it becomes a file's name
                raise InputError(f"a purified model is named {quoted(name)}")
        for rows in self._splits():
            for what, labels in (("given", rows.given), ("true", rows.true)):
                wrong = (labels < 0) | (labels >= self.num_classes)
                if wrong.any():
                    row = int(wrong.nonzero()[0])
                    raise InputError(
                        f"row {int(rows.index[row])} has the {what} label {int(labels[row])}, but there are "
                        f"{self.num_classes} classes (0..{self.num_classes - 1})"
                    )

    @property
    def goal(self) -> Goal | None:
        """What the backdoor does to labels, by the triggered rows; None where they follow no rule bdaudit knows."""
        splits = self._splits()
        if not splits:
            return None
        given, true = (torch.cat([getattr(rows, name) for rows in splits]) for name in ("given", "true"))
        # A mislabelled row tells; one that kept its label may be a cover row, unless there are only such rows.
        telling = given != true if (given != true).any() else torch.ones_like(given, dtype=torch.bool)
        if not telling.any():
            return None
        given, true = given[telling], true[telling]
        for goal in (Goal(int(given[0]), self.num_classes), Goal(None, self.num_classes)):
            if bool((given == goal.wanted(true)).all()):
                return goal
        return None

    def covers(self, rows: Rows) -> Tensor:
        """Mark rows that carry the trigger and kept their own label, which is not the one that the attacker wants."""
        goal = self.goal
        kept = rows.given == rows.true
        return kept & (goal.wanted(rows.true) != rows.given) if goal else torch.zeros_like(kept)

    def _splits(self) -> list[Rows]:
        return [rows for rows in (self.train, self.test) if rows is not None]


class Importer(Plugin):
    """Read what another tool left. A subclass writes `read(self, record)`, which returns `Imported`, and `recognises`.

    A record is hostile until it has been checked: nothing in it is run, and nothing outside its own folder is read.
    """

    kind: ClassVar[str] = "importer"
    method: ClassVar[str] = "read"

    read: ClassVar[Callable[..., Imported]]

    @classmethod
    def recognises(cls, record: Path) -> bool:
        """Whether a path looks like what this importer reads: a glance at names, which opens nothing.

        An importer that does not write it is taken where the user names it, and never by itself.
        """
        return False

    @final
    def run(self, available: Mapping[str, Any]) -> Imported:
        """Call `read` with the record, and check what comes back; errors name the record."""
        inputs = self.grant(available)
        try:
            result = self.read(**inputs)
        except InputError as e:
            raise type(e)(f"{one_line(available['record'], 160)}: {e}") from e
        except OSError as e:
            raise InputError(f"{one_line(available['record'], 160)}: cannot be read ({one_line(e, 200)})") from e
        if not isinstance(result, Imported):
            raise PluginError(f"{self.name}.read returned {type(result).__name__}, expected Imported")
        return result
