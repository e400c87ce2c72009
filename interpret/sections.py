"""What each section of the report shows: evidence in, plain data for its template out.

A section is an id, a title, a template and a ``build`` function, one entry of :data:`SECTIONS`. ``build`` returns the data that
the template prints, or None where nothing was recorded: the report then says so, and the section never vanishes. Templates hold
no arithmetic; whatever they print was chosen, ordered and rounded here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from interpret import charts, drawing
from interpret.evidence import Array, Call, Evidence, TensorRecord

if TYPE_CHECKING:
    from interpret.comparison import Comparison

Data = dict[str, Any]

MISSING = "\N{EN DASH}"
PICTURE_WIDTH = 320  # of a grid of kernels or channels, in pixels
OVERLAY_SIDE = 104  # of a photo in a chapter's overlay sheet
ROWS_PER_RANKING = 3  # most changed calls per run that get a chapter
RUNS_PER_TABLE = 3  # a wide table is split after so many runs, so that it fits the page

VERDICTS = {
    "identical": ("Identical", "every tensor has the same values as in the reference"),
    "same-function": ("Same function", "weights differ, but representations and outputs stay within the noise floor"),
    "localized": ("Localized change", "the change sits in one unit, or one unit stands out from all others"),
    "widespread": ("Widespread change", "weights differ throughout the network, and no single unit stands out"),
    "different-architecture": ("Different architecture", "calls were added, removed or reshaped"),
    "not-comparable": ("Not comparable", "the two audits share too little for a verdict"),
}
KIND_NAMES = {"nonfinite": "NaN or infinite values"}


@dataclass(frozen=True, slots=True)
class Figure:
    """An encoded picture of the report.

    Attributes:
        content: the file's bytes, PNG or JPEG.
        media_type: its media type.
        width, height: in pixels.
        alt: what it shows, in words.
    """

    content: bytes
    media_type: str
    width: int
    height: int
    alt: str

    @property
    def sha256(self) -> str:
        """Return the digest of the content, by which the PDF writer serves it."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class Scale:
    """A colour bar with the values at its ends and in its middle."""

    bar: Figure
    low: str
    middle: str
    high: str
    clipped: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the templates name it; ``number`` decides colour and marker, 0 is the reference (or the only run)."""

    number: int
    label: str

    @property
    def marker(self) -> charts.Chart:
        """Return the run's coloured marker."""
        return charts.run_marker(self.number)


@dataclass(frozen=True, slots=True)
class Layer:
    """A call of the reference, or one that only another run has, with its counterparts.

    Attributes:
        id: anchor of its row and, with "chapter-" before it, of its chapter.
        key, position, type, kind: of the call.
        calls: label to the run's call; a run without a counterpart is absent.
        numbers: label to the numbers of comparison.json; empty for a single run.
    """

    id: str
    key: str
    position: int
    type: str
    kind: str
    calls: Mapping[str, Call]
    numbers: Mapping[str, Mapping[str, Any]]

    @property
    def call(self) -> Call:
        """Return the first run's call that there is: the reference's where it has one."""
        return next(iter(self.calls.values()))


@dataclass(frozen=True)
class Subject:
    """What a report is about: one audit, or a comparison of several.

    Attributes:
        labels: names of the runs, the reference first.
        evidence: label to evidence.
        comparison: comparison.json, or None for one audit.
        detail: "matters" for chapters of the calls that matter, "all" for every call.
    """

    labels: tuple[str, ...]
    evidence: Mapping[str, Evidence]
    comparison: Mapping[str, Any] | None
    detail: str = "matters"

    @classmethod
    def of(cls, source: Evidence | Comparison, detail: str = "matters") -> Subject:
        """Return the subject of a report on one audit or on a comparison."""
        if isinstance(source, Evidence):
            label = str(source.manifest.model["name"])
            return cls((label,), {label: source}, None, detail)
        return cls(tuple(source.labels), dict(source.evidence), source.to_dict(), detail)

    @property
    def reference(self) -> Evidence:
        """Return the reference, or the only audit."""
        return self.evidence[self.labels[0]]

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs, the reference first."""
        return tuple(Run(number, label) for number, label in enumerate(self.labels))

    @cached_property
    def others(self) -> tuple[Run, ...]:
        """The runs that are compared with the reference."""
        return self.runs[1:]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every call of the reference and every call that only another run has, in order."""
        if self.comparison is None:
            label = self.labels[0]
            return tuple(
                Layer(
                    f"layer-{call.position}", call.key, call.position, call.type, call.kind, {label: call}, {label: {}}
                )
                for call in self.reference.calls
            )
        return tuple(self._layer(number, entry) for number, entry in enumerate(self.comparison["layers"]))

    @cached_property
    def layer(self) -> Mapping[str, Layer]:
        """The layers by key; the reference's where two runs use a key for different calls."""
        return {layer.key: layer for layer in reversed(self.layers)}

    @cached_property
    def chapters(self) -> tuple[Layer, ...]:
        """The layers that get a chapter of their own, in order."""
        if self.detail == "all":
            return self.layers
        chosen = {layer.id for layer in self.layers if layer.call.stage_end and self._is_pictured(layer)}
        if self.comparison is None:
            pictured = [layer for layer in self.layers if self._is_pictured(layer)]
            chosen |= {layer.id for layer in (*pictured[:1], *pictured[-1:])}
        else:
            first = self.comparison["first_divergence"].values()
            ranked = (keys[:ROWS_PER_RANKING] for keys in self.comparison["ranking"].values())
            keys = [*(key for key in first if key), *(key for some in ranked for key in some)]
            chosen |= {self.layer[key].id for key in keys if key in self.layer}
        return tuple(layer for layer in self.layers if layer.id in chosen)

    @cached_property
    def displayed(self) -> tuple[int, ...]:
        """Displayed images of the reference that every run displays too."""
        count = int(self.reference.manifest.inputs["displayed"])
        return tuple(
            index for index in range(count) if all(self.image(run.label, index) is not None for run in self.runs)
        )

    def image(self, label: str, index: int) -> int | None:
        """The run's index of the reference's image, by digest; None where the run does not display it."""
        position = self._positions[label].get(index)
        return (
            position
            if position is not None and position < int(self.evidence[label].manifest.inputs["displayed"])
            else None
        )

    def sample(self, label: str, index: int) -> int | None:
        """The run's index of the reference's image among all its probe images, by digest."""
        return self._positions[label].get(index)

    @cached_property
    def _positions(self) -> Mapping[str, Mapping[int, int]]:
        wanted = self.reference.manifest.inputs
        positions = {}
        for label, evidence in self.evidence.items():
            inputs = evidence.manifest.inputs
            tensors = _first_positions(inputs["tensor_sha256"])
            sources = _first_positions(inputs["source_sha256"])
            pairs = enumerate(zip(wanted["tensor_sha256"], wanted["source_sha256"], strict=True))
            found = {index: tensors.get(tensor, sources.get(source)) for index, (tensor, source) in pairs}
            positions[label] = {index: position for index, position in found.items() if position is not None}
        return positions

    def _layer(self, number: int, entry: Mapping[str, Any]) -> Layer:
        calls = {}
        for label in self.labels:
            key = entry["runs"].get(label, {}).get("call")
            if key is None and label == self.labels[0] and not _is_added(entry):
                key = entry["key"]
            if key in self.evidence[label].call:
                calls[label] = self.evidence[label].call[key]
        position = entry["position"]
        return Layer(f"layer-{number}", entry["key"], position, entry["type"], entry["kind"], calls, entry["runs"])

    def _is_pictured(self, layer: Layer) -> bool:
        return any(
            self.evidence[label].has("activations", f"{call.key}/values")
            or drawing.map_methods(self.evidence[label], call.key)
            or any(self.evidence[label].has("kernels", name) for name in call.tensors)
            for label, call in layer.calls.items()
        )


