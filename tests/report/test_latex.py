"""The LaTeX table: it compiles, and nothing from outside is taken for a command."""

from __future__ import annotations

import functools
import re
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import needs_latex
from reports import HOSTILE, audited, empty, hostile, huge, row

from bdaudit.report import latex
from bdaudit.report.render import render, render_side_by_side
from bdaudit.report.schema import Report
from bdaudit.report.words import clean


def long() -> Report:
    """An audit with more rows than a page holds."""
    rows = [
        row(p, "null", "p_asr", 0.03, variant=f"{v} on purified {i}")
        for p in ("retune", "qra", "transfer")
        for v in ("patch", "noise", "stripes")
        for i in range(9)
    ]
    return audited().model_copy(update={"findings": [*audited().findings, *rows]})


REPORTS = {"audited": audited, "hostile": hostile, "empty": empty, "huge": huge, "long": long}
LAYOUT = {
    "begin", "end", "centering", "footnotesize", "scriptsize", "setlength", "tabcolsep", "caption", "textbf", "par",
    "medskip", "smallskip", "parbox", "linewidth", "raggedright", "toprule", "midrule", "bottomrule", "multicolumn",
    "itshape", "tabularnewline", "times", "pm", "char",
}  # fmt: skip
NAMED = {name: c for c, name in latex.NAMES.items()}
MARKS = {name: mark for mark, name in latex.ACCENTS.items()}
TOKEN = re.compile(r"\\([A-Za-z]+) ?|\\(.)|([{}$&#^_~%])|(.)", re.DOTALL)


@functools.cache
def documents() -> dict[str, str]:
    """Every table there is, the comparison of hostile reports included."""
    bad = hostile()
    single = {name: render(report(), "latex") for name, report in REPORTS.items()}
    return single | {"compared": render_side_by_side([("a", audited()), (HOSTILE[5], bad), ("c%#", empty())], "latex")}


def typeset(text: str) -> str:
    """Read LaTeX text mode as TeX would, and fail at whatever is no plain text: no commands but those of letters."""
    out: list[str] = []
    accent = ""
    depth = 0
    for word, symbol, special, plain in TOKEN.findall(text.replace("{\\char34}", '"')):
        name = word or symbol
        if name in NAMED:
            out.append(NAMED[name])
        elif name in MARKS:
            accent = MARKS[name]
        elif symbol and symbol in "&%$#_{}":
            out.append(symbol)
        elif special in ("{", "}"):
            depth += 1 if special == "{" else -1
            assert depth >= 0
        else:
            assert plain, f"{name or special!r} in {text!r}"
            out.append(unicodedata.normalize("NFC", plain + accent))
            accent = ""
    assert depth == 0
    return re.sub(r"\[U\+([0-9A-F]{4,6})\]", lambda m: chr(int(m[1], 16)), "".join(out))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.sampled_from(HOSTILE), st.text("\\{}[]%#&$_^~\"'`-,<>|*@ éÅøßłżǗ中abU+", max_size=30), st.text()))
def test_escaped_text_is_typeset_as_itself(text: str) -> None:
    """TeX reads back each character, in ASCII; punctuation does not join into dashes, quotation marks or ligatures."""
    text = clean(text)
    escaped = latex.escape(text)
    assert escaped.isascii()
    assert not re.search(r"--|''|``|,,|<<|>>|\n", escaped)
    wanted = unicodedata.normalize("NFC", text)
    assert typeset(escaped.replace("$\\times$", "×").replace("$-$", "−").replace("$\\pm$", "±")) == re.sub(
        r"\[U\+([0-9A-F]{4,6})\]", lambda m: chr(int(m[1], 16)), wanted
    )


