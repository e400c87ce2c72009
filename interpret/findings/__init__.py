"""Measures -> sentences that a reviewer can check.

A rule is one function that yields (severity, call key or None, sentence); its name in the report is the function's
name. `RUN_RULES` in `alone` look at one run, `RULES` in `compared` at a run and its reference. Add a rule: write the
function, put it in its tuple, and say in `advice` what it means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from interpret.evidence import Evidence
from interpret.findings.advice import ADVICE, Advice
from interpret.findings.alone import RUN_RULES
from interpret.findings.compared import RULES
from interpret.findings.wording import Draft
from interpret.language import Message
from interpret.measures import Measures
from interpret.measures.runs import Run

SEVERITIES = ("critical", "warning", "notice", "info")  # most severe first

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence of the report.

    Attributes:
        severity: "info", "notice", "warning" or "critical".
        run: label of the run that it is about.
        layer: key of the call that it is about, or None.
        rule: name of the rule that found it.
        message: the sentence, with its numbers.
    """

    severity: str
    run: str
    layer: str | None
    rule: str
    message: Message

    @property
    def advice(self) -> Advice:
        """What it means, what to look at next, and where."""
        return ADVICE[self.rule]

    def to_dict(self) -> dict[str, Any]:
        """The finding and its advice, for JSON."""
        advice = self.advice
        return dataclasses.asdict(self) | {"meaning": advice.meaning, "next": advice.next, "place": advice.place}


def findings_of(evidence: Evidence | Run, label: str | None = None) -> tuple[Finding, ...]:
    """What one run says of itself, most severe first.

    Args:
        evidence: the run.
        label: its name in the findings; the model's name by default.
    """
    run = evidence if isinstance(evidence, Run) else Run(evidence)
    return _apply(RUN_RULES, run, str(run.evidence.manifest.model["name"]) if label is None else label)


def findings_between(measures: Measures, label: str) -> tuple[Finding, ...]:
    """What sets a run apart from its reference, most severe first."""
    return _apply(RULES, measures, label)


def most_severe_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings by severity, else in the order in which they came."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _apply(rules: Iterable[Callable[[Subject], Iterator[Draft]]], subject: Subject, label: str) -> tuple[Finding, ...]:
    return most_severe_first(
        Finding(severity, label, layer, rule.__name__.replace("_", "-"), message)
        for rule in rules
        for severity, layer, message in rule(subject)
    )
