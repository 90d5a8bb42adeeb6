"""Maps of points and named places on an axis: what they show, in marks and in words, and what they can bear."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from reports import HOSTILE, audited, empty

from bdaudit.report.charts import UNITS, line_chart
from bdaudit.report.content import curve_words, map_words
from bdaudit.report.maps import MARKS, MOST, map_chart
from bdaudit.report.render import render
from bdaudit.report.schema import Exhibit
from bdaudit.report.words import clean

DISTANCES, FEATURES = audited().exhibits[-2:]
Place = tuple[float, float]


def exhibit(**parts: object) -> Exhibit:
    return Exhibit.model_validate({"probe": "p", "metric": "m", "title": "t", **parts})


def drawn(e: Exhibit) -> list[list[Place]]:
    """Where each group's points lie, read off the drawing (the legend's mark comes after its group's)."""
    paths = ET.fromstring(map_chart(e, "k")).findall("path")[::2]
    return [[(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)", p.get("d") or "")] for p in paths]


def test_each_point_is_drawn_where_it_lies_on_one_scale() -> None:
    """To the right is to the right, up is up, and a distance is as long along one axis as along the other."""
    [[origin, right, up]] = drawn(exhibit(points={"a": [(0, 0), (2, 0), (0, 1)]}))
    assert right[0] > origin[0]
    assert right[1] == origin[1]
    assert up[1] < origin[1]
    assert up[0] == origin[0]
    assert right[0] - origin[0] == pytest.approx(2 * (origin[1] - up[1]), abs=0.2)


def test_groups_differ_by_mark_and_colour_and_the_legend_counts_them() -> None:
    """Neither a printer without colours nor a reader who does not see them mixes two groups up."""
    assert len({m.path for m in MARKS}) == len({m.color for m in MARKS}) == len(MARKS)
    root = ET.fromstring(map_chart(FEATURES, "k"))
    assert [t.text for t in root.findall("text")] == [
        "clean images of other classes: 100",
        "clean images of class 0, the target: 20",
        "triggered images: 50",
    ]
    assert [len(at) for at in drawn(FEATURES)] == [100, 20, 50]


def test_a_map_is_told_in_words_wherever_it_cannot_be_seen() -> None:
    """The drawing's description, text and Markdown say who is on the map and whom the triggered images lie among."""
    said = map_words(FEATURES)
    assert "triggered images, 50" in said
    assert "lies nearest" not in said  # of two groups one is nearer whatever there is to see
    third = FEATURES.points | {"clean images of class 1": [(90.0, 90.0)]}
    groups = {k: third[k] for k in sorted(third)}  # triggered images come last
    more = map_words(FEATURES.model_copy(update={"points": groups}))
    assert more.endswith("“triggered images” lies nearest to that of “clean images of class 0, the target”.")
    root = ET.fromstring(map_chart(FEATURES, "k"))
    assert [e.text for e in root if e.tag in ("title", "desc")] == [FEATURES.title, said]
    for format in ("text", "markdown"):
        assert said in " ".join(render(audited(), format).replace("\\", "").split())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "points",
    [
        {"one": [(0.5, 0.5)]},
        {"same": [(1.0, 1.0)] * 5, "same again": [(1.0, 1.0)]},
        {"huge": [(1e308, -1e308), (-1e308, 1e308)], "tiny": [(5e-324, 0)]},
        {"row": [(float(i), 0.0) for i in range(9)]},
        {"column": [(0.0, float(i)) for i in range(9)], "none": []},
    ],
    ids=lambda p: next(iter(p)),
)
def test_every_point_stays_on_the_map(points: dict[str, list[Place]]) -> None:
    e = exhibit(points=points)
    root = ET.fromstring(map_chart(e, "k"))
    width, height = map(float, (root.get("viewBox") or "").split()[2:])
    assert width == pytest.approx(UNITS)
    groups = drawn(e)
    assert [len(at) for at in groups] == [len(places) for places in points.values() if places]
    assert all(0 < x < width and 0 < y < height for at in groups for x, y in at)
    assert map_words(e)


def test_a_crowd_is_thinned_and_the_legend_says_so() -> None:
    """A report of a hundred thousand points makes a drawing of bounded size, of points from all over each group."""
    places = [(i / 100, (i * 7919 % 1000) / 1000) for i in range(10_000)]
    e = exhibit(points={f"group {i}": places for i in range(10)})
    svg = map_chart(e, "k")
    assert len(svg) < 100_000
    assert sum(map(len, drawn(e))) <= MOST
    [first, *_] = drawn(e)
    assert first[-1][0] - first[0][0] > 0.9 * (UNITS - 20)
    assert f"group 0: 10,000 ({len(first)} drawn)" in svg


def test_names_from_outside_are_text_and_nothing_else() -> None:
    """Markup, control characters and endless names arrive as the cleaned text, in maps and at named places."""
    e = exhibit(title=HOSTILE[0], points={h: [(0.0, 0.0)] for h in HOSTILE[:6]})
    root = ET.fromstring(map_chart(e, "k"))
    assert {x.tag for x in root.iter()} == {"svg", "title", "desc", "rect", "path", "text"}
    assert [t.text for t in root.findall("text")] == [f"{clean(h, 40)}: 1" for h in HOSTILE[:6]]
    named = exhibit(curves={"a": [1.0] * len(HOSTILE)}, x_names=HOSTILE)
    texts = [t.text or "" for t in ET.fromstring(line_chart(named, "k")).iter("text")]
    assert [t for t in texts if t in {clean(h, 16) for h in HOSTILE}]
    assert not [t for t in texts if len(t) > 60 or not t.isprintable()]


def test_nothing_is_drawn_or_said_without_points() -> None:
    assert map_chart(exhibit(), "k") == map_words(exhibit()) == map_chart(exhibit(points={"a": []}), "k") == ""
    assert "Curves and maps" not in render(empty(), "text")


@pytest.mark.parametrize("count", [1, 2, 22, 23, 48, 500, 5000])
def test_named_places_are_thinned_so_that_no_two_names_touch(count: int) -> None:
    """Slanted names keep a line's height between them whatever their number, and the last, the head, has one."""
    e = exhibit(curves={"a": [float(i % 9) for i in range(count)]}, x_names=[f"layer{i}" for i in range(count)])
    slanted = [t for t in ET.fromstring(line_chart(e, "k")).iter("text") if "rotate(-60" in (t.get("transform") or "")]
    xs = sorted(float(t.get("x") or "") for t in slanted)
    gaps = [(b - a) * math.sin(math.radians(60)) for a, b in pairwise(xs)]
    assert all(gap >= 10 for gap in gaps)
    assert 1 <= len(xs) <= 22
    assert f"layer{min(count, 2000) - 1}" in {t.text for t in slanted}


def test_long_names_push_the_legend_down_and_stay_above_the_axis_label() -> None:
    """Room is made for the names that are really shown, of which matplotlib saw only stand-ins."""

    def lowest(names: list[str]) -> tuple[float, float]:
        e = exhibit(curves={"a": [0.0, 1.0]}, x_names=names, x_label="from input to output")
        root = ET.fromstring(line_chart(e, "k"))
        height = float((root.get("viewBox") or "").split()[3])
        [label] = [float(t.get("y") or "") for t in root.iter("text") if t.text == "from input to output"]
        [top] = [float(t.get("y") or "") for t in root.iter("text") if t.text == clean(names[-1], 16)]
        return height, label - top

    (low, near), (high, far), (_, farthest) = lowest(["a", "b"]), lowest(["a", "b" * 40]), lowest(["a", "中" * 40])
    assert high > low + 40
    assert near < far < farthest
    assert far > 16 * 5 * math.sin(math.radians(60))


def test_distances_are_never_written_as_percentages() -> None:
    """A relative distance of 0.9 is no rate, though it lies between 0 and 1."""
    texts = [t.text or "" for t in ET.fromstring(line_chart(DISTANCES, "k")).iter("text")]
    assert not [t for t in texts if "%" in t]
    assert "0" in texts  # lengths are compared from nothing


def test_curves_over_named_places_are_told_by_their_extremes() -> None:
    """From the first layer to the last says nothing; where it is most and least does."""
    assert "purified most at linear (0.9), least at layer1.0.conv1 (0)" in curve_words(DISTANCES)
    short = DISTANCES.model_copy(update={"x_names": ["one"]})
    assert "most at place 21 (0.9), least at one (0)" in curve_words(short)
