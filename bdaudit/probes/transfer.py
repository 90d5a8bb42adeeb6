"""Transfer: perturbations made on one purified model, tried on others."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bdaudit.hookspecs import hookimpl
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import THIS, Backdoor, Probe
from bdaudit.probes.queries import Querying
from bdaudit.report.controls import MADE_ON, TRIED_ON
from bdaudit.report.schema import Finding, Measurement, Subject
from bdaudit.report.statistics import rate_finding
from bdaudit.runtime import spawn
from bdaudit.training.metrics import attack_rates


class Transfer(Querying):
    """Try the queries that bring one purified model's backdoor back on models that were purified otherwise.

    Superficial Safety, section 3.3 and Figure 3: an attacker need not know the defense if perturbations optimised
    for one purified model reactivate others. With one other model, this model's perturbations are tried on it;
    with several, each model's on every other. On the reference they should do nothing.
    """

    name = "transfer"

    def measure(
        self,
        purified: Classifier,
        others: dict[str, Classifier],
        benign: Pool,
        test: Pool,
        backdoor: Backdoor,
        rng: torch.Generator,
        reference: Classifier | None = None,
    ) -> Measurement:
        models = {THIS: purified, **others}
        sources = models if len(others) > 1 else {THIS: purified}
        clean = test.take(backdoor.goal.counted(test.labels))
        findings: list[Finding] = []
        for name, model in others.items():
            asr, _ = attack_rates(model, backdoor.evaluation, backdoor.goal)
            findings.append(rate_finding(self.name, "purified", "o_asr", asr, name))
        seed = spawn(rng).initial_seed()
        for made_on, model in sources.items():
            # The same rows and first weights for each, so that only the model differs.
            perturb, _ = self.perturbations(model, benign, backdoor, reference, torch.Generator().manual_seed(seed))
            tried: list[tuple[Subject, Classifier, str]] = [
                ("purified", other, f"{MADE_ON}{made_on}{TRIED_ON}{name}")
                for name, other in models.items()
                if name != made_on
            ]
            if reference is not None:
                tried.append(("reference", reference, f"{MADE_ON}{made_on}"))
            for subject, other, variant in tried:
                for metric, pool in (("transfer_p_asr", backdoor.evaluation), ("transfer_c_asr", clean)):
                    rate = perturb.success(other, pool, backdoor.goal)
                    findings.append(rate_finding(self.name, subject, metric, rate, variant))
        aside = "transfer: what it finds is about other models and does not enter the verdict on this one"
        return Measurement(findings=findings, notes=[aside, *self.equation(reference)])


@hookimpl
def bdaudit_probes() -> Iterable[type[Probe]]:
    return [Transfer]
