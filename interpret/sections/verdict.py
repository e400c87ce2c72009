"""The first page: what was compared, what differs and where first, and what was not examined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from interpret.findings import findings_of
from interpret.findings.alone import RUN_RULES
from interpret.sections.appendix import command
from interpret.sections.strips import stage_marks, strips
from interpret.sections.subject import ROWS_PER_RANKING, Run, Subject
from interpret.sections.wording import count, number, percent, quantity, sentence

ON_REQUEST = ("attributions", "trust", "features")  # collectors that nobody misses: the section Explanations names them
FINDINGS_SHOWN = 6  # on the first page; comparison.json holds all
VERDICTS = {
    "identical": ("Identical", "Every tensor has the same values as in the reference"),
    "same-function": ("Same function", "Weights differ, but representations and outputs stay within the noise floor"),
    "localized": ("Localized change", "The change sits in one unit, or one unit stands out from all others"),
    "widespread": ("Widespread change", "Weights differ throughout the network, and no single unit stands out"),
    "different-architecture": ("Different architecture", "Calls were added, removed or reshaped"),
    "not-comparable": ("Not comparable", "The two audits share too little for a verdict"),
}
OWN_RULES = frozenset(rule.__name__.replace("_", "-") for rule in RUN_RULES)


def build(subject: Subject) -> dict[str, Any]:
    """The verdict of each run, the strip of calls, the findings and the reservations."""
    comparison = subject.comparison
    findings = comparison["findings"] if comparison else [found.to_dict() for found in findings_of(subject.reference)]
    return {
        "facts": _facts(subject),
        "runs": [_run_verdict(subject, run) for run in subject.others],
        "findings": [_finding(subject, finding) for finding in findings[:FINDINGS_SHOWN]],
        "findings_total": count(len(findings)),
        "strips": strips(subject),
        "stages": stage_marks(subject),
        "health": None if comparison else _health(subject),
        "reservations": reservations(subject),
        "command": command(subject.reference),
    }


def _facts(subject: Subject) -> list[tuple[str, str]]:
    manifest = subject.reference.manifest
    inputs, model = manifest.inputs, manifest.model
    facts = [
        ("Network", f"{model['name']}, {count(len(manifest.calls))} calls"),
        ("Parameters", f"{quantity(model['parameters'])}"),
        ("Multiply-adds", f"{quantity(model['multiply_adds'])} per image"),
        ("Probe images", f"{count(inputs['count'])}, of which {count(inputs['displayed'])} are shown"),
        ("Status", str(manifest.status)),
    ]
    if subject.comparison is not None:
        facts[0] = ("Runs compared", f"{len(subject.labels)}, of {model['name']}")
        facts.insert(1, ("Calls", count(len(subject.layers))))
        statuses = sorted({str(evidence.manifest.status) for evidence in subject.evidence.values()})
        facts[-1] = ("Audits", ", ".join(statuses))
    return facts


def _run_verdict(subject: Subject, run: Run) -> dict[str, Any]:
    assert subject.comparison is not None
    comparison, label = subject.comparison, run.label
    verdict = comparison["verdict"][label]
    words, meaning = VERDICTS.get(verdict, (verdict, ""))
    first = comparison["first_divergence"][label]
    ranking = comparison["ranking"][label]
    numbers = [layer.numbers.get(label, {}) for layer in subject.layers]
    changed = sum(entry.get("weights") in ("changed", "reshaped") for entry in numbers)
    weighted = sum(entry.get("weights") in ("changed", "reshaped", "identical") for entry in numbers)
    predictions = comparison["predictions"].get(label) or {}
    return {
        "run": run,
        "verdict": verdict,
        "words": words,
        "meaning": meaning,
        "changed": f"{count(changed)} of {count(weighted)} calls with weights",
        "first": subject.layer.get(first) if first else None,
        "no_first": "two networks" if any(entry.get("aligned_by") == "similarity" for entry in numbers) else "none",
        "ranking": [
            (subject.layer[key], number(subject.layer[key].numbers.get(label, {}).get("weight_change")))
            for key in ranking[:ROWS_PER_RANKING]
            if key in subject.layer
        ],
        "divergence": _against_noise(subject, label, first),
        "agreement": percent(predictions.get("top1_agreement")),
        "kl": number(predictions.get("kl_mean")),
    }


def _against_noise(subject: Subject, label: str, first: str | None) -> str:
    """How far the outputs diverge where they first do, beside what the same weights differ from themselves."""
    entry = subject.layer[first].numbers.get(label, {}) if first and first in subject.layer else {}
    if entry.get("divergence") is None:
        return ""
    return f"{number(entry['divergence'])}; noise {number(entry.get('noise_floor'))}"


def _finding(subject: Subject, finding: Mapping[str, Any]) -> dict[str, Any]:
    run = next((run for run in subject.runs if run.label == finding.get("run")), None)
    layer, key = None, finding.get("layer")
    if key and run is not None and finding["rule"] in OWN_RULES:  # of one run alone: by its own names
        layer = subject.layer_of(run.label, key)
    elif key:
        layer = subject.layer.get(key)
    said = {name: finding[name] for name in ("severity", "message", "meaning", "next", "place")}
    return {**said, "run": run, "layer": layer}


def _health(subject: Subject) -> list[tuple[str, str, str]]:
    """What one audit says of the network's own health: name, value, remark."""
    evidence = subject.reference
    rows: list[tuple[str, str, str]] = []
    if evidence.tensors:
        zero, near = (
            sum(getattr(tensor, name) for tensor in evidence.tensors) for name in ("zero_filters", "near_zero_filters")
        )
        broken = sum(tensor.nonfinite for tensor in evidence.tensors)
        rows += [
            (
                "Filters that are exactly zero",
                count(zero),
                f"{count(near)} have a norm under a thousandth of their layer's median",
            ),
            ("NaN or infinite weights", count(broken), "none is expected"),
        ]
    if evidence.has("layers", "dead_units"):
        dead, constant, broken = (
            int(evidence.array("layers", name).sum()) for name in ("dead_units", "constant_units", "nonfinite")
        )
        rows += [
            ("Dead units", count(dead), "channels of an activation that never exceed 0 on these images"),
            ("Constant units", count(constant), "channels that do not vary on these images"),
            ("NaN or infinite activations", count(broken), "none is expected"),
        ]
        floor = evidence.array("layers", "noise_gram")
        if np.isfinite(floor).any():
            rows.append(
                (
                    "Noise floor",
                    number(float(np.nanmax(floor))),
                    "largest change of a Gram matrix when the same weights run again",
                )
            )
    if evidence.has("predictions", "labels"):
        labels = evidence.array("predictions", "labels")
        known = labels >= 0
        if known.any():
            right = evidence.array("predictions", "logits").argmax(axis=1)[known] == labels[known]
            rows.append(
                ("Top-1 accuracy", percent(float(right.mean())), f"on {count(int(known.sum()))} labelled probe images")
            )
    return rows


