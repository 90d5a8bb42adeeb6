"""The renderers: what each must say, and that nothing from outside is taken for markup."""

from __future__ import annotations

import base64
import functools
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree as ET

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from reports import HOSTILE, audited, empty, hostile, huge, png, row

from bdaudit.errors import UsageError
from bdaudit.report import content, html, junit, markdown, tables
from bdaudit.report.charts import line_chart
from bdaudit.report.render import FORMATS, Format, render
from bdaudit.report.schema import Exhibit, Report, Verdict, read_report
from bdaudit.report.words import clean

REPORTS = {"audited": audited, "hostile": hostile, "empty": empty, "huge": huge}
CSS = (Path(html.__file__).parent / "templates" / "report.css").read_text()
VOID = {"meta", "img", "br", "hr", "link", "input"}


@functools.cache
def rendered(name: str, format: Format) -> str:
    """Each report is rendered once a format: drawing charts takes its time."""
    return render(REPORTS[name](), format)


class Page(HTMLParser):
    """An HTML document as lists: tags with attributes, texts, headings, unclosed or misnested tags."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every such tag."""
        return [attrs for name, attrs in self.tags if name == tag]


@functools.cache
def page(name: str) -> Page:
    """The parsed HTML of a report."""
    return Page(rendered(name, "html"))


# ---- every format


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("format", [f for f in FORMATS if f != "json"])
def test_any_report_renders(name: str, format: Format) -> None:
    """Empty, huge and hostile reports render, within bounds, ending in one newline."""
    text = rendered(name, format)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert len(text) < 1_500_000


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("format", [f for f in FORMATS if f != "json"])
def test_no_control_or_direction_character_gets_out(name: str, format: Format) -> None:
    """Escape sequences, NUL, line separators and right-to-left overrides are replaced in every format."""
    text = rendered(name, format).replace("\u200b", "") if format == "markdown" else rendered(name, format)
    assert set(re.findall(r"[^\n]", text)) == {c for c in text if c.isprintable()}


@pytest.mark.parametrize("format", ["text", "markdown", "html"])
def test_a_reader_finds_everything_in_order(format: Format) -> None:
    """Verdict, reasons, figures with intervals, controls, oracle mark, caveats, limits and provenance are there."""
    text = "\n".join(page("audited").texts) if format == "html" else rendered("audited", format).replace("\\", "")
    headline = "The backdoor was hidden, not removed: it comes back."
    wanted = [
        headline,
        "above the 20.0% allowed",
        "94.0% [92.5, 95.5]",
        "ORACLE",
        "380 benign images",
        "It does not mean",
        "2.15.0",
    ]
    places = [text.find(w) for w in wanted]
    assert -1 not in places
    assert places == sorted(places)
    assert "3.0% (patch), 5.0% (noise) and 4.0% (stripes) with triggers that the model never saw" in " ".join(
        text.split()
    )
    assert "2025-01-01T00:00:00Z" in text


