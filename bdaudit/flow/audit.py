"""Purify, retune, query, judge: the audit of one model as one report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bdaudit.contract import missing_message
from bdaudit.defenses.base import Defense, Purified
from bdaudit.errors import MissingInput, PluginError, UsageError
from bdaudit.flow.evidence import Evidence, unlike
from bdaudit.flow.held_out import settle
from bdaudit.flow.identity import resumable
from bdaudit.flow.memo import Memo
from bdaudit.flow.provenance import describe_evidence, environment
from bdaudit.flow.selfcheck import caveats, check_model, doubts, other, trusted, unable
from bdaudit.inputs.architectures import fresh
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.pool import Pool
from bdaudit.probes.base import Probe, subjects
from bdaudit.report.schema import Exhibit, Finding, Granted, Measurement, Policy, Report, SelfCheck, Subject
from bdaudit.report.statistics import change_findings, rate_finding
from bdaudit.report.verdict import judge
from bdaudit.runtime import Runtime, generator, spawn
from bdaudit.training.metrics import Rate, accuracy, attack_rates, der
from bdaudit.training.progress import say


@dataclass(frozen=True)
class Audited:
    """What an audit comes to: its report, the purified model if there is one, and the files that plugins left."""

    report: Report
    purified: Classifier | None
    artifacts: dict[str, bytes]


def purify(
    defense: Defense, evidence: Evidence, seed: int, *, memo: Memo | None = None, checkpoints: Path | None = None
) -> tuple[Purified, list[Granted]]:
    """Run a defense on what it names and nothing else; say what it was given. checkpoints: a folder for them."""
    rng = generator(seed)
    available = evidence.for_defense(rng)
    if "fresh" in defense.wants():
        available["fresh"] = fresh_like(evidence.suspect, spawn(rng))
    granted = evidence.granted(defense.name, defense.wants(), available)
    with resumable(checkpoints, "purify", defense, available, seed, evidence.suspect.device):
        if memo is not None:
            return memo.purified(defense, available, lambda: defense.conduct(available)), granted
        return defense.conduct(available), granted


def audit(
    evidence: Evidence,
    *,
    defense: Defense | None = None,
    purified: Classifier | None = None,
    reference_defense: Defense | None = None,
    other_defenses: Mapping[str, Defense] | None = None,
    probes: Sequence[Probe] = (),
    policy: Policy | None = None,
    seed: int = 0,
    evaluate: int = 2000,
    inputs: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    exhibits: Sequence[Exhibit] = (),
    memo: Memo | None = None,
) -> Audited:
    """Audit a suspect model after `defense`, or one that somebody else `purified`; exactly one of them is given.

    reference_defense: makes the exactly purified reference where the trigger is known and no reference was
    given. other_defenses: purify the suspect as well, for probes that try several models, under the names given.
    evaluate: images per rate, at most. memo: earlier results, taken where nothing that they rest on has changed.
    """
    policy = policy or Policy()
    other_defenses = other_defenses or {}
    started = datetime.now(UTC).isoformat(timespec="seconds")
    rng = generator(seed)
    defense_seed, reference_seed, probe_seed = (spawn(rng).initial_seed() for _ in range(3))
    seconds: dict[str, float] = {}
    granted: list[Granted] = []
    findings: list[Finding] = []
    shown = list(exhibits)
    notes: list[str] = []
    artifacts: dict[str, bytes] = {}
    found: list[Measurement] = []

    evidence = settle(evidence, evaluate, policy.min_triggered, rng)
    notes += evidence.notes
    if evidence.proxy is not None:
        findings += evidence.proxy.findings()
        shown.append(evidence.proxy.exhibit())
        seconds["inversion"] = evidence.proxy.seconds
    checks = list(evidence.checks)
    if not evidence.shortfall:
        _have_inputs(probes, evidence, reference_defense, other_defenses)
        with _timed(seconds, "checks", "checking that the models can be measured"):
            checks += _given_models(evidence)
            evidence = trusted(evidence, checks)
    elif evidence.test is not None and len(evidence.test):
        rate = accuracy(evidence.suspect, evidence.test)
        findings.append(rate_finding("evaluation", "suspect", "c_acc", rate))
    if not evidence.shortfall:
        if defense is not None:
            with _timed(seconds, "purify", f"purifying with {defense.name}"):
                done, given = purify(defense, evidence, defense_seed, memo=memo)
            purified = done.model
            granted += given
            found.append(done.found)
        assert purified is not None
        checks += check_model("purified", purified, _test(evidence))
        evidence = trusted(evidence, checks)
    if not evidence.shortfall:
        assert purified is not None
        if evidence.reference is None and reference_defense is not None and evidence.trigger is not None:
            exactly = (
                f"making the exactly purified reference with {reference_defense.name} (oracle: it knows the trigger)"
            )
            with _timed(seconds, "reference", exactly):
                made, given = purify(reference_defense, evidence, reference_seed, memo=memo)
            evidence = _with_reference(evidence, made.model, reference_defense.name)
            granted += _given_for("reference", given)
            checks += check_model("reference", made.model, _test(evidence))
            evidence = trusted(evidence, checks)
        for called, each in other_defenses.items():
            name = unlike(called, evidence.others)
            elsewhere = f"purifying with {name}, to try what brings the backdoor back elsewhere"
            with _timed(seconds, f"purify ({name})", elsewhere):
                made, given = purify(each, evidence, defense_seed, memo=memo)
            evidence = replace(evidence, others=evidence.others | {name: made.model})
            granted += _given_for("transfer", given)
            checks += check_model(other(name), made.model, _test(evidence))
        evidence = trusted(evidence, checks)
        with _timed(seconds, "evaluation", "evaluating"):
            findings += _evaluation(evidence, purified)
        for probe in probes:
            if why_not := unable(probe, evidence, checks):
                notes.append(f"{probe.name} was left out: {why_not}")
                continue
            with _timed(seconds, probe.name, f"probing with {probe.name}"):
                available = evidence.for_probe(purified, generator(probe_seed))
                granted += evidence.granted(probe.name, probe.wants(), available)
                found.append(_measure(probe, available, memo))

    for measurement in found:
        findings += measurement.findings
        shown += measurement.exhibits
        notes += measurement.notes
        if twice := artifacts.keys() & measurement.artifacts.keys():
            raise PluginError(f"two plugins keep a file {min(twice)}")
        artifacts |= measurement.artifacts
    notes += caveats(checks)
    verdict, reasons, outcomes = judge(findings, policy, evidence.shortfall, doubts(checks))
    provenance = environment() | {
        "seed": seed,
        "device": Runtime.of(evidence.suspect.device).describe(),
        "defense": _options(defense),
        "probes": {p.name: p.model_dump() for p in probes},
        "reference": evidence.sources.get("reference", "none"),
        "evaluate": evaluate,
        **(options or {}),
        **({"from_earlier_audits": memo.taken} if memo is not None and memo.taken else {}),
        **({"artifacts": {k: hashlib.sha256(v).hexdigest() for k, v in artifacts.items()}} if artifacts else {}),
        "times": {"started": started, "seconds": {k: round(v, 2) for k, v in seconds.items()}},
    }
    report = Report(
        title=_title(defense, inputs or {}),
        verdict=verdict,
        reasons=reasons,
        outcomes=outcomes,
        findings=findings,
        exhibits=shown,
        notes=list(dict.fromkeys(notes)),
        self_checks=checks,
        inputs={**describe_evidence(evidence), **(inputs or {})},
        granted=granted,
        policy=policy,
        provenance=provenance,
    )
    return Audited(report, purified, artifacts)


@contextmanager
def _timed(seconds: dict[str, float], name: str, doing: str) -> Iterator[None]:
    """Say what is done, and note how long it took under a name of the report's."""
    say(doing)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _given_for(purpose: str, granted: Sequence[Granted]) -> list[Granted]:
    """Mark what a defense was given to make a model that is not the one audited."""
    return [g.model_copy(update={"plugin": f"{g.plugin} ({purpose})"}) for g in granted]


