"""Do one stage: the same calls that the command line makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdaudit import api
from bdaudit.bench.plan import AUDITED_BY, TRAINED_BY, Stage, data_digest, running_code
from bdaudit.errors import InputError
from bdaudit.flow.contamination import Contamination, defender_pools
from bdaudit.flow.identity import plugin_identity
from bdaudit.flow.implant import Sizes
from bdaudit.flow.run import open_run
from bdaudit.inputs.architectures import from_user
from bdaudit.inputs.datasets import Dataset, load_dataset
from bdaudit.plugins import get
from bdaudit.report.schema import Policy

KEPT = "kept"
"""The folder of purifications and measurements, which cells share."""


def perform(stage: Stage, folder: Path) -> None:
    """Make what a stage makes, whole or not at all, below the bench's folder."""
    check_code(stage)
    {"twin": _twin, "victim": _victim, "cell": _cell}[stage.kind](stage.spec, folder, folder / stage.path)


def check_code(stage: Stage) -> None:
    """Refuse to work with other code than the grid was planned with, which the stage's key names; InputError."""
    spec, kind = stage.spec, "defense" if stage.kind == "cell" else "attack"
    arch = from_user(spec["arch"]) if stage.kind != "cell" else None
    here: dict[str, Any] = running_code(AUDITED_BY if stage.kind == "cell" else TRAINED_BY, arch)
    planned: dict[str, Any] = dict(spec["code"])
    for told in [spec] * (kind in spec) + list(spec.get("transfer_to", ())):
        here[told[kind]] = plugin_identity(get(kind, told[kind]).parse(told["options"]))["code"]
        planned[told[kind]] = told["plugin"]
    if other := [name for name in planned if planned[name] != here.get(name)]:
        what = "bdaudit's own code" if other[0] == "code" else other[0]
        raise InputError(f"{what} differs from that which the grid was planned with, here or since then")


def _twin(spec: Mapping[str, Any], folder: Path, out: Path) -> None:
    api.twin(out=out, **_training(spec))


def _victim(spec: Mapping[str, Any], folder: Path, out: Path) -> None:
    api.attack(spec["attack"], options=spec["options"], target=spec["target"], out=out, **_training(spec))


def _training(spec: Mapping[str, Any]) -> dict[str, Any]:
    same = {name: spec[name] for name in ("arch", "epochs", "lr", "seed", "device")}
    return {"data": _data(spec), "sizes": Sizes(**spec["sizes"]), **same}


def _data(spec: Mapping[str, Any]) -> Dataset:
    """Load the data that was planned with: a worker on another machine may have other files of that name."""
    dataset = load_dataset(spec["data"])
    if data_digest(dataset) != spec["data_sha256"]:
        raise InputError(
            f"{spec['data']}: the images differ from those that the grid was planned with, here or since then"
        )
    return dataset


def _cell(spec: Mapping[str, Any], folder: Path, out: Path) -> None:
    run = open_run(folder / spec["victim"])
    donor = open_run(folder / spec["donor"]) if spec["donor"] else None
    contamination = Contamination(*spec["contamination"])
    pools: dict[str, Any] = {"clean": run.folder / "clean", "malicious": (donor or run).folder / "flagged"}
    if contamination != Contamination() or spec["budget"] is not None or spec["flagged"] is not None:
        drawn = defender_pools(
            run, contamination, spec["seed"], budget=spec["budget"], flagged=spec["flagged"], donor=donor
        )  # fmt: skip
        pools = dict(zip(pools, drawn, strict=True))
    defense = get("defense", spec["defense"]).parse(spec["options"])
    others = {o["label"]: get("defense", o["defense"]).parse(o["options"]) for o in spec["transfer_to"]}
    trains = any("train" in each.wants() for each in (defense, *others.values()))
    api.audit(
        run.model_path,
        defense=defense,
        run=run.folder,
        **pools,
        train=run.folder / "train" if trains else None,
        reference=folder / spec["reference"] if spec["reference"] else None,
        others=others,
        probes=[get("probe", p["name"]).parse(p["options"]) for p in spec["probes"]],
        policy=Policy(**spec["policy"]),
        screen=spec["screen"],
        evaluate=spec["evaluate"],
        seed=spec["seed"],
        device=spec["device"],
        out=out,
        keep=folder / KEPT,
        track=False,
    )
