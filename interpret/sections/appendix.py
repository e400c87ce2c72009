"""Commands, settings, digests, and every tensor of the state."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from interpret.evidence import Evidence
from interpret.language import listed, plural, say
from interpret.sections.identity import DIGEST_LENGTH, row_by_run
from interpret.sections.strips import weights_compare
from interpret.sections.subject import Run, Subject
from interpret.sections.wording import MISSING, count, flat, interval, number, shape

MOST_TENSORS, MOST_OF_ALL = 60, 20  # on paper: where some differ; where all do, as after another training
SUMMARY_LINES = 200  # of torchinfo's tables on paper: two pages


def build(subject: Subject) -> dict[str, Any]:
    """Commands, settings, digests, tensors and torchinfo's table of every run."""
    evidence = [subject.evidence[label] for label in subject.labels]
    inputs = subject.reference.manifest.inputs
    files = {path: None for one in evidence for path in one.manifest.files}
    digests = [(path, [one.manifest.files.get(path, MISSING)[:DIGEST_LENGTH] for one in evidence]) for path in files]
    digests.append(("manifest.json", [one.digest[:DIGEST_LENGTH] for one in evidence]))
    return {
        "runs": subject.runs,
        "commands": row_by_run(subject.runs, "", [command(one) for one in evidence])["groups"],
        "settings": _settings(subject),
        "seconds": _seconds(subject),
        "digests": digests,
        "manifests": [(run, one.digest) for run, one in zip(subject.runs, evidence, strict=True)],
        "images": list(zip(inputs["names"], inputs["source_sha256"], inputs["tensor_sha256"], strict=True)),
        "tensors": _tensors(subject),
        "summaries": _summaries(subject),
    }


def _settings(subject: Subject) -> list[dict[str, Any]]:
    """A row per setting that any run has."""
    settings = [subject.evidence[label].manifest.settings for label in subject.labels]
    names = {name: None for one in settings for name in one}
    return [row_by_run(subject.runs, name, [flat(one.get(name)) for one in settings]) for name in names]


def _seconds(subject: Subject) -> dict[str, Any] | None:
    """What each run spent its time on: a row per run."""
    spent = [subject.evidence[label].journal.get("seconds") or {} for label in subject.labels]
    names = list({name: None for one in spent for name in one})
    rows = [(run, [number(one.get(name)) for name in names]) for run, one in zip(subject.runs, spent, strict=True)]
    return {"names": names, "rows": rows} if names else None


def _summaries(subject: Subject) -> list[dict[str, Any]]:
    """Tables of torchinfo, equal ones once; ``head`` is what of a table stands on paper."""
    said: dict[str, list[Run]] = {}
    for run in subject.runs:
        said.setdefault(subject.evidence[run.label].summary or "", []).append(run)
    share = SUMMARY_LINES // len(said)
    tables = []
    for text, runs in said.items():
        lines = text.splitlines()
        left = len(lines) - share
        more = plural(
            left,
            "{n} more line; the HTML report and the bundle's {file} hold the whole table.",
            "{n} more lines; the HTML report and the bundle's {file} hold the whole table.",
            file="summary.txt",
        )
        tables.append({"runs": runs, "text": text, "head": "\n".join(lines[:share]), "more": more if left > 0 else ""})
    return tables


def _tensors(subject: Subject) -> dict[str, Any]:
    """Every tensor of the state with the runs where its values are others: all for the screen, some for paper."""
    rows = _tensor_rows(subject)
    if not subject.others:
        return {"rows": rows, "paper": rows, "sentences": []}
    everywhere = [run for run in subject.others if all(run in row["changed"] for row in rows)]
    some = [row for row in rows if any(run not in everywhere for run in row["changed"])]
    sentences = []
    if rows and len(everywhere) == len(subject.others) > 1:
        sentences.append(say("Every tensor has other values in each other run than in {run}.", run=subject.labels[0]))
    elif rows and everywhere:
        sentences.append(say("Every tensor has other values in {runs}.", runs=listed(run.label for run in everywhere)))
    if len(everywhere) < len(subject.others):
        equal, runs = len(rows) - len(some), listed(run.label for run in subject.others if run not in everywhere)
        sentences.append(
            plural(
                equal,
                "{count} of {total} tensors has the same values in {reference} and {runs}.",
                "{count} of {total} tensors have the same values in {reference} and {runs}.",
                count=count(equal),
                total=count(len(rows)),
                reference=subject.labels[0],
                runs=runs,
            )
        )
    candidates, most = (some, MOST_TENSORS) if some else (rows if everywhere else [], MOST_OF_ALL)
    changes = _changes(subject, [run for run in subject.others if not some or run not in everywhere])
    ranked = sorted((row for row in candidates if row["name"] in changes), key=lambda row: -changes[row["name"]])
    paper = candidates if some and len(candidates) <= most else ranked[:most]
    if len(paper) < len(candidates):
        sentences.append(
            say(
                "Listed: the {count} whose values changed most, by relative L2 norm; the HTML report lists all.",
                count=count(len(paper)),
            )
            if paper
            else say("The HTML report lists them.")
        )
    return {"rows": sorted(rows, key=lambda row: not row["changed"]), "paper": paper, "sentences": sentences}


def _changes(subject: Subject, runs: Sequence[Run]) -> dict[str, float]:
    """The reference's tensors that have a relative change, with the largest of those of the runs."""
    changes: dict[str, float] = {}
    for run in runs:
        if not weights_compare(subject, run):
            continue  # weights that were trained apart: their distance ranks nothing
        for layer in subject.layers:
            for tensor in layer.numbers.get(run.label, {}).get("tensors", ()):
                if tensor["change"] is not None:
                    changes[tensor["name"]] = max(tensor["change"], changes.get(tensor["name"], 0.0))
    return changes


def _tensor_rows(subject: Subject) -> list[dict[str, Any]]:
    """Every tensor of the reference's state, with the runs in which its values differ from the reference's."""
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
