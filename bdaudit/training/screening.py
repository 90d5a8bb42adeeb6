"""Two pools screened against each other: which benign rows look flagged, and which flagged rows look benign."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bdaudit.errors import UsageError
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool, check_labels
from bdaudit.training.split import Split

FOLDS = 5
APART = 0.6
"""What the lower end of the AUC's interval must reach; flagged rows half of which are clean would leave .75."""
PLAIN, PLAIN_SHARE = 0.05, 0.1
"""A score that looks plainly benign, and the share of benign rows labelled t that must have one."""

FEW = 100
"""Flagged rows below which innocent ones of class t were taken for triggered: 2 of 20 times with 50, 5 with 25."""


@dataclass(frozen=True)
class Screening:
    """What a comparison of the two pools came to.

    at: the module whose output was compared. auc: (value, low, high), how well flagged rows are told from benign rows
    not labelled t, cross-validated. clean, flagged: a score a row (float64 in [0, 1]), the probability that it is
    flagged if both sides were equally many. moved, dropped: bool, benign rows that belong to the flagged ones, and
    flagged rows that look benign. doubt: why the pools cannot be told apart, in words, '' where they can; where there
    is doubt nothing is moved or dropped. by_class: the doubt is that flagged rows may be class t and no more.
    """

    target: int
    at: str
    auc: tuple[float, float, float]
    clean: Tensor
    flagged: Tensor
    moved: Tensor
    dropped: Tensor
    doubt: str
    by_class: bool

    def pools(self, clean: Pool, flagged: Pool) -> tuple[Pool, Pool]:
        """Take the clean rows that stay, and with the label t the flagged rows that stay and the moved ones."""
        joined = Pool.concat([flagged.take(~self.dropped).to("cpu"), clean.take(self.moved).to("cpu")])
        return clean.take(~self.moved), joined.labelled(self.target).to(flagged.device)

    def __str__(self) -> str:
        """One sentence for the user."""
        value, low, high = self.auc
        told = f"AUC {value:.3f} [{low:.3f}, {high:.3f}], cross-validated, features after {self.at or 'all layers'}"
        if self.doubt:
            return f"the two pools cannot be told apart, so nothing was moved or dropped: {self.doubt} ({told})"
        few = f"; with fewer than {FEW} flagged images, innocent ones of class {self.target} may look the same"
        return (
            f"the two pools can be told apart ({told}): {int(self.moved.sum())} of {len(self.moved)} benign images look "
            f"flagged and were moved, {int(self.dropped.sum())} of {len(self.dropped)} flagged images look benign and "
            "were dropped" + few * (len(self.flagged) < FEW)
        )


def screen(
    model: Classifier, clean: Pool, flagged: Pool, target: int, rng: torch.Generator, *, depth: float = 0.5
) -> Screening:
    """Tell flagged rows from benign rows not labelled t, and judge flagged rows and benign rows labelled t by that.

    A class-balanced logistic regression on the suspect's features at a block, averaged over places. A dirty-label
    attack puts its triggered rows under label t, so benign rows with other labels are free of them. Each flagged row
    is scored by a fit that has not seen it; those that look benign are dropped, and a fit without them scores the
    benign rows labelled t. depth: how far up the network the block lies: deep features tell class t from the others,
    with or without a trigger. rng: deals the rows out to folds.
    """
    check_labels(clean, model.num_classes, "clean")
    if not 0 <= target < model.num_classes:
        raise UsageError(f"target {target} is out of range: the model has classes 0..{model.num_classes - 1}")
    of_target = clean.labels.cpu() == target
    benign = clean.take(~of_target)
    was_training = model.training
    model.eval()
    try:
        split = Split(model, depth)
        on_clean, on_flagged = (split.averages_of(pool.images).double() for pool in (clean, flagged))
    finally:
        model.train(was_training)
    folds, distinct = _deal(flagged, benign, rng)
    scores = torch.full((len(clean),), 0.5, dtype=torch.float64)
    flagged_scores = torch.full((len(flagged),), 0.5, dtype=torch.float64)
    auc = (0.5, 0.0, 1.0)
    doubt, class_doubt = _too_few(distinct, folds[1], target), ""
    if not doubt:
        flagged_scores, scores[~of_target] = _cross_validated(on_flagged, on_clean[~of_target], folds)
        auc = _auc(flagged_scores, scores[~of_target], distinct)
        kept = flagged_scores >= 0.5
        scores[of_target] = _fit(on_flagged[kept if kept.any() else ~kept], on_clean[~of_target])(on_clean[of_target])
        doubt = _alike(auc, kept)
        class_doubt = "" if doubt else _of_class(scores[of_target], target)
    sure = not (doubt or class_doubt)
    return Screening(
        target,
        split.at,
        auc,
        clean=scores,
        flagged=flagged_scores,
        moved=of_target & (scores >= 0.5) & sure,
        dropped=(flagged_scores < 0.5) & sure,
        doubt=doubt or class_doubt,
        by_class=bool(class_doubt),
    )


