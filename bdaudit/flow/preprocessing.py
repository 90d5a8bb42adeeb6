"""Find out how a model wants its images where its file does not say: by trying it on the clean ones."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from bdaudit.errors import WARNING, ImageError
from bdaudit.flow.pools import Images, as_pool, pool_for
from bdaudit.inputs.architectures import Match, find
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.inputs.normalisation import normalisations, rank_normalisations, usual_preprocessing
from bdaudit.inputs.sources import open_source
from bdaudit.report.statistics import Z, wilson
from bdaudit.training.progress import say

TRIED = 512
"""Images that each normalisation is tried on: enough to tell apart what matters."""

TRIED_LARGE = 64
LARGE = 64
"""Of images with sides above `LARGE`, which take a processor long to classify, fewer are tried."""

SIZED = 16
"""Images whose size is looked at."""

MAX_SIDE = 1024
"""Larger images are photographs to be resized, or made to fill the memory: no network's own size."""


def assumed(found: Match, normalisation: str | None, clean: Images | None) -> Preprocessing | None:
    """Settle the size of the images, under the named normalisation or, for now, under none.

    The size is the network's own where it has only one, else that of the clean images where they agree on one, else
    what is usual for the network. None where there is nothing to go by.
    """
    if normalisation is None and clean is None:
        return None
    family = find(found.arch.name)
    fixed = found.arch.options.get("image_size")
    common = None if fixed or clean is None else _size(clean)
    height, width = (max(side, family.min_size) for side in common or (fixed or family.size,) * 2)
    return usual_preprocessing((found.channels, height, width), normalisation)


def normalised(model: Classifier, clean: Images) -> tuple[Classifier, list[str]]:
    """Give a model the normalisation under which it classifies clean images best; say which, and by what margin."""
    slow = max(model.preprocessing.height, model.preprocessing.width) > LARGE and model.device.type == "cpu"
    pool = pool_for(clean, model, "clean", labelled=True, most=TRIED_LARGE if slow else TRIED).to(model.device)
    candidates = normalisations(pool.shape[0])
    say(f"trying {len(candidates)} normalisations on {len(pool)} clean images")
    ranking = rank_normalisations(model, pool.images, pool.labels, candidates)
    best = usual_preprocessing(model.preprocessing.shape, ranking[0][0])
    return model.preprocessed(best), [_described(ranking, best), *_doubts(ranking, pool.labels, model.num_classes)]


def _described(ranking: list[tuple[str, Tensor]], best: Preprocessing) -> str:
    (name, right), (second, others) = ranking[:2]
    n = len(right)
    return (
        f"preprocessing is not in the file: {name} fits the {n} clean images best ({right.sum() / n:.1%}, "
        f"next {second} {others.sum() / n:.1%}) at {best.height}x{best.width} pixels; --normalise overrides"
    )


def _doubts(ranking: list[tuple[str, Tensor]], labels: Tensor, num_classes: int) -> list[str]:
    """Say where the choice cannot be told from another, and where none of them suits the model."""
    best, right = ranking[0]
    n, doubts = len(right), []
    close = [name for name, others in ranking[1:] if _alike(right, others)]
    if close:
        doubts.append(
            f"{n} clean images do not tell {best} from {', '.join(close)}: the choice is uncertain where it matters at all"
        )
    guessing = max(1 / num_classes, int(labels.bincount().max()) / n)
    if wilson(int(right.sum()), n)[0] <= guessing:
        doubts.append(
            f"{WARNING}{int(right.sum())} of {n} clean images right is no better than guessing ({guessing:.1%}): the "
            "architecture, the normalisation, the order of the classes or the labels are not this model's"
        )
    return doubts


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two results on the same images differ by less than chance would (McNemar's test, 5%)."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return abs(only_first - only_second) <= Z * math.sqrt(only_first + only_second)


def _size(clean: Images) -> tuple[int, int] | None:
    """The height and width that the images agree on, None where they do not or cannot be read."""
    if not isinstance(clean, str | Path):
        return as_pool(clean).shape[1:]
    try:
        sizes = open_source(clean).sizes(SIZED)
    except ImageError:
        return None  # reading the images names what is wrong
    common = sizes.pop() if len(sizes) == 1 else None
    return common if common and max(common) <= MAX_SIDE else None