def reservations(subject: Subject) -> list[str]:
    """What was not examined or must be read with care, in sentences."""
    sentences = []
    for run in subject.runs:
        evidence = subject.evidence[run.label]
        for name, state in evidence.manifest.collectors.items():
            if state["status"] != "ok" and not (state["status"] == "skipped" and name in ON_REQUEST):
                reason = f": {state['message']}" if state.get("message") else ""
                sentences.append(f"{run.label}: the collector {name} {state['status']}{reason}.")
        if skipped := [item["name"] for item in evidence.manifest.inputs["skipped"]]:
            listed = ", ".join(skipped[:4]) + (", ..." if len(skipped) > 4 else "")
            sentences.append(f"{run.label}: broken image files that were left out: {listed}.")
        if others := list(evidence.manifest.checkpoint["others"]):
            sentences.append(f"{run.label}: the file also holds {', '.join(others[:4])}, which was not audited.")
        if subject.comparison is not None and run.number:
            comparable = subject.comparison["comparable"].get(run.label, {})
            sentences += [f"{run.label}: {sentence(reason)}" for reason in comparable.get("reasons", [])]
    images = int(subject.reference.manifest.inputs["count"])
    if images < 16:
        sentences.append(f"Only {images} probe images: similarities of representations are rough below 16.")
    return sentences
