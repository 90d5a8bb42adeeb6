"""Screen flagged and clean images against each other, for a defense or as folders of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from bdaudit.errors import UsageError
from bdaudit.flow.evidence import Evidence, target_label
from bdaudit.flow.provenance import environment
from bdaudit.flow.record import Record
from bdaudit.inputs.folders import write_folder, write_table
from bdaudit.inputs.pool import Pool
from bdaudit.report.scores import score_chart
from bdaudit.training.progress import say
from bdaudit.training.screening import Screening, screen

INDEX, CHART = "screen.csv", "scores.svg"


class ScreenRecord(Record):
    """What screen.json says: whether the pools can be told apart, and what that came to.

    doubt: why they cannot, '' where they can. auc: value and 95% interval. images: rows given, and rows written.
    """

    FILE = "screen.json"

    statement: str
    doubt: str
    target: int
    target_class: str
    features_after: str
    auc: tuple[float, float, float]
    moved: int = Field(ge=0)
    dropped: int = Field(ge=0)
    images: dict[str, int]
    notes: list[str]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Screened:
    """The pools as they were given, what the screening says of each row, and what is left of them."""

    found: Screening
    given_clean: Pool
    given_flagged: Pool
    clean: Pool
    flagged: Pool
    record: ScreenRecord


def screened(evidence: Evidence, rng: torch.Generator) -> Evidence:
    """Give a defense the screened pools in place of its own; UsageError where either is missing."""
    if evidence.clean is None or evidence.malicious is None or evidence.goal is None:
        missing = (
            "flagged images: give --malicious DIR" if evidence.malicious is None else "clean images: give --clean DIR"
        )
        raise UsageError(f"--screen compares flagged images with clean ones, and there are no {missing}")
    found = screen(evidence.suspect, evidence.clean, evidence.malicious, target_label(evidence.goal), rng)
    say(str(found))
    clean, malicious = found.pools(evidence.clean, evidence.malicious)
    sources = {name: f"{evidence.sources.get(name, 'given')}, screened" for name in ("clean", "malicious")}
    return replace(
        evidence,
        clean=clean,
        malicious=malicious,
        sources=evidence.sources | sources,
        notes=(*evidence.notes, f"screening: {found}"),
    )


def screen_evidence(evidence: Evidence, rng: torch.Generator, depth: float, **provenance: Any) -> Screened:
    """Screen the pools and put together what there is to say of it."""
    clean, flagged = evidence.clean, evidence.malicious
    assert clean is not None
    assert flagged is not None
    assert evidence.goal is not None
    found = screen(evidence.suspect, clean, flagged, target_label(evidence.goal), rng, depth=depth)
    left, joined = found.pools(clean, flagged)
    record = ScreenRecord(
        statement=str(found),
        doubt=found.doubt,
        target=found.target,
        target_class=evidence.suspect.classes[found.target],
        features_after=found.at,
        auc=found.auc,
        moved=int(found.moved.sum()),
        dropped=int(found.dropped.sum()),
        images={"clean_given": len(clean), "flagged_given": len(flagged), "clean": len(left), "flagged": len(joined)},
        notes=list(evidence.notes),
        provenance={**environment(), "depth": depth, **provenance},
    )
    return Screened(found, clean, flagged, left, joined, record)


def write_screen(folder: Path, screened: Screened, classes: tuple[str, ...]) -> None:
    """Fill a folder (which the caller makes whole or not at all) with clean/, flagged/, scores and record."""
    found = screened.found
    paths = {
        "clean": write_folder(screened.clean, folder / "clean", classes=classes) if len(screened.clean) else [],
        "flagged": write_folder(screened.flagged, folder / "flagged", flat=True),
    }
    # `pools` keeps the order: what stays in the clean pool, and in the other one what stays, then what was moved.
    left, joined = iter(paths["clean"]), iter(paths["flagged"])
    flagged = [("dropped", "") if out else ("kept", f"flagged/{next(joined)}") for out in found.dropped.tolist()]
    clean = [
        ("moved", f"flagged/{next(joined)}") if moved else ("kept", f"clean/{next(left)}")
        for moved in found.moved.tolist()
    ]
    pools = (
        ("clean", screened.given_clean, found.clean, clean),
        ("flagged", screened.given_flagged, found.flagged, flagged),
    )
    rows = [
        (name, origin, label, f"{score:.6f}", *place)
        for name, pool, scores, places in pools
        for origin, label, score, place in zip(pool.origin, pool.labels.tolist(), scores.tolist(), places, strict=True)
    ]
    write_table(folder / INDEX, ["pool", "image", "label", "score", "decision", "path"], rows)
    of_target = screened.given_clean.labels.cpu() == found.target
    groups = {
        "clean, other classes": found.clean[~of_target].tolist(),
        "clean, labelled with the target": found.clean[of_target].tolist(),
        "flagged": found.flagged.tolist(),
    }
    (folder / CHART).write_text(score_chart(groups), encoding="utf-8")
    screened.record.write(folder)


def is_screen(folder: Path) -> bool:
    """Whether a folder holds a screening and nothing else (and so may be replaced by a new one)."""
    return ScreenRecord.fills(folder, {INDEX, CHART, "clean", "flagged"})
