"""The report as a LaTeX table for a paper: one float, to be \\input where booktabs is loaded.

Everything that came from outside is escaped, and the output is ASCII: a letter that LaTeX can write with an accent is
written so, any other character becomes its code point, since pdflatex stops at characters that its fonts lack.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from bdaudit.report import compare, content, tables
from bdaudit.report.schema import Report
from bdaudit.report.tables import Table

HEAD = "% Needs \\usepackage{booktabs} in the preamble.\n\\begin{table}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}"

NAMES = {
    "\\": "textbackslash", "<": "textless", ">": "textgreater", "|": "textbar", "~": "textasciitilde",
    "^": "textasciicircum", "`": "textasciigrave", '"': "char34", "…": "dots", "–": "textendash", "—": "textemdash",
    "’": "textquoteright", "“": "textquotedblleft", "”": "textquotedblright",
    "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
}  # fmt: skip
MATHS = {"×": "$\\times$", "−": "$-$"}
ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327", "`'^~=u.\"rHvc", strict=True))  # fmt: skip

END = " \\tabularnewline"
"""Ends a row; `\\\\` means something else where \\raggedright is in force."""

_PAIRS = re.compile(r"(?<=([-',]))(?=\1)")
_MINUS = re.compile(r"(?<![\w.-])-(?=[\d.])")


def render(report: Report) -> str:
    """Write the figures as one LaTeX table: models down, metrics across, the verdict in the caption."""
    caption = [f"\\textbf{{{content.VERDICT_WORDS[report.verdict]}.}}", content.clean(report.title) + ":"]
    caption += [content.headline(report), content.story(report)]
    if any(g.oracle for g in report.granted):
        caption.append(content.ORACLE_MEANS)
    stages = tables.summary(report)
    return table(
        [caption[0], *map(escape, caption[1:])],
        [figures(t) for t in stages],
        [content.INTERVALS] if stages else ["Nothing was measured."],
    )


def side_by_side(audits: Sequence[compare.Audit]) -> str:
    """Write several audits as one LaTeX table: their shared figures with differences, their verdicts in the caption."""
    caption = [
        f"\\textbf{{{a.letter}: {content.VERDICT_WORDS[a.report.verdict]}}} ({escape(a.source)})" for a in audits
    ]
    first, _, *rest = compare.sections(audits)
    warning = f"\\textbf{{{first.title}.}} {escape(' '.join(first.lines))}"
    bodies = [figures(t) for s in rest for t in s.figures] + [words(t) for s in rest for t in s.words]
    return table(["; ".join(caption) + ".", warning], bodies, (f"{s.title}: {line}" for s in rest for line in s.lines))


def table(caption: Iterable[str], bodies: Iterable[str], notes: Iterable[str]) -> str:
    """Put tabulars under one caption, which is LaTeX already, with notes, which are not, below them."""
    parts = [HEAD, f"\\caption{{{' '.join(caption)}}}"]
    parts += [f"\\par\\medskip\n{body}" for body in bodies]
    parts += [
        f"\\par\\smallskip\n\\parbox{{\\linewidth}}{{\\scriptsize\\raggedright {escape(note)}}}" for note in notes
    ]
    return "\n".join([*parts, "\\end{table}"]) + "\n"


def figures(table: Table) -> str:
    """Write a table of rates as a tabular, its title as the first row, intervals smaller."""
    return _tabular(table, "r", _figure)


def words(table: Table) -> str:
    """Write a table of words as a tabular whose cells break into lines."""
    width = 0.7 / max(1, len(table.headers) - 1)
    return _tabular(table, f"p{{{width:.2f}\\linewidth}}", _broken)


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


def _tabular(table: Table, column: str, write: Callable[[str], str]) -> str:
    columns = len(table.headers)
    rows = [" & ".join([_broken(row[0]), *map(write, row[1:])]) + END for row in table.rows]
    lines = [
        f"\\begin{{tabular}}{{@{{}}p{{{max(6, 36 - 6 * columns)}em}}{column * (columns - 1)}@{{}}}}",
        "\\toprule",
        f"\\multicolumn{{{columns}}}{{@{{}}l}}{{\\itshape {escape(table.title)}}}{END}",
        "\\midrule",
        " & ".join(map(escape, table.headers)) + END,
        "\\midrule",
        *rows,
        "\\bottomrule",
        "\\end{tabular}",
    ]
    if table.left_out:
        lines.append(f"\\par {table.left_out} more in the JSON report.")
    return "\n".join(lines)


def _broken(cell: str) -> str:
    return f"\\raggedright {escape(cell)}"


def _figure(cell: str) -> str:
    value, bracket, rest = cell.partition(" [")
    return _number(value) + (f"\\,{{\\scriptsize [{_number(rest)}}}" if bracket else "")


def _number(text: str) -> str:
    return escape(_MINUS.sub("−", text))