@pytest.mark.parametrize("format", ["text", "markdown", "junit", "html", "json"])
def test_same_report_gives_same_bytes(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a second run nor the machine's matplotlib settings change a byte."""
    first = render(audited(), format) if format == "json" else rendered("audited", format)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert render(audited(), format) == first
    assert matplotlib.rcParams["font.size"] == 31


def test_unknown_format_is_a_usage_error() -> None:
    """The message offers the nearest name."""
    with pytest.raises(UsageError, match="did you mean html"):
        render(empty(), "htm")  # type: ignore[arg-type]
    assert get_args(Format) == FORMATS


def test_json_is_the_document_itself() -> None:
    """Rendering to JSON and reading back gives the same report."""
    assert Report.model_validate_json(render(audited(), "json")) == audited()


def test_terminal_needs_neither_torch_nor_the_drawing_libraries() -> None:
    """`bdaudit report x.json` answers at once: heavy modules are imported by those who use them."""
    code = (
        "import sys; from bdaudit.report.schema import *; from bdaudit.report.render import render\n"
        "r = Report(verdict='pass', reasons=[], findings=[], inputs={}, granted=[], policy=Policy(), provenance={})\n"
        "[render(r, f) for f in ('text', 'markdown', 'junit')]\n"
        "print([m for m in ('torch', 'matplotlib', 'jinja2', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert out.stdout.strip() == "[]"


def test_hostile_report_can_come_from_a_file(tmp_path: Path) -> None:
    """The hostile report is no invention: it passes the schema, so its strings do reach the renderers."""
    report = hostile().model_copy(update={"provenance": {}})
    (tmp_path / "r.json").write_text(report.to_json())
    again = read_report(tmp_path / "r.json")
    assert render(again, "text") == render(report, "text")


def test_empty_report_admits_that_it_is_empty() -> None:
    """Where nothing was measured or recorded, the page says so."""
    said = " ".join(page("empty").texts)
    for words in ("Nothing was measured.", "None were recorded.", "Nothing was recorded."):
        assert words in said


# ---- words


@pytest.mark.parametrize(
    ("verdict", "rows", "words"),
    [
        ("fail", [("purified", "o_asr", 0.9)], "still there"),
        ("fail", [("purified", "o_asr", 0.01), ("purified", "p_asr", 0.9)], "hidden, not removed"),
        ("fail", [("suspect", "c_acc", 0.9), ("purified", "c_acc", 0.7)], "cost more accuracy"),
        ("fail", [], "does not meet the policy"),
        ("inconclusive", [("purified", "o_asr", 0.01)], "not cleared"),
        ("pass", [("purified", "o_asr", 0.01), ("purified", "p_asr", 0.01)], "did not succeed"),
        ("pass", [("purified", "o_asr", 0.01)], "Nothing was tried"),
        ("pass", [("suspect", "o_asr", 0.01), ("purified", "o_asr", 0.01)], "nor did it before"),
        ("pass", [], "no attack success rate to support it"),
    ],
)  # fmt: skip
def test_headline_says_no_more_than_was_measured(
    verdict: Verdict, rows: list[tuple[str, str, float]], words: str
) -> None:
    """A manager's sentence follows from the verdict and the figures."""
    findings = [row("retune" if m == "p_asr" else "evaluation", s, m, v) for s, m, v in rows]
    assert words in content.headline(empty().model_copy(update={"verdict": verdict, "findings": findings}))


def test_what_rests_on_a_proxy_says_so_first_and_last() -> None:
    """A reader of the headline alone, or of the limits alone, knows that the attacker's trigger was not tested."""
    index = row("inversion", "suspect", "anomaly_index", 4.25, None, low=None, high=None, variant="class 0 (0)")
    report = audited()
    proxied = report.model_copy(update={"findings": [*report.findings, index]})
    assert "inverted from the model, not by the attacker's own" in content.headline(proxied)
    assert "inverted from the model, which may not be the attacker's" in content.limits(proxied)[0]
    assert "inverted from the model, which stands in" in content.story(proxied)
    assert "the inverted trigger reaches" in content.controls(proxied)[0]
    assert "inverted" not in " ".join([content.headline(report), *content.limits(report), *content.controls(report)])
    text = render(proxied, "text")
    assert "4.25" in text
    assert "425" not in text


def test_a_null_that_jumps_is_named() -> None:
    """A residue that answers to a whole family of triggers is a finding of its own."""
    findings = [
        row("retune", "purified", "p_asr", 0.99),
        row("retune", "reference", "p_asr", 0.02),
        row("retune", "null", "p_asr", 0.98, variant="noise on purified"),
        row("retune", "null", "p_asr", 0.97, variant="patch on reference"),
        row("retune", "null", "p_asr", 0.03, variant="stripes on purified"),
    ]
    (sentence,) = content.controls(empty().model_copy(update={"findings": findings}))
    assert "Never-seen trigger jumps as well (noise)" in sentence
    assert "(of the never-seen triggers, over the weakest) is 96.0 [93.9, 97.8] points" in sentence
    assert "patch" not in sentence


def test_a_figure_without_controls_says_so() -> None:
    """Nothing to compare with is not nothing to explain."""
    report = empty().model_copy(update={"findings": [row("retune", "purified", "p_asr", 0.99)]})
    assert "no control was measured" in content.controls(report)[0]


def test_checks_of_the_audit_itself_share_a_row_where_they_came_out_alike() -> None:
    """Every format shows which checks were made, of what, and what came of those not in order."""
    table = tables.checked(audited())
    assert table.title == "What the audit checked about itself: 4 checks, 1 not in order"
    assert [row[:3] for row in table.rows] == [
        ["no image counts twice", "images", "in order"],
        ["gives the same answer twice", "suspect, purified", "in order"],
        ["gives the same answer twice", "reference", "control left out"],
    ]
    for format in ("text", "markdown", "html"):
        shown = render(audited(), format)
        assert "4 checks, 1 not in order" in shown
        assert "30 of 32 differ" in shown
        assert "checked about itself" not in render(empty(), format)


def test_flat_findings_are_all_there() -> None:
    """The full table has a row a finding."""
    assert len(tables.flat(audited()).rows) == len(audited().findings)
    assert tables.flat(huge()).left_out == 6_000 - content.LISTED


def test_nested_provenance_reads_as_dotted_names() -> None:
    """Nested dictionaries and lists become one readable line each."""
    assert list(tables.flatten({"a": {"b": [1, 2], "c": [{"d": True}]}, "e": None})) == [
        ("a.b", "1, 2"), ("a.c[0].d", "yes"), ("e", "none"),
    ]  # fmt: skip


# ---- terminal


def test_colour_only_on_request() -> None:
    """Escape codes appear only where asked for, and only around the verdict."""
    assert "\033" not in rendered("audited", "text")
    assert render(audited(), "text", color=True).replace("\033[1;31mFAIL\033[0m", "FAIL") == rendered("audited", "text")


def test_verdict_stands_in_the_first_lines() -> None:
    """Somebody who reads three lines knows the verdict."""
    assert "FAIL  The backdoor" in "\n".join(rendered("audited", "text").splitlines()[:3])


# ---- Markdown


def test_tables_have_as_many_cells_as_headers() -> None:
    """No pipe or newline from outside adds a cell or a row."""
    for block in re.findall(r"(?:^\|.*\n)+", rendered("hostile", "markdown"), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.sampled_from(HOSTILE), st.text("\\`*_{}[]()<>#+-.!|~$&@:/ =\nawhtps1&lt;", max_size=30), st.text(max_size=20)
    )
)
def test_escaped_markdown_reads_as_the_text_itself(text: str) -> None:
    """In a list item or a table cell, escaped text comes out as one piece of plain text, character by character."""
    text = clean(text)
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for source, container in (
        (f"- x{markdown.escape(text)}", "x"),
        (f"- {markdown.escape(text)}", ""),
        (f"|a|\n|-|\n| {markdown.escape(text)} |", ""),
    ):
        tokens = parser.parse(source)
        inline = [t for t in tokens if t.type == "inline"][-1:] if text or container else []
        assert {t.type for t in tokens} <= {
            "bullet_list_open", "list_item_open", "paragraph_open", "inline", "paragraph_close", "list_item_close", "bullet_list_close",
            "table_open", "thead_open", "tr_open", "th_open", "th_close", "tr_close", "thead_close", "tbody_open", "td_open", "td_close",
            "tbody_close", "table_close",
        }  # fmt: skip
        for token in inline:
            assert {c.type for c in token.children or []} <= {"text", "text_special"}
            assert "".join(c.content for c in token.children or []).replace("\u200b", "") == container + text


def test_links_and_mentions_are_broken() -> None:
    """GitHub would link a bare address and notify a named user even where markup is escaped."""
    text = markdown.escape("see https://evil.example www.evil.example and @octocat")
    assert not re.search(r"\w://|www\.|@o", text)


# ---- JUnit


def test_inconclusive_is_an_error_and_never_skipped() -> None:
    """CI systems count skipped cases as green, so an undecided check is an error."""
    suite = ET.fromstring(rendered("audited", "junit"))
    assert (suite.tag, suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("testsuite", "5", "2", "1")
    assert [next((c.tag for c in case), "") for case in suite] == [
        "failure",
        "failure",
        "error",
        "system-out",
        "system-out",
    ]
    for verdict in ("inconclusive", "fail"):
        bare = ET.fromstring(render(empty().model_copy(update={"verdict": verdict}), "junit"))
        assert bare.get("failures") != "0" or bare.get("errors") != "0"


def test_reason_without_recorded_outcome_is_no_better_than_the_report() -> None:
    """An older document without outcomes shows no passing case under a failing verdict."""
    report = audited().model_copy(update={"outcomes": []})
    assert len(ET.fromstring(render(report, "junit")).findall("testcase/failure")) == 5


def test_cases_keep_their_names_when_figures_change() -> None:
    """A CI system recognises a check from run to run: its name holds no measured figure, and is unique."""
    names = [c.get("name") for c in ET.fromstring(rendered("audited", "junit"))]
    assert names == [
        "verdict",
        "attack success after reactivation by retune (P-ASR)",
        "attack success after reactivation by qra (P-ASR)",
        "attack success after purification (O-ASR)",
        "clean accuracy",
    ]
    twice = audited().model_copy(update={"reasons": ["x is 1", "x is 2"], "outcomes": []})
    assert [c.get("name") for c in ET.fromstring(render(twice, "junit"))] == ["verdict", "x", "x (2)"]


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20)))
def test_junit_is_valid_xml_for_any_text(text: str) -> None:
    """Titles and reasons of any characters, noncharacters and controls included, parse as XML 1.0."""
    report = empty().model_copy(update={"title": text, "reasons": [text], "verdict": "fail"})
    suite = ET.fromstring(junit.render(report))
    assert suite.get("name") == clean(text)