def _measure(probe: Probe, available: dict[str, Any], memo: Memo | None) -> Measurement:
    return probe.run(available) if memo is None else memo.measured(probe, available, lambda: probe.run(available))


def fresh_like(model: Classifier, rng: torch.Generator) -> Classifier:
    """Build an untrained model of the same architecture, on the same device."""
    if model.arch is None:
        raise UsageError("the model's architecture is unknown, so no fresh one can be built: give --arch")
    made = fresh(model.arch, model.preprocessing, model.classes, rng)
    return Runtime.of(model.device).place(made)


def _title(defense: Defense | None, files: dict[str, Any]) -> str:
    """Name what was audited: the model's file where it came from one, and the defense or the purified file."""
    model, purified = (files.get(key, {}).get("name", "") for key in ("model_file", "purified_file"))
    after = defense.name if defense else purified or "a purified model"
    return f"Audit: {model}, {after}" if model else f"Audit: {after}"


def _have_inputs(
    probes: Sequence[Probe],
    evidence: Evidence,
    reference_defense: Defense | None,
    other_defenses: Mapping[str, Defense],
) -> None:
    """Say what a probe lacks before any work is spent."""
    available = evidence.for_probe(evidence.suspect, generator(0))
    if reference_defense is not None and evidence.trigger is not None:
        available["reference"] = available["reference"] or evidence.suspect  # one will be made
    available["others"] = available["others"] or other_defenses or None  # and so will these
    for probe in probes:
        if missing := [name for name in probe.needs() if available.get(name) is None]:
            raise MissingInput(missing_message(probe.name, missing[0]))


