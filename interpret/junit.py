"""The result of a policy as JUnit XML, which CI servers show as tests."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from interpret.errors import InterpretError
from interpret.evidence import unique_labels
from interpret.policies import KEPT, NOT_CHECKED, VERDICTS, VIOLATED, Check, PolicyResult, shown


def write_junit(result: PolicyResult, file: str | Path) -> None:
    """Write the result as JUnit XML: a suite for each run, a test for each rule.

    A violated rule has one failed test for each violation, so that viewers list the layers; a rule that could not be
    checked is skipped. The file keeps Ant's schema, the strictest one in use, and Jenkins' own.
    """
    root = ET.Element("testsuites")
    for place, run in enumerate(result.runs):
        groups = [(verdict, checks) for verdict, checks in result.by_rule() if checks[0].run == run]
        counts = {verdict: sum(len(checks) for found, checks in groups if found == verdict) for verdict in VERDICTS}
        others = {verdict: sum(found == verdict for found, _ in groups) for verdict in (NOT_CHECKED, KEPT)}
        suite = ET.SubElement(
            root,
            "testsuite",
            {
                "name": _xml(run),
                "package": "interpret",
                "id": str(place),
                "timestamp": result.created[run][:19],
                "hostname": "localhost",
                "tests": str(counts[VIOLATED] + sum(others.values())),
                "failures": str(counts[VIOLATED]),
                "errors": "0",
                "skipped": str(others[NOT_CHECKED]),
                "time": "0",
            },
        )
        properties = ET.SubElement(suite, "properties")
        for name, value in (("policy", result.policy), ("reference", result.reference or "")):
            ET.SubElement(properties, "property", {"name": name, "value": _xml(value)})
        cases = [check for verdict, checks in groups for check in (checks if verdict == VIOLATED else checks[:1])]
        for check, name in zip(cases, unique_labels([_test_name(check) for check in cases]), strict=True):
            _add_test(suite, check, name)
        kept = [f"{checks[0].rule}: {checks[0].sentence}" for verdict, checks in groups if verdict == KEPT]
        ET.SubElement(suite, "system-out").text = "\n".join(_xml(line) for line in kept)
        ET.SubElement(suite, "system-err")
    ET.indent(root)
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        ET.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)
    except (OSError, ValueError) as error:
        raise InterpretError(f"JUnit file {str(file)!r} cannot be written: {error}") from error


def _test_name(check: Check) -> str:
    """The rule; where it is violated, with what violates it."""
    culprit = ", ".join(filter(None, (check.layer, check.name)))
    return f"{check.rule} [{culprit}]" if check.verdict == VIOLATED else check.rule


def _add_test(suite: ET.Element, check: Check, name: str) -> None:
    attributes = {"name": _xml(name), "classname": _xml(f"interpret.{check.run}"), "time": "0"}
    case = ET.SubElement(suite, "testcase", attributes)
    if check.verdict == NOT_CHECKED:
        ET.SubElement(case, "skipped", {"message": _xml(f"not checked: {check.reason}")})
    elif check.verdict == VIOLATED:
        failure = ET.SubElement(case, "failure", {"message": _xml(check.sentence), "type": "violated"})
        lines = {
            "run": check.run,
            "rule": check.rule,
            "layer": check.layer,
            "name": check.name,
            "value": None if check.value is None else shown(check.value),
            "reference": None if check.reference is None else shown(check.reference),
            "limit": check.limit,
            "reason": check.reason,
        }
        failure.text = "\n".join(f"{name}: {_xml(value)}" for name, value in lines.items() if value is not None)


_NOT_XML = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def _xml(text: str) -> str:
    r"""Text with characters that XML does not allow, and control characters, spelled out.

    >>> _xml("a\x1bb\n")
    'a\\x1bb\\x0a'
    """
    return _NOT_XML.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
