"""One `bd_train` or `bd_test` of a record: which rows were triggered, and where their images are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdaudit.errors import InputError, one_line
from bdaudit.importers import Rows
from bdaudit.inputs.images import decode, peek, quiet_pillow
from bdaudit.inputs.opening import Unusable, open_below, open_folder
from bdaudit_backdoorbench.fields import a, integer, integers, plain_dict

MAX_LABEL = 100_000
MAX_PARTS = 3
MAX_PATH = 4096


def read_split(entry: object, name: str, root: Path, shape: tuple[int, int, int], notes: list[str]) -> Rows | None:
    """Check one part of a record and list its triggered rows; None where the record does not have it.

    root: the record's folder, outside of which nothing is ever read. shape: of the images.
    """
    if entry is None:
        return None
    fields = plain_dict(entry, name)
    if "bd_data_container" not in fields:
        raise InputError(
            f"{name} has no bd_data_container: records of BackdoorBench's version 2 are read, older ones are not"
        )
    container = plain_dict(fields.get("bd_data_container"), f"{name}.bd_data_container")
    items = plain_dict(container.get("data_dict"), f"{name}.data_dict")
    triggered, total = _triggered(fields, name)
    listed = [index for index in triggered if index in items]
    if len(listed) < len(triggered):
        notes.append(
            f"{name}: {len(triggered) - len(listed)} of {len(triggered)} triggered rows are not in its data_dict and were left out"
        )
    labels = [_labels(items[index], f"{name}: row {index}") for index in listed]
    files = Files(root, _folder_name(fields, container, name), shape)
    places = [files.place(items[index].get("path")) for index in listed]
    _check_distinct(places, listed, name)
    given, true = ([pair[k] for pair in labels] for k in (0, 1))
    return Rows(
        index=torch.tensor(listed, dtype=torch.int64),
        given=torch.tensor(given, dtype=torch.int64),
        true=torch.tensor(true, dtype=torch.int64),
        origin=tuple(one_line(files.shown(place), 200) for place in places),
        read=lambda row: files.read(places[row]),
        total=total,
    )


def _triggered(fields: dict[Any, Any], name: str) -> tuple[list[int], int]:
    """Original numbers of the triggered rows, and how many rows the split has.

    `poison_indicator` has one 0 or 1 a row of the original split, `original_index_array` lists the rows in use.
    """
    indicator = integers(fields.get("poison_indicator"), f"{name}.poison_indicator")
    index = integers(fields.get("original_index_array"), f"{name}.original_index_array")
    if not bool(((indicator == 0) | (indicator == 1)).all()):
        raise InputError(f"{name}.poison_indicator holds other numbers than 0 and 1")
    if len(index) > len(indicator) or (len(index) and (int(index.min()) < 0 or int(index.max()) >= len(indicator))):
        raise InputError(
            f"{name}: original_index_array ({len(index)} rows) does not fit poison_indicator ({len(indicator)} rows)"
        )
    if (index.sort().values.diff() == 0).any():
        raise InputError(f"{name}.original_index_array lists a row twice")
    triggered: list[int] = index[indicator[index] == 1].tolist()
    return triggered, len(indicator)


def _labels(item: object, what: str) -> tuple[int, int]:
    """Read (label given, true label) of one row."""
    info = item.get("other_info") if isinstance(item, dict) else None
    if not isinstance(info, (list, tuple)) or len(info) != 2:
        raise InputError(f"{what}: its other_info is {a(info)}, expected [label given, true label]")
    given, true = (integer(v, f"{what}: a label", 0, MAX_LABEL) for v in info)
    return given, true


def _folder_name(fields: dict[Any, Any], container: dict[Any, Any], name: str) -> str:
    """The images' folder within the record: the last part of `save_folder_path`, wherever the author's stood."""
    for value in (container.get("save_folder_path"), fields.get("save_folder_path")):
        parts = _parts(value)
        if parts and _is_plain(parts[-1]):
            return parts[-1]
    return f"{name}_dataset"


def _check_distinct(places: list[tuple[str, ...] | None], listed: list[int], name: str) -> None:
    seen: dict[tuple[str, ...], int] = {}
    for place, index in zip(places, listed, strict=True):
        if place is not None and seen.setdefault(place, index) != index:
            raise InputError(
                f"{name}: rows {seen[place]} and {index} name the same file, {one_line('/'.join(place), 80)}"
            )


@dataclass(frozen=True)
class Files:
    """The image files of one split, which are looked for in one folder of the record and nowhere else."""

    root: Path
    folder: str
    shape: tuple[int, int, int]

    def place(self, path: object) -> tuple[str, ...] | None:
        """Take what follows the images' folder in a recorded path, else its last two parts; None if that is no place.

        Recorded paths are relative to where the author ran BackdoorBench, or from another machine altogether.
        """
        parts = _parts(path)
        at = max((i for i, part in enumerate(parts[:-1]) if part == self.folder), default=None)
        tail = tuple(parts[-2:] if at is None else parts[at + 1 :])
        return tail if 1 <= len(tail) <= MAX_PARTS and all(map(_is_plain, tail)) else None

    def shown(self, place: tuple[str, ...] | None) -> str:
        return "/".join((self.folder, *place)) if place else "(no usable path)"

    def read(self, place: tuple[str, ...] | None) -> Tensor:
        """Read one image, uint8 (C, H, W); raises Unusable where it is missing, a link, broken or of another size."""
        if place is None:
            raise Unusable("its path names no place in the record")
        with open_folder(self.root) as root, open_below(root, self.shown(place)) as file, quiet_pillow():
            # Images are saved as the model takes them: one of another size is not what the record says it is.
            size = peek(file)[1:]
            if size != self.shape[1:]:
                raise Unusable("of another size than the record says", f"{size[0]} x {size[1]}")
            file.seek(0)
            return decode(file, self.shape)


def _parts(path: object) -> list[str]:
    """Cut a recorded path, of Linux or Windows, into its parts; nothing for what is no path."""
    if not isinstance(path, str) or len(path) > MAX_PATH:
        return []
    return [part for part in re.split(r"[\\/]+", path) if part]


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and part.isprintable()
