"""A model file: read without running code from it, written back in the form in which it came."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from bdaudit.errors import WARNING, BdauditError, CheckpointError, UsageError, one_line
from bdaudit.inputs.architectures import Match, build, check_size, find, fit, match, parse, untouched_rng
from bdaudit.inputs.architectures.matching import COUNTER, plain_state
from bdaudit.inputs.checkpoint_header import KEY, Header, describe, read_header, read_json
from bdaudit.inputs.checkpoint_layout import Layout, common_prefix, copies_beside, tensors_beside, unwrap
from bdaudit.inputs.checkpoint_read import Content, open_checkpoint
from bdaudit.inputs.classifier import ArchSpec, Classifier, Preprocessing
from bdaudit.inputs.files import atomic_file
from bdaudit.inputs.normalisation import usual_preprocessing


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a model file held.

    path: where it was read. format: how it was written (legacy: by PyTorch before 1.6). sha256: of the file.
    state: weights by name, without prefix, on the CPU, in the file's own types, all finite.
    layout: what stood around them. metadata: of a safetensors file.
    header: of bdaudit's own files, else None; `arch`, `preprocessing`, `classes`, `provenance` are what it
    says. notes: what a user should know about the file, one line each.
    """

    path: Path
    format: Literal["torch", "legacy", "safetensors"]
    sha256: str
    layout: Layout = field(repr=False)
    state: Mapping[str, Tensor] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    header: Header | None = None
    arch: ArchSpec | None = None
    preprocessing: Preprocessing | None = None
    notes: tuple[str, ...] = ()

    @property
    def wrapping(self) -> tuple[str, ...]:
        """The keys leading to the weights: () for a plain state dict, ("state_dict",), ("model",), ..."""
        return self.layout.wrapping

    @property
    def prefix(self) -> str:
        """What stood before every name in the file, such as "module."."""
        return self.layout.prefix

    @property
    def classes(self) -> tuple[str, ...] | None:
        return tuple(self.header.classes) if self.header and self.header.classes else None

    @property
    def provenance(self) -> dict[str, Any]:
        return dict(self.header.provenance) if self.header else {}

    def match(self, arch: str | ArchSpec | None = None) -> Match:
        """Say which architecture the weights are of, and how many classes and channels it has.

        arch: overrides the file, as in `resnet18` or `resnet18:width=16`; options left open are read off the
        shapes. Raises CheckpointError when the weights do not fit it, or when it is not given and nothing
        known fits.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        spec = parse(arch) if isinstance(arch, str) else arch or self.arch
        if spec is None and self.header and self.header.code:
            raise CheckpointError(
                f"{_shown(self.path)}: its network is a function in a Python file of its maker's, {self.header.code}; "
                "bdaudit runs no code that a file names: give --arch FILE.py:FUNCTION with a file that you trust"
            )
        try:
            return fit(spec, shapes) if spec else match(shapes)
        except CheckpointError as e:
            raise CheckpointError(f"{_shown(self.path)}: {one_line(e, 600)}") from e

    def classifier(
        self,
        *,
        arch: str | ArchSpec | Match | None = None,
        preprocessing: Preprocessing | None = None,
        classes: Sequence[str] | None = None,
        notes: list[str] | None = None,
    ) -> Classifier:
        """Build the model on the CPU, in float32 and evaluation mode.

        arch: as in `match`, or what that returned. preprocessing, classes: used where the file does not say. notes:
        gets a line for each thing that was assumed or set aside, to be shown to the user. Raises CheckpointError when
        the weights do not fit, or the preprocessing or the classes contradict them; UsageError when the network does
        not take its images.
        """
        found = arch if isinstance(arch, Match) else self.match(arch)
        said = [*self.notes]
        if found.recognised:
            said.append(f"architecture recognised from the weights: {found.arch}")
        pixels = self._preprocessing(found, preprocessing, said)
        names = self._classes(found, classes, said)
        with untouched_rng():
            body = build(found.arch.name, num_classes=found.num_classes, channels=found.channels, **found.arch.options)
        # Counters that an old file lacks keep their zero.
        counters = {n: t for n, t in plain_state(body).items() if n.endswith(COUNTER) and n not in self.state}
        prefix = common_prefix(body.state_dict())
        body.load_state_dict({prefix + n: t for n, t in {**self.state, **counters}.items()}, strict=True)
        model = Classifier(body, pixels, arch=found.arch, classes=names).eval()
        model.check()
        if notes is not None:
            notes.extend(said)
        return model

    def _preprocessing(self, found: Match, given: Preprocessing | None, said: list[str]) -> Preprocessing:
        chosen = self.preprocessing or given
        if chosen is None:
            side = found.arch.options.get("image_size", find(found.arch.name).size)
            said.append(f"preprocessing is not in the file: assumed {side}x{side} pixels, mean 0 and std 1")
            return usual_preprocessing((found.channels, side, side))
        if self.preprocessing and given and given != self.preprocessing:
            said.append("preprocessing taken from the file, not from what was given")
        if chosen.channels != found.channels:
            raise CheckpointError(
                f"{_shown(self.path)}: its first convolution takes {found.channels} channels, "
                f"its preprocessing {chosen.channels}"
            )
        try:
            check_size(found.arch, chosen)
        except UsageError as e:
            raise CheckpointError(f"{_shown(self.path)}: {e}") from e
        return chosen

    def _classes(self, found: Match, given: Sequence[str] | None, said: list[str]) -> tuple[str, ...]:
        chosen = self.classes or tuple(given or ())
        if self.classes and given and tuple(given) != self.classes:
            said.append("class names taken from the file, not from what was given")
        if chosen and len(chosen) != found.num_classes:
            raise CheckpointError(
                f"{_shown(self.path)}: it has {found.num_classes} outputs, but {len(chosen)} class names"
            )
        return chosen


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a model file without running code from it.

    Accepts safetensors and what torch reads with `weights_only=True`: a plain state dict, one under
    "state_dict", "model", "net" or the like, and bdaudit's own file. Whatever else it is, a CheckpointError
    says in one line.
    """
    path = Path(path)
    try:
        return _read(path)
    except CheckpointError as e:
        raise CheckpointError(f"{_shown(path)}: {one_line(e, 600)}") from e


