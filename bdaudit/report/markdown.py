"""The report as GitHub Markdown, with everything that came from outside escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from bdaudit.report import compare, content, tables, words
from bdaudit.report.schema import Report, Verdict
from bdaudit.report.tables import Table
from bdaudit.report.words import clean

MARKS: dict[Verdict | None, str] = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "⚠️ inconclusive", None: ""}

_PLAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z./+:_-]*")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!$&])")
_START = re.compile(r"^(?:([-+=])|(\d+)([.)])(?=\s|$))")
_LINK = re.compile(r"(?i)(?<=\w)://|(?<=www)\.|@")


def render(report: Report) -> str:
    """Write the report as Markdown: the verdict first, GitHub tables, no HTML of its own."""
    blocks = [
        f"# {escape(clean(report.title))}",
        f"## {MARKS[report.verdict]}: {escape(content.headline(report))}",
        escape(content.story(report)),
        _section("Why", ((f"{MARKS[o]}: " if o else "") + escape(text) for o, text in content.checks(report))),
    ]
    blocks += [grid(t) for t in tables.summary(report)]
    if report.findings:
        terms = (f"**{escape(name)}**: {escape(means)}." for name, means in content.glossary(report))
        blocks += [escape(words.INTERVALS), _bullets(terms)]
    blocks += [
        _section("Curves and maps", map(escape, content.curves(report))),
        _section("Controls", map(escape, content.controls(report))),
        _granted(report),
        _section("Caveats", map(escape, content.notes(report))),
        grid(tables.checked(report)),
        _section("What a pass does not mean", map(escape, content.limits(report))),
        grid(tables.policy(report)),
        grid(tables.inputs(report)),
        grid(tables.provenance(report)),
    ]
    return "\n\n".join(b for b in blocks if b) + "\n"


def side_by_side(audits: Sequence[compare.Audit]) -> str:
    """Write several audits beside one another as Markdown."""
    blocks = [
        f"# {compare.title(audits)}",
        "## " + ", ".join(f"{a.letter} {MARKS[a.report.verdict]}" for a in audits),
    ]
    for section in compare.sections(audits):
        blocks += [f"## {section.title}", _bullets(map(escape, section.lines))]
        blocks += [grid(t) for t in (*section.figures, *section.words)]
    return "\n\n".join(b for b in blocks if b) + "\n"


def escape(text: str) -> str:
    """Make cleaned text mean nothing but itself in GitHub Markdown: no markup, tables, links or mentions."""
    text = _SPECIAL.sub(r"\\\1", text)
    text = _START.sub(lambda m: f"\\{m[1]}" if m[1] else f"{m[2]}\\{m[3]}", text)
    # GitHub links bare addresses and @names even when escaped; a zero-width space stops both.
    return _LINK.sub(lambda m: "@\u200b" if m[0] == "@" else "\u200b" + m[0], text)


def _cell(text: str) -> str:
    lines = text.split("\n")
    return ", ".join(f"`{t}`" if ("_" in t or len(t) > 24) and _PLAIN.fullmatch(t) else escape(t) for t in lines)


def _section(title: str, lines: Iterable[str]) -> str:
    body = _bullets(lines)
    return f"### {title}\n\n{body}" if body else ""


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def grid(table: Table) -> str:
    """Write a table in GitHub's markup, what stands out in bold."""
    return _grid(table, table.written(_cell, "**{}**".format))


def _grid(table: Table, rows: list[list[str]]) -> str:
    if not rows:
        return ""
    body = tabulate(rows, [escape(h) for h in table.headers], tablefmt="github", disable_numparse=True)
    more = [f"({table.left_out} more in the JSON report)"] if table.left_out else []
    return "\n\n".join([f"### {escape(table.title)}", body, *more])


def _granted(report: Report) -> str:
    table = tables.granted(report)
    text = _grid(
        table,
        [
            [*map(_cell, row[:-1]), f"**{row[-1]}**" if g.oracle else row[-1]]
            for row, g in zip(table.rows, report.granted, strict=False)
        ],
    )
    return text + (f"\n\n{words.ORACLE_MEANS}" if any(g.oracle for g in report.granted) else "")
