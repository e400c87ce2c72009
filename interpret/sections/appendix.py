"""Commands, settings, digests, and every tensor of the state."""

from __future__ import annotations

from typing import Any

from interpret.evidence import Evidence
from interpret.sections.subject import Subject
from interpret.sections.wording import flat, interval, number, shape


def build(subject: Subject) -> dict[str, Any]:
    """Commands, settings, digests, tensors and torchinfo's table of every run."""
    runs = []
    for run in subject.runs:
        evidence = subject.evidence[run.label]
        manifest = evidence.manifest
        runs.append(
            {
                "run": run,
                "command": command(evidence),
                "settings": [(name, flat(value)) for name, value in manifest.settings.items()],
                "seconds": [(name, number(value)) for name, value in (evidence.journal.get("seconds") or {}).items()],
                "files": sorted(manifest.files.items()),
                "digest": evidence.digest,
                "summary": evidence.summary,
            }
        )
    summaries = {entry["summary"] for entry in runs}
    inputs = subject.reference.manifest.inputs
    return {
        "runs": runs,
        "one_summary": len(summaries) == 1,
        "tensors": _tensors(subject),
        "all_runs": subject.runs,
        "images": list(zip(inputs["names"], inputs["source_sha256"], inputs["tensor_sha256"], strict=True)),
    }


def _tensors(subject: Subject) -> list[dict[str, Any]]:
    """Every tensor of the state, with the runs in which its values differ from the reference's."""
    known = {
        run.label: {tensor.name: tensor for tensor in subject.evidence[run.label].tensors} for run in subject.others
    }
    rows = []
    for tensor in subject.reference.tensors:
        changed = [
            run
            for run in subject.others
            if known[run.label].get(tensor.name, tensor).value_sha256 != tensor.value_sha256
        ]
        rows.append(
            {
                "name": tensor.name,
                "shape": shape(tensor.shape),
                "dtype": tensor.dtype,
                "norm": number(tensor.norm),
                "range": interval(tensor.minimum, tensor.maximum),
                "sha256": tensor.sha256,
                "changed": changed,
            }
        )
    return rows


def command(evidence: Evidence) -> str:
    """The command that made the audit, where it was recorded; else an empty string."""
    recorded = evidence.manifest.settings.get("command") or (evidence.journal.get("environment") or {}).get("command")
    return " ".join(recorded) if isinstance(recorded, list) else str(recorded or "")