# ---- HTML


@pytest.mark.parametrize("name", REPORTS)
def test_html_is_well_formed_inert_and_local(name: str) -> None:
    """No script, handler, frame, form or address; every tag closed; links stay in the page, images are data: PNGs."""
    doc = page(name)
    assert (doc.wrong, doc.open) == ([], [])
    tags = {tag for tag, _ in doc.tags}
    assert not tags & {
        "script",
        "iframe",
        "object",
        "embed",
        "form",
        "link",
        "base",
        "foreignobject",
        "animate",
        "set",
    }
    for tag, attrs in doc.tags:
        assert not [a for a in attrs if a.startswith("on")], tag
        for key in ("src", "href", "xlink:href"):
            if key in attrs:
                assert re.match(r"data:image/png;base64,[A-Za-z0-9+/=]+$|#[\w-]+$", attrs[key] or "")
        assert not re.search(r"url\((?!#)|expression|@import", attrs.get("style") or "")
    policy = doc.all("meta")[1]["content"] or ""
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "http" not in CSS


@pytest.mark.parametrize("name", REPORTS)
def test_html_is_accessible(name: str) -> None:
    """Language, title, viewport, one h1, no heading level skipped, scoped headers, named regions, unique ids."""
    doc = page(name)
    assert doc.all("html") == [{"lang": "en"}]
    assert any(m.get("name") == "viewport" for m in doc.all("meta"))
    levels = [int(tag[1]) for tag, _ in doc.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip([0, *levels], levels, strict=False))
    assert all(th.get("scope") in ("col", "row") for th in doc.all("th"))
    assert all(
        div.get("aria-label") and div.get("tabindex") == "0" for div in doc.all("div") if div.get("class") == "scroll"
    )
    ids = [attrs["id"] for _, attrs in doc.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "").removeprefix("#") for a in doc.all("a")} <= {*ids}
    for _, attrs in doc.tags:
        for reference in (attrs.get("aria-labelledby") or "").split():
            assert reference in ids
        for reference in re.findall(r"url\(#([^)]*)", " ".join(v or "" for v in attrs.values())):
            assert reference in ids
    assert all(svg.get("role") == "img" and svg.get("aria-labelledby") for svg in doc.all("svg"))
    assert all(img.get("alt") for img in doc.all("img"))