def _too_few(distinct: int, folds: Tensor, target: int) -> str:
    """Say that there is not enough to fit on; '' if there is. folds: of the benign rows."""
    if distinct < 2:
        return "it takes at least 2 distinct flagged images, as each is judged by the others"
    if len(set(folds.tolist())) < 2:
        return (
            f"hardly a clean image is labelled other than {target}, and only those are known to be free of its trigger"
        )
    return ""


def _alike(auc: tuple[float, float, float], kept: Tensor) -> str:
    """Say that flagged rows and benign rows of other classes look alike; '' if they do not."""
    if auc[1] < APART or not kept.any():
        return f"flagged images look like benign images of other classes, or are too few (the AUC may be below {APART})"
    return ""


def _of_class(of_target: Tensor, target: int) -> str:
    """Say that the fit may know class t and no trigger, by the scores of benign rows labelled t; '' if it does not."""
    plain = int((of_target < PLAIN).sum())
    unclear = int(((of_target >= PLAIN) & (of_target < 0.5)).sum())
    # With a trigger, the rows labelled t fall into two heaps; a fit that knows class t leaves the tail of one.
    if len(of_target) and (plain < PLAIN_SHARE * len(of_target) or plain < unclear):
        return (
            f"only {plain} of the {len(of_target)} benign images labelled {target} look plainly benign, {unclear} look "
            "doubtful: what sets the flagged ones apart may be their class and no trigger"
        )
    return ""


def _deal(flagged: Pool, benign: Pool, rng: torch.Generator) -> tuple[tuple[Tensor, Tensor], int]:
    """Deal the rows of both pools out to folds; and count the distinct flagged images.

    Equal images lie in one fold, so that none is scored by a fit that has seen it under either name.
    """
    fold: dict[bytes, int] = {}
    dealt, distinct = [], 0
    for pool in (flagged, benign):
        prints = list(pool.fingerprints())
        new = [p for p in dict.fromkeys(prints) if p not in fold]
        distinct = distinct or len(new)
        for i, j in enumerate(torch.randperm(len(new), generator=rng).tolist()):
            fold[new[j]] = i % min(FOLDS, distinct)
        dealt.append(torch.tensor([fold[p] for p in prints], dtype=torch.int64))
    return (dealt[0], dealt[1]), distinct


def _cross_validated(flagged: Tensor, benign: Tensor, folds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Score every row of both sides by a fit on the other folds."""
    scores = [torch.full((len(side),), 0.5, dtype=torch.float64) for side in (flagged, benign)]
    for fold in sorted(set(folds[0].tolist())):
        held = [f == fold for f in folds]
        score = _fit(flagged[~held[0]], benign[~held[1]])
        for rows, side, mine in zip(scores, (flagged, benign), held, strict=True):
            rows[mine] = score(side[mine])
    return scores[0], scores[1]


def _fit(flagged: Tensor, benign: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit the regression on standardised features; returns a function: features (n, D) -> probabilities (n,)."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    rows = torch.cat([flagged, benign])
    mean, spread = rows.mean(0), rows.std(0)
    scale = torch.where(spread > 1e-12, spread, torch.inf)  # what never varies tells nothing
    labels = [True] * len(flagged) + [False] * len(benign)
    with threadpool_limits(1):  # sums over several threads come out differently each time
        fitted = LogisticRegression(class_weight="balanced", solver="newton-cholesky", max_iter=1000).fit(
            ((rows - mean) / scale).numpy(), labels
        )

    def score(features: Tensor) -> Tensor:
        if not len(features):
            return torch.empty(0, dtype=torch.float64)
        return torch.from_numpy(fitted.predict_proba(((features - mean) / scale).numpy())[:, 1])

    return score


def _auc(positive: Tensor, negative: Tensor, distinct: int) -> tuple[float, float, float]:
    """AUC (ties count half) with its 95% interval; distinct: how many of the positive rows differ.

    Newcombe, Statistics in Medicine 25 (2006), p. 559, method 5: Hanley and McNeil's variance at the bound itself, so
    that an AUC of 1 over five rows is not taken for certain.
    """
    from scipy.optimize import brentq  # here, because they take seconds that most runs need not spend
    from scipy.stats import norm, rankdata

    m, n = len(positive), len(negative)
    ranks = rankdata(torch.cat([positive, negative]).numpy())
    value = float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))
    z, m = float(norm.ppf(0.975)), distinct
    average = (m + n) / 2 - 1

    def beyond(bound: float) -> float:
        spread = bound * (1 - bound) * (1 + average * ((1 - bound) / (2 - bound) + bound / (1 + bound))) / (m * n)
        return abs(value - bound) - z * math.sqrt(spread)

    # At 0 and 1 the variance is nothing, so that both are solutions of no use.
    low = float(brentq(beyond, 0, value - 1e-9)) if value > 1e-6 else 0.0
    high = float(brentq(beyond, value + 1e-9, 1)) if value < 1 - 1e-6 else 1.0
    return value, low, high
