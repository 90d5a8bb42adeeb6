"""What several test files use."""

from __future__ import annotations

from pathlib import Path

from bdaudit.inputs.architectures import complete, fresh, parse
from bdaudit.inputs.classifier import Classifier
from bdaudit.inputs.datasets import load_dataset
from bdaudit.runtime import generator


def make_tiny(arch: str = "small_cnn:width=4", seed: int = 0) -> Classifier:
    dataset = load_dataset("digits")
    return fresh(complete(parse(arch)), dataset.preprocessing, dataset.classes, generator(seed)).eval()


def snapshot(folder: Path) -> set[str]:
    """Every path below a folder, hidden ones included."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}
