"""Which weights, which images, which software: what differs between the runs comes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interpret.evidence import Evidence
from interpret.sections.subject import Run, Subject
from interpret.sections.wording import MISSING, count, flat, shape


def build(subject: Subject) -> dict[str, Any]:
    """Rows of properties with a text per run, those that differ apart from those that do not."""
    rows = []
    for group, name, read in _IDENTITY:
        values = [read(subject.evidence[label]) for label in subject.labels]
        links = [_model_page(subject, run) if name == "Checkpoint" else None for run in subject.runs]
        link = next(filter(None, links), None)  # of a value that all runs have
        differs = len(set(values)) > 1
        rows.append({"group": group, "name": name, "texts": values, "links": links, "link": link, "differs": differs})
    differing = [row for row in rows if row["differs"]]
    same = [row for row in rows if not row["differs"]]
    return {"runs": subject.runs, "differing": differing, "same": same, "compared": subject.comparison is not None}


def _model_page(subject: Subject, run: Run) -> str | None:
    return run.links.checkpoint(subject.evidence[run.label]) if run.links else None


def _libraries(evidence: Evidence) -> str:
    return ", ".join(f"{name} {version}" for name, version in evidence.manifest.libraries.items())


def _preprocessing(evidence: Evidence) -> str:
    return flat(evidence.manifest.inputs["preprocessing"])


_IDENTITY: tuple[tuple[str, str, Callable[[Evidence], str]], ...] = (
    ("checkpoint", "Checkpoint", lambda e: str(e.manifest.checkpoint["uri"] or "a module given in Python")),
    ("checkpoint", "Weights (state_sha256)", lambda e: str(e.manifest.checkpoint["state_sha256"])),
    ("checkpoint", "File (file_sha256)", lambda e: str(e.manifest.checkpoint["file_sha256"] or MISSING)),
    ("checkpoint", "Format", lambda e: flat(e.manifest.checkpoint["format"])),
    ("checkpoint", "Branch", lambda e: flat(e.manifest.checkpoint["branch"])),
    ("checkpoint", "Other states in the file", lambda e: ", ".join(e.manifest.checkpoint["others"]) or MISSING),
    ("checkpoint", "Stored types", lambda e: flat(e.manifest.checkpoint["dtypes"])),
    ("checkpoint", "Stripped prefixes", lambda e: flat(e.manifest.checkpoint["stripped_prefixes"])),
    ("model", "Model", lambda e: str(e.manifest.model["name"])),
    ("model", "Architecture digest", lambda e: str(e.manifest.model["architecture_digest"])),
    ("model", "Parameters", lambda e: count(e.manifest.model["parameters"])),
    ("inputs", "Probe digest", lambda e: str(e.manifest.inputs["probe_sha256"])),
    ("inputs", "Probe images", lambda e: count(e.manifest.inputs["count"])),
    (
        "inputs",
        "Broken files left out",
        lambda e: ", ".join(s["name"] for s in e.manifest.inputs["skipped"]) or MISSING,
    ),
    ("inputs", "Input shape", lambda e: shape(e.manifest.inputs["shape"])),
    ("inputs", "Preprocessing", _preprocessing),
    ("inputs", "Model run by", lambda e: str(e.manifest.settings["forward"] or "model(images)")),
    ("inputs", "Targets of the maps", lambda e: flat(e.manifest.settings.get("targets"))),
    ("environment", "Device", lambda e: e.manifest.device),
    ("environment", "Seed", lambda e: str(e.manifest.seed)),
    ("environment", "Libraries", _libraries),
    ("environment", "Tool", lambda e: f"{e.manifest.tool['name']} {e.manifest.tool['version']}"),
    ("environment", "Audited (UTC)", lambda e: str(e.journal.get("created_utc", MISSING))),
    ("environment", "Evidence digest", lambda e: e.digest),
)