@dataclass(frozen=True, slots=True)
class Section:
    """One section of the report: ``build`` makes what ``template`` prints, or None where nothing was recorded."""

    id: str
    title: str
    template: str
    build: Callable[[Subject], Data | None]


# 1 -- the verdict ------------------------------------------------------------------------------------------------------


def _verdict(subject: Subject) -> Data:
    comparison, manifest = subject.comparison, subject.reference.manifest
    return {
        "facts": _facts(subject),
        "runs": [_run_verdict(subject, run) for run in subject.others],
        "findings": [_finding(subject, finding) for finding in (comparison or {}).get("findings", [])[:8]],
        "findings_total": len((comparison or {}).get("findings", [])),
        "strips": _strips(subject),
        "stages": _stage_marks(subject),
        "health": None if comparison else _health(subject),
        "reservations": _reservations(subject),
        "model": manifest.model["name"],
        "command": _command(subject.reference),
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


def _run_verdict(subject: Subject, run: Run) -> Data:
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
        "ranking": [
            (subject.layer[key], number(subject.layer[key].numbers.get(label, {}).get("weight_change")))
            for key in ranking[:ROWS_PER_RANKING]
            if key in subject.layer
        ],
        "agreement": percent(predictions.get("top1_agreement")),
        "kl": number(predictions.get("kl_mean")),
        "flips": (predictions.get("negative_flips"), predictions.get("positive_flips")),
    }


def _finding(subject: Subject, finding: Mapping[str, Any]) -> Data:
    run = next((run for run in subject.runs if run.label == finding.get("run")), None)
    layer = subject.layer.get(finding["layer"]) if finding.get("layer") else None
    return {"severity": finding["severity"], "run": run, "layer": layer, "message": finding["message"]}


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


def _strips(subject: Subject) -> list[Data]:
    """Rows of cells, one per call: how much its weights changed and how far its representation is from the reference's."""
    if subject.comparison is None:
        if not subject.reference.has("layers", "zero_share"):
            return []
        shares = [float(share) for share in subject.reference.array("layers", "zero_share")]
        return [_strip(subject, subject.runs[0], "share of zeros in the output", shares, -3, 0)]
    strips = []
    for run in subject.others:
        for field, name in (("weight_change", "weight change"), ("divergence", "divergence")):
            values = [layer.numbers.get(run.label, {}).get(field) for layer in subject.layers]
            strips.append(_strip(subject, run, name, values, -4, 0))
    return strips


def _strip(subject: Subject, run: Run, name: str, values: Sequence[float | None], low: int, high: int) -> Data:
    starts = _stage_starts(subject)
    cells = [
        {
            "level": level(value, low, high),
            "title": f"{layer.position} {layer.key}: {name} {number(value)}",
            "layer": layer,
            "starts": layer.id in starts,
        }
        for layer, value in zip(subject.layers, values, strict=True)
    ]
    return {"run": run, "name": name, "cells": cells}


def _stage_starts(subject: Subject) -> frozenset[str]:
    """Layers that come right after the end of a stage."""
    pairs = zip(subject.layers, subject.layers[1:], strict=False)
    return frozenset(after.id for before, after in pairs if before.call.stage_end)


def _stage_marks(subject: Subject) -> list[Data]:
    """Per call: the spatial size where a stage starts, for the labels under the strips."""
    starts, marks, previous = _stage_starts(subject), [], ""
    for index, layer in enumerate(subject.layers):
        shape = layer.call.spatial_shape
        size = f"{shape[0]}\N{MULTIPLICATION SIGN}{shape[1]}" if shape else "vector"
        is_start = index == 0 or layer.id in starts
        marks.append({"starts": layer.id in starts, "label": size if is_start and size != previous else ""})
        previous = size if is_start else previous
    return marks


