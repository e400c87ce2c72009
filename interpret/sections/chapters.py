"""A chapter per call that matters: statistics, kernels, activations and maps of the runs on shared scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interpret import charts, drawing
from interpret.evidence import Array, TensorRecord
from interpret.sections.figures import jpeg, png, scale
from interpret.sections.maps import OVERLAY_SIDE, explained_classes, fitted, raw_maps, shared_methods
from interpret.sections.subject import ROWS_PER_RANKING, Layer, Run, Subject
from interpret.sections.wording import (
    MISSING,
    count,
    dissimilarity,
    interval,
    number,
    percent,
    quantity,
    scientific,
    shape,
)

PICTURE_WIDTH = 320  # of a grid of kernels or channels, in pixels


def build(subject: Subject) -> dict[str, Any] | None:
    """The chapters; None where no call was pictured and none is to be drawn."""
    if not subject.chapters:
        return None
    return {
        "chapters": [_chapter(subject, layer) for layer in subject.chapters],
        "total": count(len(subject.layers)),
        "all": subject.detail == "all",
        "compared": subject.comparison is not None,
    }


def _chapter(subject: Subject, layer: Layer) -> dict[str, Any]:
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
    if call.receptive_field is not None:
        facts.append(f"receptive field {shape(call.receptive_field.size)}")
    if layer.id in subject.stage_ends:
        facts.append("end of a stage")
    pictures = {
        "kernels": _kernels(subject, layer),
        "activations": _activations(subject, layer),
        "maps": _maps(subject, layer),
    }
    previews = [
        (run, run.links.previews(subject.evidence[run.label], layer.calls[run.label]))
        for run in subject.runs
        if run.links is not None and run.label in layer.calls
    ]
    return {
        "layer": layer,
        "previews": [(run, pages) for run, pages in previews if pages],
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


def _statistics(subject: Subject, layer: Layer) -> list[dict[str, Any]]:
    """Rows of the statistics table: name, unit, one text per run, and whether the runs differ."""
    rows: list[dict[str, Any]] = []

    def add(name: str, unit: str, texts: Sequence[str], judged: bool = True) -> None:
        known = [text for text in texts if text != MISSING]
        if known:
            differs = judged and len(texts) > 1 and any(text != texts[0] for text in texts[1:])
            rows.append({"name": name, "unit": unit, "texts": texts, "differs": differs})

    entries = [layer.numbers.get(label, {}) for label in subject.labels]
    if subject.comparison is not None:
        for field, name, unit in _STATISTICS:
            add(name, unit, [number(entry.get(field)) for entry in entries], judged=False)
        distances = [dissimilarity(entry.get("cka")) for entry in entries]
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


def _kernels(subject: Subject, layer: Layer) -> dict[str, Any] | None:
    stored: dict[str, tuple[str, Array]] = {}
    for label, call in layer.calls.items():
        name = next((name for name in call.tensors if subject.evidence[label].has("kernels", name)), None)
        if name is not None:
            stored[label] = name, subject.evidence[label].array("kernels", name)
    if not stored:
        return None
    matched = _matched(subject, layer, stored)
    stored = {label: (name, _square(weight)) for label, (name, weight) in stored.items()}
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
    return {
        "figures": figures,
        "scale": scale(-limit, limit, _palette(colours)),
        "caption": f"{name}, shape {shape(whole)}: {shown}; {how}; one scale for all runs, symmetric about 0.",
        "changes": _kernel_changes(subject, layer, {label: weight for label, (_, weight) in stored.items()}),
        "matched": matched,
        "norms": _norms(subject, layer),
    }


def _matched(subject: Subject, layer: Layer, stored: dict[str, tuple[str, Array]]) -> list[tuple[Run, str]]:
    """Bring each run's filters into the order of the reference's that they match; say so for each run."""
    said = []
    for run in subject.others:
        found = layer.numbers.get(run.label, {}).get("kernels")
        if not found or run.label not in stored or found["by"] == "index":
            continue
        cosines = f"mean cosine {number(found['matched'])}, in the order as it is {number(found['by_index'])}"
        if found["by"] == "cosine":
            name, weight = stored[run.label]
            stored[run.label] = name, weight[found["order"]]
            said.append((run, f"filters in the order of those they match, one to one: {cosines}"))
        else:
            said.append((run, f"filters without counterparts: the best matching reaches {cosines}"))
        said[-1] = run, f"{said[-1][1]}; chance reaches {number(found['null'])}"
    return said


def _kernel_changes(subject: Subject, layer: Layer, stored: Mapping[str, Array]) -> dict[str, Any] | None:
    """What the reference's kernels became in each other run: the difference, on a scale of its own."""
    reference = subject.labels[0]
    pairs = [
        (run, stored[run.label] - stored[reference])
        for run in subject.others
        if reference in stored and run.label in stored and stored[run.label].shape == stored[reference].shape
    ]
    pairs = [(run, change) for run, change in pairs if np.isfinite(change).all() and change.any()]
    if not pairs:
        return None
    limit = max(float(np.abs(change).max()) for _, change in pairs)
    figures = []
    for run, change in pairs:
        alt = f"Kernels of {layer.key} in {run.label} less those in {reference}, within {number(limit)} of 0"
        figures.append((run, png(drawing.kernel_picture(change, limit, PICTURE_WIDTH), alt)))
    colours = stored[reference].ndim == 4 and stored[reference].shape[1] == 3
    return {"figures": figures, "scale": scale(-limit, limit, _palette(colours))}


