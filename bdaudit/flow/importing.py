"""Lay a record of another tool out as the folder that an audit starts from."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdaudit import plugins
from bdaudit.errors import CheckpointError, InputError, UsageError, one_line
from bdaudit.flow.implant import flat_rates
from bdaudit.flow.provenance import environment
from bdaudit.flow.record import Record
from bdaudit.flow.suspect import load
from bdaudit.importers import Imported, Importer, Rows
from bdaudit.inputs.architectures import from_user
from bdaudit.inputs.checkpoint import Checkpoint, save_checkpoint, save_weights
from bdaudit.inputs.classifier import ArchSpec, Classifier
from bdaudit.inputs.datasets import Dataset
from bdaudit.inputs.folders import folder_names, write_png, write_table
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.images import read_image
from bdaudit.inputs.listing import Unused, warn_unused
from bdaudit.inputs.opening import Unusable
from bdaudit.inputs.pool import Pool
from bdaudit.training.metrics import accuracy, attack_rates
from bdaudit.training.progress import say, track

MODEL = "model.pt"
SAMPLE = 100
"""Images that the imported model is tried on: enough to see that it was read rightly, quick even on a CPU."""

Image = tuple[int, int, Callable[[], Tensor]]
"""A row's number, the label whose sub-folder it belongs to, and what reads its pixels or raises Unusable."""


class ImportRecord(Record):
    """What import.json says: what was read, what was written, and how the model does on a sample of it.

    has_model: whether there is a model.pt. purified: the other models' file names. target: of an all-to-one backdoor.
    goal: in words, '' where the labels follow no known rule. rows: of the training set, as the record lists them.
    images: written, by folder. metrics: rates with their intervals, on a sample.
    """

    FILE = "import.json"

    format: str
    source: str
    files: dict[str, str]
    arch: str
    num_classes: int
    preprocessing: dict[str, Any] | None
    dataset: str
    clean_from: str
    has_model: bool
    purified: list[str]
    target: int | None
    goal: str
    rows: dict[str, int]
    images: dict[str, int]
    metrics: dict[str, float | int]
    notes: list[str]
    provenance: dict[str, Any]


