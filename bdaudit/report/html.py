"""The report as one HTML file: no network, no scripts, readable on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import binascii
import functools
import struct
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bdaudit.report import charts, compare, content, maps, tables, words
from bdaudit.report.schema import Exhibit, Report, Verdict
from bdaudit.report.words import clean

if TYPE_CHECKING:
    import jinja2

ICONS: dict[Verdict | None, str] = {"pass": "✓", "fail": "✗", "inconclusive": "?", None: "•"}
EXHIBITS, LONGEST_SIDE = 40, 16_384


class Picture(NamedTuple):
    """A PNG image in base64, with its size in pixels."""

    data: str
    width: int
    height: int


class Shown(NamedTuple):
    """An exhibit made ready: cleaned words, a chart, a picture, or a word on why it is missing."""

    title: str
    caption: str
    said: str
    chart: str
    picture: Picture | None
    missing: bool


class Group(NamedTuple):
    """What one probe has to show."""

    title: str
    exhibits: list[Shown]


def render(report: Report) -> str:
    """Write the report as one self-contained HTML document; jinja2 escapes whatever came from outside."""
    from markupsafe import Markup

    groups: dict[str, Group] = {}
    for i, e in enumerate(islice(report.exhibits, EXHIBITS)):
        shown = _shown(e, f"exhibit{i}")
        group = groups.setdefault(e.probe, Group(words.stage(e.probe), []))
        group.exhibits.append(shown._replace(chart=Markup(shown.chart)))
    bars = content.bars(report)
    return template("report.html").render(
        report=report,
        content=content,
        words=words,
        tables=tables,
        title=clean(report.title),
        chart=Markup(charts.bar_chart(bars, "rates")),  # our own SVG, its texts escaped
        kinds={bar.kind for bar in bars},
        groups=list(groups.values()),
        exhibits_left_out=max(0, len(report.exhibits) - EXHIBITS),
        icons=ICONS,
    )


def side_by_side(audits: Sequence[compare.Audit]) -> str:
    """Write several audits beside one another as one self-contained HTML document."""
    from markupsafe import Markup

    return template("compare.html").render(
        audits=audits,
        sections=compare.sections(audits),
        unlike=bool(compare.unlike(audits)),
        chart=Markup(charts.bar_chart(compare.bars(audits), "rates")),
        content=content,
        words=words,
        clean=clean,
        title=compare.title(audits),
        icons=ICONS,
    )


def png(text: str) -> Picture | None:
    """Decode base64 that must hold a PNG image and encode it anew; None for anything else."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height = struct.unpack(">II", data[16:24])
    if not (0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE):
        return None
    return Picture(base64.b64encode(data).decode(), width, height)


def _shown(exhibit: Exhibit, key: str) -> Shown:
    picture = png(exhibit.picture) if exhibit.picture else None
    return Shown(
        title=clean(exhibit.title) or words.stage(exhibit.probe),
        caption=clean(exhibit.caption, 1000),
        said=content.curve_words(exhibit),
        chart=charts.line_chart(exhibit, key) + maps.map_chart(exhibit, f"{key}-map"),
        picture=picture,
        missing=bool(exhibit.picture) and picture is None,
    )


@functools.cache
def template(name: str) -> jinja2.Template:
    """Load a template; whatever is put into it is escaped, and a name that it is not given is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)
