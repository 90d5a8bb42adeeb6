"""The report as JUnit XML, for CI systems: a check a test case."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree as ET

from bdaudit.report import content
from bdaudit.report.schema import Report, Verdict
from bdaudit.report.words import clean

ELEMENTS: dict[Verdict, str | None] = {"pass": None, "fail": "failure", "inconclusive": "error"}
"""Inconclusive is an `error`: CI systems show skipped tests as green."""

_FIGURE = re.compile(r"(?: (?:is|was|went from|of))? [\d\[].*")


def render(report: Report) -> str:
    """Write one test suite: a case for the verdict, then one for each reason; valid XML whatever the text
    (`clean` leaves no character that XML 1.0 has no place for).

    Cases are named by their claim without its figures, so that a CI system recognises them from run to run.
    A reason whose own outcome was not recorded takes the report's, so that nothing looks better than the whole.
    """
    suite = ET.Element("testsuite", name=clean(report.title))
    statuses: Counter[str | None] = Counter()
    names: Counter[str] = Counter()

    def case(name: str, outcome: Verdict, message: str, body: str) -> None:
        names[name] += 1
        unique = name if names[name] == 1 else f"{name} ({names[name]})"
        element = ET.SubElement(suite, "testcase", classname="bdaudit", name=unique)
        kind = ELEMENTS[outcome]
        statuses[kind] += 1
        if kind:
            ET.SubElement(element, kind, type=outcome, message=message).text = body
        else:
            ET.SubElement(element, "system-out").text = body

    checks = content.checks(report)
    story = content.story(report)
    case("verdict", report.verdict, content.headline(report), "\n".join([story, *(text for _, text in checks)]))
    for outcome, text in checks:
        case(claim(text), outcome or report.verdict, text, text)

    suite.set("tests", str(sum(statuses.values())))
    suite.set("failures", str(statuses["failure"]))
    suite.set("errors", str(statuses["error"]))
    suite.set("skipped", "0")
    ET.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def claim(reason: str) -> str:
    """Cut a reason before its first figure: what was checked, the same from run to run."""
    return _FIGURE.sub("", clean(reason, 200)) or clean(reason, 200)
