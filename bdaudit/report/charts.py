"""Charts as inline SVG that follow the page's colours: matplotlib lays them out, the page paints them.

matplotlib never sees a word from outside. It draws placeholders in stand-in colours; afterwards each placeholder
becomes the real text (escaped by the XML writer) and each stand-in colour one of the page's CSS variables, so
that one drawing serves light, dark and print. No text from a report can be taken for mathtext or markup.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from bdaudit.report.content import Bar, Kind, curve_words, finite
from bdaudit.report.schema import Exhibit
from bdaudit.report.words import NUMBERS, clean, rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, ATTACK, REFERENCE, NULL, STRIPES, DOTS = (f"#00000{i}" for i in range(1, 9))
PAINTS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ATTACK: "var(--attack)",
    REFERENCE: "var(--reference)",
    NULL: "var(--null)",
    STRIPES: "url(#stripes)",
    DOTS: "url(#dots)",
}
BARS: dict[Kind, tuple[str, str]] = {
    "attack": (ATTACK, ATTACK),
    "reference": (STRIPES, REFERENCE),
    "null": (DOTS, NULL),
}  # fill and edge
PATTERNS = f"""<defs xmlns="http://www.w3.org/2000/svg">
<pattern id="stripes" patternUnits="userSpaceOnUse" width="3" height="3" patternTransform="rotate(45)">
<rect width="1.1" height="3" fill="{REFERENCE}"/></pattern>
<pattern id="dots" patternUnits="userSpaceOnUse" width="3" height="3"><circle cx="1.5" cy="1.5" r=".8" fill="{NULL}"/></pattern>
</defs>"""  # matplotlib's own hatches weigh 100 KB each

WIDTH = 4.7  # inches: 338 units, so that text is of reading size on a phone
UNITS = 72 * WIDTH
SIZE = 10.0
AUDITED = ("purified", "attack success", "backdoor loss")
"""Curves that are drawn as what the audit is about; no exhibit has two of them."""
HEIGHT_OF_LINE = 15.0
POINTS, CURVES = 2000, 12
NAMES, SLANT = 22, 60
"""Names that fit on the x axis, and the degrees at which they stand so as never to overlap."""

SVG = "http://www.w3.org/2000/svg"
_NUMBER = re.compile(r"(\.\d\d)\d+")
_FONT = re.compile(r"font(?:-family)?:[^;]*'DejaVu Sans'[^;]*;?")


def bar_chart(bars: Sequence[Bar], key: str) -> str:
    """Draw rates as bars with interval whiskers, the words above each; '' without bars.

    The trigger under audit is solid, the reference striped, other controls dotted; a dashed mark is the
    policy's bound. key makes the ids of this drawing its own.
    """
    if not bars:
        return ""
    words = Words()
    # A little air before each bar of the trigger under audit keeps its controls with it.
    places = list(accumulate((1.3 if bar.kind == "attack" else 1.0 for bar in bars), initial=-1.3))[1:]
    with _figure(0.42 * (places[-1] + 1) + 0.42) as fig:
        axes = _axes(fig, left=0.01, right=0.99, bottom=0.3)
        axes.set_xlim(-0.004, 1.004)
        axes.set_ylim(places[-1] + 0.65, -0.75)
        axes.set_yticks([])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [words(t) for t in ("0%", "25%", "50%", "75%", "100%")])
        labels = axes.get_xticklabels()
        labels[0].set_horizontalalignment("left")
        labels[-1].set_horizontalalignment("right")
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        for y, bar in zip(places, bars, strict=True):
            f = bar.finding
            fill, edge = BARS[bar.kind]
            axes.barh(y, _unit(f.value), 0.36, color=fill, edgecolor=edge, linewidth=0.8, clip_on=False)
            if f.low is not None and f.high is not None:
                low, high = sorted((_unit(f.low), _unit(f.high)))
                axes.plot([low, high], [y, y], color=INK, linewidth=1.1)
                for end in (low, high):
                    axes.plot([end, end], [y - 0.11, y + 0.11], color=INK, linewidth=1.1)
            if bar.bound is not None:
                axes.plot(
                    [_unit(bar.bound)] * 2, [y - 0.27, y + 0.3], color=INK, linewidth=1.3, linestyle=(0, (2, 1.3))
                )
            audited = bar.kind == "attack"
            color, weight = (INK, "bold") if audited else (MUTED, "normal")
            axes.text(0, y - 0.29, words(clean(bar.label, 36)), color=color, ha="left", va="bottom", weight=weight)
            axes.text(1, y - 0.29, words(rate(f, spread=False)), color=color, ha="right", va="bottom", weight=weight)
        drawn = _svg(fig)
    said = "; ".join(f"{bar.label}: {rate(bar.finding)}" for bar in bars)
    return _finish(drawn, words, key, "Attack success rates with 95% intervals", said)


def line_chart(exhibit: Exhibit, key: str) -> str:
    """Draw an exhibit's curves over x, told apart by colour, dash and marker; '' without curves."""
    curves = [(name, ys[:POINTS]) for name, ys in exhibit.curves.items() if ys][:CURVES]
    if not curves:
        return ""
    words = Words()
    longest = max(len(ys) for _, ys in curves)
    names = [clean(name, 16) for name in exhibit.x_names[:longest]]
    xs = [] if names else [finite(x) for x in exhibit.x[:POINTS]]
    xs = xs or [float(i) for i in range(longest)]
    rates = exhibit.metric not in NUMBERS and all(0 <= y <= 1 for _, ys in curves for y in ys)
    legend, reach = 0.21 * len(curves), _reach(names)
    with _figure(2.6 + reach + legend) as fig:
        axes = _axes(fig, left=0.13, right=0.97, bottom=0.52 + reach + legend)
        controls = 0
        for name, ys in curves:
            color, dash, marker, width = _look(name, controls)
            controls += name not in (*AUDITED, "reference", "suspect")
            n = min(len(xs), len(ys))
            axes.plot(
                xs[:n], [finite(y) for y in ys[:n]], color=color, linestyle=dash, linewidth=width,
                marker=marker if n <= 40 else None, markersize=4, markerfacecolor=color if dash == "-" else "none",
                label=words(clean(name, 48)), clip_on=False,
            )  # fmt: skip
        if rates:
            axes.set_ylim(0, 1)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        elif names and all(y >= 0 for _, ys in curves for y in ys):
            axes.set_ylim(bottom=0)  # lengths are compared from nothing
        ticks = [t for t in axes.get_yticks() if axes.get_ylim()[0] <= t <= axes.get_ylim()[1]]
        axes.set_yticks(ticks, [words(f"{100 * t:.0f}%" if rates else f"{t:.4g}") for t in ticks])
        if names:
            _name_places(fig, axes, [words(name) for name in names], reach)
        else:
            low, high = min(xs), max(xs)
            steps = xs if len(xs) <= 8 else [x for x in axes.get_xticks() if low <= round(x, 9) <= high]
            axes.set_xticks(steps, [words(f"{x:.4g}") for x in steps])
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_xlabel(words(clean(exhibit.x_label, 60)), color=MUTED)
        axes.set_title(words(clean(exhibit.y_label, 60)), color=MUTED, loc="left", fontsize=SIZE, x=-0.1)
        fig.legend(
            *axes.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.1, 0), frameon=False,
            labelcolor=INK, handlelength=3.2, borderaxespad=0, labelspacing=0.35,
        )  # fmt: skip
        drawn = _svg(fig)
    return _finish(drawn, words, key, clean(exhibit.title), curve_words(exhibit))


