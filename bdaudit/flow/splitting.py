"""Split an untrusted training set into clean and flagged images, by a defense that trains on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdaudit import plugins
from bdaudit.defenses.base import Defense
from bdaudit.defenses.splitting import Splitting
from bdaudit.errors import UsageError
from bdaudit.flow.audit import fresh_like
from bdaudit.flow.identity import resumable
from bdaudit.flow.pools import pool_for
from bdaudit.flow.provenance import describe_model, describe_pool, environment
from bdaudit.flow.record import Record
from bdaudit.flow.run import known_poison
from bdaudit.flow.suspect import load
from bdaudit.inputs import architectures
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.folders import folder_names, write_png, write_table
from bdaudit.inputs.normalisation import usual_preprocessing
from bdaudit.inputs.pool import Pool
from bdaudit.inputs.sources import source_path
from bdaudit.report.scores import epoch_chart, score_charts
from bdaudit.runtime import Runtime, generator, pick_device, spawn
from bdaudit.training.division import Division
from bdaudit.training.metrics import Rate

INDEX, CHART, EPOCHS = "split.csv", "scores.svg", "epochs.svg"


class SplitRecord(Record):
    """What split.json says.

    doubt: why the split should not be relied on, '' where it may be. images: rows of the set and of both pools.
    found: where the poisoned rows are known, `clean_precision`, `clean_recall`, `flagged_precision` and
    `flagged_recall`, each as successes and n. history: rows in the clean pool by epoch, poisoned ones where known.
    """

    FILE = "split.json"

    by: str
    options: dict[str, Any]
    target: int | None
    target_class: str
    doubt: str
    images: dict[str, int]
    found: dict[str, tuple[int, int]]
    history: dict[str, list[int]]
    notes: list[str]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Halves:
    """A training set, how it was divided, and which of its rows are poisoned where that is known (bool (N,))."""

    train: Pool
    division: Division
    poisoned: Tensor | None
    record: SplitRecord

    @property
    def clean(self) -> Pool:
        return self.train.take(self.division.clean)

    @property
    def flagged(self) -> Pool:
        """The flagged images with the labels as given."""
        return self.train.take(self.division.flagged)


def training_part(train: str | Path) -> str | Path:
    """Choose train/ of a folder that has train/ and test/ beside each other."""
    path = source_path(train)
    return path / "train" if (path / "train").is_dir() and (path / "test").is_dir() else train


def open_train(
    train: str | Path, model: Path | str | None, arch: str | None, normalisation: str | None, device: str
) -> tuple[Classifier, Pool, tuple[str, ...]]:
    """Read a training set, and make a model that takes its images: like a model file, else of an architecture.

    The last are notes on what had to be assumed.
    """
    if model is not None:
        suspect = load(model, arch=arch, normalisation=normalisation, clean=train, device=device)
        notes = list(suspect.notes)
        return (
            suspect.classifier,
            pool_for(train, suspect.classifier, "train", labelled=True, notes=notes),
            tuple(notes),
        )
    data = load_dataset(str(train))
    preprocessing = usual_preprocessing(data.train.shape, normalisation) if normalisation else data.preprocessing
    spec = architectures.from_user(arch or data.arch)
    made = architectures.fresh(spec, preprocessing, data.classes, generator(0))
    return Runtime.of(pick_device(device)).place(made), data.train, ()


def origins_in(train: str | Path) -> Path | None:
    """Find the folder that the origins of a training set's rows are paths in; None where they are no files."""
    path = source_path(train)
    if path.is_dir():
        return path
    return path.parent if path.suffix.lower() == ".csv" and path.is_file() else None


def splitters() -> list[str]:
    """Name the defenses that split a training set."""
    found = plugins.registry().of_kind("defense").values()
    return sorted(row.cls.name for row in found if issubclass(row.cls, Splitting))


def check_splitter(defense: Defense) -> Splitting:
    """Make sure that a defense splits; UsageError names those that do."""
    if not isinstance(defense, Splitting):
        raise UsageError(f"--by {defense.name}: does not split a training set; these do: {', '.join(splitters())}")
    return defense


def split_set(
    defense: Splitting,
    model: Classifier,
    train: Pool,
    seed: int,
    *,
    root: Path | None,
    clean: Pool | None = None,
    notes: tuple[str, ...] = (),
    checkpoints: Path | None = None,
) -> Halves:
    """Train a fresh model like `model` as far as the defense needs to divide the set.

    root: the folder that the rows' origins are paths in. clean: for defenses that start from clean images.
    checkpoints: a folder for them. Which rows are poisoned, where a run folder tells, is looked up when all is done.
    """
    defense.check_model(model)
    rng = generator(seed)
    fresh = fresh_like(model, spawn(rng))
    inputs = defense.grant({"fresh": fresh, "train": train, "clean": clean, "rng": rng})
    with resumable(checkpoints, "split", defense, inputs, seed, model.device):
        _, division = defense.divide(**inputs)
    doubt = division.doubt or ("" if division.flagged.any() else "no image was flagged: there may be no backdoor")
    poisoned = known_poison(root, train) if root is not None else None
    history = {"rows": [int(clean.sum()) for clean in division.history.values()]}
    if poisoned is not None:
        history["poisoned"] = [int((clean & poisoned).sum()) for clean in division.history.values()]
    record = SplitRecord(
        by=defense.name,
        options=defense.model_dump(),
        target=division.target,
        target_class="" if division.target is None else model.classes[division.target],
        doubt=doubt,
        images={"train": len(train), "clean": int(division.clean.sum()), "flagged": int(division.flagged.sum())},
        found={name: (r.successes, r.n) for name, r in found(division, poisoned).items()},
        history=history,
        notes=list(notes),
        provenance={
            **environment(),
            "seed": seed,
            "model": describe_model(model),
            "train": describe_pool(train, root.name if root is not None else "given"),
        },
    )
    return Halves(train, division, poisoned, record)


