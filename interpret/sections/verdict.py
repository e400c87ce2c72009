"""The first page: what was compared, what differs and where first, and what was not examined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from interpret import drawing
from interpret.evidence import Evidence
from interpret.findings import findings_of
from interpret.findings.alone import RUN_RULES
from interpret.language import Message, listed, plural, say
from interpret.measures.representations import DIVERGENCE_THRESHOLD, NOISE_FACTOR
from interpret.sections import flips
from interpret.sections.appendix import command
from interpret.sections.strips import stage_marks, strips, weights_compare
from interpret.sections.subject import ROWS_PER_RANKING, Run, Subject
from interpret.sections.wording import MISSING, count, number, percent, quantity, sentence

ON_REQUEST = {  # collectors that nobody misses: the section Explanations names them
    "attributions": say("attributions"),
    "trust": say("tests of the maps"),
    "features": say("features of channels"),
}
MOST_BEFORE = 3  # runs whose strips leave room for the findings and the identity on the first two pages
FINDINGS_SHOWN = 6  # on the first page; comparison.json holds all
VERDICTS = {
    "identical": (say("Identical"), say("Every tensor has the same values as in the reference.")),
    "same-function": (
        say("Same function"),
        say("Weights differ, but representations and outputs stay within the noise floor."),
    ),
    "localized": (
        say("Localized change"),
        say("The change sits in one unit, or one unit stands out from all others."),
    ),
    "widespread": (
        say("Widespread change"),
        say("Weights differ throughout the network, and no single unit stands out."),
    ),
    "different-architecture": (say("Different architecture"), say("Calls were added, removed or reshaped.")),
    "not-comparable": (say("Not comparable"), say("The two audits share too little for a verdict.")),
}
SEVERITIES = {
    "critical": say("critical"),
    "warning": say("warning"),
    "notice": say("notice"),
    "info": say("info"),
}
STATUSES = {"failed": say("failed"), "skipped": say("skipped")}  # of collectors
OWN_RULES = frozenset(rule.__name__.replace("_", "-") for rule in RUN_RULES)


def build(subject: Subject) -> dict[str, Any]:
    """The verdict of each run, the strip of calls, the findings and the reservations."""
    comparison = subject.comparison
    findings = comparison["findings"] if comparison else [found.to_dict() for found in findings_of(subject.reference)]
    return {
        "facts": _facts(subject),
        "runs": [_run_verdict(subject, run) for run in subject.others],
        "timeline": _timeline(subject),
        "noise": _noise(subject),
        "flips": flips.build(subject),
        "identity": _identity(subject),
        "scope": scope(subject),
        "findings": [_finding(subject, finding) for finding in findings[:FINDINGS_SHOWN]],
        "findings_total": count(len(findings)),
        "many": len(subject.others) > MOST_BEFORE,
        "strips": strips(subject),
        "stages": stage_marks(subject),
        "health": None if comparison else _health(subject),
        "reservations": reservations(subject),
        "commands": _commands(subject),
    }


def _facts(subject: Subject) -> list[tuple[str, str]]:
    manifest = subject.reference.manifest
    inputs, model = manifest.inputs, manifest.model
    models = {label: subject.evidence[label].manifest.model for label in subject.labels}
    calls, total = len(manifest.calls), count(len(manifest.calls))
    parameters = {label: quantity(one["parameters"]) for label, one in models.items()}
    operations = {
        label: say("{multiply_adds} per image", multiply_adds=quantity(one["multiply_adds"]))
        for label, one in models.items()
    }
    shown = say(
        "{images}, of which {displayed} are shown", images=count(inputs["count"]), displayed=count(inputs["displayed"])
    )
    facts: list[tuple[str, str]] = [
        (
            say("Network"),
            plural(calls, "{model}, {calls} call", "{model}, {calls} calls", model=model["name"], calls=total),
        ),
        (say("Parameters"), _by_run(parameters)),
        (say("Multiply-adds"), _by_run(operations)),
        (say("Probe images"), shown),
        (say("Status"), str(manifest.status)),
    ]
    if subject.comparison is not None:
        names = listed(dict.fromkeys(one["name"] for one in models.values()))
        facts[0] = (say("Runs compared"), say("{runs}, of {models}", runs=len(subject.labels), models=names))
        facts.insert(1, (say("Calls"), count(len(subject.layers))))
        statuses = sorted({str(evidence.manifest.status) for evidence in subject.evidence.values()})
        facts[-1] = (say("Audits"), ", ".join(statuses))
    return facts


def _by_run(values: Mapping[str, str]) -> str:
    """A value that all runs share; else each value with the runs that have it."""
    runs: dict[str, list[str]] = {}
    for label, value in values.items():
        runs.setdefault(value, []).append(label)
    if len(runs) == 1:
        return next(iter(runs))
    return listed(
        [say("{value} in {runs}", value=value, runs=", ".join(labels)) for value, labels in runs.items()], "; "
    )


def _timeline(subject: Subject) -> Message | None:
    """The verdicts on the checkpoints of one training, in one sentence; None where the runs are none."""
    if subject.comparison is None or subject.comparison["timeline"] is None:
        return None
    steps = subject.comparison["timeline"]["steps"]
    verdicts = Counter(subject.comparison["verdict"][run.label] for run in subject.others)
    words = [(_words(verdict)[0], count(runs)) for verdict, runs in verdicts.items()]
    told = {
        "checkpoints": count(len(steps)),
        "first": count(steps[0]),
        "last": count(steps[-1]),
        "reference": subject.labels[0],
    }
    if len(words) == 1:
        return say(
            "{checkpoints} checkpoints, steps {first} to {last}. Against {reference}, all others: {verdict}.",
            **told,
            verdict=words[0][0],
        )
    return say(
        "{checkpoints} checkpoints, steps {first} to {last}. Against {reference}, the others: {verdicts}.",
        **told,
        verdicts=listed([say("{verdict} ({runs})", verdict=verdict, runs=runs) for verdict, runs in words]),
    )


def _words(verdict: str) -> tuple[str, str]:
    """A verdict and what it means, as the report says them."""
    return VERDICTS.get(verdict, (verdict, ""))


def _commands(subject: Subject) -> list[tuple[list[Run], str]]:
    """Each command that made audits, with its runs; an empty one where none was recorded."""
    runs: dict[str, list[Run]] = {}
    for run in subject.runs:
        runs.setdefault(command(subject.evidence[run.label]), []).append(run)
    return [(some, text) for text, some in runs.items()]


def _run_verdict(subject: Subject, run: Run) -> dict[str, Any]:
    assert subject.comparison is not None
    comparison, label = subject.comparison, run.label
    verdict = comparison["verdict"][label]
    words, meaning = _words(verdict)
    first = comparison["first_divergence"][label]
    ranking = comparison["ranking"][label]
    numbers = [layer.numbers.get(label, {}) for layer in subject.layers]
    changed = sum(entry.get("weights") in ("changed", "reshaped") for entry in numbers)
    weighted = sum(entry.get("weights") in ("changed", "reshaped", "identical") for entry in numbers)
    predictions = comparison["predictions"].get(label) or {}
    comparable = weights_compare(subject, run)
    return {
        "run": run,
        "verdict": verdict,
        "words": words,
        "meaning": meaning,
        "changed": say("{count} of {total} calls with weights", count=count(changed), total=count(weighted))
        if comparable
        else say("not comparable: two architectures"),
        "first": subject.layer.get(first) if first else None,
        "no_first": say("none") if comparable else say("none: the architectures differ"),
        "ranking": [
            (subject.layer[key], number(subject.layer[key].numbers.get(label, {}).get("weight_change")))
            for key in ranking[:ROWS_PER_RANKING]
            if key in subject.layer
        ],
        "divergence": _against_noise(subject, label, first),
        "diverging": _diverging(numbers),
        "agreement": _agreement(predictions),
        "kl": number(predictions.get("kl_mean")),
    }


def _agreement(predictions: Mapping[str, Any]) -> str:
    """How many images keep their most likely class."""
    if not predictions:
        return MISSING
    images = int(predictions["images"])
    kept = images - len(predictions["flips"])
    share = percent(predictions["top1_agreement"])
    return say("{count} of {total} images, {share}", count=count(kept), total=count(images), share=share)


def _diverging(numbers: Sequence[Mapping[str, Any]]) -> str:
    """How many calls moved by more than their noise floor explains."""
    known = [entry for entry in numbers if entry.get("divergence") is not None]
    if not known:
        return MISSING
    diverging = sum(bool(entry["diverges"]) for entry in known)
    return say("{count} of {total} calls", count=count(diverging), total=count(len(known)))


def _noise(subject: Subject) -> str:
    """What counts as more than noise, in one sentence; empty for a single audit, whose health says it."""
    if subject.comparison is None:
        return ""
    floors = [entry.get("noise_floor") for layer in subject.layers for entry in layer.numbers.values()]
    known = [floor for floor in floors if floor is not None]
    if not known:
        return say(
            "No noise floor was measured: a call whose output moved by more than {threshold} counts as diverging.",
            threshold=number(DIVERGENCE_THRESHOLD),
        )
    return say(
        "Noise floor: repeated one image at a time, with other kernels and threads, the same weights change the output "
        "of no call by more than {floor}. A call diverges where its output moved by more than {factor} times its noise "
        "floor, and than {threshold}.",
        floor=number(max(known)),
        factor=f"{NOISE_FACTOR:g}",
        threshold=number(DIVERGENCE_THRESHOLD),
    )


def _identity(subject: Subject) -> dict[str, Any]:
    """Which exact weights, images and code: a row per run, and what all runs have in common."""
    rows = [
        {
            "run": run,
            "checkpoint": checkpoint["uri"] or say("a module given in Python"),
            "state": str(checkpoint["state_sha256"]),
            "file": str(checkpoint["file_sha256"] or ""),
        }
        for run in subject.runs
        for checkpoint in [subject.evidence[run.label].manifest.checkpoint]
    ]
    facts = []
    for name, read in _CODE_AND_DATA:
        texts = list(dict.fromkeys(read(subject.evidence[label]) for label in subject.labels))
        facts.append({"name": name, "texts": texts[:1], "differs": len(texts) > 1})
    return {"rows": rows, "facts": facts}


def _tool(evidence: Evidence) -> str:
    manifest = evidence.manifest
    tool, libraries = manifest.tool, manifest.libraries
    return f"{tool['name']} {tool['version']}, torch {libraries.get('torch', MISSING)}, {manifest.device}"


_CODE_AND_DATA: tuple[tuple[str, Callable[[Evidence], str]], ...] = (
    (say("Probe images (probe_sha256)"), lambda evidence: str(evidence.manifest.inputs["probe_sha256"])),
    (say("Architecture (architecture_digest)"), lambda evidence: str(evidence.manifest.model["architecture_digest"])),
    (say("Audited with"), _tool),
)


def _against_noise(subject: Subject, label: str, first: str | None) -> str:
    """How far the outputs diverge where they first do, beside what the same weights differ from themselves."""
    entry = subject.layer[first].numbers.get(label, {}) if first and first in subject.layer else {}
    if entry.get("divergence") is None:
        return ""
    divergence, noise = number(entry["divergence"]), number(entry.get("noise_floor"))
    return say("{divergence}; noise {noise}", divergence=divergence, noise=noise)


def _finding(subject: Subject, finding: Mapping[str, Any]) -> dict[str, Any]:
    run = next((run for run in subject.runs if run.label == finding.get("run")), None)
    layer, key = None, finding.get("layer")
    if key and run is not None and finding["rule"] in OWN_RULES:  # of one run alone: by its own names
        layer = subject.layer_of(run.label, key)
    elif key:
        layer = subject.layer.get(key)
    said = {name: finding[name] for name in ("severity", "message", "meaning", "next", "place")}
    return {**said, "severity_words": SEVERITIES.get(said["severity"], said["severity"]), "run": run, "layer": layer}


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
                say("Filters that are exactly zero"),
                count(zero),
                say("{filters} have a norm under a thousandth of their layer's median", filters=count(near)),
            ),
            (say("NaN or infinite weights"), count(broken), say("none is expected")),
        ]
    if evidence.has("layers", "dead_units"):
        dead, constant, broken = (
            int(evidence.array("layers", name).sum()) for name in ("dead_units", "constant_units", "nonfinite")
        )
        rows += [
            (say("Dead units"), count(dead), say("channels of an activation that never exceed 0 on these images")),
            (say("Constant units"), count(constant), say("channels that do not vary on these images")),
            (say("NaN or infinite activations"), count(broken), say("none is expected")),
        ]
        floor = evidence.array("layers", "noise_gram")
        if np.isfinite(floor).any():
            rows.append(
                (
                    say("Noise floor"),
                    number(float(np.nanmax(floor))),
                    say("largest change of a Gram matrix when the same weights run again"),
                )
            )
    if evidence.has("predictions", "labels"):
        labels = evidence.array("predictions", "labels")
        known = labels >= 0
        if known.any():
            right = evidence.array("predictions", "logits").argmax(axis=1)[known] == labels[known]
            images = say("on {images} labelled probe images", images=count(int(known.sum())))
            rows.append((say("Top-1 accuracy"), percent(float(right.mean())), images))
    return rows


def scope(subject: Subject) -> list[str]:
    """What the audits cover and what nobody asked for, in sentences; the same for all runs, of the reference."""
    evidence = subject.reference
    inputs = evidence.manifest.inputs
    mapped = sum(bool(drawing.map_methods(evidence, call.key)) for call in evidence.calls)
    pictured = sum(evidence.has("activations", f"{call.key}/values") for call in evidence.calls)
    sentences: list[str] = [
        say(
            "Statistics cover every call and all {images} images; pictures and maps {displayed} images, activations of "
            "{pictured} and class activation maps of {mapped} of {calls} calls.",
            images=count(inputs["count"]),
            displayed=count(inputs["displayed"]),
            pictured=count(pictured),
            mapped=count(mapped),
            calls=count(len(evidence.calls)),
        )
    ]
    states = evidence.manifest.collectors
    skipped = {"status": "skipped"}
    absent = [words for name, words in ON_REQUEST.items() if states.get(name, skipped)["status"] == "skipped"]
    if absent:
        sentences.append(say("Not recorded, because nobody asked for it: {what}.", what=listed(absent)))
    return sentences


def reservations(subject: Subject) -> list[str]:
    """What was not examined or must be read with care, in sentences."""
    sentences: list[str] = []
    for run in subject.runs:
        evidence = subject.evidence[run.label]
        for name, state in evidence.manifest.collectors.items():
            if state["status"] != "ok" and not (state["status"] == "skipped" and name in ON_REQUEST):
                sentences.append(_unfinished(run, name, state))
        if skipped := [item["name"] for item in evidence.manifest.inputs["skipped"]]:
            files = ", ".join([*skipped[:4], *(["..."] if len(skipped) > 4 else [])])
            sentences.append(say("{run}: broken image files that were left out: {files}.", run=run.label, files=files))
        if others := list(evidence.manifest.checkpoint["others"]):
            states = ", ".join(others[:4])
            sentences.append(
                say("{run}: the file also holds {states}, which was not audited.", run=run.label, states=states)
            )
        if subject.comparison is not None and run.number:
            reasons = subject.comparison["comparable"].get(run.label, {}).get("reasons", [])
            sentences += [say("{run}: {text}", run=run.label, text=sentence(reason)) for reason in reasons]
    images = int(subject.reference.manifest.inputs["count"])
    if images < 16:
        sentences.append(
            plural(
                images,
                "Only {n} probe image: similarities of representations are rough below 16.",
                "Only {n} probe images: similarities of representations are rough below 16.",
            )
        )
    return sentences


def _unfinished(run: Run, collector: str, state: Mapping[str, Any]) -> Message:
    """What became of a collector that did not record all it should."""
    told = {"run": run.label, "collector": collector, "status": STATUSES.get(state["status"], state["status"])}
    if state.get("message"):
        return say("{run}: the collector {collector} {status}: {reason}.", **told, reason=state["message"])
    return say("{run}: the collector {collector} {status}.", **told)
