"""Open the models that an audit is about: files from anywhere, classifiers, plain modules."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import nn

from bdaudit.errors import UsageError, one_line
from bdaudit.flow.pools import Images, as_pool, labelled_pool
from bdaudit.inputs.architectures import find
from bdaudit.inputs.checkpoint import Checkpoint, read_checkpoint
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.inputs.folders import SUFFIXES
from bdaudit.inputs.normalisation import NORMALISATIONS, choose_preprocessing
from bdaudit.inputs.pool import Pool
from bdaudit.runtime import Runtime, pick_device
from bdaudit.training.progress import say

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
    clean: PathLike | None = None,
    device: str = "auto",
) -> Suspect:
    """Read a model file without running code from it.

    arch: name, e.g. `resnet18:width=16`, where neither the file nor its keys and shapes tell. Where the file
    does not say how its pixels were normalised: `normalisation` (a dataset's name), else the known one under
    which the model classifies the images in `clean` best.
    """
    path = Path(model)
    checkpoint = read_checkpoint(path)
    notes: list[str] = []
    preprocessing = None
    if checkpoint.preprocessing is None:
        preprocessing = _preprocessing(checkpoint, arch, normalisation, Path(clean) if clean else None, notes)
    classifier = checkpoint.classifier(arch=arch, preprocessing=preprocessing, notes=notes)
    for note in notes:
        say(f"{path.name}: {note}")
    return Suspect(Runtime.of(pick_device(device)).place(classifier), checkpoint, path, tuple(notes))


def wrap(model: nn.Module, images: Pool, *, normalisation: str | None = None) -> Classifier:
    """Make a classifier out of a plain module that takes floats in [0, 1], or normalised by a known dataset's figures."""
    if isinstance(model, Classifier):
        return model
    c, h, w = images.shape
    mean, std = _normalisation(normalisation, c) if normalisation else ((0.0,) * c, (1.0,) * c)
    return Classifier(model, Preprocessing(channels=c, height=h, width=w, mean=mean, std=std))


def open_suspect(
    model: PathLike | nn.Module, clean: Images | None, arch: str | None, normalisation: str | None, device: str
) -> Suspect:
    """Open the model under suspicion: a file, a classifier, or a plain module beside images in memory."""
    if isinstance(model, nn.Module):
        if not isinstance(model, Classifier):
            if clean is None or isinstance(clean, str | Path):
                raise UsageError("clean images for a plain module must be tensors or a pool (their shape is needed)")
            model = wrap(model, as_pool(clean), normalisation=normalisation)
        return Suspect(Runtime.of(pick_device(device)).place(model.clone()))
    beside = Path(model).parent / "clean"
    folder = clean if isinstance(clean, str | Path) else beside if beside.is_dir() else None
    return load(model, arch=arch, normalisation=normalisation, clean=folder, device=device)


def open_second(model: PathLike | nn.Module, suspect: Suspect) -> Classifier:
    """Open another model that must take the suspect's images and know its classes; placed where the suspect is."""
    known = suspect.classifier
    if isinstance(model, Classifier):
        other = model.clone()
    elif isinstance(model, nn.Module):
        other = Classifier(copy.deepcopy(model), known.preprocessing, classes=known.classes)
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


def _preprocessing(
    checkpoint: Checkpoint, arch: str | None, normalisation: str | None, clean: Path | None, notes: list[str]
) -> Preprocessing | None:
    """Settle how pixels go in where the file does not say; None leaves it to the documented assumption."""
    found = checkpoint.match(arch)
    if normalisation:
        _normalisation(normalisation, found.channels)  # says at once when it is not one
    size = _first_size(clean)
    if size is None and not normalisation:
        return None
    side = found.arch.options.get("image_size", find(found.arch.name).size)
    height, width = size or (side, side)
    named = (
        [normalisation] if normalisation else [n for n, (m, _) in NORMALISATIONS.items() if len(m) == found.channels]
    )
    neutral = ((0.0,) * found.channels, (1.0,) * found.channels)
    candidates = {"[0, 1]": neutral} if not normalisation else {}
    candidates |= {n: _normalisation(n, found.channels) for n in named}
    options = {
        name: Preprocessing(channels=found.channels, height=height, width=width, mean=mean, std=std)
        for name, (mean, std) in candidates.items()
    }
    if len(options) == 1:
        return next(iter(options.values()))
    trial = checkpoint.classifier(arch=arch, preprocessing=next(iter(options.values())))
    assert clean is not None
    pool = labelled_pool(clean, trial, "clean")
    fair = pool.take(range(0, len(pool), max(1, len(pool) // 512)))  # folders are read class by class
    best = choose_preprocessing(trial.body, fair.images, fair.labels, options.values())
    name = next(n for n, p in options.items() if p == best)
    notes.append(
        f"preprocessing is not in the file: {name} fits the clean images best ({height}x{width}); --normalise overrides"
    )
    return best


def _first_size(folder: Path | None) -> tuple[int, int] | None:
    if folder is None or not folder.is_dir():
        return None
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            try:
                with Image.open(path) as image:
                    return image.height, image.width
            except (OSError, ValueError, Image.DecompressionBombError):
                return None  # read_folder names the file properly
    return None


def _normalisation(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if name not in NORMALISATIONS:
        raise UsageError(f"--normalise {one_line(name, 40)}: known are {', '.join(NORMALISATIONS)}")
    mean, std = NORMALISATIONS[name]
    if len(mean) != channels:
        raise UsageError(f"--normalise {name}: is for {len(mean)} channels, the images have {channels}")
    return mean, std
