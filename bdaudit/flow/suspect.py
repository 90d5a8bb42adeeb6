"""Open the models that an audit is about: files from anywhere, classifiers, plain modules."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import nn

from bdaudit.errors import WARNING, UsageError, one_line
from bdaudit.flow.pools import Images, as_pool
from bdaudit.flow.preprocessing import assumed, normalised
from bdaudit.inputs.architectures import from_user
from bdaudit.inputs.checkpoint import Checkpoint, read_checkpoint
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.normalisation import usual_preprocessing
from bdaudit.inputs.pool import Pool
from bdaudit.inputs.sources import is_source
from bdaudit.runtime import Runtime, pick_device
from bdaudit.training.progress import say, warn

PathLike = str | Path


@dataclass(frozen=True)
class Suspect:
    """A model as it was given: the classifier to work on, the file it came from, and what had to be assumed of it."""

    classifier: Classifier
    checkpoint: Checkpoint | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()


def load(
    model: PathLike,
    *,
    arch: str | None = None,
    normalisation: str | None = None,
    clean: Images | None = None,
    device: str = "auto",
) -> Suspect:
    """Read a model file without running code from it.

    arch: name, e.g. `resnet18:width=16`, where neither the file nor its keys and shapes tell; or a function of
    your own as `models.py:make_model`, whose file is run. Where the model file does not say how its pixels were
    normalised: `normalisation` (a data set's name), else the known one under which the model classifies the
    images in `clean` best.
    """
    path = Path(model)
    checkpoint = read_checkpoint(path)
    spec = from_user(arch) if arch is not None else None
    runtime = Runtime.of(pick_device(device))
    notes: list[str] = []
    found = checkpoint.match(spec)
    if isinstance(clean, str | Path) and not is_source(clean):
        clean = None  # whoever needs it says so
    known = checkpoint.preprocessing
    if known is None:
        preprocessing = assumed(found, normalisation, clean)
    else:
        preprocessing = usual_preprocessing(known.shape, normalisation) if normalisation else None
    classifier = runtime.place(checkpoint.classifier(arch=found, preprocessing=preprocessing, notes=notes))
    if known is None and normalisation is None and clean is not None:
        classifier, said = normalised(classifier, clean)
        notes += said
    notes.sort(key=lambda note: not note.startswith(WARNING))
    for note in notes:
        if note.startswith(WARNING):
            warn(f"{one_line(path.name)}: {note.removeprefix(WARNING)}")
        else:
            say(f"{one_line(path.name)}: {note}")
    return Suspect(classifier, checkpoint, path, tuple(notes))


def wrap(model: nn.Module, images: Pool, *, normalisation: str | None = None) -> Classifier:
    """Make a classifier out of a plain module that takes floats in [0, 1], or normalised as for a known dataset."""
    if isinstance(model, Classifier):
        return model
    return Classifier(model, usual_preprocessing(images.shape, normalisation))


def as_given(model: nn.Module, given: nn.Module) -> nn.Module:
    """Put each of a model's tensors where the one of that name in another is, and in its precision, in place."""
    theirs = dict(chain(given.named_parameters(), given.named_buffers()))
    model.to(next(iter(theirs.values())).device)  # what only this one has
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name in theirs:
            tensor.data = tensor.data.to(theirs[name])
    return model


def open_suspect(
    model: PathLike | nn.Module, clean: Images | None, arch: str | None, normalisation: str | None, device: str
) -> Suspect:
    """Open the model under suspicion: a file, a classifier, or a plain module beside images in memory."""
    if isinstance(model, nn.Module):
        if not isinstance(model, Classifier):
            if clean is None or isinstance(clean, str | Path):
                raise UsageError("clean images for a plain module must be tensors or a pool (their shape is needed)")
            model = wrap(model, as_pool(clean), normalisation=normalisation)
        return Suspect(Runtime.of(pick_device(device)).place(model.clone().float()))
    if clean is None:
        beside = Path(model).parent / "clean"
        clean = None if beside.is_symlink() else beside  # a link is refused by whoever needs the images
    return load(model, arch=arch, normalisation=normalisation, clean=clean, device=device)


def open_second(model: PathLike | nn.Module, suspect: Suspect) -> Classifier:
    """Open another model that must take the suspect's images and know its classes; placed where the suspect is."""
    known = suspect.classifier
    if isinstance(model, Classifier):
        other = model.clone().float()
    elif isinstance(model, nn.Module):
        other = Classifier(copy.deepcopy(model).float(), known.preprocessing, classes=known.classes)
    else:
        checkpoint = read_checkpoint(model)
        arch = None if checkpoint.arch else known.arch
        other = checkpoint.classifier(arch=arch, preprocessing=checkpoint.preprocessing or known.preprocessing)
    if other.preprocessing.shape != known.preprocessing.shape or other.num_classes != known.num_classes:
        name = one_line(model) if isinstance(model, str | Path) else type(model).__name__
        raise UsageError(
            f"{name}: takes {other.preprocessing.shape} images and has {other.num_classes} classes, "
            f"the suspect {known.preprocessing.shape} and {known.num_classes}"
        )
    return Runtime.of(known.device).place(other)
