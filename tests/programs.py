"""What some tests run and not every machine has."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def _needed(found: object, otherwise: str) -> pytest.MarkDecorator:
    """Skip where something is missing and say what that leaves open; in CI nothing is skipped, and the test fails."""
    return pytest.mark.skipif(found is None and not os.environ.get("CI"), reason=otherwise)


needs_chromium = _needed(CHROMIUM, "NO PAGE WAS LOOKED AT: Chromium is not installed (apt-get install chromium)")
needs_latex = _needed(
    shutil.which("pdflatex"),
    "NO TABLE WAS COMPILED: pdflatex is not installed (apt-get install texlive-latex-recommended)",
)
needs_ray = _needed(find_spec("ray"), "NO CLUSTER WAS STARTED: Ray is not installed (pip install 'bdaudit[ray]')")
