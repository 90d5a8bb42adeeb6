"""Augmentation of whole batches on the device, uint8 in and uint8 out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augment:
    """Random crop after padding, and a horizontal flip, drawn per image.

    pad: pixels on each side (0: no crop). flip: mirror with probability 1/2. reflect: pad with the image mirrored at
    its edges (pad must then be smaller than it), not with zeros.
    """

    pad: int = 0
    flip: bool = False
    reflect: bool = False

    @classmethod
    def usual(cls, shape: tuple[int, int, int], *, flip: bool = False) -> Augment:
        """The field's train transform: natural (colour) images are cropped after padding by an eighth (cards 0.1).

        Centred grey images are not: on Fashion-MNIST a crop costs FST ten points of accuracy on a model that was
        not trained with it.
        """
        channels, height, width = shape
        return cls(pad=min(height, width) // 8 if channels == 3 else 0, flip=flip)

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Augment uint8 (N, C, H, W); the draws are made on the CPU, so devices agree."""
        n, _, h, w = images.shape
        device = images.device
        if not (self.pad or self.flip) or not n:
            return images
        rows = torch.arange(h).expand(n, h)
        columns = torch.arange(w).expand(n, w)
        if self.flip:
            mirrored = torch.rand(n, 1, generator=rng) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        if self.pad:
            dy, dx = torch.randint(0, 2 * self.pad + 1, (2, n, 1), generator=rng)
            rows, columns = rows + dy, columns + dx
            if self.reflect:
                rows, columns = _reflected(rows - self.pad, h), _reflected(columns - self.pad, w)
            else:
                images = F.pad(images, (self.pad,) * 4)
        n_index = torch.arange(n, device=device)[:, None, None]
        # One gather serves crop and flip together; advanced indices in front give (N, H, W, C).
        taken = images.permute(0, 2, 3, 1)[n_index, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
        return taken.permute(0, 3, 1, 2)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Fold places outside 0..size-1 back at the edges, which are not repeated."""
    return size - 1 - (size - 1 - places.abs()).abs()


def resampled(images: Tensor, theta: Tensor, *, outside: str = "zeros") -> Tensor:
    """Look up each pixel of images (N, C, H, W), floats, where an affine map sends it; the same shape.

    theta: (N, 2, 3), from (x, y, 1) in [-1, 1] to a place in the original. outside: what is there, `zeros` or `border`.
    """
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=outside, align_corners=False)


def uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Draw n floats between two others, on the CPU, so that devices agree."""
    return low + (high - low) * torch.rand(n, generator=rng)
