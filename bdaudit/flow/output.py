"""What an audit leaves in its folder."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bdaudit.errors import InputError
from bdaudit.inputs.checkpoint import Checkpoint, save_checkpoint
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.files import atomic_file, sha256, visible
from bdaudit.report.render import render
from bdaudit.report.schema import Granted, Measurement, Report, is_artifact, read_report

REPORT = "report.json"


def write_audit(
    folder: Path,
    report: Report,
    purified: Classifier | None,
    suspect: Checkpoint | None,
    artifacts: Mapping[str, bytes] | None = None,
) -> None:
    """Write report.json, report.html, what plugins left, and the purified model in the suspect's own format."""
    for name, content in (artifacts or {}).items():
        (folder / name).write_bytes(content)
    (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
    (folder / "report.html").write_text(render(report, "html"), encoding="utf-8")
    if purified is not None:
        name = f"{suspect.path.stem}.purified{suspect.path.suffix}" if suspect else "purified.pt"
        made_by = report.provenance["defense"]
        granted = [g for g in report.granted if g.plugin == made_by["name"]]
        write_purified(folder / name, purified, suspect, made_by, granted)


def write_purified(
    path: Path, purified: Classifier, suspect: Checkpoint | None, made_by: Mapping[str, Any], granted: Sequence[Granted]
) -> None:
    """Write a purified model in the suspect's own format, and what it was made by: a defense's `name` and options."""
    options = {option: value for option, value in made_by.items() if option != "name"}
    provenance = {
        "purified_by": made_by["name"],
        "options": options,
        "granted": [g.model_dump() for g in granted],
        "suspect_sha256": suspect.sha256 if suspect else "",
    }
    save_checkpoint(purified, path, like=suspect, provenance=provenance)


def write_found(out: Path, found: Measurement) -> list[Path]:
    """Write what a defense found beside its purified model, `OUT.ARTIFACT.safetensors` and pictures; returns paths."""
    content = dict(found.artifacts)
    content |= {f"{e.probe}-{e.metric}.png": base64.b64decode(e.picture) for e in found.exhibits if e.picture}
    paths = {out.with_name(f"{out.stem}.{name}"): data for name, data in content.items()}
    for path, data in paths.items():
        with atomic_file(path) as partial:
            partial.write_bytes(data)
    return list(paths)


def is_audit(folder: Path) -> bool:
    """Whether a folder holds an audit and nothing else (and so may be replaced by a new one)."""
    try:
        kept = read_report(folder / REPORT).provenance.get("artifacts", {})
    except InputError:
        return False
    others = {
        name
        for name in visible(folder) - {REPORT, "report.html"}
        if not (isinstance(kept, dict) and is_artifact(name) and kept.get(name) == sha256(folder / name))
    }
    return len(others) <= 1 and all(".purified" in name or name == "purified.pt" for name in others)