def _palette(colours: bool) -> Array:
    """The colours of a kernel picture's scale."""
    grays = np.linspace(0, 255, drawing.LEVELS).round().astype(np.uint8)
    return np.repeat(grays[:, None], 3, axis=1) if colours else drawing.DIVERGING


def _square(weight: Array) -> Array:
    """The first filters only where a row per filter would make the picture higher than wide."""
    matrix = weight.ndim == 2 or weight.shape[2:] == (1, 1) or weight.shape[1] in (1, 3)
    return (
        weight[: max(64, weight.shape[1])]
        if matrix and weight.ndim == 2
        else weight
        if matrix
        else weight[: max(16, weight.shape[1])]
    )


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


def _activations(subject: Subject, layer: Layer) -> dict[str, Any] | None:
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
    largest = max(float(np.abs(array[np.isfinite(array)]).max(initial=0)) for array in values.values())
    figures = []
    for run in subject.runs:
        if run.label in values:
            picture = drawing.activation_picture(values[run.label], low, high, PICTURE_WIDTH)
            alt = f"{channels} channels of {layer.key} in {run.label} for one probe image"
            figures.append((run, png(picture, alt)))
    stored, grid = first.shape[-2:], layer.call.spatial_shape
    reduced = f", averaged down from {shape(grid)} to {shape(stored)}" if grid and tuple(grid) != stored else ""
    name = subject.reference.manifest.inputs["names"][shown]
    return {
        "figures": figures,
        "scale": scale(low, high, drawing.DIVERGING if low < 0 else drawing.VIRIDIS, largest),
        "caption": f"Output for {name}: channels 0 to {channels - 1} of {count(layer.call.channels)}{reduced}; "
        "one scale for all runs and channels.",
    }


def _maps(subject: Subject, layer: Layer) -> dict[str, Any] | None:
    runs = [run for run in subject.runs if run.label in layer.calls]
    methods = shared_methods(subject, layer, runs)
    if not methods or not subject.displayed or not subject.reference.has("inputs", "images"):
        return None
    images = subject.reference.array("inputs", "images")[list(subject.displayed)]
    size, names = fitted(images.shape[1:3], OVERLAY_SIDE), ", ".join(run.label for run in runs)
    sheets = []
    for method in methods:
        maps = [raw_maps(subject, layer, run, method) for run in runs]
        heat = np.stack(
            [drawing.heatmap([one[place] for one in maps], size, shared=True) for place in range(len(images))], axis=1
        )
        sheet = drawing.overlay_sheet(images, heat, OVERLAY_SIDE)
        alt = f"{method} at {layer.key} over {len(images)} probe images; a row per run: {names}"
        maxima = [(run, number(float(one.max(initial=0)))) for run, one in zip(runs, maps, strict=True)]
        agreement = [(run, _agreement(layer.numbers.get(run.label, {}), method)) for run in runs[1:]]
        sheets.append({"method": method, "figure": jpeg(sheet, alt), "maxima": maxima, "agreement": agreement})
    same, classes = explained_classes(subject, runs)
    together = " for all runs together" if len(runs) > 1 else ""
    return {
        "runs": runs,
        "sheets": sheets,
        "compared": len(runs) > 1,
        "scale": scale(0, 1, drawing.VIRIDIS, labels=("0", "", "image's largest")),
        "same_classes": same,
        "caption": f"Maps of {shape(maps[0].shape[-2:])} values, clamped at 0, scaled per image{together}, enlarged "
        f"bilinearly. Classes explained: {classes}.",
    }


def _agreement(numbers: Mapping[str, Any], method: str) -> str:
    measured = (numbers.get("maps") or {}).get(method) or {}
    return number(measured.get("pearson"))
