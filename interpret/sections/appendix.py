"""Commands, settings, digests, and every tensor of the state."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from interpret.evidence import Evidence
from interpret.sections.subject import Subject
from interpret.sections.wording import MISSING, flat, interval, number, shape

DIGEST_LENGTH = 16  # characters printed; the manifests, attached to the PDF, hold them whole


def build(subject: Subject) -> dict[str, Any]:
    """Commands, settings, digests, tensors and torchinfo's table of every run."""
    evidence = [subject.evidence[label] for label in subject.labels]
    summaries = [one.summary for one in evidence]
    inputs = subject.reference.manifest.inputs
    files = {path: None for one in evidence for path in one.manifest.files}
    digests = [(path, [one.manifest.files.get(path, MISSING)[:DIGEST_LENGTH] for one in evidence]) for path in files]
    digests.append(("manifest.json", [one.digest[:DIGEST_LENGTH] for one in evidence]))
    seconds = [one.journal.get("seconds") or {} for one in evidence]
    return {
        "runs": subject.runs,
        "commands": [(run, command(one)) for run, one in zip(subject.runs, evidence, strict=True)],
        "settings": _rows([one.manifest.settings for one in evidence], flat),
        "seconds": _rows(seconds, number),
        "digests": digests,
        "images": list(zip(inputs["names"], inputs["source_sha256"], inputs["tensor_sha256"], strict=True)),
        "tensors": _tensors(subject),
        "summaries": list(zip(subject.runs, summaries, strict=True))[: 1 if len(set(summaries)) == 1 else None],
        "one_summary": len(set(summaries)) == 1,
    }


def _rows(values: Sequence[Mapping[str, Any]], write: Callable[[Any], str]) -> list[dict[str, Any]]:
    """A row per name with one text per run, and whether they are all the same."""
    rows = []
    for name in {name: None for one in values for name in one}:
        texts = [write(one.get(name)) for one in values]
        rows.append({"name": name, "texts": texts, "differs": len(set(texts)) > 1})
    return rows


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
            if tensor.name not in known[run.label] or known[run.label][tensor.name].value_sha256 != tensor.value_sha256
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
    return shlex.join(recorded) if isinstance(recorded, list) else str(recorded or "")
