"""Look at the installation: versions, extension, threads, GPU, data."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import bdaudit
from bdaudit import ops, plugins
from bdaudit.errors import BackendError
from bdaudit.flow.provenance import git_revision
from bdaudit.inputs.datasets import data_root
from bdaudit.inputs.datasets.fashion_mnist import DEBIAN_FASHION_MNIST
from bdaudit.inputs.jail import strength
from bdaudit.runtime import Runtime, pick_device


def checkup() -> tuple[dict[str, str], bool]:
    """Return what there is, in words, and whether nothing installed is broken."""
    rows = {
        "bdaudit": f"{bdaudit.__version__} (git {git_revision()})",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
    }
    healthy = True
    try:
        backend = ops.backend()
        rows["extension"] = (
            f"{backend['path']} ({backend['isa']})" if backend["path"] else f"torch reference: {backend['note']}"
        )
        rows["blend on cpu, cuda"] = f"{backend['cpu']}, {backend['cuda']}"
        rows["extension built with CUDA"] = backend["cuda_architectures"] if backend["cuda_built"] else "no"
        features = [name for name, there in backend["cpu_features"].items() if there]
        rows["processor"] = f"{os.cpu_count()} cores, {' '.join(features) or 'no SIMD detected'}"
        rows["runtime"] = Runtime.of(pick_device()).describe()
    except BackendError as e:
        rows["extension"] = f"BROKEN: {e}"
        healthy = False
    rows["threads"] = str(torch.get_num_threads())
    rows["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows["sandbox for model files"] = sandbox = strength()
    healthy = healthy and not sandbox.startswith("BROKEN")
    rows["data"] = f"{data_root()} (BDAUDIT_DATA overrides)"
    rows["fashion-mnist (Debian)"] = str(DEBIAN_FASHION_MNIST) if DEBIAN_FASHION_MNIST.is_dir() else "not installed"
    registry = plugins.registry()
    for kind in plugins.KINDS:
        rows[f"{kind}s"] = ", ".join(registry.of_kind(kind)) or "none"
    rows["trackers"] = ", ".join(registry.trackers) or "none"
    rows["plugins left out"] = ", ".join(registry.left_out) or "none"
    for label, reason in registry.broken.items():
        rows[f"plugin {label}"] = f"BROKEN: {reason}"
        healthy = False
    return rows, healthy


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