def find_importer(record: Path, name: str | None = None) -> type[Importer]:
    """Look an importer up by name, else find the one installed importer that recognises the record."""
    if not os.path.exists(record):  # noqa: PTH110  # pathlib's raises on long names
        raise InputError(f"{one_line(record, 160)}: no such file or folder")
    if name is not None:
        chosen: type[Importer] = plugins.get("importer", name)
        return chosen
    installed = plugins.registry().of_kind("importer")
    fitting = [f.cls for f in installed.values() if issubclass(f.cls, Importer) and f.cls.recognises(record)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(cls.name for cls in fitting)
    if fitting:
        raise UsageError(f"{one_line(record, 160)}: several importers recognise it ({names}); name one with --format")
    known = ", ".join(installed) or "none; importers are plugins, such as bdaudit-backdoorbench"
    raise UsageError(
        f"{one_line(record, 160)}: no installed importer recognises it (installed: {known})"
        + plugins.registry().all_left_out("importer")
    )


def write_import(
    folder: Path,
    imported: Imported,
    *,
    format: str,
    source: str,
    arch: str | None = None,
    dataset: Dataset | None = None,
    with_train: bool = False,
    device: str = "auto",
    seed: int = 0,
) -> ImportRecord:
    """Fill `folder` (which the caller makes whole or not at all) with models, triggered images and import.json.

    dataset: what the record was made from, which is where clean images come from; raises InputError where its labels
    contradict the record's. with_train: also write the whole poisoned training set.
    """
    if dataset is not None:
        _check_dataset(imported, dataset)
    if with_train and (dataset is None or imported.train is None):
        raise UsageError(
            "the training set can be written only where the record lists its triggered rows and --data is given"
        )
    notes = [one_line(note, 600) for note in imported.notes]
    output = _Output(folder, folder_names(dataset.classes) if dataset else _numbers(imported), notes)
    spec = from_user(arch) if arch is not None else None
    found, purified = _write_models(folder, imported, spec, dataset.classes if dataset else (), notes)
    for note in notes:
        say(note)
    clean_from = _write_images(output, imported, dataset, with_train)
    goal = imported.goal
    metrics = _measure(output, goal, arch, device, seed) if imported.model and found else {}
    result = ImportRecord(
        format=format,
        source=one_line(source),
        files={one_line(name): digest for name, digest in imported.files.items()},
        arch=str(found or ""),
        num_classes=imported.num_classes,
        preprocessing=asdict(imported.preprocessing) if imported.preprocessing else None,
        dataset=one_line(imported.dataset),
        clean_from=one_line(clean_from),
        has_model=imported.model is not None,
        purified=purified,
        target=goal.target if goal else None,
        goal=str(goal or ""),
        rows=_listed(imported),
        images={name: len(files) for name, files in output.written.items()},
        metrics=metrics,
        notes=notes,
        provenance={**environment(), "seed": seed},
    )
    result.write(folder)
    return result


def is_import(folder: Path) -> bool:
    """Whether a folder holds an import and nothing else (and so may be replaced by a new one)."""
    ours = {MODEL, "flagged", "test_triggered", "clean", "train", "train.csv"}
    ours |= {path.name for path in folder.glob("purified-*.pt")}
    return ImportRecord.fills(folder, ours)


@dataclass
class _Output:
    """The folder being filled: what was written where, and what had to be left out."""

    root: Path
    classes: Sequence[str]
    notes: list[str]
    written: dict[str, list[tuple[Path, int]]] = field(default_factory=dict)

    def write(self, name: str, images: Sequence[Image]) -> dict[int, str]:
        """Write (index, label, pixels) as NAME/class/index.png; returns index -> path for those that could be read."""
        files: list[tuple[Path, int]] = []
        paths: dict[int, str] = {}
        unused = Unused()
        with track(f"writing {name}/", len(images)) as advance:
            for index, label, read in images:
                path = self.root / name / self.classes[label] / f"{index:06d}.png"
                try:
                    image = read()
                except Unusable as e:
                    unused.add(path.name, e)
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_png(image, path)
                    files.append((path, label))
                    paths[index] = path.relative_to(self.root).as_posix()
                advance()
        if unused:  # all of them, often enough: people publish a record without its images
            warn_unused(Path(name), f"{len(unused):,} of {len(images):,} images are not used: {unused}", self.notes)
        if files:
            self.written[name] = files
        return paths


def _numbers(imported: Imported) -> list[str]:
    return [str(k) for k in range(imported.num_classes)]


def _listed(imported: Imported) -> dict[str, int]:
    train = imported.train
    if train is None:
        return {}
    covers = int(imported.covers(train).sum())
    rows = {"poisoned": len(train) - covers, "cover": covers}
    return rows if train.total is None else {"train": train.total, **rows}


def _write_models(
    folder: Path, imported: Imported, arch: ArchSpec | None, classes: Sequence[str], notes: list[str]
) -> tuple[ArchSpec | None, list[str]]:
    """Write model.pt and purified-NAME.pt; returns the suspect's architecture, where it is known, and the names."""
    found = None
    if imported.model is not None:
        found = _write_model(imported.model, imported, arch, classes, folder / MODEL, notes)
    names = []
    for defense, checkpoint in imported.purified.items():
        names.append(f"purified-{defense}.pt")
        other = _write_model(checkpoint, imported, arch, classes, folder / names[-1], notes)
        found = found or other
    return found, names


def _write_model(
    checkpoint: Checkpoint,
    imported: Imported,
    arch: ArchSpec | None,
    classes: Sequence[str],
    path: Path,
    notes: list[str],
) -> ArchSpec | None:
    """Write one model: as bdaudit's own file where all is known of it, else the weights as they came."""
    try:
        found = checkpoint.match(arch)
    except CheckpointError as e:
        if arch is not None:
            raise
        notes.append(f"{path.name}: {one_line(e, 600)}")
        save_weights(checkpoint, path)
        return None
    if found.num_classes != imported.num_classes:
        raise InputError(
            f"the model in {one_line(checkpoint.path.name, 80)} has {found.num_classes} outputs, "
            f"the record says {imported.num_classes} classes"
        )
    if imported.preprocessing is None:
        save_weights(checkpoint, path)
        return found.arch
    model = checkpoint.classifier(arch=found, preprocessing=imported.preprocessing, classes=classes)
    save_checkpoint(model, path, provenance={"imported_from_sha256": checkpoint.sha256})
    return found.arch


def _write_images(output: _Output, imported: Imported, dataset: Dataset | None, with_train: bool) -> str:
    """Write every pool and train.csv; returns where the clean images came from, in words."""
    train, test = imported.train, imported.test
    if train is not None:
        covers = imported.covers(train)
        flagged = flagged_rows(train, covers)
        paths = output.write("flagged", _images(train, flagged.nonzero().flatten().tolist(), train.true))
        _write_csv(output.root / "train.csv", train, covers, paths)
    if test is not None:
        output.write("test_triggered", _images(test, range(len(test)), test.true))
    if dataset is None:
        return ""
    if with_train and train is not None:
        # As the victim saw it: triggered rows with the labels given, all others as they are.
        output.write("train", _images(train, range(len(train)), train.given) + _untriggered(train, dataset.train))
    if dataset.test is not None:
        output.write("clean", _clean(dataset.test, range(len(dataset.test))))
        return f"{dataset.name}, test split"
    if train is None:
        return ""
    note = (
        f"{one_line(dataset.name, 80)} has no test split: clean/ holds training rows, on which the model looks too good"
    )
    output.notes.append(note)
    say(note)
    output.write("clean", _untriggered(train, dataset.train))
    return f"{dataset.name}, training rows without a trigger"


def flagged_rows(train: Rows, covers: Tensor) -> Tensor:
    """Mark the rows that an auditor is handed: those whose label gives them away, else (clean-label) all poison."""
    mislabelled = train.given != train.true
    return mislabelled if mislabelled.any() else ~covers


def _images(rows: Rows, chosen: Iterable[int], labels: Tensor) -> list[Image]:
    return [(int(rows.index[row]), int(labels[row]), partial(rows.read, row)) for row in chosen]


def _clean(pool: Pool, chosen: Iterable[int]) -> list[Image]:
    return [(row, int(pool.labels[row]), partial(pool.images.__getitem__, row)) for row in chosen]


def _untriggered(train: Rows, pool: Pool) -> list[Image]:
    triggered = set(train.index.tolist())
    return _clean(pool, (row for row in range(len(pool)) if row not in triggered))


def _write_csv(path: Path, train: Rows, covers: Tensor, images: Mapping[int, str]) -> None:
    """Write one line a triggered row of the training set, those without a usable image included."""
    columns = (train.index, train.given, train.true, covers.int())
    write_table(
        path,
        ["index", "origin", "path", "label", "true_label", "poisoned", "cover"],
        (
            [index, one_line(origin), images.get(index, ""), given, true, 1 - cover, cover]
            for origin, index, given, true, cover in zip(train.origin, *(c.tolist() for c in columns), strict=True)
        ),
    )


def _check_dataset(imported: Imported, dataset: Dataset) -> None:
    """Make sure that a dataset is the one that the record speaks of, as far as labels can tell."""
    what = f"--data {one_line(dataset.name, 80)} is not what the record was made from"
    if len(dataset.classes) != imported.num_classes:
        raise InputError(f"{what}: it has {len(dataset.classes)} classes, the record {imported.num_classes}")
    for name, rows, pool in (("training", imported.train, dataset.train), ("test", imported.test, dataset.test)):
        if rows is None or pool is None:
            continue
        if rows.total is not None and rows.total != len(pool):
            raise InputError(f"{what}: it has {len(pool)} {name} rows, the record {rows.total}")
        if len(rows) and int(rows.index.max()) >= len(pool):
            raise InputError(f"{what}: it has {len(pool)} {name} rows, the record has a row {int(rows.index.max())}")
        wrong = (pool.labels[rows.index] != rows.true).nonzero()
        if len(wrong):
            row = int(wrong[0])
            index = int(rows.index[row])
            raise InputError(
                f"{what}: its {name} row {index} has label {int(pool.labels[index])}, the record says {int(rows.true[row])}"
            )


def _measure(output: _Output, goal: Goal | None, arch: str | None, device: str, seed: int) -> dict[str, float | int]:
    """Try the model, opened as an audit will open it, on a sample of what was written."""
    clean = output.root / "clean"
    suspect = load(output.root / MODEL, arch=arch, clean=clean if clean.is_dir() else None, device=device)
    output.notes.extend(suspect.notes)
    model, rates = suspect.classifier, {}
    triggered = _sample(output.written.get("test_triggered") or output.written.get("flagged") or [], model, seed)
    if triggered is not None and goal is not None:
        rates["asr"], rates["robust_acc"] = attack_rates(model, triggered, goal)
    held_out = _sample(output.written.get("clean", []), model, seed)
    if held_out is not None:
        rates["c_acc"] = accuracy(model, held_out)
    return flat_rates({name: rate for name, rate in rates.items() if rate.n})


def _sample(files: Sequence[tuple[Path, int]], model: Classifier, seed: int) -> Pool | None:
    chosen = random.Random(seed).sample(list(files), min(SAMPLE, len(files)))
    if not chosen:
        return None
    images = torch.stack([read_image(path, model.preprocessing.shape) for path, _ in chosen])
    return Pool.of(images, [label for _, label in chosen])
