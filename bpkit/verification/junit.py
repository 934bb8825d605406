"""Reports as JUnit XML, which every CI service shows: a suite a target, a test case a check."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree

from bpkit.verification.report import Report


def junit(reports: Iterable[Report]) -> str:
    """The XML text. A warning is a passed case with its text on stdout: it must not turn a build red."""
    root = ElementTree.Element("testsuites", name="bpkit verify")
    for report in reports:
        results = report.results
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=report.target,
            tests=str(len(results)),
            failures=str(len(report.failures)),
            skipped=str(sum(result.status == "skip" for result in results)),
            time=f"{report.seconds:.3f}",
        )
        for result in results:
            case = ElementTree.SubElement(
                suite, "testcase", classname=report.target, name=result.name, time=f"{result.seconds:.3f}"
            )
            if result.status == "fail":
                failure = ElementTree.SubElement(case, "failure", message=_printable(result.detail))
                failure.text = _printable(result.remedy)
            elif result.status == "skip":
                ElementTree.SubElement(case, "skipped", message=_printable(result.detail))
            elif result.detail:
                text = "\n".join(filter(None, (result.detail, result.remedy)))
                ElementTree.SubElement(case, "system-out").text = _printable(text)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Without the control characters that XML 1.0 has no way to write."""
    return "".join(character for character in text if character.isprintable() or character == "\n")
