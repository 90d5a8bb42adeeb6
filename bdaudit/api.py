"""The Python face of everything the command line does: a few lines each, paths or tensors or modules alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from bdaudit import plugins
from bdaudit.attacks.base import Attack
from bdaudit.attacks.triggers import Trigger
from bdaudit.defenses.base import Defense
from bdaudit.errors import UsageError, one_line
from bdaudit.flow import audit as flow
from bdaudit.flow.choices import Others, choose, load_policy, told_apart
from bdaudit.flow.evidence import Evidence
from bdaudit.flow.gather import audit_evidence, default_clean, purification_evidence, with_pools
from bdaudit.flow.implant import Sizes, clean_twin, default_recipe, implant
from bdaudit.flow.importing import ImportRecord, find_importer, is_import, write_import
from bdaudit.flow.memo import Memo
from bdaudit.flow.output import is_audit, write_audit, write_purified
from bdaudit.flow.pools import Images, as_pool, pool_for
from bdaudit.flow.run import Run, is_run, open_run
from bdaudit.flow.screening import Screened, is_screen, screen_evidence, write_screen
from bdaudit.flow.splitting import (
    Halves,
    check_splitter,
    is_split,
    open_train,
    origins_in,
    split_set,
    training_part,
    write_split,
)
from bdaudit.flow.suspect import PathLike, Suspect, as_given, load, open_second, open_suspect, wrap
from bdaudit.flow.tracking import tell_trackers
from bdaudit.importers import Importer
from bdaudit.inputs import architectures
from bdaudit.inputs.checkpoint import save_checkpoint
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.datasets import Dataset, load_dataset
from bdaudit.inputs.files import atomic_folder, check_writable, sha256
from bdaudit.probes.base import Probe
from bdaudit.report.pictures import encode
from bdaudit.report.schema import Exhibit, Granted, Measurement, Policy, Report
from bdaudit.runtime import Runtime, generator, pick_device

__all__ = ["attack", "audit", "demo", "import_record", "load", "purify", "save", "screen", "split", "twin"]

M = TypeVar("M", bound=nn.Module)

DEFAULT_PROBES = ("retune", "qra")


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
    screen: bool = False,
    seed: int = 0,
    device: str = "auto",
    checkpoints: PathLike | None = None,
    found: list[Measurement] | None = None,
) -> M:
    """Purify a model, in single precision, and return the result as the same type; the model given stays as it was.

    model: a `Classifier`, or any module whose last layer is linear and which takes floats in [0, 1] (or
    normalised as `normalisation` names). clean, malicious, train: folders, .npz or .csv files, pools, or tensors.
    target: else the class that the model gives most malicious images. trigger: for oracle defenses only.
    screen: screen clean and malicious images against each other first. checkpoints: a folder to keep the state of long
    training in, and to go on from. found: gets what the defense found on the way: findings, pictures, notes, files.
    """
    if not isinstance(model, nn.Module):
        raise UsageError("purify wants a model in memory: bdaudit.load(path).classifier opens a file")
    if isinstance(clean, str | Path) and not isinstance(model, Classifier):
        raise UsageError("clean images for a plain module must be tensors or a pool (their shape is needed)")
    first = None if isinstance(clean, str | Path) else as_pool(clean)
    classifier = model if isinstance(model, Classifier) else wrap(model, first, normalisation=normalisation)  # type: ignore[arg-type]
    suspect = Runtime.of(pick_device(device)).place(classifier.clone().float())
    chosen = defense if isinstance(defense, Defense) else plugins.get("defense", defense).parse(options)
    evidence = purification_evidence(
        Suspect(suspect),
        chosen,
        clean=clean,
        malicious=malicious,
        target=target,
        trigger=trigger,
        train=train,
        screen_with=generator(seed) if screen else None,
    )
    kept = Path(checkpoints) if checkpoints is not None else None
    purified, _ = flow.purify(chosen, evidence, seed, checkpoints=kept)
    if found is not None:
        found.append(purified.found)
    result = purified.model if isinstance(model, Classifier) else purified.model.body
    return as_given(result, model)  # type: ignore[return-value]


def audit(
    model: PathLike | nn.Module,
    *,
    defense: str | Defense | None = None,
    purified: PathLike | nn.Module | None = None,
    clean: Images | None = None,
    malicious: Images | None = None,
    target: int | None = None,
    train: Images | None = None,
    screen: bool = False,
    run: PathLike | None = None,
    reference: PathLike | Classifier | None = None,
    others: Others = (),
    probes: Sequence[str | Probe] = DEFAULT_PROBES,
    options: Mapping[str, Any] | None = None,
    policy: Policy | PathLike | None = None,
    arch: str | None = None,
    normalisation: str | None = None,
    evaluate: int = 2000,
    seed: int = 0,
    device: str = "auto",
    out: PathLike | None = None,
    keep: PathLike | None = None,
    track: bool = True,
) -> Report:
    """Audit a model after a defense, or a model that somebody else purified: purify, retune, query, judge.

    run: a run folder, whose trigger is then known. Without one, `malicious` images are cut into disjoint parts
    for the defense, for reactivation and for evaluation. screen: the defense's are screened. options: `name` for the
    defense, `probe.name` for probes. reference: a clean or exactly purified model; made by `ep` where the trigger is
    known. others: further purified models, which the probe `transfer` tries its perturbations on: files and models, or
    names and defenses, which purify the same suspect; a mapping says what to call the latter.
    evaluate: images per rate, at most. out: a folder to write report.json, report.html and the purified model to.
    keep: a folder of purifications and measurements: those that nothing has changed for are taken from it, others
    added.
    track: hand the finished report to the installed trackers.
    """
    if (defense is None) == (purified is None):
        raise UsageError("give either a defense to run (--defense NAME) or a purified model (--purified FILE)")
    chosen, chosen_probes = choose(defense, probes, options)
    models, defenses = told_apart(others)
    if others and not any("others" in probe.wants() for probe in chosen_probes):
        raise UsageError("--transfer-to: no probe of this audit tries other models; add --probe transfer")
    rules = load_policy(policy)
    opened = open_run(run) if run is not None else None
    with ExitStack() as stack:
        # Before any work, so that a place that cannot be written is said at once.
        folder = stack.enter_context(atomic_folder(out, replace_if=is_audit)) if out is not None else None
        suspect = open_suspect(model, clean, arch, normalisation, device)
        evidence = audit_evidence(
            suspect,
            chosen,
            clean=clean,
            malicious=malicious,
            target=target,
            train=train,
            run=opened,
            reference=reference,
            others=models,
            other_defenses=tuple(defenses.values()),
            tuned_elsewhere=purified is not None,
            min_triggered=rules.min_triggered,
            rng=generator(seed),
            screen=screen,
        )
        other = open_second(purified, suspect) if purified is not None else None
        audited = flow.audit(
            evidence,
            defense=chosen,
            purified=other,
            reference_defense=plugins.get("defense", "ep").parse() if evidence.reference is None else None,
            other_defenses=defenses,
            probes=chosen_probes,
            policy=rules,
            seed=seed,
            evaluate=evaluate,
            inputs=_files(suspect, purified),
            options={"attack": opened.record.attack, "attack_options": opened.record.options} if opened else {},
            exhibits=_preview(opened),
            memo=Memo(Path(keep)) if keep is not None else None,
        )
        if folder is not None:
            write_audit(
                folder, audited.report, audited.purified if chosen else None, suspect.checkpoint, audited.artifacts
            )
    if track:
        tell_trackers(audited.report, Path(out).resolve() if out is not None else None)
    return audited.report


def screen(
    model: PathLike | nn.Module,
    *,
    malicious: Images,
    clean: Images | None = None,
    target: int | None = None,
    depth: float = 0.5,
    arch: str | None = None,
    normalisation: str | None = None,
    seed: int = 0,
    device: str = "auto",
    out: PathLike | None = None,
) -> Screened:
    """Find triggered images among the clean ones and clean ones among the flagged, by the model's own features.

    target: else the class that the model gives most malicious images. depth: how far up the network the images are
    compared. out: a folder to write both pools, the scores of all images and a chart to, whole or not at all.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(atomic_folder(out, replace_if=is_screen)) if out is not None else None
        suspect = open_suspect(model, clean, arch, normalisation, device)
        evidence = with_pools(
            Evidence(suspect.classifier, notes=suspect.notes),
            suspect,
            default_clean(suspect, clean, None),
            malicious,
            target,
            None,
        )
        result = screen_evidence(evidence, generator(seed), depth, seed=seed, **_files(suspect, None))
        if folder is not None:
            write_screen(folder, result, suspect.classifier.classes)
    return result