def _reservations(subject: Subject) -> list[str]:
    """What was not examined or must be read with care, in sentences."""
    sentences = []
    for run in subject.runs:
        evidence = subject.evidence[run.label]
        for name, state in evidence.manifest.collectors.items():
            if state["status"] != "ok":
                reason = f": {state['message']}" if state.get("message") else ""
                sentences.append(f"{run.label}: the collector {name} {state['status']}{reason}.")
        if subject.comparison is not None and run.number:
            comparable = subject.comparison["comparable"].get(run.label, {})
            sentences += [f"{run.label}: {_sentence(reason)}" for reason in comparable.get("reasons", [])]
    images = int(subject.reference.manifest.inputs["count"])
    if images < 16:
        sentences.append(f"Only {images} probe images: similarities of representations are rough below 16.")
    return sentences


# 2 -- identity ---------------------------------------------------------------------------------------------------------


def _identity(subject: Subject) -> Data:
    rows = []
    for group, name, read in _IDENTITY:
        values = [read(subject.evidence[label]) for label in subject.labels]
        rows.append({"group": group, "name": name, "texts": values, "differs": len(set(values)) > 1})
    differing = [row for row in rows if row["differs"]]
    same = [row for row in rows if not row["differs"]]
    return {"runs": subject.runs, "differing": differing, "same": same, "compared": subject.comparison is not None}


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
    ("checkpoint", "Stored types", lambda e: flat(e.manifest.checkpoint["dtypes"])),
    ("checkpoint", "Stripped prefixes", lambda e: flat(e.manifest.checkpoint["stripped_prefixes"])),
    ("model", "Model", lambda e: str(e.manifest.model["name"])),
    ("model", "Architecture digest", lambda e: str(e.manifest.model["architecture_digest"])),
    ("model", "Parameters", lambda e: count(e.manifest.model["parameters"])),
    ("inputs", "Probe digest", lambda e: str(e.manifest.inputs["probe_sha256"])),
    ("inputs", "Probe images", lambda e: count(e.manifest.inputs["count"])),
    ("inputs", "Input shape", lambda e: shape(e.manifest.inputs["shape"])),
    ("inputs", "Preprocessing", _preprocessing),
    ("inputs", "Targets of the maps", lambda e: flat(e.manifest.settings.get("targets"))),
    ("environment", "Device", lambda e: e.manifest.device),
    ("environment", "Seed", lambda e: str(e.manifest.seed)),
    ("environment", "Libraries", _libraries),
    ("environment", "Tool", lambda e: f"{e.manifest.tool['name']} {e.manifest.tool['version']}"),
    ("environment", "Audited (UTC)", lambda e: str(e.journal.get("created_utc", MISSING))),
    ("environment", "Evidence digest", lambda e: e.digest),
)


# 3 -- architecture -----------------------------------------------------------------------------------------------------


def _architecture(subject: Subject) -> Data:
    largest = max((layer.call.parameters for layer in subject.layers), default=0) or 1
    busiest = max((layer.call.multiply_adds for layer in subject.layers if layer.kind != "container"), default=0) or 1
    rows = []
    for layer in subject.layers:
        call = layer.call
        rows.append(
            {
                "layer": layer,
                "chapter": layer in subject.chapters,
                "shape": shape(call.output_shape[1:]),
                "parameters": quantity(call.parameters) if call.parameters else "",
                "parameters_bar": charts.share_bar(call.parameters / largest) if call.parameters else None,
                "multiply_adds": quantity(call.multiply_adds) if call.multiply_adds else "",
                "multiply_adds_bar": charts.share_bar(call.multiply_adds / busiest)
                if call.multiply_adds and layer.kind != "container"
                else None,
                "differences": _differences(subject, layer),
            }
        )
    kinds: dict[str, list[int]] = {}
    for call in subject.reference.calls:
        entry = kinds.setdefault(call.type, [0, 0])
        entry[0] += 1
        entry[1] += call.parameters
    types = sorted(kinds.items(), key=lambda item: (-item[1][0], item[0]))
    return {
        "rows": rows,
        "changed": [row for row in rows if row["differences"]],
        "compared": subject.comparison is not None,
        "runs": subject.runs,
        "types": [(name, count(calls), quantity(parameters)) for name, (calls, parameters) in types],
        "unused": [
            (run, flat(subject.evidence[run.label].manifest.unused))
            for run in subject.runs
            if subject.evidence[run.label].manifest.unused
        ],
    }


def _differences(subject: Subject, layer: Layer) -> list[tuple[Run, str]]:
    """How a layer's counterparts differ from it in name, type or shape; empty where they do not."""
    found = []
    for run in subject.others:
        numbers, call = layer.numbers.get(run.label, {}), layer.calls.get(run.label)
        presence = numbers.get("presence")
        if presence in ("added", "removed"):
            found.append((run, presence))
        elif call is not None and call.output_shape != layer.call.output_shape:
            found.append((run, f"output {shape(call.output_shape[1:])}"))
        elif numbers.get("weights") == "reshaped":
            found.append((run, "weights reshaped"))
        elif call is not None and call.key != layer.key:
            found.append((run, f"named {call.key}"))
    return found


# 4 -- layer overview ---------------------------------------------------------------------------------------------------


def _overview(subject: Subject) -> Data:
    stages = [index for index, layer in enumerate(subject.layers) if layer.call.stage_end]
    if subject.comparison is None:
        return {
            "compared": False,
            "curves": _single_curves(subject, stages),
            "columns": _single_columns(subject),
            "rows": _single_rows(subject),
        }
    numbers = [run.number for run in subject.others]

    def values(field: str) -> list[list[float | None]]:
        return [[layer.numbers.get(run.label, {}).get(field) for layer in subject.layers] for run in subject.others]

    dissimilarity = [[None if cka is None else max(0.0, 1 - cka) for cka in series] for series in values("cka")]
    drawn = [
        (
            "Weight change",
            "relative L2 change of a call's weights, the largest over its tensors",
            values("weight_change"),
        ),
        (
            "Divergence",
            "relative change of the Gram matrix or of the channel means, whichever is larger; sees a change of scale",
            values("divergence"),
        ),
        ("1 \N{MINUS SIGN} CKA", "dissimilarity of the representations, blind to scale and rotation", dissimilarity),
    ]
    tables = [
        _overview_table(subject, subject.others[start : start + RUNS_PER_TABLE])
        for start in range(0, len(subject.others), RUNS_PER_TABLE)
    ]
    return {
        "compared": True,
        "runs": subject.others,
        "curves": [
            (
                title,
                text,
                charts.curves(
                    series,
                    f"{title} over the depth of the network, one line per run, logarithmic",
                    runs=numbers,
                    logarithmic=True,
                    stages=stages,
                ),
            )
            for title, text, series in drawn
            if any(value is not None for line in series for value in line)
        ],
        "tables": tables,
        "strips": _strips(subject),
        "stages": _stage_marks(subject),
    }


