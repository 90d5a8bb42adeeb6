"""The report as LaTeX tables for a paper, to be \\input where booktabs is loaded: floats of a page at most.

Everything that came from outside is escaped, and the output is ASCII: a letter that LaTeX can write with an accent is
written so, any other character becomes its code point, since pdflatex stops at characters that its fonts lack.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from bdaudit.report import compare, content, tables
from bdaudit.report.schema import Report
from bdaudit.report.tables import Table
from bdaudit.report.words import INTERVALS, ORACLE_MEANS, VERDICT_WORDS, clean

PAGE, ROWS = 40, 20
"""About how many lines a float may take, and the most rows of a tabular."""

HEAD = "\\begin{table}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}"

NAMES = {
    "\\": "textbackslash", "<": "textless", ">": "textgreater", "|": "textbar", "~": "textasciitilde",
    "^": "textasciicircum", "`": "textasciigrave", '"': "char34", "…": "dots", "–": "textendash", "—": "textemdash",
    "’": "textquoteright", "“": "textquotedblleft", "”": "textquotedblright",
    "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
}  # fmt: skip
MATHS = {"×": "$\\times$", "−": "$-$", "±": "$\\pm$"}
ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True))  # fmt: skip

END = " \\tabularnewline"
"""Ends a row; `\\\\` means something else where \\raggedright is in force."""

_PAIRS = re.compile(r"(?<=([-',]))(?=\1)")
_MINUS = re.compile(r"(?<![\w.-])-(?=[\d.])")


class Body(NamedTuple):
    """A tabular, and about how many lines of a page it takes."""

    text: str
    lines: int


def render(report: Report) -> str:
    """Write the figures as LaTeX tables: models down, metrics across, the verdict in the caption."""
    name = f"\\textbf{{{VERDICT_WORDS[report.verdict]}.}} {escape(clean(report.title))}"
    said = [content.headline(report), content.story(report)]
    said += [ORACLE_MEANS] if any(g.oracle for g in report.granted) else []
    stages = tables.summary(report)
    bodies = [body for t in stages for body in figures(t)]
    return floats(name, f": {escape(' '.join(said))}", bodies, [INTERVALS if stages else "Nothing was measured."])


def side_by_side(audits: Sequence[compare.Audit]) -> str:
    """Write several audits as LaTeX tables: their shared figures with differences, their verdicts in the caption."""
    names = (f"\\textbf{{{a.letter}: {VERDICT_WORDS[a.report.verdict]}}} ({escape(a.source)})" for a in audits)
    first, _, *rest = compare.sections(audits)
    warning = f". \\textbf{{{first.title}.}} {escape(' '.join(first.lines))}"
    bodies = [body for s in rest for t in s.figures for body in figures(t)]
    bodies += [body for s in rest for t in s.words for body in words(t)]
    return floats("; ".join(names), warning, bodies, (f"{s.title}: {line}" for s in rest for line in s.lines))


def floats(name: str, caption: str, bodies: Sequence[Body], notes: Iterable[str]) -> str:
    """Put tabulars under captions, as many as a page holds; name and caption are LaTeX already, the notes are not."""
    pages: list[list[Body]] = [[]]
    for body in bodies:
        if pages[-1] and sum(b.lines for b in pages[-1]) + body.lines > PAGE:
            pages.append([])
        pages[-1].append(body)
    texts = []
    for i, page in enumerate(pages):
        parts = [HEAD, f"\\caption{{{name}{', continued.' if i else caption}}}"]
        parts += [f"\\par\\medskip\n{body.text}" for body in page]
        if page is pages[-1]:
            parts += [
                f"\\par\\smallskip\n\\parbox{{\\linewidth}}{{\\scriptsize\\raggedright {escape(n)}}}" for n in notes
            ]
        texts.append("\n".join([*parts, "\\end{table}"]))
    return "% Needs \\usepackage{booktabs} in the preamble.\n" + "\n".join(texts) + "\n"


def figures(table: Table) -> list[Body]:
    """Write a table of rates as tabulars, intervals smaller."""
    width = max(6, 36 - 6 * len(table.headers))
    return [_tabular(part, f"{width}em", 2 * width, "r", _figure) for part in _parts(table)]


def words(table: Table) -> list[Body]:
    """Write a table of words as tabulars whose cells break into lines; hashes are shortened."""
    rows = [[content.shortened(cell) for cell in row] for row in table.rows]
    column = f"p{{{0.6 / max(1, len(table.headers) - 1):.2f}\\linewidth}}"
    return [_tabular(part, ".33\\linewidth", 25, column, _broken) for part in _parts(replace(table, rows=rows))]


def escape(text: str) -> str:
    """Make text mean nothing but itself in LaTeX's text mode, in ASCII, without ligatures of punctuation."""
    return "".join(map(_character, _PAIRS.sub("\0", unicodedata.normalize("NFC", text))))


def _character(c: str) -> str:
    if c == "\0":  # between two that would join into a dash or a quotation mark
        return "{}"
    if c == "\n":
        return ", "
    if c in "&%$#_{}":
        return f"\\{c}"
    if c in NAMES:
        return f"{{\\{NAMES[c]}}}"
    if c in MATHS:
        return MATHS[c]
    if " " <= c <= "~":
        return c
    parts = [chr(int(p, 16)) for p in unicodedata.decomposition(c).split() if not p.startswith("<")]
    if len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in ACCENTS:
        return f"\\{ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"{{[}}U+{ord(c):04X}{{]}}"


def _parts(table: Table) -> Iterator[Table]:
    for start in range(0, len(table.rows), ROWS):
        last = start + ROWS >= len(table.rows)
        strong = frozenset((r - start, c) for r, c in table.strong)
        yield replace(
            table, rows=table.rows[start : start + ROWS], left_out=table.left_out if last else 0, strong=strong
        )


def _tabular(table: Table, first: str, letters: int, column: str, write: Callable[[str], str]) -> Body:
    """Write a tabular, its title as the first row, its first column `first` wide, which is about so many letters.

    Wide ones are set in smaller type.
    """
    columns = len(table.headers)
    written = table.written(write, "\\textbf{{{}}}".format)
    title = f"\\multicolumn{{{columns}}}{{@{{}}l}}{{\\itshape {escape(table.title)}}}{END}"
    lines = [
        f"\\begin{{tabular}}{{@{{}}p{{{first}}}{column * (columns - 1)}@{{}}}}",
        "\\toprule",
        *([title, "\\midrule"] if table.title else []),
        " & ".join(map(escape, table.headers)) + END,
        "\\midrule",
        *(" & ".join([_broken(row[0]), *cells]) + END for row, (_, *cells) in zip(table.rows, written, strict=True)),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    if columns > 4:
        lines = ["{\\scriptsize", *lines, "}"]
    if table.left_out:
        lines.append(f"\\par {table.left_out} more in the JSON report.")
    return Body("\n".join(lines), 5 + sum(1 + len(row[0]) // letters for row in table.rows))


def _broken(cell: str) -> str:
    return f"\\raggedright {escape(cell)}"


def _figure(cell: str) -> str:
    value, bracket, rest = cell.partition(" [")
    return _number(value) + (f"\\,{{\\scriptsize [{_number(rest)}}}" if bracket else "")


def _number(text: str) -> str:
    return escape(_MINUS.sub("−", text))
