"""How the numbers came about, and what they do not show."""

from __future__ import annotations

from typing import Any

from interpret.language import listed, say
from interpret.sections.identity import row_by_run
from interpret.sections.subject import Subject
from interpret.sections.verdict import reservations
from interpret.sections.wording import flat, sentence

COMPARED = ("weights", "activations", "maps", "predictions")
COMPARABLE = {
    True: say("yes"),
    False: say("no"),
    "no": say("no"),
    "exact": say("exact"),
    "subset": say("subset"),
    "own-preprocessing": say("own-preprocessing"),
}


def build(subject: Subject) -> dict[str, Any]:
    """What was measured on what, what was comparable, and which collectors failed."""
    manifest = subject.reference.manifest
    comparable = []
    if subject.comparison is not None:
        for run in subject.others:
            entry = subject.comparison["comparable"].get(run.label, {})
            texts = [COMPARABLE.get(entry.get(name), entry.get(name)) for name in COMPARED]
            comparable.append((run, texts, listed([sentence(reason) for reason in entry.get("reasons", [])], " ")))
    names = {name: None for evidence in subject.evidence.values() for name in evidence.manifest.collectors}
    collectors = [
        row_by_run(subject.runs, name, [_outcome(subject, label, name) for label in subject.labels]) for name in names
    ]
    return {
        "methods": ", ".join(str(method) for method in manifest.settings.get("methods", [])) or say("none"),
        "images": int(manifest.inputs["count"]),
        "displayed": int(manifest.inputs["displayed"]),
        "preprocessing": flat(subject.reference.manifest.inputs["preprocessing"]),
        "compared": subject.comparison is not None,
        "comparable": comparable,
        "collectors": collectors,
        "runs": subject.runs,
        "reservations": reservations(subject),
    }


def _outcome(subject: Subject, label: str, collector: str) -> str:
    """What became of a collector, with its message."""
    found = subject.evidence[label].manifest.collectors.get(collector)
    if found is None:
        return say("absent")
    if not found["message"]:
        return str(found["status"])
    return say("{status}: {message}", status=found["status"], message=found["message"])
