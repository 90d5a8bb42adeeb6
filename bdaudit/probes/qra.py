"""QRA: the query-based reactivation attack."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import Backdoor, Probe, subjects, unseen_backdoors
from bdaudit.probes.queries import Querying
from bdaudit.report.controls import CLEAN
from bdaudit.report.pictures import triptych
from bdaudit.report.schema import Exhibit, Finding, Measurement, Subject
from bdaudit.report.statistics import excess_finding, rate_finding
from bdaudit.runtime import spawn
from bdaudit.training.metrics import Rate


class QRA(Querying):
    """Bring the backdoor back through queries alone: perturbations that imitate what retuning would do.

    Superficial Safety, section 3.3, Eq. 2 and B.2: min_phi KL( l(W_ra; x) || l(W_p; x + eps phi(x)) )
    + alpha CE( f(W_ref; x + eps phi(x)), y ), eps = 16/255, over benign and triggered images.
    P-ASR: perturbed triggered images; C-ASR: perturbed clean images, which a mere adversarial example
    would raise as well; null: perturbed images with triggers that the model never saw.
    """

    name = "qra"

    def measure(
        self,
        purified: Classifier,
        benign: Pool,
        test: Pool,
        backdoor: Backdoor,
        rng: torch.Generator,
        reference: Classifier | None = None,
    ) -> Measurement:
        perturb, how = self.perturbations(purified, benign, backdoor, reference, rng)
        goal = backdoor.goal
        clean = test.take(goal.counted(test.labels))
        findings: list[Finding] = []
        rates: dict[tuple[Subject, str], Rate] = {}
        for subject, model in subjects(purified=purified, reference=reference).items():
            for metric, pool in (("p_asr", backdoor.evaluation), ("c_asr", clean)):
                rates[subject, metric] = rate = perturb.success(model, pool, goal)
                findings.append(rate_finding(self.name, subject, metric, rate))
        for family, null in unseen_backdoors(benign, test, goal, spawn(rng)).items():
            rate = perturb.success(purified, null.evaluation, goal)
            findings.append(rate_finding(self.name, "null", "p_asr", rate, f"{family} on purified"))
            findings.append(excess_finding(self.name, [rates["purified", "p_asr"]], [rate], family))

        # The same test images, with and without the trigger, where that is known.
        paired = backdoor.source != "flagged"
        for over, key in ((CLEAN, ("purified", "c_asr")), ("reference", ("reference", "p_asr"))):
            if key in rates:
                together = paired or over == "reference"
                row = excess_finding(self.name, [rates["purified", "p_asr"]], [rates[key]], over, paired=together)
                findings.append(row)
        before = backdoor.evaluation.images[:6]
        picture = Exhibit(
            probe=self.name,
            metric="p_asr",
            title="Perturbations that were tried",
            caption="Triggered images, the same after the perturbation, and the difference times 10. "
            f"The generator: {how}.",
            picture=triptych(before, perturb(before)),
        )
        return Measurement(
            findings=findings,
            exhibits=[picture],
            notes=self._notes(backdoor, reference),
            artifacts={"qra-generator.safetensors": perturb.saved()},
        )

    def _notes(self, backdoor: Backdoor, reference: Classifier | None) -> list[str]:
        notes = self.equation(reference)
        if backdoor.source == "flagged":
            notes.append("qra: true labels of flagged images are unknown; Eq. 2's second term used benign images only")
        return notes


@hookimpl
def bdaudit_probes() -> Iterable[type[Probe]]:
    return [QRA]
