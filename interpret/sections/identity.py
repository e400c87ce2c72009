"""Which weights, which images, which software: what differs between the runs comes first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from interpret.evidence import Evidence
from interpret.language import say
from interpret.sections.subject import Run, Subject
from interpret.sections.wording import MISSING, count, flat, shape

DIGEST_LENGTH = 16  # digits printed of a sha256; the manifests, attached to the PDF, hold it whole
_DIGEST = re.compile(r"[0-9a-f]{64}")


def build(subject: Subject) -> dict[str, Any]:
    """Rows of properties with a text per run, those that differ apart from those that do not."""
    rows = []
    for group, name, read in _IDENTITY:
        values = [read(subject.evidence[label]) for label in subject.labels]
        links = [_model_page(subject, run) if read is _checkpoint else None for run in subject.runs]
        rows.append({"group": group, **row_by_run(subject.runs, name, values, links)})
    differing = [row for row in rows if row["differs"]]
    same = [row for row in rows if not row["differs"]]
    return {"runs": subject.runs, "differing": differing, "same": same, "compared": subject.comparison is not None}


def row_by_run(
    runs: Sequence[Run], name: str, texts: Sequence[str], links: Sequence[str | None] | None = None
) -> dict[str, Any]:
    """A property with a text per run, digests shortened, and each different text once with the runs that have it.

    Args:
        runs: the runs.
        name: of the property.
        texts: one per run.
        links: a page for each text, or None.
    """
    links = links or [None] * len(texts)
    cells = [_cell(text, link) for text, link in zip(texts, links, strict=True)]
    said: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        said.setdefault(text, []).append(place)
    groups = []
    for places in said.values():
        linked = next((place for place in places if links[place]), places[0])
        groups.append({"runs": [runs[place] for place in places], **cells[linked]})
    return {"name": name, "texts": list(texts), "cells": cells, "groups": groups, "differs": len(groups) > 1}


def _cell(text: str, link: str | None) -> Mapping[str, Any]:
    """A text as it is printed, and the whole of it where digits were left out."""
    if not _DIGEST.search(text):
        return {"text": text, "title": "", "link": link}
    return {"text": _DIGEST.sub(lambda found: found[0][:DIGEST_LENGTH], text), "title": text, "link": link}


def _model_page(subject: Subject, run: Run) -> str | None:
    return run.links.checkpoint(subject.evidence[run.label]) if run.links else None


def _checkpoint(evidence: Evidence) -> str:
    uri = evidence.manifest.checkpoint["uri"]
    return str(uri) if uri else say("a module given in Python")


def _libraries(evidence: Evidence) -> str:
    return ", ".join(f"{name} {version}" for name, version in evidence.manifest.libraries.items())


def _preprocessing(evidence: Evidence) -> str:
    return flat(evidence.manifest.inputs["preprocessing"])


_IDENTITY: tuple[tuple[str, str, Callable[[Evidence], str]], ...] = (
    ("checkpoint", say("Checkpoint"), _checkpoint),
    ("checkpoint", say("Weights (state_sha256)"), lambda e: str(e.manifest.checkpoint["state_sha256"])),
    ("checkpoint", say("File (file_sha256)"), lambda e: str(e.manifest.checkpoint["file_sha256"] or MISSING)),
    ("checkpoint", say("Format"), lambda e: flat(e.manifest.checkpoint["format"])),
    ("checkpoint", say("Branch"), lambda e: flat(e.manifest.checkpoint["branch"])),
    ("checkpoint", say("Other states in the file"), lambda e: ", ".join(e.manifest.checkpoint["others"]) or MISSING),
    ("checkpoint", say("Stored types"), lambda e: flat(e.manifest.checkpoint["dtypes"])),
    ("checkpoint", say("Stripped prefixes"), lambda e: flat(e.manifest.checkpoint["stripped_prefixes"])),
    ("model", say("Model"), lambda e: str(e.manifest.model["name"])),
    ("model", say("Architecture digest"), lambda e: str(e.manifest.model["architecture_digest"])),
    ("model", say("Parameters"), lambda e: count(e.manifest.model["parameters"])),
    ("inputs", say("Probe digest"), lambda e: str(e.manifest.inputs["probe_sha256"])),
    ("inputs", say("Probe images"), lambda e: count(e.manifest.inputs["count"])),
    (
        "inputs",
        say("Broken files left out"),
        lambda e: ", ".join(s["name"] for s in e.manifest.inputs["skipped"]) or MISSING,
    ),
    ("inputs", say("Input shape"), lambda e: shape(e.manifest.inputs["shape"])),
    ("inputs", say("Preprocessing"), _preprocessing),
    ("inputs", say("Model run by"), lambda e: str(e.manifest.settings["forward"] or "model(images)")),
    ("inputs", say("Targets of the maps"), lambda e: flat(e.manifest.settings.get("targets"))),
    ("environment", say("Device"), lambda e: e.manifest.device),
    ("environment", say("Seed"), lambda e: str(e.manifest.seed)),
    ("environment", say("Libraries"), _libraries),
    ("environment", say("Tool"), lambda e: f"{e.manifest.tool['name']} {e.manifest.tool['version']}"),
    ("environment", say("Audited (UTC)"), lambda e: str(e.journal.get("created_utc", MISSING))),
    ("environment", say("Evidence digest"), lambda e: e.digest),
)
