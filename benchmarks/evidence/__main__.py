"""Write docs/evidence.md: what the five papers claim, beside what was measured here, from the committed results.

    python -m benchmarks.evidence            # writes docs/evidence.md
    python -m benchmarks.evidence --check    # exit code 1 if it is not what the results say

No figure and no judgement in it is typed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.evidence.page import page
from benchmarks.evidence.results import Results

PAGE = Path(__file__).parent.parent.parent / "docs" / "evidence.md"


def main() -> int:
    """Write the page, or compare it with the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    text = page(Results())
    if parser.parse_args().check:
        return int(PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