def _reach(names: Sequence[str]) -> float:
    """Estimate how far down slanted names reach, in inches; letters of other scripts may be twice as wide."""
    longest = max((sum(1 if c.isascii() else 2 for c in name) for name in names), default=0)
    return 0.075 * longest * math.sin(math.radians(SLANT))


def _name_places(fig: Figure, axes: Axes, names: Sequence[str], reach: float) -> None:
    """Name as many places on the x axis as there is room for, the last one in any case."""
    shown = range(len(names) - 1, -1, -len(names) // NAMES)
    axes.set_xticks(
        list(shown), [names[i] for i in shown], rotation=SLANT, rotation_mode="anchor", ha="right", va="center"
    )
    # Given a place, since matplotlib lays the axis's own label out below stand-ins, which are shorter or longer.
    axes.xaxis.set_label_coords(0.5, -(reach + 0.2) / (axes.get_position().height * fig.get_figheight()))


class Words:
    """Hand out placeholders for texts, and give the texts back."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """Return a harmless stand-in for a text."""
        name = f"text{len(self._texts)}"
        self._texts[name] = text
        return name

    def of(self, name: str) -> str:
        """Return the text behind a stand-in."""
        return self._texts.get(name, name)


def _look(name: str, controls: int) -> tuple[str, str | tuple[int, tuple[float, ...]], str, float]:
    if name in AUDITED:
        return ATTACK, "-", "o", 2.0
    if name == "suspect":
        return INK, (0, (6, 2)), "D", 1.4
    if name == "reference":
        return REFERENCE, (0, (5, 2)), "s", 1.6
    dashes = ((1, 1.2), (4, 1.2, 1, 1.2), (2, 1), (6, 1.2, 1, 1.2, 1, 1.2))
    return NULL, (0, dashes[controls % len(dashes)]), "^vxD+<>"[controls % 7], 1.2


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    """Open a figure that no configuration of the machine can change, without pyplot's global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bdaudit", "font.size": SIZE})
        yield Figure(figsize=(WIDTH, height))


def _axes(fig: Figure, left: float, right: float, bottom: float) -> Axes:
    """Add axes without a frame; left and right in parts of the width, bottom in inches."""
    height = float(fig.get_figheight())
    top = 0.26 if bottom > 0.5 else 0.02
    axes = fig.add_axes((left, bottom / height, right - left, 1 - (bottom + top) / height))
    axes.set_frame_on(False)
    axes.tick_params(length=0, labelcolor=MUTED)
    return axes


def _svg(fig: Figure) -> str:
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _finish(drawn: str, words: Words, key: str, title: str, description: str) -> str:
    """Put in the texts, the page's colours, ids of its own, and a title and description for screen readers."""
    root = ET.fromstring(drawn[drawn.index("<svg") :])
    for parent in root.iter():
        for child in list(parent):
            if child.tag == f"{{{SVG}}}metadata" or child.tag == f"{{{SVG}}}style" or _empty(child):
                parent.remove(child)
    if STRIPES in drawn or DOTS in drawn:
        root.append(ET.fromstring(PATTERNS))
    used = {"stripes", "dots", *re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", drawn)}
    for element in root.iter():
        tag = element.tag = _local(element.tag)
        for name in list(element.attrib):
            value = element.attrib.pop(name)
            if name == "id" and value not in used:
                continue
            element.set(_local(name), _rename(_repaint(value), name, key))
        if tag == "text":
            element.text = words.of((element.text or "").strip())
            if element.get("transform", "").startswith("rotate(-0"):
                element.attrib.pop("transform")
        elif tag == "path" and "d" in element.attrib:
            element.set("d", _NUMBER.sub(r"\1", " ".join(element.attrib["d"].split())))
        if tag != "text" and not (element.text or "").strip():
            element.text = None
        element.tail = None
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    described(root, key, title, description)
    return ET.tostring(root, encoding="unicode")


def described(root: ET.Element, key: str, title: str, description: str) -> None:
    """Give a drawing a title and a description for screen readers."""
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-desc")
    for i, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(tag, id=f"{key}-{tag}")
        element.text = text
        root.insert(i, element)


def _local(name: str) -> str:
    """Drop the namespace: HTML knows svg and href by themselves."""
    return name.rpartition("}")[2]


def _empty(element: ET.Element) -> bool:
    return element.tag == f"{{{SVG}}}g" and not any(e.tag != f"{{{SVG}}}g" for e in element.iter())


def _rename(value: str, name: str, key: str) -> str:
    """Prefix an id, or the places that refer to one."""
    if name == "id":
        return f"{key}-{value}"
    return re.sub(r"^#|(?<=url\()#", f"#{key}-", value) if "href" in name or "url(" in value else value


def _repaint(value: str) -> str:
    """Swap stand-in colours for the page's, and matplotlib's font list for the page's font."""
    for color, paint in PAINTS.items():
        value = value.replace(color, paint)
    value = _FONT.sub(_font, value)
    return re.sub(r"\s*([:;])\s*", r"\1", value)


def _font(found: re.Match[str]) -> str:
    """Keep size and weight; the face is the page's."""
    size = re.search(r"[\d.]+px", found[0])
    return (f"font-size:{size[0]};" if size else "") + ("font-weight:600;" if "700" in found[0] else "")


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))
