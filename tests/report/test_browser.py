"""Reports in a real browser: accessible, readable on a phone and on paper, at rest without scripts or network."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from programs import needs_chromium
from reports import audited, crowded, empty, hostile

from bdaudit.report.render import render, render_side_by_side

pytestmark = needs_chromium

PHONE, NARROWEST, PAPER, DESK = 390, 360, 690, 1200
"""Widths in pixels; PAPER is A4 less margins of 14 mm."""

WIDEST = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
CLIPPED = """[...document.querySelectorAll('table, .scroll, figure, svg, img, pre')]
    .filter(e => e.scrollWidth > e.clientWidth + 1 || e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.tagName + '.' + e.className)"""


def documents() -> dict[str, str]:
    """HTML of every kind of report: each verdict, all exhibits, nothing at all, an attacker's, side by side."""
    fail, none, bad = audited(), empty(), hostile()
    passed = fail.model_copy(update={"verdict": "pass", "outcomes": ["pass"] * len(fail.reasons), "exhibits": []})
    reports = {"fail": fail, "pass": passed, "inconclusive": crowded(), "hostile": bad, "empty": none}
    alike, unlike = [("a.json", fail), ("b.json", passed)], [("a.json", fail), (bad.title, bad), ("c.json", none)]
    return {name: render(r, "html") for name, r in reports.items()} | {
        "alike": render_side_by_side(alike, "html"),
        "unlike": render_side_by_side(unlike, "html"),
    }


NAMES = ["fail", "pass", "inconclusive", "hostile", "empty", "alike", "unlike"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each document as a file."""
    folder = tmp_path_factory.mktemp("reports")
    made = {name: folder / f"{name}.html" for name in NAMES}
    for name, text in documents().items():
        made[name].write_text(text, encoding="utf-8")
    return made


@pytest.fixture
def show(browser: Browser) -> Iterator[functools.partial[Page]]:
    """Open a file at a width, in a profile of its own that is closed after the test."""
    contexts = []

    def opened(path: Path, width: int, scheme: str = "light", **more: object) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more)
        contexts.append(context)
        page = context.new_page()
        page.goto(path.as_uri())
        return page

    yield functools.partial(opened)
    for context in contexts:
        context.close()


@functools.cache
def axe() -> Axe:
    """axe-core, read once."""
    return Axe()


def violations(page: Page, *rules: str) -> str:
    """What axe-core finds wrong by these rules or all, with the place of each; '' if nothing."""
    found = axe().run(page, options={"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})})
    return found.generate_report() if found.violations_count else ""


@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing(name: str, files: dict[str, Path], show: functools.partial[Page]) -> None:
    """No accessibility violation on a phone, nor a colour without contrast in the dark."""
    page = show(files[name], PHONE)
    assert violations(page) == ""
    page.emulate_media(color_scheme="dark")
    assert violations(page, "color-contrast", "link-in-text-block") == ""


def test_axe_finds_nothing_at_a_desk(files: dict[str, Path], show: functools.partial[Page]) -> None:
    """No violation in the wide layout, which has the contents beside the text."""
    assert violations(show(files["inconclusive"], DESK, "dark")) == ""


def test_axe_would_find_something(files: dict[str, Path], show: functools.partial[Page], tmp_path: Path) -> None:
    """The check itself works under the page's content security policy: spoil contrast and language: both are named."""
    spoilt = tmp_path / "spoilt.html"
    text = files["fail"].read_text(encoding="utf-8")
    spoilt.write_text(text.replace(' lang="en"', "").replace("--muted: #57606a", "--muted: #ccc"), encoding="utf-8")
    found = violations(show(spoilt, PHONE))
    assert "html-has-lang" in found
    assert "color-contrast" in found


@pytest.mark.parametrize("name", NAMES)
def test_a_narrow_phone_scrolls_one_way(name: str, files: dict[str, Path], show: functools.partial[Page]) -> None:
    """At 360 pixels the page is no wider than the screen; wide tables scroll within themselves."""
    assert show(files[name], NARROWEST).evaluate(WIDEST) <= NARROWEST


@pytest.mark.parametrize("name", NAMES)
def test_paper_clips_nothing(name: str, files: dict[str, Path], show: functools.partial[Page]) -> None:
    """In print no table or drawing is cut at the right edge, folded lists are open, links for the screen are gone."""
    page = show(files[name], PAPER, "dark")
    page.emulate_media(media="print")
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate(WIDEST) <= PAPER
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')") == "#fff"
    for table in page.locator("details table").all():
        assert table.bounding_box()["height"] > 20
    for link in page.locator("a").all():
        assert not link.is_visible()


@pytest.mark.parametrize("name", ["fail", "hostile", "unlike"])
def test_it_asks_nobody_for_anything(name: str, files: dict[str, Path], browser: Browser) -> None:
    """The page loads itself and nothing else, and nothing in it tries to run: the browser has nothing to report."""
    asked: list[str] = []
    said: list[str] = []
    context = browser.new_context()
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(files[name].as_uri(), wait_until="networkidle")
    context.close()
    assert [url for url in asked if not url.startswith("data:image/png;base64,")] == [files[name].as_uri()]
    assert said == []


@pytest.mark.parametrize("name", ["fail", "inconclusive", "unlike"])
def test_it_looks_the_same_without_scripts(name: str, files: dict[str, Path], show: functools.partial[Page]) -> None:
    """With JavaScript disabled every pixel is the same."""
    seen = [
        show(files[name], PHONE, java_script_enabled=enabled).screenshot(full_page=True) for enabled in (True, False)
    ]
    assert seen[0] == seen[1]


def test_the_contents_lead_everywhere(files: dict[str, Path], show: functools.partial[Page]) -> None:
    """At a desk the contents stay in view beside a long report, and each link brings its heading up."""
    page = show(files["inconclusive"], DESK)
    links = page.get_by_role("navigation").get_by_role("link").all()
    assert len(links) > 10
    for link in links:
        link.click()
        box = page.locator(page.evaluate("location.hash")).bounding_box()
        assert 0 <= box["y"] < 900
        assert link.is_visible()
    assert page.evaluate("scrollY") > 900
