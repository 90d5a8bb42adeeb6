"""An importer of BackdoorBench's records: attack_result.pt, defense_result.pt and the images beside them."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from bdaudit.contract import option
from bdaudit.errors import CheckpointError, InputError, one_line
from bdaudit.hookspecs import hookimpl
from bdaudit.importers import Imported, Importer
from bdaudit.inputs.architectures import Match
from bdaudit.inputs.checkpoint import Checkpoint, weights_in
from bdaudit.inputs.checkpoint_read import open_checkpoint
from bdaudit.inputs.classifier import Preprocessing
from bdaudit_backdoorbench.datasets import DATASETS
from bdaudit_backdoorbench.fields import class_count, image_shape, plain_dict, text
from bdaudit_backdoorbench.splits import read_split

ATTACK = "attack_result.pt"
DEFENSE = "defense_result.pt"
RESIZED = "1."
"""What stands before every name where the network is the second part of Sequential(Resize(224), network)."""
RESIZED_SIDE = 224


@dataclass(frozen=True)
class Result:
    """One result file: its fields, not yet checked, and the weights in it, checked.

    resized: whether the network stands behind a resize to 224 pixels.
    """

    fields: dict[Any, Any]
    weights: Checkpoint
    num_classes: int
    resized: bool
    notes: tuple[str, ...]

    @property
    def is_attack(self) -> bool:
        return "bd_train" in self.fields or "bd_test" in self.fields


class BackdoorBench(Importer):
    """Read a record of BackdoorBench: its model, its triggered images with both labels, and what defenses made of it.

    Wu et al., "BackdoorBench" (NeurIPS 2022), version 2's layout. A record is a folder that holds attack_result.pt, and
    often bd_train_dataset/, bd_test_dataset/ and defense/NAME/defense_result.pt; any of the result files will do as
    well. It holds no clean images.
    """

    name = "backdoorbench"

    defenses: int = option(16, "read at most so many results of defenses", ge=0, le=1000)

    @classmethod
    def recognises(cls, record: Path) -> bool:
        """Whether a path is a result file by name, or a folder that holds one."""
        names = {ATTACK, DEFENSE}
        return any((record / name).is_file() for name in names) if record.is_dir() else record.name in names

    def read(self, record: Path) -> Imported:
        """Read the result files and list the images; they themselves are read when they are asked for."""
        path = _main_file(record)
        result = read_result(path)
        if not result.is_attack:
            return Imported(
                purified={_defense_name(path): result.weights},
                num_classes=result.num_classes,
                files={path.name: result.weights.sha256},
                notes=(*result.notes, f"{path.name} is a defense's result: the images are with its attack's record"),
            )
        root, fields = path.parent, result.fields
        shape = image_shape(fields.get("img_size"))
        notes = list(result.notes)
        train = read_split(fields.get("bd_train"), "bd_train", root, shape, notes)
        test = read_split(fields.get("bd_test"), "bd_test", root, shape, notes)
        dataset = _dataset_name(fields)
        if train is None:
            notes.append("the record has no bd_train: the poisoned rows of the training set are unknown")
        purified: dict[str, Checkpoint] = {}
        files = {path.name: result.weights.sha256}
        for other in self._defense_files(root, path, notes):
            defended = read_result(other)
            if defended.num_classes != result.num_classes:
                raise InputError(
                    f"{_shown(other, root)}: has {defended.num_classes} classes, the attack's result {result.num_classes}"
                )
            purified[_unused(_defense_name(other), purified)] = defended.weights
            files[_shown(other, root)] = defended.weights.sha256
        return Imported(
            model=result.weights,
            purified=purified,
            preprocessing=_preprocessing(dataset, shape, result.resized, notes),
            num_classes=result.num_classes,
            dataset=DATASETS[dataset].name if dataset in DATASETS else dataset,
            train=train,
            test=test,
            files=files,
            notes=tuple(notes),
        )

    def _defense_files(self, root: Path, attack: Path, notes: list[str]) -> list[Path]:
        """List the results of defenses below a record, links left out."""
        folders = [p for p in (root / "defense", *_folders(root / "defense")) if not p.is_symlink()]
        candidates = [folder / DEFENSE for folder in (root, *folders)]
        found = [p for p in candidates if p != attack and p.is_file() and not p.is_symlink()]
        if len(found) > self.defenses:
            notes.append(f"{len(found)} results of defenses, of which {self.defenses} were read (-o defenses=N)")
        return found[: self.defenses]


def read_result(path: Path) -> Result:
    """Read one result file in the sandbox and check its model; errors name the file."""
    try:
        content = open_checkpoint(path, numpy=True)
        fields = plain_dict(content.document, "it")
        weights = weights_in({"model": plain_dict(fields.get("model"), "its 'model'")}, content)
        resized = weights.prefix.endswith(RESIZED)
        match = _match(weights)
        # Early versions of some defenses save no number of classes.
        known = fields.get("num_classes", match and match.num_classes)
        return Result(fields, weights, class_count(known), resized, _arch_notes(fields, match))
    except InputError as e:
        raise type(e)(f"{one_line(path.name, 80)}: {e}") from e


def _match(weights: Checkpoint) -> Match | None:
    try:
        return weights.match()
    except CheckpointError:
        return None  # said where the model is written


def _arch_notes(fields: dict[Any, Any], match: Match | None) -> tuple[str, ...]:
    """Say so where the record's name for the architecture is not that of the weights."""
    said = text(fields.get("model_name")).lower()
    found = match.arch.name.removeprefix("torchvision:") if match else said
    return () if said in ("", found) else (f"the record calls its model {said!r}, its weights are those of {found}",)