def _overview_table(subject: Subject, runs: Sequence[Run]) -> Data:
    rows = []
    first = (subject.comparison or {}).get("first_divergence", {})
    for layer in subject.layers:
        cells = []
        for run in runs:
            entry = layer.numbers.get(run.label, {})
            cka = entry.get("cka")
            distance = None if cka is None else 1 - cka
            cells += [
                _cell(entry.get("weight_change"), number(entry.get("weight_change")), -4, 0),
                _cell(entry.get("divergence"), number(entry.get("divergence")), -4, 0),
                _cell(distance, scientific(distance), -6, 0),
                {
                    "text": _dead(entry, layer.numbers.get(subject.labels[0], {})),
                    "level": None,
                    "sort": entry.get("dead_units") or 0,
                },
            ]
        rows.append(
            {
                "layer": layer,
                "chapter": layer in subject.chapters,
                "shape": shape(layer.call.output_shape[1:]),
                "cells": cells,
                "first": [run for run in runs if first.get(run.label) == layer.key],
            }
        )
    return {"runs": runs, "rows": rows, "is_first": runs[0].number == 1}


def _dead(entry: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Dead units, with the reference's count where it differs."""
    own, before = entry.get("dead_units"), reference.get("dead_units")
    if own is None:
        return MISSING
    return count(own) if before in (None, own) else f"{count(before)} \N{RIGHTWARDS ARROW} {count(own)}"


def _cell(value: float | None, text: str, low: int, high: int) -> Data:
    return {"text": text, "level": level(value, low, high), "sort": -1.0 if value is None else value}


_SINGLE = (
    ("Zeros", "zero_share", "share of exact zeros in the output"),
    ("Saturated", "saturated_share", "share of values at the upper bound of a bounded activation"),
    ("Dead", "dead_units", "channels of an activation that never exceed 0"),
    ("Constant", "constant_units", "channels that do not vary"),
    (
        "BN drift",
        "batchnorm_z_median",
        "median over channels of the distance of the input's mean from the running mean, in running standard deviations",
    ),
    ("Noise floor", "noise_gram", "relative change of the Gram matrix when the same weights run again"),
)


def _single_columns(subject: Subject) -> list[tuple[str, str]]:
    return [(name, text) for name, field, text in _SINGLE if subject.reference.has("layers", field)]


def _single_rows(subject: Subject) -> list[Data]:
    fields = [field for _, field, _ in _SINGLE if subject.reference.has("layers", field)]
    columns = {field: subject.reference.array("layers", field) for field in fields}
    norms: dict[str | None, float] = {}
    for tensor in subject.reference.tensors:
        if tensor.filters:
            norms[tensor.call] = math.hypot(norms.get(tensor.call, 0.0), tensor.norm or 0.0)
    rows = []
    for layer in subject.layers:
        cells = [{"text": number(norms.get(layer.key)), "level": None, "sort": norms.get(layer.key, -1)}]
        for field in fields:
            value = float(columns[field][layer.position])
            known = value if math.isfinite(value) else None
            text = percent(known) if field.endswith("_share") else number(known)
            graded = level(known, -3, 0) if field in ("zero_share", "saturated_share") else None
            cells.append({"text": text, "level": graded, "sort": -1 if known is None else known})
        rows.append(
            {
                "layer": layer,
                "chapter": layer in subject.chapters,
                "shape": shape(layer.call.output_shape[1:]),
                "cells": cells,
            }
        )
    return rows


def _single_curves(subject: Subject, stages: Sequence[int]) -> list[tuple[str, str, charts.Chart]]:
    drawn = []
    for name, field, text in _SINGLE[:1] + _SINGLE[-1:]:
        if subject.reference.has("layers", field):
            values = [
                float(value) if math.isfinite(value) else None for value in subject.reference.array("layers", field)
            ]
            if any(value is not None for value in values):
                chart = charts.curves(
                    [values],
                    f"{name} over the depth of the network",
                    runs=[0],
                    logarithmic=field == "noise_gram",
                    stages=stages,
                )
                drawn.append((name, text, chart))
    return drawn


# 5 -- chapters ---------------------------------------------------------------------------------------------------------


def _chapters(subject: Subject) -> Data | None:
    if not subject.chapters:
        return None
    return {
        "chapters": [_chapter(subject, layer) for layer in subject.chapters],
        "total": count(len(subject.layers)),
        "all": subject.detail == "all",
        "compared": subject.comparison is not None,
    }


def _chapter(subject: Subject, layer: Layer) -> Data:
    call = layer.call
    reasons = []
    if subject.comparison is not None:
        for run in subject.others:
            if subject.comparison["first_divergence"].get(run.label) == layer.key:
                reasons.append((run, "first divergence"))
            ranking = subject.comparison["ranking"].get(run.label, [])
            if layer.key in ranking[:ROWS_PER_RANKING]:
                reasons.append((run, f"rank {ranking.index(layer.key) + 1} of {len(ranking)}"))
    facts = [call.type, call.kind, f"output {shape(call.output_shape[1:])}"]
    if call.parameters:
        facts.append(f"{quantity(call.parameters)} parameters")
    if call.multiply_adds:
        facts.append(f"{quantity(call.multiply_adds)} multiply-adds")
    if call.stage_end:
        facts.append("end of a stage")
    pictures = {
        "kernels": _kernels(subject, layer),
        "activations": _activations(subject, layer),
        "maps": _maps(subject, layer),
    }
    return {
        "layer": layer,
        "facts": facts,
        "reasons": reasons,
        "statistics": _statistics(subject, layer),
        "runs": subject.runs,
        **pictures,
        "absent": [name for name, picture in pictures.items() if picture is None],
    }


_STATISTICS: tuple[tuple[str, str, str], ...] = (
    ("weight_change", "Weight change", "relative L2"),
    ("divergence", "Divergence", "Gram and means, relative"),
    ("noise_floor", "Noise floor", "same weights, run again"),
)


def _statistics(subject: Subject, layer: Layer) -> list[Data]:
    """Rows of the statistics table: name, unit, one text per run, and whether the runs differ."""
    rows: list[Data] = []

    def add(name: str, unit: str, texts: Sequence[str], judged: bool = True) -> None:
        known = [text for text in texts if text != MISSING]
        if known:
            differs = judged and len(texts) > 1 and any(text != texts[0] for text in texts[1:])
            rows.append({"name": name, "unit": unit, "texts": texts, "differs": differs})

    entries = [layer.numbers.get(label, {}) for label in subject.labels]
    if subject.comparison is not None:
        for field, name, unit in _STATISTICS:
            add(name, unit, [number(entry.get(field)) for entry in entries], judged=False)
        distances = [None if entry.get("cka") is None else 1 - entry["cka"] for entry in entries]
        add("1 \N{MINUS SIGN} CKA", "debiased", [scientific(distance) for distance in distances], judged=False)
    weights = [_kernel_tensor(subject, label, layer) for label in subject.labels]
    add("Weight norm", "L2", [number(tensor.norm if tensor else None) for tensor in weights])
    add("Weight range", "", [interval(tensor.minimum, tensor.maximum) if tensor else MISSING for tensor in weights])
    add(
        "Zero filters",
        "exactly zero",
        [f"{count(tensor.zero_filters)} of {count(tensor.filters)}" if tensor else MISSING for tensor in weights],
    )
    add("Distinct values", "per filter, at most", [count(tensor.distinct) if tensor else MISSING for tensor in weights])
    low, high = (_channel_extreme(subject, layer, end) for end in ("minimum", "maximum"))
    add("Output range", "over all images", [interval(*ends) for ends in zip(low, high, strict=True)])
    for field, name, unit in (
        ("zero_share", "Zeros", "share of outputs"),
        ("saturated_share", "Saturated", "share of outputs"),
    ):
        add(name, unit, [percent(value) for value in _layer_values(subject, layer, field)])
    for field, name in (
        ("dead_units", "Dead units"),
        ("constant_units", "Constant units"),
        ("nonfinite", "NaN or infinite"),
    ):
        add(
            name,
            "",
            [MISSING if value is None else count(int(value)) for value in _layer_values(subject, layer, field)],
        )
    return rows


def _layer_values(subject: Subject, layer: Layer, field: str) -> list[float | None]:
    values: list[float | None] = []
    for label in subject.labels:
        call, evidence = layer.calls.get(label), subject.evidence[label]
        value = (
            float(evidence.array("layers", field)[call.position])
            if call and evidence.has("layers", field)
            else math.nan
        )
        values.append(value if math.isfinite(value) else None)
    return values


def _channel_extreme(subject: Subject, layer: Layer, end: str) -> list[float | None]:
    values: list[float | None] = []
    for label in subject.labels:
        call, evidence = layer.calls.get(label), subject.evidence[label]
        known = (
            evidence.channel(f"channel_{end}", call.key)
            if call and evidence.has("layers", f"channel_{end}")
            else np.zeros(0)
        )
        known = known[np.isfinite(known)]
        values.append(float(known.min() if end == "minimum" else known.max()) if known.size else None)
    return values


def _kernel_tensor(subject: Subject, label: str, layer: Layer) -> TensorRecord | None:
    """The weight of a call that has filters: its first tensor with two axes or more."""
    call = layer.calls.get(label)
    if call is None:
        return None
    return next(
        (tensor for tensor in subject.evidence[label].tensors if tensor.name in call.tensors and tensor.filters), None
    )


def _kernels(subject: Subject, layer: Layer) -> Data | None:
    stored: dict[str, tuple[str, Array]] = {}
    for label, call in layer.calls.items():
        name = next((name for name in call.tensors if subject.evidence[label].has("kernels", name)), None)
        if name is not None:
            stored[label] = name, subject.evidence[label].array("kernels", name)
    if not stored:
        return None
    limit = drawing.weight_limit([weight for _, weight in stored.values()])
    figures = []
    for run in subject.runs:
        if run.label in stored:
            picture = drawing.kernel_picture(stored[run.label][1], limit, PICTURE_WIDTH)
            figures.append(
                (run, png(picture, f"Kernels of {layer.key} in {run.label}, from {number(-limit)} to {number(limit)}"))
            )
    name, weight = next(iter(stored.values()))
    record = _kernel_tensor(subject, next(iter(stored)), layer)
    whole = record.shape if record else weight.shape
    colours = weight.ndim == 4 and weight.shape[1] == 3
    single = weight.ndim == 4 and weight.shape[1] == 1
    shown = f"{count(weight.shape[0])} of {count(whole[0])} filters"
    if weight.ndim > 1 and not single:
        shown += f", {count(weight.shape[1])} of {count(whole[1])} input channels"
    if colours:
        how = "the three input channels as red, green and blue about mid-gray"
    elif weight.shape[2:] == (1, 1):
        how = "one row per filter, one column per input channel"
    elif single:
        how = "one tile per filter, row by row"
    else:
        how = "one row of tiles per filter, one column per input channel"
    grays = np.linspace(0, 255, drawing.LEVELS).round().astype(np.uint8)
    palette = np.repeat(grays[:, None], 3, axis=1) if colours else drawing.DIVERGING
    return {
        "figures": figures,
        "scale": _scale(-limit, limit, palette),
        "caption": f"{name}, shape {shape(whole)}: {shown}; {how}; one scale for all runs, symmetric about 0.",
        "norms": _norms(subject, layer),
    }


def _norms(subject: Subject, layer: Layer) -> list[tuple[Run, charts.Chart, str]]:
    norms: dict[str, Array] = {}
    for label in subject.labels:
        tensor = _kernel_tensor(subject, label, layer)
        if tensor is not None and subject.evidence[label].has("weights", "filter_norm"):
            norms[label] = subject.evidence[label].filters("filter_norm", tensor)
    finite = [values[np.isfinite(values)] for values in norms.values()]
    top = float(max((values.max(initial=0) for values in finite), default=0))
    drawn = []
    for run in subject.runs:
        if run.label in norms:
            values = norms[run.label]
            zero = int((values == 0).sum())
            text = (
                f"{count(zero)} of {count(len(values))} filters are zero"
                if zero
                else f"{count(len(values))} filters, none zero"
            )
            chart = charts.filter_norms(
                values.tolist(), top, f"Norm of each filter of {layer.key} in {run.label}: {text}", run=run.number
            )
            drawn.append((run, chart, text))
    return drawn


def _activations(subject: Subject, layer: Layer) -> Data | None:
    if not subject.displayed:
        return None
    shown = subject.displayed[0]
    values: dict[str, Array] = {}
    for label, call in layer.calls.items():
        position = subject.image(label, shown)
        if position is not None and subject.evidence[label].has("activations", f"{call.key}/values"):
            values[label] = drawing.decode_activations(subject.evidence[label], call.key)[position]
    if not values:
        return None
    first = next(iter(values.values()))
    channels = min(len(first), 64 if first.shape[-1] <= 14 else 32)
    values = {label: array[:channels] for label, array in values.items()}
    low, high = drawing.value_range(list(values.values()))
    extremes = [array[np.isfinite(array)] for array in values.values()]
    top = max((float(np.abs(array).max(initial=0)) for array in extremes), default=0.0)
    figures = []
    for run in subject.runs:
        if run.label in values:
            picture = drawing.activation_picture(values[run.label], low, high, PICTURE_WIDTH)
            figures.append(
                (run, png(picture, f"{channels} channels of {layer.key} in {run.label} for one probe image"))
            )
    grid = layer.call.spatial_shape
    size = f", {grid[0]} \N{MULTIPLICATION SIGN} {grid[1]}" if grid else ""
    reduced = " averaged down to" if grid and first.shape[-1] < grid[1] else ""
    size += f"{reduced} {first.shape[-2]} \N{MULTIPLICATION SIGN} {first.shape[-1]}" if reduced else ""
    name = subject.reference.manifest.inputs["names"][shown]
    return {
        "figures": figures,
        "scale": _scale(low, high, drawing.DIVERGING if low < 0 else drawing.VIRIDIS, top),
        "caption": f"Output for the image {name}: channels 0 to {channels - 1} of {count(layer.call.channels)}{size}; one scale for all runs and channels.",
    }


def _maps(subject: Subject, layer: Layer) -> Data | None:
    runs = [run for run in subject.runs if run.label in layer.calls]
    methods = _shared_methods(subject, layer, runs)
    if not methods or not subject.displayed or not subject.reference.has("inputs", "images"):
        return None
    images = subject.reference.array("inputs", "images")[list(subject.displayed)]
    sheets, maxima = [], []
    for method in methods:
        maps = np.stack([_map_stack(subject, layer, run, method) for run in runs])
        heat = drawing.heatmap(maps, _fitted(images.shape[1:3], OVERLAY_SIDE), shared=True)
        sheet = drawing.overlay_sheet(images, heat, OVERLAY_SIDE)
        names = ", ".join(run.label for run in runs)
        sheets.append(
            (method, jpeg(sheet, f"{method} at {layer.key} over {len(images)} probe images; a row per run: {names}"))
        )
        agreement = [_agreement(layer.numbers.get(run.label, {}), method) for run in runs]
        maxima.append((method, [number(float(one.max(initial=0))) for one in maps], agreement))
    same, targets = _targets(subject, runs)
    height, width = next(
        subject.evidence[runs[0].label].array("maps", f"{methods[0]}/{layer.calls[runs[0].label].key}").shape[-2:]
        for _ in "x"
    )
    return {
        "runs": runs,
        "sheets": sheets,
        "maxima": maxima,
        "compared": len(runs) > 1,
        "scale": _scale(0, 1, drawing.VIRIDIS, labels=("0", "\N{VULGAR FRACTION ONE HALF}", "largest of the runs")),
        "same_targets": same,
        "caption": (
            f"Maps of {height} \N{MULTIPLICATION SIGN} {width}, clamped at 0, scaled to [0, 1] per image with one minimum and maximum for all runs, "
            f"enlarged bilinearly. Classes explained: {targets}."
        ),
    }


def _shared_methods(subject: Subject, layer: Layer, runs: Sequence[Run]) -> list[str]:
    """Methods with a map of this layer in every run that has the layer."""
    recorded = [drawing.map_methods(subject.evidence[run.label], layer.calls[run.label].key) for run in runs]
    return [method for method in recorded[0] if all(method in other for other in recorded)] if recorded else []


def _map_stack(subject: Subject, layer: Layer, run: Run, method: str) -> Array:
    """Raw maps of the first target of the displayed images, in the reference's order: (D, h, w)."""
    stored = subject.evidence[run.label].array("maps", f"{method}/{layer.calls[run.label].key}")
    return stored[[subject.image(run.label, index) for index in subject.displayed], 0]


def _targets(subject: Subject, runs: Sequence[Run]) -> tuple[bool, str]:
    """Whether the runs explain the same classes, and the classes of the first run in words."""
    chosen = []
    for run in runs:
        stored = subject.evidence[run.label].array("maps", "targets")[:, 0]
        chosen.append([int(stored[subject.image(run.label, index)]) for index in subject.displayed])
    names = [class_name(subject.evidence[runs[0].label], target) for target in chosen[0]]
    same = all(targets == chosen[0] for targets in chosen)
    return same, "; ".join(names) + ("" if same else " (other runs explain other classes)")


def _agreement(numbers: Mapping[str, Any], method: str) -> str:
    measured = (numbers.get("maps") or {}).get(method) or {}
    return number(measured.get("pearson"))


def _fitted(size: Sequence[int], side: int) -> tuple[int, int]:
    """The size (H, W) that a photo has once its longer side is at most ``side``."""
    ratio = min(1.0, side / max(size))
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


# 6 -- predictions ------------------------------------------------------------------------------------------------------


def _predictions(subject: Subject) -> Data | None:
    if not subject.reference.has("predictions", "logits"):
        return None
    probabilities = {
        run.label: _softmax(subject.evidence[run.label])
        for run in subject.runs
        if subject.evidence[run.label].has("predictions", "logits")
    }
    inputs = subject.reference.manifest.inputs
    rows = []
    for index, name in enumerate(inputs["names"]):
        cells = []
        for run in subject.runs:
            sample = subject.sample(run.label, index)
            known = run.label in probabilities and sample is not None
            cells.append(_top(subject.evidence[run.label], probabilities[run.label][sample]) if known else [])
        winners = [top[0]["index"] for top in cells if top]
        label = inputs["labels"][index] if inputs["labels"] else None
        margin = min((top[0]["value"] for top in cells if top), default=1.0)
        rows.append(
            {
                "index": index,
                "name": str(name),
                "label": class_name(subject.reference, label) if label is not None and label >= 0 else None,
                "cells": cells,
                "disagrees": len(set(winners)) > 1,
                "order": (len(set(winners)) <= 1, margin, index),
            }
        )
    rows.sort(key=lambda row: row["order"])
    layer = _last_mapped(subject)
    return {
        "runs": subject.runs,
        "rows": rows,
        "disagreements": count(sum(row["disagrees"] for row in rows)),
        "total": count(len(rows)),
        "compared": subject.comparison is not None,
        "labelled": any(row["label"] for row in rows),
        "layer": layer,
        "chapter": layer is not None and layer in subject.chapters,
        "probes": [_probe(subject, row, layer) for row in rows if row["index"] in subject.displayed],
    }


def _top(evidence: Evidence, probabilities: Array, length: int = 3) -> list[Data]:
    order = np.argsort(-probabilities, kind="stable")[:length]
    return [
        {
            "index": int(index),
            "name": class_name(evidence, int(index)),
            "text": percent(float(probabilities[index])),
            "value": float(probabilities[index]),
            "bar": charts.share_bar(float(probabilities[index]), width=48),
        }
        for index in order
    ]


def _probe(subject: Subject, row: Data, layer: Layer | None) -> Data:
    index = row["index"]
    images = subject.reference.array("inputs", "images") if subject.reference.has("inputs", "images") else None
    photo = sheet = None
    methods: list[str] = []
    if images is not None:
        photo = jpeg(drawing.photo_sheet(images[index : index + 1], 192), f"Probe image {row['name']}")
        if layer is not None:
            methods = _shared_methods(subject, layer, subject.runs)
            place = subject.displayed.index(index)
            maps = np.stack(
                [[_map_stack(subject, layer, run, method)[place] for method in methods] for run in subject.runs]
            )
            repeated = np.repeat(images[index : index + 1], len(methods), axis=0)
            heat = (
                drawing.heatmap(maps[:, :, None], _fitted(images.shape[1:3], OVERLAY_SIDE), shared=False)
                if len(subject.runs) == 1
                else np.stack(
                    [
                        drawing.heatmap(maps[:, column], _fitted(images.shape[1:3], OVERLAY_SIDE), shared=True)
                        for column in range(len(methods))
                    ],
                    axis=1,
                )
            )
            heat = heat[:, :, 0] if heat.ndim == 5 else heat
            names = ", ".join(run.label for run in subject.runs)
            sheet = jpeg(
                drawing.overlay_sheet(repeated, heat, OVERLAY_SIDE),
                f"Maps of {row['name']} at {layer.key}; a row per run: {names}; a column per method: {', '.join(methods)}",
            )
    return {**row, "photo": photo, "sheet": sheet, "methods": methods, "runs": subject.runs}


def _last_mapped(subject: Subject) -> Layer | None:
    """The last layer with a map of the same method in every run."""
    candidates = (layer for layer in reversed(subject.layers) if len(layer.calls) == len(subject.runs))
    return (
        next((layer for layer in candidates if _shared_methods(subject, layer, subject.runs)), None)
        if subject.displayed
        else None
    )


def _softmax(evidence: Evidence) -> Array:
    logits = evidence.array("predictions", "logits").astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


# 7 -- method, 8 -- appendix --------------------------------------------------------------------------------------------


def _method(subject: Subject) -> Data:
    manifest = subject.reference.manifest
    comparable = []
    if subject.comparison is not None:
        for run in subject.others:
            entry = subject.comparison["comparable"].get(run.label, {})
            comparable.append((run, entry, [_sentence(reason) for reason in entry.get("reasons", [])]))
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
        "preprocessing": _preprocessing(subject.reference),
        "compared": subject.comparison is not None,
        "comparable": comparable,
        "collectors": collectors,
        "runs": subject.runs,
        "reservations": _reservations(subject),
    }


