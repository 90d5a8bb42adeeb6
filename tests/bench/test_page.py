"""The page of a bench in headless Chromium: sorted, filtered, linked, accessible; nothing runs but its own script."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from bench.benches import SMALL, finished, plan_of, report_of
from playwright.sync_api import Browser, Page
from programs import needs_chromium
from report.reports import HOSTILE

from bdaudit.bench.opened import write_store
from bdaudit.bench.page import write_page
from bdaudit.bench.pivot import pivot

pytestmark = needs_chromium

REPORTS = {
    "badnets, ft epochs=1, seed 0": report_of(0.90, 0.50, 0.95),
    "badnets, fst epochs=1, seed 0": report_of(0.80, 0.02, 0.60, verdict="pass"),
    "blended, ft epochs=1, seed 0": report_of(0.91, 0.09, 1.0),
    "blended, fst epochs=1, seed 0": report_of(0.79, 0.10, 0.70),
    "blended, ep, seed 0": report_of(0.95, 0.00, 0.01, oracle="ep", verdict="pass"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page") / "a bench"
    plan = plan_of(attacks=["badnets", "blended"], defenses=[*SMALL["defenses"], "ep"], title=HOSTILE[0])
    finished(made, plan, REPORTS)
    with write_store(made) as store:
        failed = next(c for c in plan.cells if c.stage.label == "badnets, ep, seed 0")
        store.fail(failed.stage, "failed", HOSTILE[1])
        write_page(store, pivot(store), made)
    return made


@pytest.fixture(scope="module")
def shown(folder: Path, browser: Browser) -> tuple[Page, list[str]]:
    """The page, and what the browser had to say of it."""
    page, said = browser.new_page(viewport={"width": 1200, "height": 900}), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: said.append(request.url))
    page.goto((folder / "bench.html").as_uri(), wait_until="networkidle")
    return page, said


def column(page: Page, header: str) -> list[str]:
    """What the visible rows of the table of audits have in one column."""
    headers = [h.inner_text().strip(" ▲▼") for h in page.locator("#audits thead th").all()]
    rows = page.locator("#audits tbody tr:visible").all()
    return [row.locator("th, td").nth(headers.index(header)).inner_text() for row in rows]


def test_it_asks_nobody_for_anything_and_no_text_in_it_runs(shown: tuple[Page, list[str]], folder: Path) -> None:
    """A title and a reason full of markup are shown as they are; only the page itself is loaded."""
    page, said = shown
    assert said == [(folder / "bench.html").as_uri()]
    assert page.locator("h1").inner_text() == HOSTILE[0]
    assert HOSTILE[1] in page.locator("main").inner_text()
    assert page.locator("script").count() == 1


def test_another_script_would_be_stopped(folder: Path, browser: Browser, tmp_path: Path) -> None:
    """The policy lets the page's own script through by its hash: one more, put into the file, does not run."""
    text = (folder / "bench.html").read_text().replace("<h1>", "<script>document.title = 'broken'</script><h1>")
    (tmp_path / "spoilt.html").write_text(text)
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "spoilt.html").as_uri())
    assert page.title() != "broken"
    assert any("Content Security Policy" in text for text in said)
    assert page.locator("#filters").is_visible()
    page.close()


def test_a_click_sorts_and_a_second_one_turns_it_round(shown: tuple[Page, list[str]]) -> None:
    """Figures sort as numbers, what is missing goes last either way."""
    page, _ = shown
    page.get_by_role("button", name="O-ASR").click()
    figures = [t.split("%")[0] for t in column(page, "O-ASR")]
    assert figures == ["0.0", "2.0", "9.0", "10.0", "50.0", ""]
    page.get_by_role("button", name="O-ASR").click()
    assert [t.split("%")[0] for t in column(page, "O-ASR")] == ["50.0", "10.0", "9.0", "2.0", "0.0", ""]
    assert page.locator("th[aria-sort=descending]").count() == 1
    page.get_by_role("button", name="defense").click()
    assert column(page, "defense") == sorted(column(page, "defense"))


def test_rows_are_filtered_by_words_and_by_axis(shown: tuple[Page, list[str]]) -> None:
    page, _ = shown
    page.locator("#words").fill("blended ft")
    assert set(column(page, "defense")) == {"ft epochs=1"}
    assert page.locator("#count").inner_text() == "1 of 6 audits"
    page.locator("#words").fill("")
    page.get_by_label("attack").select_option("badnets")
    assert set(column(page, "attack")) == {"badnets"}
    page.get_by_label("attack").select_option("")
    assert len(column(page, "attack")) == 6


def test_a_filter_finds_its_column_where_an_earlier_axis_has_one_value(browser: Browser, tmp_path: Path) -> None:
    """Of one attack there is no choice, but it has a column: what filters by defense is not held against it."""
    badnets = {label: report for label, report in REPORTS.items() if label.startswith("badnets")}
    finished(tmp_path, plan_of(seeds=[0, 1]), badnets)
    with write_store(tmp_path) as store:
        write_page(store, pivot(store), tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "bench.html").as_uri())
    assert page.locator("#filters select").count() == 2
    page.get_by_label("defense").select_option("fst epochs=1")
    assert column(page, "defense") == ["fst epochs=1"] * 2
    page.get_by_label("seed").select_option("1")
    assert column(page, "seed") == ["1"]
    assert page.locator("#count").inner_text() == "1 of 4 audits"
    page.close()


def test_every_audit_opens_its_report(shown: tuple[Page, list[str]], folder: Path) -> None:
    """From the list and from the summary, through a folder's name with a space in it; a failed one has no link."""
    page, _ = shown
    links = [a.get_attribute("href") for a in page.locator("#audits tbody td:nth-child(4) a").all()]
    assert len(links) == 5
    assert all((folder / str(link)).is_file() for link in links)
    page.locator(".bench").first.get_by_role("link").first.click()
    assert page.title() == "the audit itself"
    page.go_back(wait_until="networkidle")


def test_the_worse_the_hotter(shown: tuple[Page, list[str]]) -> None:
    """P-ASR of 100% is at full heat and 1% at almost none; the best accuracy is cold, the worst hot."""
    page, _ = shown
    headers = [h.inner_text().strip(" ▲▼") for h in page.locator("#audits thead th").all()]

    def heat(header: str) -> dict[str, float]:
        cells = page.locator(f"#audits tbody tr > :nth-child({headers.index(header) + 1})").all()
        return {
            cell.inner_text().split("%")[0]: float(str(cell.get_attribute("style")).removeprefix("--h: "))
            for cell in cells if cell.inner_text()
        }  # fmt: skip

    assert heat("retune P-ASR") == pytest.approx({"95.0": 0.95, "60.0": 0.6, "100.0": 1, "70.0": 0.7, "1.0": 0.01})
    assert heat("C-ACC") == pytest.approx({"95.0": 0, "91.0": 0.25, "90.0": 0.312, "80.0": 0.938, "79.0": 1}, abs=1e-3)
    colors = [c.evaluate("e => getComputedStyle(e).backgroundColor") for c in page.locator("td.hot").all()]
    assert len(set(colors)) > 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(shown: tuple[Page, list[str]], scheme: str) -> None:
    page, _ = shown
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    found = Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()
