"""LMC: linear mode connectivity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from bdaudit.contract import option
from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import Backdoor, Probe, path_rows
from bdaudit.report.schema import Exhibit, Finding, Measurement, Subject
from bdaudit.report.statistics import weighted_sum, wilson
from bdaudit.runtime import spawn
from bdaudit.training.metrics import Rate, accuracy, attack_rates
from bdaudit.training.paths import between, obstacle
from bdaudit.training.progress import track

LEVEL = 0.2
STEEP = 0.2


@dataclass(frozen=True)
class Line:
    """A straight line between two models: the name of its curve, and whose figures it gives."""

    curve: str
    subject: Subject
    variant: str
    start: Classifier
    end: Classifier

    def __str__(self) -> str:
        return f"{self.subject} {self.variant}"


class LMC(Probe):
    """Walk straight lines between the models: how near to the purified one does the attack still succeed?

    Superficial Safety, section 4.1, Figures 4, 5 and 14: E(t) = E((1 - t) W0 + t W1), the backdoor error 1 - ASR
    and the clean error 1 - C-ACC, from the suspect (t = 0) to the purified model (t = 1) and from there to the
    reference. The line from the suspect to the reference is the yardstick: exact purification keeps the
    backdoor error high until t < .2, superficial ones give more than 20% ASR back by t < .5.
    """

    name = "lmc"
    quick_options = {"points": 5, "images": 40}

    points: int = option(21, "models on each line, both ends included", cite="cards 4.4: the paper gives none", ge=3)
    images: int = option(300, "clean, and as many triggered, images, the same at every point", ge=1)
    reestimate: bool = option(
        False, "take BatchNorm's statistics from clean images at every point, the ends included", cite="cards 4.4"
    )

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
        clean, triggered, statistics = path_rows(test, benign, backdoor, self.images, rng)
        notes = [f"lmc: {backdoor.certainty(len(triggered))}"]
        lines = [Line("purified", "purified", "from the suspect", suspect, purified)]
        if reference is None:
            notes.append(
                "lmc: no reference, so nothing to hold the line from the suspect to the purified model against"
            )
        else:
            lines.append(Line("reference", "reference", "from the suspect", suspect, reference))
            lines.append(Line("purified to reference", "purified", "to the reference", purified, reference))

        ts = [i / (self.points - 1) for i in range(self.points)]
        seed = spawn(rng)
        findings: list[Finding] = []
        backdoor_errors: dict[str, list[float]] = {}
        clean_errors: dict[str, list[float]] = {}
        for line in lines:
            reason = obstacle(line.start, line.end)
            if reason:
                notes.append(f"lmc: no straight line {line}: {reason}")
                continue
            asr, acc = [], []
            with track(f"lmc {line}", self.points) as advance:
                for t in ts:
                    anew = statistics if self.reestimate else None
                    model = between(line.start, line.end, t, seed, reestimate_on=anew)
                    asr.append(attack_rates(model, triggered, backdoor.goal)[0])
                    acc.append(accuracy(model, clean))
                    advance()
            findings += self._findings(line, ts, asr, acc)
            notes += _doubts(line, ts, asr, acc)
            backdoor_errors[line.curve] = [1 - r.value for r in asr]
            clean_errors[line.curve] = [1 - r.value for r in acc]
        exhibits = [
            self._exhibit("backdoor_barrier", ts, backdoor_errors, f"1 - ASR over {len(triggered)} triggered images"),
            self._exhibit("clean_barrier", ts, clean_errors, f"1 - C-ACC over {len(clean)} clean images"),
        ]
        return Measurement(findings=findings, exhibits=exhibits if findings else [], notes=notes)

    def _findings(self, line: Line, ts: list[float], asr: list[Rate], acc: list[Rate]) -> list[Finding]:
        figures = {"backdoor_barrier": (barrier(ts, asr), asr), "clean_barrier": (barrier(ts, acc), acc)}
        reached = passing(ts, asr)
        if reached is not None and line.variant == "from the suspect":
            figures["t_asr20"] = reached, asr
        return [
            Finding(
                probe=self.name,
                subject=line.subject,
                metric=metric,
                value=value,
                low=low,
                high=high,
                n=rates[0].n,
                seeds=1,
                variant=line.variant,
            )
            for metric, ((value, low, high), rates) in figures.items()
        ]

    def _exhibit(self, metric: str, ts: list[float], curves: dict[str, list[float]], measured: str) -> Exhibit:
        what = metric.partition("_")[0]
        return Exhibit(
            probe=self.name,
            metric=metric,
            title=f"{what.capitalize()} error on straight lines between the models",
            caption=f"{measured}. purified, reference: from the suspect (t = 0) to that model (t = 1); purified to "
            "reference: between those two. BatchNorm statistics are "
            + ("re-estimated on clean images." if self.reestimate else "interpolated as weights are."),
            x_label="t, from the one model (0) to the other (1)",
            y_label=f"{what} error",
            x=ts,
            curves=curves,
        )


def _doubts(line: Line, ts: list[float], asr: list[Rate], acc: list[Rate]) -> list[str]:
    """Say what keeps the figures of a line from meaning what they usually do."""
    notes, reached = [], passing(ts, asr)
    if line.variant == "from the suspect":
        if reached is None:
            notes.append(f"lmc: {line}, ASR is below {LEVEL:.0%} all along, at the suspect as well: no t to report")
        elif reached[0] == ts[-1]:
            notes.append(f"lmc: {line}, ASR is not below {LEVEL:.0%} at the end of the line either, so t is that end")
    rise, _, _ = barrier(ts, acc)
    if rise > STEEP:
        notes.append(
            f"lmc: {line}, clean error rises by {100 * rise:.1f} points on the way: where the models do not even do "
            "their task, a failing attack shows nothing"
        )
    return notes


def barrier(ts: Sequence[float], rates: Sequence[Rate]) -> tuple[float, float, float]:
    """Height of the error 1 - rate over the straight line between its ends, at most, with its 95% interval.

    The interval's ends are the greatest of those at each t.
    """
    heights = [(0.0, 0.0, 0.0)]  # at the ends, where error and line are the same thing
    for t, rate in list(zip(ts, rates, strict=True))[1:-1]:
        # (1 - rate) less (1 - t)(1 - first) + t (1 - last); the ones cancel.
        terms = [(-1.0, rate), (1 - t, rates[0]), (t, rates[-1])]
        heights.append(weighted_sum(terms))
    value, low, high = (max(column) for column in zip(*heights, strict=True))
    return value, low, min(high, 1.0)


def passing(ts: Sequence[float], rates: Sequence[Rate]) -> tuple[float, float, float] | None:
    """The t at which ASR reaches `LEVEL` on the way back from t = 1, with its 95% interval; None if it never does.

    The interval's ends are where the lower and the upper Wilson bounds of ASR reach it.
    """
    bounds = [wilson(r.successes, r.n) for r in rates]
    value = _last_above(ts, [r.value for r in rates])
    if value is None:
        return None
    low, high = (_last_above(ts, [b[i] for b in bounds]) for i in (0, 1))
    return value, low or 0.0, 1.0 if high is None else high


def _last_above(ts: Sequence[float], ys: Sequence[float]) -> float | None:
    """The greatest t at which a piecewise linear curve is at `LEVEL` or above."""
    above = [i for i, y in enumerate(ys) if y >= LEVEL]
    if not above:
        return None
    i = above[-1]
    if i == len(ys) - 1:
        return ts[i]
    return ts[i] + (ys[i] - LEVEL) / (ys[i] - ys[i + 1]) * (ts[i + 1] - ts[i])


@hookimpl
def bdaudit_probes() -> Iterable[type[Probe]]:
    return [LMC]