def _main_file(record: Path) -> Path:
    """The file to start from: the one given, else the attack's result, else the defense's."""
    if not record.is_dir():
        return record
    for name in (ATTACK, DEFENSE):
        if (record / name).is_symlink():
            raise InputError(f"{name} is a link, which may lead out of the folder: give the file itself")
        if (record / name).is_file():
            return record / name
    raise InputError(f"has neither {ATTACK} nor {DEFENSE}")


def _folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir() and not parent.is_symlink():
        yield from sorted(p for p in parent.iterdir() if p.is_dir())


def _shown(path: Path, root: Path) -> str:
    return one_line(path.relative_to(root), 120)


def _defense_name(path: Path) -> str:
    """Name a defense's result after its folder, spelt so that it can be part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", path.parent.name).strip("-")[:40] or "defense"


def _unused(name: str, taken: Container[str]) -> str:
    numbered = (f"{name[:36]}-{n}" for n in count(2))
    return next(candidate for candidate in chain([name], numbered) if candidate not in taken)


def _dataset_name(fields: dict[Any, Any]) -> str:
    """What the record calls its dataset: `clean_data`, else the last part of `data_path`."""
    for key in ("clean_data", "data_path"):
        value = fields.get(key)
        if isinstance(value, str) and value.strip():
            return one_line(re.split(r"[\\/]", value.strip().rstrip("\\/"))[-1].lower(), 60)
    return ""


def _preprocessing(dataset: str, shape: tuple[int, int, int], resized: bool, notes: list[str]) -> Preprocessing | None:
    """How pixels go in: BackdoorBench normalises by dataset; unknown datasets are left to the audit's own choice."""
    if dataset not in DATASETS or len(DATASETS[dataset].mean) != shape[0]:
        notes.append(
            f"how pixels are normalised is not known for the dataset {dataset or 'of no name'!r}: "
            "the audit will choose, or take --normalise"
        )
        return None
    _, height, width = shape
    if resized:
        height = width = RESIZED_SIDE
    known = DATASETS[dataset]
    return Preprocessing(channels=shape[0], height=height, width=width, mean=known.mean, std=known.std)


@hookimpl
def bdaudit_importers() -> Iterable[type[Importer]]:
    """Offer the importer to bdaudit."""
    return [BackdoorBench]
