"""Maps of points as inline SVG in the page's colours: groups differ by mark as well as by colour.

Drawn by hand: a group is one path of a dozen bytes a point, where matplotlib would write a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

from bdaudit.report.charts import HEIGHT_OF_LINE, UNITS, described
from bdaudit.report.content import finite, map_words
from bdaudit.report.schema import Exhibit
from bdaudit.report.words import clean

MOST, EDGE = 2400, 8.0
"""Most points of a map, and the air around them."""


class Mark(NamedTuple):
    """How a group is drawn: an SVG path from the point's place, a colour, a line's width."""

    path: str
    color: str
    width: float


MARKS = (
    Mark("h0", "muted", 2.8),  # a dot: a line of no length with round ends
    Mark("m-2.3-2.3h4.6v4.6h-4.6z", "reference", 1.2),
    Mark("m-2-2l4 4m0-4l-4 4", "attack", 1.2),
    Mark("m0-2.8l2.6 4.6h-5.2z", "null", 1.2),
    Mark("m0-3l3 3-3 3-3-3z", "ink", 1.2),
    Mark("m-2.7 0h5.4m-2.7-2.7v5.4", "pass", 1.2),
)


def map_chart(exhibit: Exhibit, key: str) -> str:
    """Draw an exhibit's points, a mark and colour a group, those named last on top; '' without points."""
    groups = [(name, places) for name, places in exhibit.points.items() if places][: len(MARKS)]
    if not groups:
        return ""
    shown = [_thinned(places, MOST // len(groups)) for _, places in groups]
    xs, ys = ([p[axis] for places in shown for p in places] for axis in (0, 1))
    inner = UNITS - 2 * EDGE
    # One scale for both axes: distances are what a map is read for.
    scale = inner / (max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0)
    height = max(inner / 2, scale * (max(ys) - min(ys)))
    left = EDGE + (inner - scale * (max(xs) - min(xs))) / 2
    bottom = EDGE + (height + scale * (max(ys) - min(ys))) / 2
    total = height + 2 * EDGE + HEIGHT_OF_LINE * len(groups) + 4
    root = ET.Element("svg", viewBox=f"0 0 {UNITS:g} {total:.1f}")
    frame = {"x": ".5", "y": ".5", "width": f"{UNITS - 1:g}", "height": f"{height + 2 * EDGE - 1:.1f}", "rx": "4"}
    ET.SubElement(root, "rect", frame, style="fill:none;stroke:var(--line)")
    for i, ((name, places), kept, mark) in enumerate(zip(groups, shown, MARKS, strict=False)):
        style = f"fill:none;stroke:var(--{mark.color});stroke-width:{mark.width};stroke-linecap:round"
        line = height + 2 * EDGE + HEIGHT_OF_LINE * (i + 1)
        at = [(left + scale * (x - min(xs)), bottom - scale * (y - min(ys))) for x, y in kept]
        ET.SubElement(root, "path", d=_path(at, mark), style=style)
        ET.SubElement(root, "path", d=_path([(EDGE, line - 3.5)], mark), style=style)
        text = ET.SubElement(root, "text", x=f"{EDGE + 10:g}", y=f"{line:.1f}", style="font-size:10px;fill:var(--ink)")
        few = f" ({len(kept):,} drawn)" if len(kept) < len(places) else ""
        text.text = f"{clean(name, 40)}: {len(places):,}{few}"
    described(root, key, clean(exhibit.title), map_words(exhibit))
    return ET.tostring(root, encoding="unicode")


def _thinned(places: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    step = -(-len(places) // most)
    return [(finite(x), finite(y)) for x, y in places[::step]]


def _path(at: Sequence[tuple[float, float]], mark: Mark) -> str:
    return "".join(f"M{x:.1f} {y:.1f}{mark.path}" for x, y in at)
