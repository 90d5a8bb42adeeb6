"""Natural images that are always there: pieces of scikit-learn's two photographs, a temple and a flower."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from bdaudit.inputs.images import fit


def photographs() -> list[Image.Image]:
    """Open both."""
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(array) for array in load_sample_images().images]


def parts() -> list[Image.Image]:
    """Cut each photograph into two rows of three."""
    cells = []
    for photograph in photographs():
        width, height = photograph.width // 3, photograph.height // 2
        corners = [(column * width, row * height) for row in range(2) for column in range(3)]
        cells += [photograph.crop((x, y, x + width, y + height)) for x, y in corners]
    return cells


def piece(photograph: Image.Image, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Cut out a random piece of the image's proportions, from a quarter of what fits to all of it; uint8 of `shape`."""
    _, height, width = shape
    size, left, top = torch.rand(3, generator=rng).tolist()
    scale = (0.25 + 0.75 * size) * min(photograph.width / width, photograph.height / height)
    w, h = max(1, round(scale * width)), max(1, round(scale * height))
    x, y = round(left * (photograph.width - w)), round(top * (photograph.height - h))
    return fit(photograph.crop((x, y, x + w, y + h)), shape)
