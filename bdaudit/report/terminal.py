"""The report at a terminal: the verdict first, then what it rests on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from bdaudit.report import compare, content, tables, words
from bdaudit.report.schema import Report, Verdict
from bdaudit.report.tables import Table
from bdaudit.report.words import clean

WIDTH = 100
COLORS: dict[Verdict, str] = {"pass": "32", "fail": "31", "inconclusive": "33"}


def render(report: Report, *, color: bool = False) -> str:
    """Write the report as plain text of at most about 100 columns, with colours only if asked for."""

    blocks = [
        clean(report.title),
        f"{_painted(report.verdict, color)}  {content.headline(report)}\n"
        + "\n".join(_wrap(content.story(report), "")),
        _section("Why", (_reason(outcome, text) for outcome, text in content.checks(report))),
    ]
    blocks += [grid(t) for t in tables.summary(report)]
    if report.findings:
        terms = (f"{name}: {means}" for name, means in content.glossary(report))
        blocks += ["\n".join(_wrap(words.INTERVALS, "")), _section("What the columns mean", terms)]
    blocks += [
        _section("Curves and maps", content.curves(report)),
        _section("Controls", content.controls(report)),
        _granted(report),
        _section("Caveats", content.notes(report)),
        _self_checks(report),
        _section("What a pass does not mean", content.limits(report)),
        _section("Policy", (f"{name} {value}: {means}" for name, value, means in tables.policy(report).rows)),
        _provenance(report),
    ]
    return "\n\n".join(b for b in blocks if b) + "\n"


def side_by_side(audits: Sequence[compare.Audit], *, color: bool = False) -> str:
    """Write several audits beside one another as plain text; hashes are shortened."""
    ended = "   ".join(f"{a.letter} {_painted(a.report.verdict, color)}" for a in audits)
    blocks = [f"{compare.title(audits)}\n{ended}"]
    for section in compare.sections(audits):
        blocks.append(_section(section.title, section.lines) or section.title)
        blocks += [grid(t) for t in section.figures]
        blocks += [_words(t) for t in section.words]
    return "\n\n".join(blocks) + "\n"


def _painted(verdict: Verdict, color: bool) -> str:
    return f"\033[1;{COLORS[verdict]}m{verdict.upper()}\033[0m" if color else verdict.upper()


def _words(table: Table) -> str:
    widths = [None, *[max(16, (WIDTH - 30) // (len(table.headers) - 1))] * (len(table.headers) - 1)]
    rows = [[content.shortened(cell) for cell in row] for row in table.rows]
    return tabulate(rows, table.headers, tablefmt="simple", disable_numparse=True, maxcolwidths=widths)


def _reason(outcome: Verdict | None, text: str) -> str:
    return f"[{outcome}] {text}" if outcome else text


def _section(title: str, lines: Iterable[str]) -> str:
    wrapped = [w for line in lines for w in _wrap(line, "  - ")]
    return "\n".join([title, *wrapped]) if wrapped else ""


def _wrap(text: str, bullet: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet))


def grid(table: Table) -> str:
    """Write a table; a star marks the cells that stand out."""
    rows = table.written(str, "{}*".format)
    body = tabulate(rows, table.headers, tablefmt="simple", disable_numparse=True)
    more = [f"({table.left_out} more in the JSON report)"] if table.left_out else []
    return "\n".join([table.title, "", body, *more])


def _granted(report: Report) -> str:
    table = tables.granted(report)
    if not table.rows:
        return ""
    return grid(table) + (f"\n{words.ORACLE_MEANS}" if any(g.oracle for g in report.granted) else "")


def _self_checks(report: Report) -> str:
    table = tables.checked(report)
    plain = words.OUTCOMES["sound"]
    told = {f"{name} ({of}): {found or out}": name for name, of, out, found in table.rows if found or out != plain}
    others = dict.fromkeys(row[0] for row in table.rows if row[0] not in told.values())
    return _section(table.title, [*told, *([f"{plain}: {'; '.join(others)}"] if others else [])])


def _provenance(report: Report) -> str:
    entered = [f"{name} ({', '.join(what.splitlines())})" for name, what in tables.inputs(report).rows]
    ran = [f"{name} {value}" for name, value in tables.provenance(report).rows]
    lines = [f"inputs: {'; '.join(entered)}"] if entered else []
    lines += [f"run: {'; '.join(ran)}"] if ran else []
    return _section("Provenance", (content.shortened(clean(line, 4000)) for line in lines))
