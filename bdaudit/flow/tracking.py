"""Tell the installed trackers about a finished audit."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

from bdaudit import plugins
from bdaudit.errors import one_line
from bdaudit.report.schema import Report
from bdaudit.training.progress import say, warn


def tell_trackers(report: Report, folder: Path | None) -> None:
    """Call every tracker, in the order of their names, each with its own copy; one that raises becomes one warning."""
    for name, tracker in sorted(plugins.registry().trackers.items()):
        say(f"telling {name}")
        given = {"report": report.model_copy(deep=True), "folder": folder}
        try:
            with redirect_stdout(sys.stderr):  # stdout is the command's own: `--json` must stay one document
                tracker.function(*(given[argument] for argument in tracker.arguments))
        except (Exception, SystemExit) as e:
            warn(f"tracker {name} (from {tracker.origin}) failed: {type(e).__name__}: {one_line(e, 200)}")
