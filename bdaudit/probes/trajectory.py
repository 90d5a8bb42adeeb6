"""Trajectory: from the suspect through the purified model, and beyond."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from bdaudit import ops
from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import Backdoor, Probe, path_rows
from bdaudit.report.schema import Exhibit, Finding, Measurement
from bdaudit.report.statistics import paired_change, rate_finding
from bdaudit.runtime import spawn
from bdaudit.training.metrics import Rate, predict_logits
from bdaudit.training.paths import between, has_batchnorm, obstacle
from bdaudit.training.progress import track

HUGE = 1e6


@dataclass(frozen=True)
class Point:
    """A model on the trajectory, and what was measured of it."""

    t: float
    clean_loss: float
    backdoor_loss: float
    acc: Rate
    asr: Rate


class Trajectory(Probe):
    """Walk from the suspect to the purified model and as far again: has purification gone far enough?

    D3, section 3.2 and Figure 2: theta(t) = theta_init + t (theta_purified - theta_init), t in [0, 2]; clean loss,
    backdoor loss CE(f(trigger(x)), target), C-ACC and ASR. Where ASR falls on past t = 1 at little clean loss, the
    purification stopped short. Beyond t = 1 BatchNorm's statistics are re-estimated on clean images, which alone
    moves ASR; t = 1 is therefore measured both ways, and the change counted between like and like.
    """

    name = "trajectory"
    quick_options = {"steps": 2, "images": 40}

    steps: int = option(10, "steps from the suspect to the purified model, and as many beyond", ge=1)
    images: int = option(500, "clean, and as many triggered, images, the same at every point", ge=1)

    def measure(
        self,
        suspect: Classifier,
        purified: Classifier,
        benign: Pool,
        test: Pool,
        backdoor: Backdoor,
        rng: torch.Generator,
    ) -> Measurement:
        clean, triggered, statistics = path_rows(test, benign, backdoor, self.images, rng)
        notes = [f"trajectory: {backdoor.certainty(len(triggered))}"]
        reestimated = has_batchnorm(suspect)
        reason = obstacle(suspect, purified)
        if not reason and reestimated and len(statistics) < 2:
            reason = f"too few clean images ({len(statistics)}) to re-estimate BatchNorm's statistics on"
        if reason:
            return Measurement(notes=[*notes, f"trajectory: none from the suspect to the purified model: {reason}"])
        wanted = triggered.labelled(backdoor.goal.wanted(triggered.labels))
        stops = [(i / self.steps, False) for i in range(self.steps + 1)]
        stops += [(1.0, True)] if reestimated else []
        stops += [(1 + i / self.steps, reestimated) for i in range(1, self.steps + 1)]
        points, seed = [], spawn(rng)
        with track(self.name, len(stops)) as advance:
            for t, anew in stops:
                model = between(suspect, purified, t, seed, reestimate_on=statistics if anew else None)
                (clean_loss, acc), (backdoor_loss, asr) = _fit(model, clean), _fit(model, wanted)
                points.append(Point(t, clean_loss, backdoor_loss, acc, asr))
                advance()
        how = ", BatchNorm re-estimated" if reestimated else ""
        return Measurement(findings=self._findings(points, how), exhibits=self._exhibits(points, how), notes=notes)

    def _findings(self, points: list[Point], how: str) -> list[Finding]:
        """Rates at t = 1 and t = 2, and the change of ASR between them, both with statistics of one kind."""
        start, end = points[-1 - self.steps], points[-1]
        shown = {"t = 1": points[self.steps], f"t = 1{how}": start, f"t = 2{how}": end}
        rates = [(m, variant, r) for variant, p in shown.items() for m, r in (("asr", p.asr), ("c_acc", p.acc))]
        value, low, high = paired_change(start.asr, end.asr)
        change = Finding(
            probe=self.name,
            subject="purified",
            metric="asr_change",
            value=value,
            low=low,
            high=high,
            n=end.asr.n,
            seeds=1,
            variant=f"t = 2{how}",
        )
        return [*(rate_finding(self.name, "purified", m, r, variant) for m, variant, r in rates), change]

    def _exhibits(self, points: list[Point], how: str) -> list[Exhibit]:
        along = "suspect (t = 0), purified model (t = 1), and as far again (t = 2)"
        said = f" From t = 1 on{how}, hence the step." if how else ""
        losses = {"backdoor loss": [p.backdoor_loss for p in points], "clean loss": [p.clean_loss for p in points]}
        rates = {"attack success": [p.asr.value for p in points], "clean accuracy": [p.acc.value for p in points]}
        return [
            Exhibit(
                probe=self.name,
                metric=metric,
                title=f"{title} along the trajectory",
                caption=f"{caption}{said}",
                x_label="t",
                y_label=y_label,
                x=[p.t for p in points],
                curves=curves,
            )
            for metric, title, caption, y_label, curves in (
                ("loss", "Losses", f"Cross-entropy to the target and to the true class: {along}.", "loss", losses),
                ("asr_change", "Rates", f"{along[0].upper()}{along[1:]}.", "rate", rates),
            )
        ]


def _fit(model: Classifier, pool: Pool) -> tuple[float, Rate]:
    """How well a model gives images their labels: mean cross-entropy, and the share that it does."""
    logits = predict_logits(model, pool.images)
    labels = pool.labels.to(logits.device)
    read = ops.sample_losses(logits, labels)
    # Weights far out may overflow; a report holds finite numbers.
    loss = read.ce.nan_to_num(nan=HUGE, posinf=HUGE).clamp(max=HUGE).mean().item()
    return loss, Rate.of((read.prediction == labels).cpu())


@hookimpl
def bdaudit_probes() -> Iterable[type[Probe]]:
    return [Trajectory]
