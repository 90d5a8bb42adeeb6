"""BackdoorBench's datasets: how it normalises each, and what bdaudit calls it."""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """bdaudit's name, and mean and std per channel of pixels in [0, 1]."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


_AS_IS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

# Its figures and not bdaudit's own: its CIFAR-10 std has one digit less.
DATASETS = {
    "cifar10": Known("cifar10", (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": Known("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": Known("gtsrb", *_AS_IS),
    "celeba": Known("celeba", *_AS_IS),
    "tiny": Known("tiny-imagenet", (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "imagenet": Known("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": Known("mnist", (0.5,), (0.5,)),
}
