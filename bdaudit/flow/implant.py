"""Train a backdoored model on a dataset and lay out the run folder that an audit starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bdaudit.attacks.base import Attack, Implanted
from bdaudit.attacks.triggers import save_trigger
from bdaudit.errors import UsageError
from bdaudit.flow.provenance import describe_source, environment
from bdaudit.flow.run import INDEX, AttackRecord
from bdaudit.inputs.architectures import fresh
from bdaudit.inputs.checkpoint import save_checkpoint
from bdaudit.inputs.classifier import ArchSpec, Classifier
from bdaudit.inputs.datasets import Dataset
from bdaudit.inputs.folders import write_folder, write_index
from bdaudit.inputs.goal import Goal
from bdaudit.inputs.pool import Pool
from bdaudit.report.pictures import write_preview
from bdaudit.report.statistics import wilson
from bdaudit.runtime import Runtime, generator, spawn
from bdaudit.training.augment import Augment
from bdaudit.training.loop import Recipe, tune
from bdaudit.training.metrics import Rate, accuracy, attack_rates
from bdaudit.training.progress import say


@dataclass(frozen=True)
class Sizes:
    """How many rows each part gets; -1: a share that suits the dataset.

    train: what the victim trains on. clean: the defender's tuning set. reserve: clean rows to retune with.
    test: rows to evaluate on. flagged: poisoned rows that the auditor is handed.
    """

    train: int = -1
    clean: int = -1
    reserve: int = -1
    test: int = -1
    flagged: int = -1


@dataclass(frozen=True)
class Parts:
    """A dataset cut into disjoint parts."""

    train: Pool
    clean: Pool
    reserve: Pool
    test: Pool


def cut(dataset: Dataset, sizes: Sizes, rng: torch.Generator) -> Parts:
    """Cut a dataset into disjoint parts; the official test split is the test part where there is one."""
    rows = dataset.train.shuffled(rng)
    n = len(rows)
    if dataset.test is not None:
        test = dataset.test.shuffled(rng)
        test = test.first(sizes.test) if sizes.test >= 0 else test
    else:
        test, rows = rows.split(sizes.test if sizes.test >= 0 else n // 5)
    # The defender holds a tenth of what the attacker trained on; 1,500 rows are kept back for probes, which
    # retune on 1,000 (SS B.2).
    train = sizes.train if sizes.train >= 0 else len(rows) * 7 // 10
    clean = sizes.clean if sizes.clean >= 0 else max(train // 10, min(200, n // 10))
    left = len(rows) - train - clean
    reserve = sizes.reserve if sizes.reserve >= 0 else max(1, min(1500, left))
    if left < reserve or min(train, clean, reserve, len(test)) < 1:
        raise UsageError(
            f"{dataset.name} has {n} rows: not enough for {train} training, {clean} clean, {reserve} reserve "
            f"and {len(test)} test rows"
        )
    trained, tuned, reserved, _ = rows.split(train, clean, reserve)
    return Parts(trained, tuned, reserved, test)


def implant(
    dataset: Dataset,
    attack: Attack,
    folder: Path,
    *,
    spec: ArchSpec,
    target: int,
    sizes: Sizes,
    recipe: Recipe,
    device: torch.device,
    seed: int,
    with_reference: bool = False,
) -> AttackRecord:
    """Poison, train, measure, and fill `folder` (which the caller makes whole or not at all)."""
    rng = generator(seed)
    parts = cut(dataset, sizes, spawn(rng))
    goal = attack.goal(target, len(dataset.classes))
    check_flagged(attack, parts.train, goal, sizes.flagged)
    model = Runtime.of(device).place(fresh(spec, dataset.preprocessing, dataset.classes, spawn(rng)))
    implanted = attack.implant(model, parts.train, target, recipe, spawn(rng))
    models: dict[str, Classifier] = {"model": implanted.model}
    if with_reference:
        say("training the clean reference")
        twin = Runtime.of(device).place(fresh(spec, dataset.preprocessing, dataset.classes, spawn(rng)))
        models["reference"] = tune(twin, parts.train, recipe, spawn(rng), what="training (clean reference)")
    say("measuring")
    triggered = implanted.trigger.on(parts.test.take(goal.counted(parts.test.labels)))
    metrics = {name: _measure(m, parts.test, triggered, goal) for name, m in models.items()}
    flagged = flagged_rows(implanted, sizes.flagged, spawn(rng))
    poisoned = implanted.poisoned
    of_target = poisoned.true_labels == target if goal.target is not None else torch.zeros_like(poisoned.poisoned)
    record = AttackRecord(
        attack=attack.name,
        options=attack.model_dump(),
        target=goal.target,
        classes=list(dataset.classes),
        shape=parts.train.shape,
        rows={
            "train": len(parts.train),
            "poisoned": int(poisoned.poisoned.sum()),
            "cover": int(poisoned.cover.sum()),
            "of_target_class": int((poisoned.poisoned & of_target).sum()),
            "target_class": int(of_target.sum()),
            "clean": len(parts.clean),
            "flagged": len(flagged),
            "reserve": len(parts.reserve),
            "test": len(parts.test),
        },
        metrics=metrics,
        data=dataset.name,
        arch=str(spec),
        recipe=asdict(recipe),
        provenance={**environment(), **describe_source(spec), "seed": seed, "device": Runtime.of(device).describe()},
    )
    _write(folder, record, implanted, models, parts, flagged)
    return record


def clean_twin(
    dataset: Dataset, *, spec: ArchSpec, sizes: Sizes, recipe: Recipe, device: torch.device, seed: int
) -> Classifier:
    """Train a model without a backdoor on the rows that `implant` would poison for the same sizes and seed."""
    rng = generator(seed)
    parts = cut(dataset, sizes, spawn(rng))
    twin = Runtime.of(device).place(fresh(spec, dataset.preprocessing, dataset.classes, spawn(rng)))
    return tune(twin, parts.train, recipe, spawn(rng), what="training (clean twin)")


def check_flagged(attack: Attack, train: Pool, goal: Goal, size: int) -> None:
    """Refuse, before anything is trained, more flagged images than the attack will poison; UsageError."""
    _, poisoned = attack.selected(train, goal)
    if size > poisoned or size == 0:
        raise UsageError(f"{size} flagged images were asked for, {attack.name} poisons {poisoned} training images")


def flagged_rows(implanted: Implanted, size: int, rng: torch.Generator) -> Pool:
    """Draw the poisoned rows that an auditor is handed: those whose label gives them away.

    A dirty-label row of the target class looks right to any reviewer and is not flagged; clean-label
    rows all look right, and are flagged as they are.
    """
    poisoned, mislabelled = implanted.poisoned, implanted.poisoned.pool.labels != implanted.poisoned.true_labels
    rows = poisoned.poisoned & (mislabelled if (poisoned.poisoned & mislabelled).any() else True)
    index = rows.nonzero().flatten()
    count = len(index) // 2 if size < 0 else size
    if not 1 <= count <= len(index):
        raise UsageError(
            f"{count} flagged images were asked for, the attack poisoned {len(index)} that could be flagged"
        )
    return poisoned.pool.take(index[torch.randperm(len(index), generator=rng)[:count]])


def default_recipe(dataset: Dataset, epochs: int | None = None, lr: float | None = None) -> Recipe:
    """The victim's recipe: SGD .1 with one cycle and weight decay, which in few epochs does what FST's 100 do."""
    return Recipe(
        epochs=epochs or dataset.epochs,
        lr=lr or 0.1,
        weight_decay=5e-4,
        schedule="onecycle",
        augment=Augment.usual(dataset.train.shape, flip=dataset.flip),
    )


def rate_row(rate: Rate) -> dict[str, float | int]:
    """A rate with its 95% Wilson interval, ready for JSON."""
    low, high = wilson(rate.successes, rate.n)
    return {"value": rate.value, "low": low, "high": high, "n": rate.n}


def flat_rates(rates: Mapping[str, Rate]) -> dict[str, float | int]:
    """Rates with their intervals in one row: `asr`, `asr_low`, `asr_high`, `asr_n` and so on."""
    return {f"{name}{suffix}": v for name, r in rates.items() for suffix, v in _flat(rate_row(r))}


def _measure(model: Classifier, test: Pool, triggered: Pool, goal: Goal) -> dict[str, float | int]:
    asr, robust = attack_rates(model, triggered, goal)
    return flat_rates({"c_acc": accuracy(model, test), "asr": asr, "robust_acc": robust})


def _flat(row: dict[str, float | int]) -> Sequence[tuple[str, float | int]]:
    return [("" if key == "value" else f"_{key}", value) for key, value in row.items()]


def _write(
    folder: Path,
    record: AttackRecord,
    implanted: Implanted,
    models: dict[str, Classifier],
    parts: Parts,
    flagged: Pool,
) -> None:
    for name, model in models.items():
        save_checkpoint(model, folder / f"{name}.pt", provenance={"data": record.data, "made_by": "bdaudit attack"})
    save_trigger(implanted.trigger, folder / "trigger.safetensors", attack=record.attack)
    if implanted.train_trigger is not implanted.trigger:
        save_trigger(implanted.train_trigger, folder / "train_trigger.safetensors", attack=record.attack)
    record.write(folder)
    sources = parts.test.take(implanted.goal.counted(parts.test.labels)).first(8)
    write_preview(sources.images, implanted.trigger(sources.images), folder / "preview.png")
    write_folder(parts.clean, folder / "clean", classes=record.classes)
    write_folder(parts.reserve, folder / "reserve", classes=record.classes)
    write_folder(parts.test, folder / "test", classes=record.classes)
    write_folder(flagged, folder / "flagged", flat=True)
    poisoned = implanted.poisoned
    paths = write_folder(poisoned.pool, folder / "train", classes=record.classes)
    columns: dict[str, Sequence[object]] = {
        "path": [f"train/{path}" for path in paths],
        "label": poisoned.pool.labels.tolist(),
        "true_label": poisoned.true_labels.tolist(),
        "poisoned": poisoned.poisoned.int().tolist(),
        "cover": poisoned.cover.int().tolist(),
    }
    write_index(poisoned.pool, folder / INDEX, columns)
