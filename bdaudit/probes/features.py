"""Features: where triggered images lie among the classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from bdaudit import ops
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import Backdoor, Probe, subjects
from bdaudit.report.schema import Exhibit, Finding, Measurement, Subject
from bdaudit.report.statistics import rate_finding
from bdaudit.runtime import spawn
from bdaudit.training.metrics import Rate, predict_features

SOURCES = {
    "trigger": "the attacker's trigger on held-out images",
    "flagged": "flagged images",
    "inverted": "an inverted trigger, a proxy, on held-out images",
}
AXES = "They are the two directions in which the features of both models together vary most (PCA): both maps have the same."
OWN_AXES = "They are the two directions in which they vary most (PCA), each model's own, since the widths differ."
SCALE = "Each model's features are centred on its clean images and scaled to their spread."


class Features(Probe):
    """Look where triggered images lie among the classes: with the target's, the body still knows the backdoor.

    FST, Fig. 3 (penultimate features of clean and triggered images, before and after), as a map and as a figure:
    the share of triggered images whose nearest class centre, from other clean images, is the target's.
    """

    name = "features"
    quick_options = {"images": 60, "triggered": 20}

    images: int = option(500, "clean images to show, and as many others for the classes' centres", ge=2, le=2000)
    triggered: int = option(200, "triggered images", cite="FST Fig. 3", ge=1, le=2000)
    projection: Literal["pca", "tsne"] = option("pca", "how features become two numbers", cite="FST Fig. 3: t-SNE")
    perplexity: float = option(30.0, "t-SNE's: how many neighbours count", cite="cards 4.7: unstated", gt=1)

    def measure(
        self,
        suspect: Classifier,
        purified: Classifier,
        benign: Pool,
        test: Pool,
        backdoor: Backdoor,
        rng: torch.Generator,
        reference: Classifier | None = None,
    ) -> Measurement:
        goal = backdoor.goal
        known, clean = benign.sample(self.images, rng), test.sample(self.images, rng)
        counted = backdoor.evaluation.take(goal.counted(backdoor.evaluation.labels))
        triggered = counted.sample(self.triggered, rng)
        findings: list[Finding] = []
        rows: dict[Subject, Tensor] = {}
        for subject, model in subjects(suspect=suspect, purified=purified, reference=reference).items():
            centres = class_centres(model, known)
            parts = [predict_features(model, pool.images).cpu() for pool in (clean, triggered)]
            for pool, features, variant in ((triggered, parts[1], ""), (clean, parts[0], "clean images")):
                rate = near_target(features, centres, pool.labels.cpu(), goal)
                if rate.n:
                    findings.append(rate_finding(self.name, subject, "near_target", rate, variant))
            rows[subject] = torch.cat(parts)
        notes = self._notes(backdoor, reference)
        if not any(f.variant == "" for f in findings):
            notes.append("features: no clean image of the target class, so no centre to lie near to")
        drawn = [rows["suspect"], rows["purified"]]
        if not all(features.isfinite().all() for features in drawn):
            return Measurement(findings=findings, notes=[*notes, "features: some are not finite, so no map was drawn"])
        exhibits = self._maps(drawn, clean, triggered, backdoor, spawn(rng))
        return Measurement(findings=findings, exhibits=exhibits, notes=notes)

    def _maps(
        self, rows: list[Tensor], clean: Pool, triggered: Pool, backdoor: Backdoor, rng: torch.Generator
    ) -> list[Exhibit]:
        """Draw the features before and after purification."""
        views = [aligned(features, len(clean)) for features in rows]
        places, kept = project(views, len(clean))
        shown = f"{len(clean)} clean and {len(triggered)} triggered images ({SOURCES[backdoor.source]})."
        if self.projection == "tsne":
            perplexity = min(self.perplexity, (len(views[0]) - 1) / 3)
            places = [neighbours(v, start, perplexity, rng) for v, start in zip(views, places, strict=True)]
            how = [
                f"t-SNE (perplexity {perplexity:.3g}, started from PCA) keeps neighbours together; distances between "
                "groups, or between this map and the other, mean nothing."
            ] * 2
        else:
            how = [f"The axes hold {100 * share:.0f}% of the variance of this model's features." for share in kept]
            how[0] += f" {AXES if views[0].shape == views[1].shape else OWN_AXES} {SCALE}"
        return [
            Exhibit(
                probe=self.name,
                metric="near_target",
                title=f"Penultimate features {when} purification",
                caption=f"{shown} {words}",
                points=self._groups(place, clean, backdoor.goal),
            )
            for when, place, words in zip(("before", "after"), places, how, strict=True)
        ]

    def _groups(self, place: Tensor, clean: Pool, goal: Goal) -> dict[str, list[tuple[float, float]]]:
        labels = clean.labels.cpu()
        groups = {"triggered images": torch.arange(len(clean), len(place))}
        if goal.target is None:
            groups = {"clean images": torch.arange(len(clean))} | groups
        else:
            groups = {
                "clean images of other classes": (labels != goal.target).nonzero().flatten(),
                f"clean images of class {goal.target}, the target": (labels == goal.target).nonzero().flatten(),
            } | groups
        return {name: [(round(x, 4), round(y, 4)) for x, y in place[at].tolist()] for name, at in groups.items()}

    def _notes(self, backdoor: Backdoor, reference: Classifier | None) -> list[str]:
        notes = []
        if reference is None:
            notes.append("features: no reference shows where triggered images lie in a model without a backdoor")
        if not backdoor.labels_known:
            notes.append("features: flagged images that truly belong to the target class count as near it")
        if backdoor.source == "inverted":
            notes.append("features: an inverted trigger is a proxy, and may lie elsewhere than the attacker's")
        return notes


def class_centres(model: Classifier, pool: Pool) -> Tensor:
    """Average the features of each class (K, D), on the CPU; not finite for a class without images."""
    means, _ = ops.class_means(predict_features(model, pool.images), pool.labels.to(model.device), model.num_classes)
    return means.cpu()


def near_target(features: Tensor, centres: Tensor, labels: Tensor, goal: Goal) -> Rate:
    """Count the images whose nearest class centre is that of the class the attacker wants them in.

    Images of that class anyway do not count, nor do those whose wanted class has no centre.
    """
    wanted = goal.wanted(labels)
    counted = goal.counted(labels) & centres.isfinite().all(1)[wanted]
    distances = torch.cdist(features[counted].double(), centres.double())
    return Rate.of(distances.nan_to_num(nan=torch.inf).argmin(1) == wanted[counted])


def aligned(rows: Tensor, clean: int) -> Tensor:
    """Centre features (N, D), the first `clean` of which are clean images, on those, and scale to their spread."""
    rows = rows.double()
    rows = rows - rows[:clean].mean(0)
    return rows / rows[:clean].square().sum(1).mean().sqrt().clamp_min(1e-12)


def project(views: list[Tensor], clean: int) -> tuple[list[Tensor], list[float]]:
    """Map each view (N, D) to (N, 2) by principal components, and say what share of its variance that keeps.

    The components are those of all views together where the widths allow it, so that the maps can be compared.
    The first view's triggered images come to lie to the right and above: else signs would be a matter of chance.
    """
    if len({view.shape[1] for view in views}) == 1:
        axes = [components(torch.cat(views), views[0][clean:])] * len(views)
    else:
        axes = [components(view, view[clean:]) for view in views]
    places = [view @ along for view, along in zip(views, axes, strict=True)]
    kept = [scatter(place) / (scatter(view) or 1.0) for place, view in zip(places, views, strict=True)]
    return [F.pad(place, (0, 2 - place.shape[1])) for place in places], kept


def components(rows: Tensor, positive: Tensor) -> Tensor:
    """Find the two directions (D, 2) in which rows vary most, turned so that others lie on their positive side."""
    axes: Tensor = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:2].T
    return axes * torch.where((positive @ axes).mean(0) < 0, -1.0, 1.0)


def scatter(rows: Tensor) -> float:
    """Sum the squared distances from the mean."""
    return float((rows - rows.mean(0)).square().sum())


def neighbours(view: Tensor, start: Tensor, perplexity: float, rng: torch.Generator) -> Tensor:
    """Map features (N, D) to (N, 2) by t-SNE, from the PCA map."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    # Small, as t-SNE's authors start it; one thread, since sums over several come out differently each time.
    first = (start / start[:, 0].std().clamp_min(1e-12) * 1e-4).float().numpy()
    seed = int(torch.randint(2**31, (), generator=rng))
    with threadpool_limits(1):
        made = TSNE(init=first, perplexity=perplexity, random_state=seed, n_jobs=1).fit_transform(view.float().numpy())
    return torch.from_numpy(made).double()


@hookimpl
def bdaudit_probes() -> Iterable[type[Probe]]:
    return [Features]