def test_letters_that_pdflatex_has_are_kept() -> None:
    """Accents are set as accents; what its fonts lack becomes a code point instead of stopping the run."""
    assert latex.escape("é ż Ø ß") == r"\'{e} \.{z} {\O} {\ss}"
    assert latex.escape("中\N{PILE OF POO}") == "{[}U+4E2D{]}{[}U+1F4A9{]}"
    assert latex.escape("--seed 100%\\x") == r"-{}-seed 100\%{\textbackslash}x"


@pytest.mark.parametrize("name", [*REPORTS, "compared"])
def test_only_layout_is_left_when_text_is_taken_away(name: str) -> None:
    """Every command is one of ours, groups and environments close in order, each row has as many cells as columns."""
    text = documents()[name]
    assert text.isascii()
    first, *lines = text.splitlines()
    assert first.startswith("% ")
    known = LAYOUT | NAMED.keys() | MARKS.keys() | set("&%$#_{},")
    opened: list[str] = []
    for line in lines:
        tokens = [(word or symbol, special) for word, symbol, special, _ in TOKEN.findall(line)]
        assert {n for n, _ in tokens if n} <= known
        specials = [s for _, s in tokens if s]
        assert {*specials} <= {"{", "}", "&", "$"}
        assert specials.count("{") == specials.count("}") or line in ("{\\scriptsize", "}")
        assert line.count("$-$") * 2 + line.count("$\\times$") * 2 == specials.count("$")
        for kind, environment in re.findall(r"^\\(begin|end)\{(\w+)\}", line):
            if kind == "begin":
                opened.append(environment)
            else:
                assert opened.pop() == environment
        if columns := re.search(r"\\multicolumn\{(\d+)\}", line):
            cells = int(columns[1])
        elif line.endswith("\\tabularnewline"):
            assert specials.count("&") == cells - 1
            assert not re.match(r"\s*[\[*]", line)  # would be an option of the row's end before it
    assert opened == []
    assert lines.count("{\\scriptsize") == lines.count("}")


def test_it_says_what_a_paper_needs() -> None:
    """The verdict and the oracle mark stand in the caption, each model's rate with its interval in a cell."""
    text = render(audited(), "latex")
    caption = next(line for line in text.splitlines() if line.startswith("\\caption"))
    assert caption.startswith(r"\caption{\textbf{Fail.} ")
    assert "it comes back" in caption
    assert "ORACLE" in caption
    assert r"\raggedright purified & 94.0\%\,{\scriptsize [92.5, 95.5] sd 3.0}" in text
    assert r"\usepackage{booktabs}" in text.splitlines()[0]


def test_what_no_page_holds_goes_on_in_another_float() -> None:
    """LaTeX never breaks a float: a long audit becomes several, all under the verdict, with no row lost."""
    text = render(long(), "latex")
    captions = [line for line in text.splitlines() if line.startswith("\\caption")]
    assert len(captions) > 2
    assert all(c.startswith(r"\caption{\textbf{Fail.} ") for c in captions)
    assert captions[1].endswith(", continued.}")
    assert text.count("never-seen trigger") == sum(f.subject == "null" for f in long().findings)


def test_a_negative_difference_has_a_minus_sign() -> None:
    """A hyphen would read as a range."""
    better = Report.model_copy(empty(), update={"findings": [row("evaluation", "purified", "o_asr", 0.1)]})
    worse = Report.model_copy(empty(), update={"findings": [row("evaluation", "purified", "o_asr", 0.4)]})
    assert r"$-$30.0\,{\scriptsize [$-$32.1, $-$27.9]}" in render_side_by_side([("a", worse), ("b", better)], "latex")


@needs_latex
@pytest.mark.parametrize("name", [*REPORTS, "compared"])
def test_pdflatex_takes_it(name: str, tmp_path: Path) -> None:
    """Each table compiles in an article that loads booktabs, without one error or missing character."""
    (tmp_path / "table.tex").write_text(documents()[name])
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{table}\\end{document}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert "Missing character" not in log
    if name in ("audited", "long"):
        assert "Overfull" not in log
        assert "Float too large" not in log
