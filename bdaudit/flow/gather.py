"""Gather the evidence that a defense or an audit asks for, from folders, tensors and run folders alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import missing_message
from bdaudit.defenses.base import Defense
from bdaudit.errors import InputError, MissingInput, UsageError, one_line
from bdaudit.flow.evidence import Evidence, find_target, from_clean, from_folders, from_run, target_label, unlike
from bdaudit.flow.pools import Images, pool_for
from bdaudit.flow.run import Run, open_run
from bdaudit.flow.screening import screened
from bdaudit.flow.suspect import PathLike, Suspect, open_second
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.training.progress import say


def purification_evidence(
    suspect: Suspect,
    defense: Defense,
    *,
    clean: Images | None = None,
    malicious: Images | None = None,
    target: int | None = None,
    trigger: Trigger | None = None,
    train: Images | None = None,
    run: PathLike | None = None,
    screen_with: torch.Generator | None = None,
) -> Evidence:
    """Gather what a defense names, and only that; say what is missing before any work.

    screen_with: screen clean and flagged images against each other first, with this randomness.
    """
    defense.check_model(suspect.classifier)
    wants = defense.wants() + (() if screen_with is None else ("clean", "malicious"))
    evidence = Evidence(suspect.classifier)
    opened = open_run(run) if run is not None else None
    if opened is not None and "trigger" in wants:
        trigger = opened.trigger
        evidence = replace(evidence, sources={"trigger": "--attack"})
    if opened is not None:
        check_target(target, opened.goal)
        evidence = replace(evidence, goal=opened.goal)
    elif target is not None:
        evidence = replace(evidence, goal=Goal(target, suspect.classifier.num_classes))
    clean = default_clean(suspect, clean, opened) if "clean" in wants else None
    check_needs(defense, malicious=malicious, train=train, trigger=trigger)
    evidence = with_pools(
        replace(evidence, trigger=trigger if "trigger" in wants else None),
        suspect,
        clean,
        malicious if {"malicious", "target"} & set(wants) else None,
        target,
        train if "train" in wants else None,
    )
    return evidence if screen_with is None else screened(evidence, screen_with)


def audit_evidence(
    suspect: Suspect,
    defense: Defense | None,
    *,
    clean: Images | None = None,
    malicious: Images | None = None,
    target: int | None = None,
    train: Images | None = None,
    run: Run | None = None,
    reference: PathLike | Classifier | None = None,
    others: Sequence[PathLike | Classifier] = (),
    other_defenses: Sequence[Defense] = (),
    tuned_elsewhere: bool,
    min_triggered: int,
    rng: torch.Generator,
    screen: bool = False,
) -> Evidence:
    """Gather what an audit has to go on: a run folder whose trigger is known, flagged images, or neither.

    other_defenses: which purify the suspect as well, from the same images. screen: screen their clean and flagged
    images against each other; those that measure stay as they are.
    """
    model = suspect.classifier
    purifying = ([] if defense is None else [defense]) + list(other_defenses)
    for each in purifying:
        each.check_model(model)
    clean = default_clean(suspect, clean, run)
    wants = {name for each in purifying for name in each.wants()}
    if screen:
        if defense is None or malicious is None:
            lacking = (
                "is no defense: give --defense NAME"
                if defense is None
                else "are no flagged images: give --malicious DIR"
            )
            raise UsageError(f"--screen gives a defense screened images, and there {lacking}")
        wants |= {"malicious"}
    notes = list(suspect.notes)
    evidence = Evidence(model)
    if run is not None:
        check_target(target, run.goal)
        known = from_run(evidence, run, rng, notes)
        evidence = with_pools(known, suspect, clean, malicious if "malicious" in wants else None, target, train)
        reference = reference or run.reference_path
    elif malicious is None:
        for each in purifying:
            check_needs(each, malicious=None, train=train, trigger=None, target=target)
        evidence = from_clean(
            with_pools(evidence, suspect, None, None, None, train),
            pool_for(clean, model, "clean", labelled=True, notes=notes),
            target,
            model_name=one_line(suspect.path.name) if suspect.path is not None else "the suspect model",
            tuned_elsewhere=tuned_elsewhere,
            min_triggered=min_triggered,
            rng=rng,
        )
    else:
        flagged = pool_for(malicious, model, "malicious", notes=notes)
        evidence = with_goal(with_pools(evidence, suspect, None, None, None, train), flagged, target)
        assert evidence.goal is not None
        evidence = from_folders(
            evidence,
            pool_for(clean, model, "clean", labelled=True, notes=notes),
            flagged,
            evidence.goal,
            tuned_elsewhere=tuned_elsewhere,
            wants_malicious="malicious" in wants,
            min_triggered=min_triggered,
            rng=rng,
        )
    evidence = replace(evidence, notes=(*notes, *evidence.notes))
    if reference is not None:
        source = "given" if isinstance(reference, Classifier) else one_line(Path(reference).name)
        made = open_second(reference, suspect)
        evidence = replace(evidence, reference=made, sources=evidence.sources | {"reference": source})
    if others:
        evidence = replace(evidence, others=open_others(others, suspect))
    if screen and not evidence.shortfall:
        evidence = screened(evidence, rng)
    for each in purifying if not evidence.shortfall else ():
        each.grant(evidence.for_defense(rng) | {"fresh": model})  # says what is missing before any work
    return evidence


def open_others(models: Sequence[PathLike | Classifier], suspect: Suspect) -> dict[str, Classifier]:
    """Open further purified models, each under a name of its own."""
    opened: dict[str, Classifier] = {}
    for i, model in enumerate(models):
        name = one_line(Path(model).name, 40) if isinstance(model, str | Path) else f"model {i + 1}"
        opened[unlike(name, opened)] = open_second(model, suspect)
    return opened


def default_clean(suspect: Suspect, clean: Images | None, run: Run | None) -> Images:
    """Find the clean images: those given, else clean/ beside the model, else the run's."""
    if clean is not None:
        return clean
    beside = suspect.path.parent / "clean" if suspect.path is not None else None
    found = beside if beside is not None and beside.is_dir() else run.folder / "clean" if run is not None else None
    if found is not None:
        if found.is_symlink():  # it came with the suspect, and may lead anywhere
            raise InputError(f"{one_line(found)}: is a link; if its images are meant, give --clean DIR")
        return found
    raise MissingInput("clean images are needed: give --clean DIR, or put a folder clean/ beside the model")


