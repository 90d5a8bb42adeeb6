"""Real handwritten digits that need no file: those of scikit-learn."""

from __future__ import annotations

from pathlib import Path

import torch

from bdaudit.inputs.datasets.dataset import Dataset
from bdaudit.inputs.normalisation import usual_preprocessing
from bdaudit.inputs.pool import Pool


def load(root: Path, download: bool) -> Dataset:
    """Read what scikit-learn brings along."""
    # The optical digits that scikit-learn ships: real scans, counted ink of 0..16 on an 8 x 8 grid.
    from sklearn.datasets import load_digits

    ink, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(ink).float().reshape(-1, 1, 8, 8) * (255 / 16)
    # Twice the size, so that a 3 x 3 trigger is a corner of the image and not a third of it.
    images = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear").round().to(torch.uint8)
    train = Pool.of(images, torch.from_numpy(labels), "digits")
    return Dataset(
        "digits",
        train,
        None,
        tuple("0123456789"),
        usual_preprocessing(train.shape, "digits"),
        arch="small_cnn",
        epochs=20,
    )
