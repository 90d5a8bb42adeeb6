"""The formats a report can be shown in: names alone, so that the command line can offer them at no cost."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["text", "html", "markdown", "latex", "junit", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)

SideBySide = Literal["text", "html", "markdown", "latex"]
SIDE_BY_SIDE: tuple[SideBySide, ...] = get_args(SideBySide)
"""Those that people read. JSON is a document of one audit, and JUnit one set of test cases."""
