"""What was used: versions, hashes, revision."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import bdaudit
from bdaudit import ops, plugins
from bdaudit.flow.evidence import Evidence
from bdaudit.inputs.architectures import find
from bdaudit.inputs.classifier import ArchSpec, Classifier
from bdaudit.inputs.pool import Pool


def environment() -> dict[str, Any]:
    """Versions of bdaudit, torch and Python, of every plugin imported with its hash, and a checkout's git revision."""
    return {
        "bdaudit": bdaudit.__version__,
        "git": git_revision(),
        "plugins": list(dict.fromkeys(f"{o} sha256:{o.sha256}" for o in plugins.registry().origins())),
        "python": platform.python_version(),
        "torch": version("torch"),
        "ops": ops.backend()["cpu"],
        "threads": torch.get_num_threads(),
    }


@cache
def git_revision() -> str:
    """The revision of the checkout that bdaudit runs from; `none` for an installed copy."""
    root = Path(bdaudit.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "none"
    done = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "none"


def describe_pool(pool: Pool, source: str) -> dict[str, Any]:
    """Size and hash of a pool."""
    return {"n": len(pool), "sha256": pool.digest(), "source": source}


def describe_evidence(evidence: Evidence) -> dict[str, Any]:
    """Size, hash and origin of everything that an audit was given or cut for itself."""
    pools = {n: getattr(evidence, n) for n in ("clean", "malicious", "train", "benign", "test")}
    described: dict[str, Any] = {"model": describe_model(evidence.suspect), "goal": str(evidence.goal or "unknown")}
    if evidence.reference is not None:
        source = evidence.sources.get("reference", "")
        described["reference"] = describe_model(evidence.reference) | {"source": source}
    described |= {f"other: {name}": describe_model(model) for name, model in evidence.others.items()}
    described |= {n: describe_pool(p, evidence.sources.get(n, "")) for n, p in pools.items() if p is not None}
    if evidence.backdoor is not None:
        described["evaluation"] = describe_pool(evidence.backdoor.evaluation, evidence.backdoor.source)
        described["reactivation"] = describe_pool(evidence.backdoor.reactivation, evidence.backdoor.source)
    if evidence.proxy is not None:
        described["inversion"] = describe_pool(evidence.proxy.rows, evidence.sources.get("inversion", ""))
    if evidence.trigger is not None:
        described["trigger"] = {"kind": evidence.trigger.kind, "sha256": evidence.trigger.digest()}
    return described


def describe_model(model: Classifier) -> dict[str, Any]:
    """Architecture, where its code is from, and hash of a model's weights."""
    return {
        "arch": str(model.arch) if model.arch else type(model.body).__name__,
        **describe_source(model.arch),
        "weights_sha256": weights_digest(model),
    }


def describe_source(arch: ArchSpec | None) -> dict[str, str]:
    """Where an architecture's code is from, if not from bdaudit or torchvision."""
    source = find(arch.name).source if arch else ""
    return {"arch_source": source} if source else {}


def weights_digest(model: Classifier) -> str:
    """Hash all weights and buffers (hex)."""
    total = hashlib.sha256()
    for name, tensor in model.body.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