def _appendix(subject: Subject) -> Data:
    runs = []
    for run in subject.runs:
        evidence = subject.evidence[run.label]
        manifest = evidence.manifest
        runs.append(
            {
                "run": run,
                "command": _command(evidence),
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


def _tensors(subject: Subject) -> list[Data]:
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


SECTIONS: tuple[Section, ...] = (
    Section("verdict", "Verdict", "sections/verdict.html.jinja", _verdict),
    Section("identity", "Identity and provenance", "sections/identity.html.jinja", _identity),
    Section("architecture", "Architecture", "sections/architecture.html.jinja", _architecture),
    Section("overview", "Layer overview", "sections/overview.html.jinja", _overview),
    Section("chapters", "Layers that matter", "sections/chapters.html.jinja", _chapters),
    Section("predictions", "Predictions and maps", "sections/predictions.html.jinja", _predictions),
    Section("method", "Method and limits", "sections/method.html.jinja", _method),
    Section("appendix", "Appendix", "sections/appendix.html.jinja", _appendix),
)
COMPACT = ("verdict", "identity", "overview", "predictions")


# Words and numbers -----------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three significant digits; scientific below 0.001 and from a million on.

    >>> number(0.0012345), number(1234.5), number(-3.2e-7), number(0.0), number(None)
    ('0.00123', '1,230', '−3.20·10⁻⁷', '0', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING if value is None or math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    rounded = float(f"{value:.2e}")
    if not 1e-3 <= abs(rounded) < 1e6:
        return scientific(value)
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:,.{decimals}f}"
    if float(rounded).is_integer() and isinstance(value, int):
        text = f"{value:,}"
    return text.replace("-", "\N{MINUS SIGN}")


def scientific(value: float | None) -> str:
    """Three significant digits and a power of ten.

    >>> scientific(0.00001234), scientific(0.0), scientific(None)
    ('1.23·10⁻⁵', '0', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return (mantissa if power == "⁰" else f"{mantissa}·10{power}").replace("-", "\N{MINUS SIGN}")


def percent(share: float | None) -> str:
    """A share as a percentage with three significant digits at most.

    >>> percent(0.98765), percent(1.0), percent(0.00012), percent(None)
    ('98.8 %', '100 %', '0.012 %', '–')
    """
    if share is None or not math.isfinite(share):
        return MISSING
    value = 100 * share
    text = "0" if value == 0 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
    if "e" in text:
        return f"{scientific(value)}\N{NO-BREAK SPACE}%"
    return f"{text.removesuffix('.0')}\N{NO-BREAK SPACE}%"


def count(value: float) -> str:
    """A whole number with thousands separators.

    >>> count(4652008)
    '4,652,008'
    """
    return f"{int(value):,}"


def quantity(value: float) -> str:
    """A large number with a metric prefix.

    >>> quantity(4652008), quantity(384_000_000), quantity(950)
    ('4.65 M', '384 M', '950')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= factor:
            unit = 1e3 if prefix == "k" else factor
            return f"{value / unit:.3g}\N{NO-BREAK SPACE}{prefix}"
    return count(value)


def interval(low: float | None, high: float | None) -> str:
    """Two ends of a range."""
    return MISSING if low is None or high is None else f"{number(low)} \N{HORIZONTAL ELLIPSIS} {number(high)}"


def shape(sizes: Iterable[int]) -> str:
    """A shape in the field's way.

    >>> shape((32, 112, 112))
    '32×112×112'
    """
    return "\N{MULTIPLICATION SIGN}".join(str(size) for size in sizes) or "scalar"


def flat(value: Any) -> str:
    """A setting as one line of text."""
    if value is None or value in ([], (), {}):
        return MISSING
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {flat(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(flat(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def class_name(evidence: Evidence, index: int) -> str:
    """The class's name up to its first comma, or its number."""
    names = evidence.manifest.model["class_names"]
    if index < 0:
        return "a score given in Python"
    return str(names[index]).split(",")[0] if names and index < len(names) else f"class {index}"


def level(value: float | None, low: int, high: int) -> int | None:
    """One of ten shades: 0 for nothing, 1 ... 9 evenly over the decades 10^low ... 10^high; None where unknown.

    >>> [level(value, -4, 0) for value in (None, 0.0, 1e-9, 1e-2, 1.0, 7.0)]
    [None, 0, 1, 5, 9, 9]
    """
    if value is None or math.isnan(value):
        return None
    if value <= 0:
        return 0
    share = (math.log10(value) - low) / (high - low)
    return 1 + max(0, min(8, int(share * 9)))


def png(picture: drawing.Picture, alt: str) -> Figure:
    """The picture as a PNG of the report."""
    return Figure(picture.png(), "image/png", *picture.size, alt)


def jpeg(picture: drawing.Picture, alt: str) -> Figure:
    """The picture as a JPEG of the report."""
    return Figure(picture.jpeg(), "image/jpeg", *picture.size, alt)


def _scale(
    low: float, high: float, palette: Array, largest: float | None = None, labels: tuple[str, str, str] | None = None
) -> Scale:
    """A colour bar; ``largest`` is the greatest magnitude that was drawn, where the ends of the scale clip it."""
    ramp = np.repeat(np.linspace(0, drawing.LEVELS - 1, 160).round().astype(np.uint8)[None], 8, axis=0)
    texts = labels or (number(low), number((low + high) / 2 if low >= 0 else 0.0), number(high))
    bar = png(drawing.Picture(ramp, palette), f"Colour scale from {texts[0]} to {texts[2]}")
    clipped = (
        f"values beyond the ends are clipped; the largest magnitude is {number(largest)}"
        if largest and largest > high * 1.001
        else ""
    )
    return Scale(bar, *texts, clipped)


def _command(evidence: Evidence) -> str:
    recorded = evidence.manifest.settings.get("command") or (evidence.journal.get("environment") or {}).get("command")
    return " ".join(recorded) if isinstance(recorded, list) else str(recorded or "")


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _is_added(entry: Mapping[str, Any]) -> bool:
    return any(run.get("presence") == "added" for run in entry["runs"].values())


def _first_positions(digests: Sequence[str]) -> dict[str, int]:
    positions: dict[str, int] = {}
    for index, digest in enumerate(digests):
        positions.setdefault(digest, index)
    return positions