def test_verdict_is_said_in_words_before_any_figure() -> None:
    """Colour is not the only sign, and the first thing after the title is the verdict."""
    texts = [t for t in (t.strip() for t in page("audited").texts) if t]
    body = texts[texts.index("bdaudit audit of model.pt purified by fst") :]
    assert body[1:4] == ["✗", "Fail", "The backdoor was hidden, not removed: it comes back."]


def test_hostile_text_arrives_as_text() -> None:
    """Class names, notes, keys and captions appear as they were written, in the page and inside drawings."""
    said = "\n".join(page("hostile").texts)
    for text in HOSTILE[:4]:
        assert clean(text) in said
    drawn = re.findall(r"<svg.*?</svg>", rendered("hostile", "html"), re.DOTALL)
    assert len(drawn) == 7
    inside = "".join(drawn)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in inside
    assert ">$\\frac{1}{2}$ $x^2$<" in inside  # not typeset
    assert ">_hidden<" in inside  # nor left out of the legend
    assert "text0" not in inside


def test_only_png_images_are_embedded() -> None:
    """A picture that is no PNG, or base64 with something behind it, is left out with a word."""
    good = png()
    raw = base64.b64decode(good)
    jpeg = base64.b64encode(b"\xff\xd8\xff" + raw).decode()
    svg = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>" + bytes(40)).decode()
    giant = base64.b64encode(raw[:16] + b"\x00\x10\x00\x00" + raw[20:]).decode()
    for bad in (
        '"><script>',
        good + '"><img src=x>',
        f"{good}\n",
        jpeg,
        svg,
        giant,
        "AAAA",
        "é",
        base64.b64encode(raw[:20]).decode(),
    ):
        assert html.png(bad) is None
    picture = html.png(good)
    assert picture is not None
    assert (picture.width, picture.height, base64.b64decode(picture.data)) == (620, 316, raw)
    report = empty().model_copy(update={"exhibits": [Exhibit(probe="p", metric="m", title="t", picture='"><b>')]})
    assert "not a PNG image" in render(report, "html")
    assert len(page("audited").all("img")) == 1