def found(division: Division, poisoned: Tensor | None) -> dict[str, Rate]:
    """Precision and recall of both pools; nothing where the poisoned rows are not known."""
    if poisoned is None:
        return {}
    clean, flagged = division.clean, division.flagged
    return {
        "clean_precision": Rate.of(~poisoned[clean]),
        "clean_recall": Rate.of(clean[~poisoned]),
        "flagged_precision": Rate.of(poisoned[flagged]),
        "flagged_recall": Rate.of(flagged[poisoned]),
    }


def write_split(folder: Path, halves: Halves, classes: tuple[str, ...], root: Path | None) -> None:
    """Fill a folder (which the caller makes whole or not at all) with both pools, the index, charts and the record."""
    train, division, poisoned = halves.train, halves.division, halves.poisoned
    names = folder_names(classes)
    verdicts = [
        "clean" if c else "flagged" if f else "unsure"
        for c, f in zip(division.clean.tolist(), division.flagged.tolist(), strict=True)
    ]
    columns = {name: scores.tolist() for name, scores in division.scores.items()}
    known = {} if poisoned is None else {"poisoned": poisoned.int().tolist()}
    rows = []
    for row, (origin, label, verdict) in enumerate(zip(train.origin, train.labels.tolist(), verdicts, strict=True)):
        parent = {"clean": f"clean/{names[label]}", "flagged": "flagged"}.get(verdict)
        path = "" if parent is None else _place(folder / parent, row, train, root).relative_to(folder).as_posix()
        scores = [f"{values[row]:.6g}" for values in columns.values()]
        rows.append([origin, label, verdict, path, *scores, *(values[row] for values in known.values())])
    write_table(folder / INDEX, ["image", "label", "pool", "path", *columns, *known], rows)
    (folder / CHART).write_text(score_charts(_groups(division, poisoned)), encoding="utf-8")
    curves = _curves(halves)
    if curves:
        (folder / EPOCHS).write_text(epoch_chart(curves), encoding="utf-8")
    halves.record.write(folder)


def is_split(folder: Path) -> bool:
    """Whether a folder holds a split and nothing else (and so may be replaced by a new one)."""
    return SplitRecord.fills(folder, {INDEX, CHART, EPOCHS, "clean", "flagged"})


def _place(parent: Path, row: int, train: Pool, root: Path | None) -> Path:
    """Put an image into a folder: a hard link to the file that it came from, where that can be, else a PNG."""
    parent.mkdir(parents=True, exist_ok=True)
    source = root / train.origin[row] if root is not None else None
    if source is not None and source.is_file() and not source.is_symlink():
        path = parent / f"{row:06d}{source.suffix.lower()}"
        with suppress(OSError):  # another file system, or one without links
            os.link(source, path, follow_symlinks=False)
            return path
    path = parent / f"{row:06d}.png"
    write_png(train.images[row], path)
    return path


def _groups(division: Division, poisoned: Tensor | None) -> dict[str, dict[str, list[float]]]:
    """Group each kind of scores by the truth where it is known, else by what the rows were taken for."""
    sides = (
        {"clean": division.clean, "unsure": ~division.clean & ~division.flagged, "flagged": division.flagged}
        if poisoned is None
        else {"clean rows": ~poisoned, "poisoned rows": poisoned}
    )
    return {
        name.replace("_", " "): {side: scores[rows].tolist() for side, rows in sides.items()}
        for name, scores in division.scores.items()
    }


def _curves(halves: Halves) -> Mapping[str, list[float]]:
    """By epoch: how much of the set is in the clean pool; where the truth is known, precision and recall."""
    pools = torch.stack(list(halves.division.history.values())) if halves.division.history else None
    if pools is None:
        return {}
    poisoned = halves.poisoned
    if poisoned is None:
        return {"share of all images": pools.float().mean(1).tolist()}
    right = (pools & ~poisoned).sum(1)
    return {
        "clean pool, precision": (right / pools.sum(1).clamp(min=1)).tolist(),
        "clean pool, recall": (right / (~poisoned).sum().clamp(min=1)).tolist(),
        "the rest, recall of poison": ((~pools & poisoned).sum(1) / poisoned.sum().clamp(min=1)).tolist(),
        "the rest, precision": ((~pools & poisoned).sum(1) / (~pools).sum(1).clamp(min=1)).tolist(),
    }