def with_pools(
    evidence: Evidence,
    suspect: Suspect,
    clean: Images | None,
    malicious: Images | None,
    target: int | None,
    train: Images | None,
) -> Evidence:
    """Add pools for the defense; flagged images get the target's label."""
    model = suspect.classifier
    notes: list[str] = []
    if clean is not None:
        evidence = replace(
            evidence,
            clean=pool_for(clean, model, "clean", labelled=True, notes=notes),
            sources=evidence.sources | {"clean": _named(clean)},
        )
    if train is not None:
        evidence = replace(
            evidence,
            train=pool_for(train, model, "train", labelled=True, notes=notes),
            sources=evidence.sources | {"train": _named(train)},
        )
    if malicious is not None:
        flagged = pool_for(malicious, model, "malicious", notes=notes)
        evidence = with_goal(evidence, flagged, target)
        assert evidence.goal is not None
        evidence = replace(
            evidence,
            malicious=flagged.labelled(target_label(evidence.goal)),
            sources=evidence.sources | {"malicious": _named(malicious)},
        )
    return replace(evidence, notes=(*evidence.notes, *notes))


def check_needs(defense: Defense, **given: object) -> None:
    """Say what a defense lacks of the inputs that only a caller can give, before any work."""
    for name in defense.needs():
        if name in given and given[name] is None:
            raise MissingInput(missing_message(defense.name, name))


def check_target(target: int | None, goal: Goal) -> None:
    """Make sure that a target typed beside a run folder is a class, and the run's own."""
    if target is not None and Goal(target, goal.num_classes) != goal:
        raise UsageError(f"--target {target}: the run's backdoor is {goal}")


def with_goal(evidence: Evidence, flagged: Pool, target: int | None) -> Evidence:
    """Settle the backdoor's goal: the one known, the target given, else the class that most flagged images get."""
    if evidence.goal is not None:
        return evidence
    model = evidence.suspect
    if target is not None:
        return replace(evidence, goal=Goal(target, model.num_classes))
    target, said = find_target(model, flagged)
    say(said)
    return replace(evidence, goal=Goal(target, model.num_classes), notes=(*evidence.notes, said))


def _named(images: Images) -> str:
    if not isinstance(images, str | Path):
        return "in memory"
    return one_line(Path(images).name, 80) + ("/" if Path(images).is_dir() else "")
