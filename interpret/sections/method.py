"""How the numbers came about, and what they do not show."""

from __future__ import annotations

from typing import Any

from interpret.sections.subject import Subject
from interpret.sections.verdict import reservations
from interpret.sections.wording import flat, sentence


def build(subject: Subject) -> dict[str, Any]:
    """What was measured on what, what was comparable, and which collectors failed."""
    manifest = subject.reference.manifest
    comparable = []
    if subject.comparison is not None:
        for run in subject.others:
            entry = subject.comparison["comparable"].get(run.label, {})
            comparable.append((run, entry, [sentence(reason) for reason in entry.get("reasons", [])]))
    collectors = [
        (
            name,
            [
                subject.evidence[label].manifest.collectors.get(name, {"status": "absent", "message": ""})
                for label in subject.labels
            ],
        )
        for name in manifest.collectors
    ]
    return {
        "methods": [str(method) for method in manifest.settings.get("methods", [])],
        "images": int(manifest.inputs["count"]),
        "displayed": int(manifest.inputs["displayed"]),
        "preprocessing": flat(subject.reference.manifest.inputs["preprocessing"]),
        "compared": subject.comparison is not None,
        "comparable": comparable,
        "collectors": collectors,
        "runs": subject.runs,
        "reservations": reservations(subject),
    }
