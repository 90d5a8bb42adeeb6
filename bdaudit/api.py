"""The Python face of everything the command line does: a few lines each, paths or tensors or modules alike."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from bdaudit import plugins
from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import Trigger
from bdaudit.contract import missing_message
from bdaudit.defenses.base import Defense
from bdaudit.errors import ImageError, InputError, MissingInput, UsageError, one_line
from bdaudit.flow import audit as flow
from bdaudit.flow.evidence import Evidence, find_target, from_folders, from_run, labelled_pool, read_pool, target_label
from bdaudit.flow.implant import Sizes, default_recipe, implant
from bdaudit.flow.output import write_audit
from bdaudit.flow.run import Run, is_run, open_run
from bdaudit.inputs import architectures
from bdaudit.inputs.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from bdaudit.inputs.classifier import Classifier, Preprocessing
from bdaudit.inputs.datasets import load_dataset
from bdaudit.inputs.files import atomic_folder, sha256
from bdaudit.inputs.folders import SUFFIXES
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.normalisation import NORMALISATIONS, choose_preprocessing
from bdaudit.inputs.pool import UNKNOWN, Pool, check_labels
from bdaudit.probes.base import Probe
from bdaudit.report.pictures import encode
from bdaudit.report.schema import Exhibit, Granted, Policy, Report
from bdaudit.runtime import Runtime, generator, pick_device
from bdaudit.training.progress import say

PathLike = str | Path
Images = PathLike | Pool | tuple[Tensor, Tensor] | Tensor
"""A folder, a pool, (uint8 or [0, 1] images (N, C, H, W), labels (N,)), or images alone."""

M = TypeVar("M", bound=nn.Module)

DEFAULT_PROBES = ("retune", "qra")


@dataclass(frozen=True)
class Suspect:
    """A model as it was given: the classifier to work on, and the file it came from."""

    classifier: Classifier
    checkpoint: Checkpoint | None = None
    path: Path | None = None


def load(
    model: PathLike,
    *,
    arch: str | None = None,
    normalisation: str | None = None,
    clean: PathLike | None = None,
    device: str = "auto",
) -> Suspect:
    """Read a model file without running code from it.

    arch: name, e.g. `resnet18:width=16`, where neither the file nor its keys and shapes tell. Where the file
    does not say how its pixels were normalised: `normalisation` (a dataset's name), else the known one under
    which the model classifies the images in `clean` best.
    """
    path = Path(model)
    checkpoint = read_checkpoint(path)
    notes: list[str] = []
    preprocessing = None
    if checkpoint.preprocessing is None:
        preprocessing = _preprocessing(checkpoint, arch, normalisation, Path(clean) if clean else None, notes)
    classifier = checkpoint.classifier(arch=arch, preprocessing=preprocessing, notes=notes)
    for note in notes:
        say(f"{path.name}: {note}")
    return Suspect(Runtime.of(pick_device(device)).place(classifier), checkpoint, path)


def wrap(model: nn.Module, images: Pool, *, normalisation: str | None = None) -> Classifier:
    """Make a classifier out of a plain module that takes floats in [0, 1], or normalised by a known dataset's figures."""
    if isinstance(model, Classifier):
        return model
    c, h, w = images.shape
    mean, std = _normalisation(normalisation, c) if normalisation else ((0.0,) * c, (1.0,) * c)
    return Classifier(model, Preprocessing(channels=c, height=h, width=w, mean=mean, std=std))


def purify(
    model: M,
    *,
    clean: Images,
    defense: str | Defense,
    malicious: Images | None = None,
    target: int | None = None,
    trigger: Trigger | None = None,
    train: Images | None = None,
    options: Mapping[str, Any] | None = None,
    normalisation: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> M:
    """Purify a model and return the result as the same type; the model given stays as it was.

    model: a `Classifier`, or any module whose last layer is linear and which takes floats in [0, 1] (or
    normalised as `normalisation` names). clean, malicious, train: folders, pools, or tensors.
    target: else the class that the model gives most malicious images. trigger: for oracle defenses only.
    """
    if isinstance(clean, str | Path) and not isinstance(model, Classifier):
        raise UsageError("clean images for a plain module must be tensors or a pool (their shape is needed)")
    first = None if isinstance(clean, str | Path) else as_pool(clean)
    classifier = model if isinstance(model, Classifier) else wrap(model, first, normalisation=normalisation)  # type: ignore[arg-type]
    suspect = Runtime.of(pick_device(device)).place(classifier.clone())
    chosen = defense if isinstance(defense, Defense) else plugins.get("defense", defense).parse(options)
    evidence = purification_evidence(
        Suspect(suspect), chosen, clean=clean, malicious=malicious, target=target, trigger=trigger, train=train
    )
    purified, _ = flow.purify(chosen, evidence, seed)
    result = purified if isinstance(model, Classifier) else purified.body
    return result.to(next(model.parameters()).device)  # type: ignore[return-value]


def audit(
    model: PathLike | nn.Module,
    *,
    defense: str | Defense | None = None,
    purified: PathLike | nn.Module | None = None,
    clean: Images | None = None,
    malicious: Images | None = None,
    target: int | None = None,
    train: Images | None = None,
    run: PathLike | None = None,
    reference: PathLike | Classifier | None = None,
    probes: Sequence[str | Probe] = DEFAULT_PROBES,
    options: Mapping[str, Any] | None = None,
    policy: Policy | PathLike | None = None,
    arch: str | None = None,
    normalisation: str | None = None,
    evaluate: int = 2000,
    seed: int = 0,
    device: str = "auto",
) -> Report:
    """Audit a model after a defense, or a model that somebody else purified; see `audit_with_model`."""
    settings = {k: v for k, v in locals().items() if k != "model"}
    return audit_with_model(model, **settings)[0]


def audit_with_model(
    model: PathLike | nn.Module,
    *,
    defense: str | Defense | None = None,
    purified: PathLike | nn.Module | None = None,
    clean: Images | None = None,
    malicious: Images | None = None,
    target: int | None = None,
    train: Images | None = None,
    run: PathLike | None = None,
    reference: PathLike | Classifier | None = None,
    probes: Sequence[str | Probe] = DEFAULT_PROBES,
    options: Mapping[str, Any] | None = None,
    policy: Policy | PathLike | None = None,
    arch: str | None = None,
    normalisation: str | None = None,
    evaluate: int = 2000,
    seed: int = 0,
    device: str = "auto",
) -> tuple[Report, Classifier | None]:
    """Purify, retune, query, judge; return the report and the purified model.

    run: a run folder, whose trigger is then known. Without one, `malicious` images are cut into disjoint parts
    for the defense, for reactivation and for evaluation. options: `name` for the defense, `probe.name` for
    probes. reference: a clean or exactly purified model; made by `ep` where the trigger is known.
    """
    chosen_defense, chosen_probes = choose(defense, probes, options)
    opened = open_run(run) if run is not None else None
    rules = load_policy(policy)
    suspect = _suspect(model, clean, arch, normalisation, device)
    clean = _default_clean(suspect, clean, opened)
    evidence = Evidence(suspect.classifier, sources={})
    rng = generator(seed)
    if opened is not None:
        evidence = from_run(evidence, opened, rng)
        evidence = _with_pools(evidence, suspect, clean, malicious, target, train)
        if reference is None and opened.reference_path is not None:
            reference = opened.reference_path
    else:
        if malicious is None:
            raise MissingInput(
                "an audit needs triggered images: give --malicious DIR (flagged images) or --attack RUN (a known trigger)"
            )
        pool = _pool(clean, suspect.classifier, "clean", labelled=True)
        flagged = _pool(malicious, suspect.classifier, "malicious", labelled=False)
        goal = _goal(suspect.classifier, flagged, target)
        evidence = from_folders(
            replace(evidence, train=_pool(train, suspect.classifier, "train", labelled=True) if train else None),
            pool,
            flagged,
            goal,
            tuned_elsewhere=purified is not None,
            wants_malicious=chosen_defense is not None and "malicious" in chosen_defense.wants(),
            min_triggered=rules.min_triggered,
            rng=rng,
        )
    if reference is not None:
        made = reference if isinstance(reference, Classifier) else _same_family(reference, suspect, device)
        source = "given" if isinstance(reference, Classifier) else one_line(Path(reference).name)
        evidence = replace(evidence, reference=made, sources=evidence.sources | {"reference": source})
    other = None
    if purified is not None:
        other = purified if isinstance(purified, Classifier) else None
        other = other or (
            wrap(purified, evidence.test, normalisation=normalisation)  # type: ignore[arg-type]
            if isinstance(purified, nn.Module)
            else _same_family(purified, suspect, device)
        )
    if chosen_defense is not None and not evidence.shortfall:
        chosen_defense.grant(evidence.for_defense(rng) | {"fresh": True})
    return flow.audit(
        evidence,
        defense=chosen_defense,
        purified=other,
        reference_defense=plugins.get("defense", "ep").parse() if evidence.reference is None else None,
        probes=chosen_probes,
        policy=rules,
        seed=seed,
        evaluate=evaluate,
        inputs=_files(suspect, purified),
        options={"attack": opened.record.attack, "attack_options": opened.record.options} if opened else {},
        exhibits=_preview(opened),
    )


def attack(
    name: str | Attack,
    *,
    data: str,
    out: PathLike,
    target: int = 0,
    arch: str | None = None,
    options: Mapping[str, Any] | None = None,
    sizes: Sizes | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    with_reference: bool = False,
    data_root: Path | None = None,
    download: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> Run:
    """Train a backdoored model and write its run folder, whole or not at all."""
    chosen = name if isinstance(name, Attack) else plugins.get("attack", name).parse(options)
    with atomic_folder(out, replace_if=is_run) as folder:
        dataset = load_dataset(data, root=data_root, download=download)
        implant(
            dataset,
            chosen,
            folder,
            spec=architectures.complete(architectures.parse(arch or dataset.arch)),
            target=target,
            sizes=sizes or Sizes(),
            recipe=default_recipe(dataset, epochs, lr),
            device=pick_device(device),
            seed=seed,
            with_reference=with_reference,
        )
    return open_run(out)


def demo(out: PathLike, *, seed: int = 0, device: str = "auto") -> Report:
    """Backdoor a small model on real digits, purify it with PL, audit it; write all of it to one folder."""
    with atomic_folder(out, replace_if=is_run) as folder:
        run = attack(
            "badnets",
            data="digits",
            out=folder,
            options={"rate": 0.1},
            sizes=Sizes(flagged=80),
            with_reference=True,
            seed=seed,
            device=device,
        )
        report, purified = audit_with_model(
            run.model_path, defense="pl", malicious=folder / "flagged", run=folder, seed=seed, device=device
        )
        write_audit(folder, report, purified, run.model_path)
    return report


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
) -> Evidence:
    """Gather what a defense names, and only that; say what is missing before any work."""
    wants = defense.wants()
    evidence = Evidence(suspect.classifier)
    opened = open_run(run) if run is not None else None
    if opened is not None and "trigger" in wants:
        trigger = opened.trigger
        evidence = replace(evidence, sources={"trigger": "--attack"})
    if opened is not None and target is None:
        evidence = replace(evidence, goal=opened.goal)
    clean = _default_clean(suspect, clean, opened) if "clean" in wants else None
    given = {"malicious": malicious, "train": train, "trigger": trigger}
    for name in defense.needs():
        if name in given and given[name] is None:
            raise MissingInput(missing_message(defense.name, name))
    if target is not None:
        evidence = replace(evidence, goal=Goal(target, suspect.classifier.num_classes))
    return _with_pools(
        replace(evidence, trigger=trigger if "trigger" in wants else None),
        suspect,
        clean,
        malicious if {"malicious", "target"} & set(wants) else None,
        target,
        train if "train" in wants else None,
    )


def choose(
    defense: str | Defense | None, probes: Sequence[str | Probe], options: Mapping[str, Any] | None
) -> tuple[Defense | None, list[Probe]]:
    """Look plugins up and parse their options: `name` is the defense's, `probe.name` a probe's."""
    options = dict(options or {})
    prefixed = {k: v for k, v in options.items() if "." in k}
    plain = {k: v for k, v in options.items() if "." not in k}
    chosen: Defense | None = None
    if isinstance(defense, Defense):
        chosen = defense
    elif defense is not None:
        chosen = plugins.get("defense", defense).parse(plain)
    elif plain:
        raise UsageError(
            f"-o {next(iter(plain))}: there is no defense to set it on; probes' options are probe.name=value"
        )
    picked = []
    for probe in probes:
        if isinstance(probe, Probe):
            picked.append(probe)
            continue
        own = {k.partition(".")[2]: prefixed.pop(k) for k in list(prefixed) if k.partition(".")[0] == probe}
        picked.append(plugins.get("probe", probe).parse(own))
    if prefixed:
        raise UsageError(
            f"-o {one_line(next(iter(prefixed)), 60)}: no such probe in this audit ({', '.join(p.name for p in picked)})"
        )
    return chosen, picked


def load_policy(policy: Policy | PathLike | None) -> Policy:
    """Read a policy file (TOML), or take the defaults."""
    if policy is None or isinstance(policy, Policy):
        return policy or Policy()
    try:
        return Policy.model_validate(tomllib.loads(Path(policy).read_text()))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise InputError(f"--policy {one_line(policy)}: cannot be read ({one_line(e, 100)})") from None
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        known = ", ".join(Policy.model_fields)
        raise InputError(
            f"--policy {one_line(policy)}: {one_line(where, 60)}: {first['msg'].lower()} (known: {known})"
        ) from None


def as_pool(images: Pool | tuple[Tensor, Tensor] | Tensor) -> Pool:
    """Make a pool of whatever holds images in memory."""
    if isinstance(images, Pool):
        return images
    return Pool.of(images) if isinstance(images, Tensor) else Pool.of(*images)


def save(suspect: Suspect, purified: Classifier, out: PathLike, granted: Sequence[Granted], defense: Defense) -> None:
    """Write a purified model in the format in which the suspect came."""
    provenance = {
        "purified_by": defense.name,
        "options": defense.model_dump(),
        "granted": [g.model_dump() for g in granted],
        "suspect_sha256": suspect.checkpoint.sha256 if suspect.checkpoint else "",
    }
    save_checkpoint(purified, Path(out), like=suspect.checkpoint, provenance=provenance)


def _suspect(
    model: PathLike | nn.Module, clean: Images | None, arch: str | None, normalisation: str | None, device: str
) -> Suspect:
    if isinstance(model, nn.Module):
        if not isinstance(model, Classifier):
            if clean is None or isinstance(clean, str | Path):
                raise UsageError("clean images for a plain module must be tensors or a pool (their shape is needed)")
            model = wrap(model, as_pool(clean), normalisation=normalisation)
        return Suspect(Runtime.of(pick_device(device)).place(model.clone()))
    beside = Path(model).parent / "clean"
    folder = clean if isinstance(clean, str | Path) else beside if beside.is_dir() else None
    return load(model, arch=arch, normalisation=normalisation, clean=folder, device=device)


def _same_family(path: PathLike, suspect: Suspect, device: str) -> Classifier:
    """Read a second model that must take the suspect's images and know its classes."""
    known = suspect.classifier
    checkpoint = read_checkpoint(path)
    arch = None if checkpoint.arch else known.arch
    other = checkpoint.classifier(arch=arch, preprocessing=checkpoint.preprocessing or known.preprocessing)
    if other.preprocessing.shape != known.preprocessing.shape or other.num_classes != known.num_classes:
        raise UsageError(
            f"{one_line(path)}: takes {other.preprocessing.shape} images and has {other.num_classes} classes, "
            f"the suspect {known.preprocessing.shape} and {known.num_classes}"
        )
    return Runtime.of(pick_device(device)).place(other)


def _default_clean(suspect: Suspect, clean: Images | None, run: Run | None) -> Images | None:
    if clean is not None:
        return clean
    if suspect.path is not None and (suspect.path.parent / "clean").is_dir():
        return suspect.path.parent / "clean"
    if run is not None:
        return run.folder / "clean"
    raise MissingInput("clean images are needed: give --clean DIR, or put a folder clean/ beside the model")


def _pool(images: Images | None, model: Classifier, what: str, *, labelled: bool) -> Pool:
    assert images is not None
    if isinstance(images, str | Path):
        return labelled_pool(Path(images), model, what) if labelled else read_pool(Path(images), model, what)
    pool = as_pool(images)
    if pool.shape != model.preprocessing.shape:
        raise ImageError(f"{what}: images are {pool.shape}, the model takes {model.preprocessing.shape}")
    if not len(pool):
        raise ImageError(f"{what}: there are no images")
    if labelled or (pool.labels != UNKNOWN).any():
        check_labels(pool, model.num_classes, what)
    return pool


def _with_pools(
    evidence: Evidence,
    suspect: Suspect,
    clean: Images | None,
    malicious: Images | None,
    target: int | None,
    train: Images | None,
) -> Evidence:
    model = suspect.classifier
    if clean is not None:
        evidence = replace(evidence, clean=_pool(clean, model, "clean", labelled=True))
    if train is not None:
        evidence = replace(evidence, train=_pool(train, model, "train", labelled=True))
    if malicious is not None:
        flagged = _pool(malicious, model, "malicious", labelled=False)
        goal = evidence.goal
        if goal is not None and target is not None and goal.target != target:
            raise UsageError(f"--target {target}: the run's target is {goal.target}")
        goal = goal or _goal(model, flagged, target)
        evidence = replace(evidence, goal=goal, malicious=flagged.labelled(target_label(goal)))
    return evidence


def _goal(model: Classifier, flagged: Pool, target: int | None) -> Goal:
    if target is None:
        target, said = find_target(model, flagged)
        say(said)
    return Goal(target, model.num_classes)


def _preprocessing(
    checkpoint: Checkpoint, arch: str | None, normalisation: str | None, clean: Path | None, notes: list[str]
) -> Preprocessing | None:
    """Settle how pixels go in where the file does not say; None leaves it to the documented assumption."""
    found = checkpoint.match(arch)
    size = _first_size(clean)
    if size is None:
        return None
    height, width = size
    named = (
        [normalisation] if normalisation else [n for n, (m, _) in NORMALISATIONS.items() if len(m) == found.channels]
    )
    neutral = ((0.0,) * found.channels, (1.0,) * found.channels)
    candidates = {"[0, 1]": neutral} if not normalisation else {}
    candidates |= {n: _normalisation(n, found.channels) for n in named}
    options = {
        name: Preprocessing(channels=found.channels, height=height, width=width, mean=mean, std=std)
        for name, (mean, std) in candidates.items()
    }
    if len(options) == 1:
        return next(iter(options.values()))
    trial = checkpoint.classifier(arch=arch, preprocessing=next(iter(options.values())))
    assert clean is not None
    pool = labelled_pool(clean, trial, "clean")
    best = choose_preprocessing(trial.body, pool.images[:512], pool.labels[:512], options.values())
    name = next(n for n, p in options.items() if p == best)
    notes.append(
        f"preprocessing is not in the file: {name} fits the clean images best ({height}x{width}); --normalise overrides"
    )
    return best


def _first_size(folder: Path | None) -> tuple[int, int] | None:
    if folder is None or not folder.is_dir():
        return None
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            try:
                with Image.open(path) as image:
                    return image.height, image.width
            except (OSError, ValueError, Image.DecompressionBombError):
                return None  # read_folder names the file properly
    return None


def _normalisation(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if name not in NORMALISATIONS:
        raise UsageError(f"--normalise {one_line(name, 40)}: known are {', '.join(NORMALISATIONS)}")
    mean, std = NORMALISATIONS[name]
    if len(mean) != channels:
        raise UsageError(f"--normalise {name}: is for {len(mean)} channels, the images have {channels}")
    return mean, std


def _files(suspect: Suspect, purified: PathLike | nn.Module | None) -> dict[str, Any]:
    files: dict[str, Any] = {}
    if suspect.checkpoint is not None:
        files["model_file"] = {"name": one_line(suspect.checkpoint.path.name), "sha256": suspect.checkpoint.sha256}
    if isinstance(purified, str | Path):
        files["purified_file"] = {"name": one_line(Path(purified).name), "sha256": sha256(purified)}
    return files


def _preview(run: Run | None) -> list[Exhibit]:
    path = run.folder / "preview.png" if run else None
    if path is None or not path.is_file():
        return []
    caption = "Clean images, the same with the trigger, and the difference times 10."
    return [Exhibit(probe="evaluation", metric="o_asr", title="The trigger", caption=caption, picture=encode(path))]
