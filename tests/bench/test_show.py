"""The tables of a bench: means and deviations, the best in bold, and every format."""

from __future__ import annotations

import csv
import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from bench.benches import finished, plan_of, report_of
from programs import needs_latex

from bdaudit.bench import page
from bdaudit.bench.compare import compare
from bdaudit.bench.opened import read_store
from bdaudit.bench.pivot import Pivot, pivot
from bdaudit.bench.show import render
from bdaudit.bench.store import COORDINATES, Store
from bdaudit.errors import InputError, UsageError

REPORTS = {
    "badnets, ft epochs=1, seed 0": report_of(0.90, 0.50, 0.95),
    "badnets, ft epochs=1, seed 1": report_of(0.92, 0.70, 0.97),
    "badnets, fst epochs=1, seed 0": report_of(0.80, 0.02, 0.60, verdict="pass"),
    "badnets, fst epochs=1, seed 1": report_of(0.80, 0.04, 0.70),
    "badnets, ep, seed 0": report_of(0.95, 0.00, 0.01, oracle="ep", verdict="pass"),
}
"""EP's second seed is not done yet."""
THREE = {"defenses": ["ft epochs=1", "fst epochs=1", "ep"], "seeds": [0, 1], "title": "Bold & 50%"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench")
    finished(made, plan_of(**THREE), REPORTS)
    return made


@pytest.fixture
def store(folder: Path) -> Iterator[Store]:
    with read_store(folder) as opened:
        yield opened


def entries(shown: Pivot) -> dict[tuple[str, str], Any]:
    return {(row.where[0], e.figure.metric): e for row in shown.rows for e in row.entries}


def test_figures_are_means_over_the_seeds_with_their_standard_deviation(store: Store) -> None:
    found = entries(pivot(store))
    assert found["ft epochs=1", "o_asr"].text() == "60.0% ± 14.1"
    assert found["ft epochs=1", "o_asr"].text(plain=True) == "60.0%"
    assert found["fst epochs=1", "p_asr"].mean == pytest.approx(0.65)


def test_the_figure_of_one_audit_has_its_interval_over_images_instead(store: Store) -> None:
    assert entries(pivot(store))["ep", "p_asr"].text() == "1.0% [0.0, 3.0]"


def test_the_best_is_the_largest_accuracy_and_the_smallest_success_and_never_an_oracle(store: Store) -> None:
    best = {key for key, e in entries(pivot(store)).items() if e.best}
    assert best == {("ft epochs=1", "c_acc"), ("fst epochs=1", "o_asr"), ("fst epochs=1", "p_asr")}


def test_a_mean_over_fewer_audits_is_never_the_best(tmp_path: Path) -> None:
    """PL did the easy attack alone, as its figures there are of the best; FT and FST did both."""
    reports = {
        "badnets, pl, seed 0": report_of(0.99, 0.0, 0.0),
        **{f"{attack}, ft, seed 0": report_of(0.9, 0.5, 0.9) for attack in ("badnets", "blended")},
        **{f"{attack}, fst, seed 0": report_of(0.8, 0.1, 0.5) for attack in ("badnets", "blended")},
    }
    finished(tmp_path, plan_of(attacks=["badnets", "blended"], defenses=["ft", "fst", "pl"]), reports)
    with read_store(tmp_path) as store:
        best = {key for key, e in entries(pivot(store, down=["defense"])).items() if e.best}
    assert best == {("ft", "c_acc"), ("fst", "o_asr"), ("fst", "p_asr")}


def test_an_axis_may_run_across(store: Store) -> None:
    shown = pivot(store, across=["seed"], metrics=["o_asr"])
    assert shown.headers == ["seed 0: O-ASR", "seed 1: O-ASR"]
    assert [[e.text(plain=True) for e in row.entries] for row in shown.rows] == [["50.0%", "70.0%"], ["2.0%", "4.0%"], ["0.0%", ""]]  # fmt: skip
    assert shown.averaged == ()


def test_a_column_always_names_the_rows(store: Store) -> None:
    """Where all that varies runs across, an axis of one value runs down: no figure stands where a name belongs."""
    shown = pivot(store, across=["defense"], metrics=["c_acc"])
    assert shown.down == ("data",)
    assert [row.where for row in shown.rows] == [("digits",)]
    assert shown.averaged == ("seed",)
    latex = render(shown, "latex", plain=True)
    assert "\\raggedright digits & \\textbf{91.0\\%} & 80.0\\% & 95.0\\%" in latex
    assert pivot(store, across=["data", "defense", "arch"]).down == ("attack",)
    with pytest.raises(UsageError, match="every axis runs across; leave one for the rows"):
        pivot(store, across=COORDINATES)


def test_what_is_missing_is_said_below_the_table(store: Store) -> None:
    text = render(pivot(store), "terminal")
    assert "Of 6 cells 1 not done yet." in text
    assert "Mean ± standard deviation over: seed." in text
    assert "ORACLE: ep knows the trigger, as no defender does." in text
    assert "1 fail, 1 pass" in text


def test_github_has_the_best_in_bold_and_everything_escaped(store: Store) -> None:
    text = render(pivot(store), "github")
    assert "| fst epochs=1 |" in text.replace("  ", "")
    assert "**3.0% ± 1.4**" in text
    assert "### Bold \\& 50%" in text


def test_csv_has_plain_numbers(store: Store) -> None:
    rows = list(csv.DictReader(io.StringIO(render(pivot(store), "csv"))))
    ft = next(row for row in rows if row["defense"] == "ft epochs=1")
    assert float(ft["evaluation.purified.o_asr"]) == pytest.approx(0.6)
    assert float(ft["evaluation.purified.o_asr sd"]) == pytest.approx(0.1414, abs=1e-4)
    assert ft["evaluation.purified.o_asr audits"] == "2"
    ep = next(row for row in rows if row["defense"] == "ep")
    assert float(ep["retune.purified.p_asr high"]) == pytest.approx(0.03)


def test_a_page_elsewhere_links_back(tmp_path: Path) -> None:
    """Through folders with spaces in their names, from wherever `bench show --format html --out` puts it."""
    finished(tmp_path / "a bench", plan_of(), {"badnets, ft epochs=1, seed 0": report_of(0.9, 0.1, 0.5)})
    (tmp_path / "the papers").mkdir()
    with read_store(tmp_path / "a bench") as store:
        text = page.render(store, pivot(store), tmp_path / "a bench", tmp_path / "the papers")
    links = re.findall(r'href="([^"]+)"', text)
    assert links
    assert all((tmp_path / "the papers" / unquote(link)).read_text().count("the audit itself") for link in links)


@needs_latex
def test_latex_sets_a_table_with_the_best_in_bold(store: Store, tmp_path: Path) -> None:
    """pdflatex takes it as it is, with booktabs alone, and warns of no overfull box."""
    table = render(pivot(store), "latex")
    assert "\\textbf{3.0\\% $\\pm$ 1.4}" in table
    assert "\\toprule" in table
    page = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + table + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(page)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"down": ["atack"]}, "'atack' is no axis; did you mean attack"),
        ({"down": ["seed"], "across": ["seed"]}, "seed is named twice"),
        ({"metrics": ["o_ars"]}, "no such figure was measured; did you mean o_asr"),
        ({"metrics": ["qra.p_asr"]}, "no such figure was measured"),
        ({"metrics": ["p_asr[x]"]}, "no such figure was measured"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_line(store: Store, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pivot(store, **arguments)


def test_a_metric_that_two_probes_measured_must_be_said_whose(tmp_path: Path) -> None:
    report = report_of(0.9, 0.1, 0.5)
    twice = report.model_copy(
        update={"findings": [*report.findings, report.findings[-1].model_copy(update={"probe": "qra"})]}
    )
    finished(tmp_path, plan_of(), {"badnets, ft epochs=1, seed 0": twice})
    with read_store(tmp_path) as store:
        with pytest.raises(UsageError, match="p_asr: is not exact enough; say which: ") as e:
            pivot(store, metrics=["p_asr"])
        offered = str(e.value).partition("say which: ")[2].split(", ")
        assert offered == ["retune.purified.p_asr", "qra.purified.p_asr"]
        assert [f.header for f in pivot(store, metrics=offered).figures] == ["retune P-ASR", "qra P-ASR"]
        assert [f.header for f in pivot(store).figures] == ["C-ACC", "O-ASR", "retune P-ASR", "qra P-ASR"]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Store]:
    """A bench whose audits went along straight lines between the models: figures that variants alone tell apart."""
    report = report_of(0.9, 0.1, 0.5)
    along = [
        report.findings[0].model_copy(
            update={"probe": "lmc", "metric": "t_asr20", "variant": variant, "value": value, "n": None}
        )
        for variant, value in (("from the suspect", 0.25), ("from the reference", 0.75))
    ]
    report = report.model_copy(update={"findings": [*report.findings, *along]})
    finished(tmp_path, plan_of(), {"badnets, ft epochs=1, seed 0": report})
    with read_store(tmp_path) as store:
        yield store


def test_csv_tells_variants_of_a_figure_apart(lines: Store) -> None:
    """No two columns are called the same, and what one is called is what --metric takes."""
    names = [f"lmc.purified.t_asr20[from the {end}]" for end in ("suspect", "reference")]
    text = render(pivot(lines, metrics=names), "csv")
    head = next(csv.reader(io.StringIO(text)))
    assert len(set(head)) == len(head)
    row = next(csv.DictReader(io.StringIO(text)))
    assert [float(row[name]) for name in names] == [0.25, 0.75]


@pytest.mark.parametrize("asked", ["lmc.t_asr20", "t_asr20", "lmc.purified.t_asr20"])
def test_a_figure_that_has_variants_is_offered_with_them(lines: Store, asked: str) -> None:
    """Whatever is offered can be asked for."""
    with pytest.raises(UsageError, match="say which: ") as e:
        pivot(lines, metrics=[asked])
    offered = str(e.value).partition("say which: ")[2].split(", ")
    assert offered == ["lmc.purified.t_asr20[from the suspect]", "lmc.purified.t_asr20[from the reference]"]
    assert len(pivot(lines, metrics=offered).figures) == 2


def test_what_is_meant_by_a_misspelt_figure_can_be_asked_for(lines: Store) -> None:
    """A bare metric is offered where it is enough, with its variant where it is not."""
    for wrong in ("t_asr02", "o_ars", "lmc.purified.t_asr20[from the suspekt]"):
        with pytest.raises(UsageError, match="did you mean") as e:
            pivot(lines, metrics=[wrong])
        meant = str(e.value).partition("did you mean ")[2].partition("?")[0].split(" or ")
        assert pivot(lines, metrics=meant).figures


def test_two_benches_are_compared_seed_by_seed(store: Store, tmp_path: Path) -> None:
    """B's differences are paired by seed; cells that only one has are counted, and a change of verdict is named."""
    better = {
        "badnets, fst epochs=1, seed 0": report_of(0.85, 0.02, 0.30),
        "badnets, fst epochs=1, seed 1": report_of(0.85, 0.04, 0.50),
    }
    finished(tmp_path, plan_of(defenses=["fst epochs=1"], seeds=[0, 1]), better)
    with read_store(tmp_path) as other:
        made = compare(store, other)
    assert made.table.headers == ["defense", "C-ACC", "O-ASR", "retune P-ASR", "verdicts"]
    assert made.table.rows == [
        ["fst epochs=1", "80.0% -> 85.0% (+5.0 ± 0.0)", "3.0% -> 3.0% (+0.0 ± 0.0)", "65.0% -> 40.0% (-25.0 ± 7.1)", "1 pass -> fail"]
    ]  # fmt: skip
    assert "2 cells in both, 2 of them the same to every option." in made.notes
    assert "3 finished cells are only in A." in made.notes


def test_entries_that_differ_only_far_to_the_right_are_compared_apart(tmp_path: Path) -> None:
    options = "fst epochs=1 lr=0.01 batch_size=128 min_steps=8 crop=-1 flip=false layers=last alpha="
    assert len(options) > 80
    labels = [f"{options}{alpha}" for alpha in (0.1, 0.2)]
    reports = {f"badnets, {label}, seed 0": report_of(0.9, 0.1, 0.5) for label in labels}
    finished(tmp_path, plan_of(defenses=labels), reports)
    with read_store(tmp_path) as one, read_store(tmp_path) as other:
        made = compare(one, other)
    assert len(made.table.rows) == 2
    assert made.notes[1].startswith("2 cells in both, 2 of them")


def test_benches_without_a_common_cell_are_not_compared(store: Store, tmp_path: Path) -> None:
    finished(tmp_path, plan_of(defenses=["pl"]), {"badnets, pl, seed 0": report_of(0.9, 0.1, 0.1)})
    with read_store(tmp_path) as other, pytest.raises(InputError, match="share no finished cell"):
        compare(store, other)