def _read(path: Path) -> Checkpoint:
    content = open_checkpoint(path)
    header = None
    if KEY in content.metadata:
        header = read_json(content.metadata[KEY])
    elif isinstance(content.document, dict) and KEY in content.document:
        header = read_header(content.document[KEY])
        if "state_dict" not in content.document:
            raise CheckpointError("has bdaudit's header and no 'state_dict'")
    layout, state = unwrap(content.document, content.size)
    copies = copies_beside(layout, state)
    others = [key for key in tensors_beside(layout) if key not in copies]
    notes = [f"the file also holds tensors under {', '.join(others)}: kept as they are"] if others else []
    if copies:
        notes.append(
            f"{WARNING}the file holds this model's weights again under {', '.join(copies)}: nothing purifies those, and they "
            "are written back as they are"
        )
    return Checkpoint(
        path=path,
        format=content.format,
        sha256=content.sha256,
        layout=layout,
        state=state,
        metadata=content.metadata,
        header=header,
        arch=header.spec() if header else None,
        preprocessing=header.pixels() if header else None,
        notes=tuple(notes),
    )


def save_checkpoint(
    model: Classifier,
    path: Path | str,
    *,
    like: Checkpoint | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a file, whole or not at all.

    like: write in the format, wrapping, names and types of this one, so that whoever read that file reads
    this one; where it is bdaudit's own, `provenance` (JSON values) is added to its header. Without it:
    bdaudit's own file, safetensors where the name ends so. The same model gives the same bytes.
    Raises BdauditError when the model does not have the weights of `like` or holds NaN, OutputError when
    `path` cannot be written.
    """
    held = plain_state(model.body) if like else model.body.state_dict()
    new = {name: t.detach().cpu() for name, t in held.items()}
    state = _like(new, like.state) if like else {name: _own_memory(t) for name, t in new.items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BdauditError(f"the model was not saved: {name} holds NaN or infinite values as {tensor.dtype}")
    header = None
    if like is None or like.header:
        header = describe(model, {**(like.provenance if like else {}), **(provenance or {})})
    if like:
        layout, metadata, form = like.layout, dict(like.metadata), like.format
    else:
        layout = Layout(wrapping=("state_dict",), siblings=({KEY: None, "state_dict": None},), parameters={})
        metadata, form = {}, "safetensors" if Path(path).suffix == ".safetensors" else "torch"
    with atomic_file(path) as partial:
        if form == "safetensors":
            if header:
                metadata[KEY] = header.model_dump_json()
            data = save({layout.prefix + n: t for n, t in state.items()}, metadata or None)
            partial.write_bytes(_sorted_metadata(data))
            return
        document = layout.wrap(state)
        if header:
            document[KEY] = header.model_dump(mode="json")
        # A file object, as torch writes a path's name into the archive and this one is random.
        with partial.open("wb") as file:
            torch.save(document, file, _use_new_zipfile_serialization=form != "legacy")


def weights_in(document: object, content: Content) -> Checkpoint:
    """Take a model's weights out of a part of what `open_checkpoint` read.

    Raises CheckpointError, without the path, where the part does not hold a usable state dict.
    """
    layout, state = unwrap(document, content.size)
    return Checkpoint(path=content.path, format="torch", sha256=content.sha256, layout=layout, state=state, metadata={})


def save_weights(checkpoint: Checkpoint, path: Path | str) -> None:
    """Write the weights alone, as a plain state dict with clean names, for which no architecture need be known."""
    with atomic_file(path) as partial, partial.open("wb") as file:
        torch.save({name: _own_memory(tensor) for name, tensor in checkpoint.state.items()}, file)


def _like(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a state the names, order and types of the file that it goes back to."""
    for name, tensor in old.items():
        if name not in new or new[name].shape != tensor.shape:
            got = tuple(new[name].shape) if name in new else "missing"
            want = tuple(tensor.shape)
            raise BdauditError(f"the model was not saved: {name} is {got}, {want} in the file it came from")
    surplus = next((name for name in new if name not in old and not name.endswith(COUNTER)), None)
    if surplus:
        raise BdauditError(f"the model was not saved: {surplus} is not in the file it came from")
    return {name: _own_memory(new[name].to(tensor.dtype)) for name, tensor in old.items()}


def _own_memory(tensor: Tensor) -> Tensor:
    """Copy a tensor, as a view would take its whole storage into the file."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _sorted_metadata(data: bytes) -> bytes:
    """Order a safetensors file's metadata, which the library writes in random order."""
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    if "__metadata__" in head:
        head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of eight bytes
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _shown(path: Path) -> str:
    return one_line(path, 160)