def _given_models(evidence: Evidence) -> list[SelfCheck]:
    """Check what was given before anything is spent on it."""
    models = {"suspect": evidence.suspect} | {other(name): m for name, m in evidence.others.items()}
    if evidence.reference is not None:
        models["reference"] = evidence.reference
    return [row for subject, model in models.items() for row in check_model(subject, model, _test(evidence))]


def _test(evidence: Evidence) -> Pool:
    assert evidence.test is not None
    return evidence.test


def _with_reference(evidence: Evidence, reference: Classifier, name: str) -> Evidence:
    source = f"{name}, made from the known trigger (ORACLE)"
    return replace(evidence, reference=reference, sources=evidence.sources | {"reference": source})


def _evaluation(evidence: Evidence, purified: Classifier) -> list[Finding]:
    """Measure accuracy, ASR and robust accuracy of every subject, before anything is reactivated."""
    models = subjects(suspect=evidence.suspect, purified=purified, reference=evidence.reference)
    assert evidence.backdoor is not None
    assert evidence.test is not None
    findings: list[Finding] = []
    rates: dict[tuple[Subject, str], Rate] = {}
    for subject, model in models.items():
        asr, robust = attack_rates(model, evidence.backdoor.evaluation, evidence.backdoor.goal)
        measured = {"c_acc": accuracy(model, evidence.test), "o_asr": asr}
        if evidence.backdoor.labels_known:
            measured["robust_acc"] = robust
        findings += [rate_finding("evaluation", subject, metric, rate) for metric, rate in measured.items()]
        rates |= {(subject, metric): rate for metric, rate in measured.items()}
    for name, null in evidence.backdoor.nulls.items():
        asr, _ = attack_rates(purified, null.evaluation, null.goal)
        findings.append(rate_finding("evaluation", "null", "o_asr", asr, f"{name} on purified"))
    acc, asr_of = ([rates[s, m] for s in ("suspect", "purified")] for m in ("c_acc", "o_asr"))
    rating = der(acc[0].value, acc[1].value, asr_of[0].value, asr_of[1].value)
    findings.append(
        Finding(probe="evaluation", subject="purified", metric="der", value=rating, low=None, high=None, n=None)
    )
    for metric in ("c_acc", "o_asr"):
        findings += change_findings("change", "purified", metric, rates["suspect", metric], rates["purified", metric])
    return findings


def _options(defense: Defense | None) -> dict[str, Any]:
    return {} if defense is None else {"name": defense.name, **defense.model_dump()}