def split(
    train: str | Path,
    *,
    by: str | Defense,
    options: Mapping[str, Any] | None = None,
    clean: Images | None = None,
    model: PathLike | None = None,
    arch: str | None = None,
    normalisation: str | None = None,
    seed: int = 0,
    device: str = "auto",
    out: PathLike | None = None,
    checkpoints: PathLike | None = None,
) -> Halves:
    """Split an untrusted training set into clean and flagged images, by a defense that trains a model on it.

    train: a folder (or one with train/ and test/ in it), an .npz or a .csv file, or a data set's name.
    clean: clean images with labels, for a defense that starts from them (asd). model: a file whose architecture,
    classes and preprocessing to take, else `arch` and what the set itself says.
    out: a folder to write both pools, scores and charts to, whole or not at all. checkpoints: a folder to keep the
    state of training in, and to go on from.
    """
    chosen = check_splitter(by if isinstance(by, Defense) else plugins.get("defense", by).parse(options))
    with ExitStack() as stack:
        folder = stack.enter_context(atomic_folder(out, replace_if=is_split)) if out is not None else None
        part = training_part(train)
        opened, pool, notes = open_train(part, model, arch, normalisation, device)
        root = origins_in(part)
        kept = Path(checkpoints) if checkpoints is not None else None
        seeds = pool_for(clean, opened, "clean", labelled=True) if clean is not None else None
        result = split_set(chosen, opened, pool, seed, root=root, clean=seeds, notes=notes, checkpoints=kept)
        if folder is not None:
            write_split(folder, result, opened.classes, root)
    return result