def test_charts_take_their_colours_from_the_page() -> None:
    """No colour is fixed in a drawing, so dark mode and print repaint it; bars differ by pattern too."""
    for svg in re.findall(r"<svg.*?</svg>", rendered("audited", "html"), re.DOTALL):
        assert not re.search(r"(?:fill|stroke)[:=]\"?\s*#", svg)
        assert "var(--attack)" in svg
        assert len(svg) < 20_000
    assert "fill:url(#rates-stripes)" in rendered("audited", "html")
    assert "fill:url(#rates-dots)" in rendered("audited", "html")


def test_losses_are_never_written_as_percentages() -> None:
    """Not even those that happen to lie under 1, where a rate would."""
    curve = {"x": [0.0, 1.0], "curves": {"clean loss": [0.25, 0.5]}, "title": "t", "probe": "p"}
    losses, rates = (Exhibit.model_validate(curve | {"metric": m}) for m in ("loss", "p_asr"))
    assert "%" in line_chart(rates, "a")
    assert "%" not in line_chart(losses, "b")
    assert content.curve_words(losses) == "t: clean loss from 0.25 to 0.5."


def test_an_axis_names_its_last_place() -> None:
    """Rounding must not cost the tick at 1, where a line between models ends."""
    xs = [i / 20 for i in range(21)]
    line = Exhibit(probe="lmc", metric="backdoor_barrier", title="t", x=xs, curves={"purified": xs})
    assert re.findall(r">([\d.]+)</text>", line_chart(line, "a")) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_the_attack_has_its_own_colour_beside_clean_curves() -> None:
    both = Exhibit(probe="p", metric="loss", title="t", curves={"backdoor loss": [0, 2], "clean loss": [0, 1]})
    drawn = line_chart(both, "a")
    assert "stroke:var(--attack)" in drawn
    assert "stroke:var(--null)" in drawn


def test_oracle_inputs_are_marked() -> None:
    """Exactly the oracle row carries the mark, whatever other rows call themselves."""
    marks = [attrs for tag, attrs in page("audited").tags if attrs.get("class") == "oracle"]
    assert len(marks) == 1
    assert rendered("audited", "markdown").count("**ORACLE**") == 1


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_colours_have_contrast(scheme: str) -> None:
    """Text and verdict colours reach 4.5 to 1 on their background, lines of charts 3 to 1 (WCAG AA)."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", blocks[["light", "dark", "print"].index(scheme)]))
    for name in ("ink", "muted", "pass", "fail", "inconclusive"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for name in ("pass", "fail", "inconclusive"):
        assert contrast(colours["on"], colours[name]) >= 4.5, name
    for name in ("attack", "reference", "null"):
        assert contrast(colours[name], colours["paper"]) >= 3, name


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two #rgb or #rrggbb colours."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