def attack(
    name: str | Attack,
    *,
    data: str | Dataset,
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
        dataset = data if isinstance(data, Dataset) else load_dataset(data, root=data_root, download=download)
        implant(
            dataset,
            chosen,
            folder,
            spec=architectures.complete(architectures.from_user(arch or dataset.arch)),
            target=target,
            sizes=sizes or Sizes(),
            recipe=default_recipe(dataset, epochs, lr),
            device=pick_device(device),
            seed=seed,
            with_reference=with_reference,
        )
    return open_run(out)


def twin(
    *,
    data: str | Dataset,
    out: PathLike,
    arch: str | None = None,
    sizes: Sizes | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Train the clean twin of all attacks on the same data with the same sizes and seed, and write its model file."""
    check_writable(out)
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
    model = clean_twin(
        dataset,
        spec=architectures.complete(architectures.from_user(arch or dataset.arch)),
        sizes=sizes or Sizes(),
        recipe=default_recipe(dataset, epochs, lr),
        device=pick_device(device),
        seed=seed,
    )
    save_checkpoint(model, out, provenance={"data": dataset.name, "made_by": "bdaudit"})
    return Path(out)


def import_record(
    record: PathLike,
    *,
    out: PathLike,
    importer: str | Importer | None = None,
    options: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_root: Path | None = None,
    with_train: bool = False,
    arch: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> ImportRecord:
    """Read what another tool left, and write it as a folder to audit, whole or not at all.

    importer: else the installed one that recognises the record. data: the dataset that the record was made from; such
    records seldom hold clean images. with_train: also write the whole poisoned training set.
    """
    path = Path(record)
    with atomic_folder(out, replace_if=is_import) as folder:
        chosen = importer if isinstance(importer, Importer) else find_importer(path, importer).parse(options)
        imported = chosen.run({"record": path})
        return write_import(
            folder,
            imported,
            format=chosen.name,
            source=path.resolve().name,
            arch=arch,
            dataset=load_dataset(data, root=data_root) if data is not None else None,
            with_train=with_train,
            device=device,
            seed=seed,
        )


def demo(out: PathLike, *, seed: int = 0, device: str = "auto") -> Report:
    """Backdoor a small model on real digits, purify it with PL, audit it; write all of it to one folder."""
    # What the README's next command writes is made again in seconds; anything else in there is not ours to delete.
    ours = frozenset({"audit-pl", "model.purified.pt"})
    with atomic_folder(out, replace_if=lambda folder: is_run(folder, ours)) as folder:
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
        return audit(
            run.model_path,
            defense="pl",
            malicious=folder / "flagged",
            run=folder,
            seed=seed,
            device=device,
            out=folder / "audit-pl",
            track=False,  # the folder has no name yet, and a demonstration is nobody's result
        )


def save(suspect: Suspect, purified: Classifier, out: PathLike, granted: Sequence[Granted], defense: Defense) -> None:
    """Write a purified model in the format in which the suspect came."""
    write_purified(Path(out), purified, suspect.checkpoint, {"name": defense.name, **defense.model_dump()}, granted)


def _files(suspect: Suspect, purified: PathLike | nn.Module | None) -> dict[str, Any]:
    files: dict[str, Any] = {}
    if suspect.checkpoint is not None:
        files["model_file"] = {"name": one_line(suspect.checkpoint.path.name), "sha256": suspect.checkpoint.sha256}
    if isinstance(purified, str | Path):
        files["purified_file"] = {"name": one_line(Path(purified).name), "sha256": sha256(purified)}
    return files


def _preview(run: Run | None) -> list[Exhibit]:
    picture = encode(run.folder / "preview.png") if run else ""
    if not picture:
        return []
    caption = "Clean images, the same with the trigger, and the difference times 10."
    return [Exhibit(probe="evaluation", metric="o_asr", title="The trigger", caption=caption, picture=picture)]
