"""A chapter per call that matters: statistics, kernels, activations and maps of the runs on shared scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from interpret import charts, drawing
from interpret.evidence import Array, Evidence, TensorRecord
from interpret.findings.wording import KINDS
from interpret.functional.statistics import histogram_edges
from interpret.language import Message, listed, plural, say
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
INTERVALS = 80  # of a histogram of weights
RUNS_PER_TABLE = 4  # a wide table is split after so many runs, so that it fits the page
MOST_BESIDE = 3  # runs whose statistics leave room for charts beside them
NAMED_CHANNELS = 3  # of those that moved most
PICTURES = {"kernels": say("kernels"), "activations": say("activations"), "maps": say("maps")}


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
    reasons = []
    if subject.comparison is not None:
        for run in subject.others:
            if subject.comparison["first_divergence"].get(run.label) == layer.key:
                reasons.append((run, say("first divergence")))
            ranking = subject.comparison["ranking"].get(run.label, [])
            if layer.key in ranking[:ROWS_PER_RANKING]:
                rank = ranking.index(layer.key) + 1
                reasons.append((run, say("rank {rank} of {total}", rank=rank, total=len(ranking))))
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
        "facts": listed(_facts(subject, layer), " · "),
        "reasons": reasons,
        "statistics": _statistics_tables(subject, layer),
        "beside": len(subject.runs) <= MOST_BESIDE,
        "place": _place(subject, layer),
        "histogram": _histogram(subject, layer),
        "moved": _moved(subject, layer),
        "runs": subject.runs,
        **pictures,
        "absent": listed([PICTURES[name] for name, picture in pictures.items() if picture is None]),
    }


def _facts(subject: Subject, layer: Layer) -> list[str]:
    """What a call is, with its sizes."""
    call = layer.call
    facts = [call.type, KINDS.get(call.kind, call.kind), say("output {shape}", shape=shape(call.output_shape[1:]))]
    if call.parameters:
        facts.append(say("{parameters} parameters", parameters=quantity(call.parameters)))
    if call.multiply_adds:
        facts.append(say("{multiply_adds} multiply-adds", multiply_adds=quantity(call.multiply_adds)))
    if call.receptive_field is not None:
        facts.append(say("receptive field {shape}", shape=shape(call.receptive_field.size)))
    if layer.id in subject.stage_ends:
        facts.append(say("end of a stage"))
    return facts


_STATISTICS: tuple[tuple[str, str, str], ...] = (
    ("weight_change", say("Weight change"), say("relative L2")),
    ("divergence", say("Divergence"), say("Gram and means, relative")),
    ("noise_floor", say("Noise floor"), say("same weights, run again")),
)


def _statistics_tables(subject: Subject, layer: Layer) -> list[dict[str, Any]]:
    """The statistics of all runs, a table for every few of them."""
    rows = _statistics(subject, layer)
    starts = range(0, len(subject.runs) if rows else 0, RUNS_PER_TABLE)
    parts = [slice(start, start + RUNS_PER_TABLE) for start in starts]
    return [
        {"runs": subject.runs[part], "rows": [{**row, "texts": row["texts"][part]} for row in rows]} for part in parts
    ]


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
        add(
            say("1 \N{MINUS SIGN} CKA"), say("debiased"), [scientific(distance) for distance in distances], judged=False
        )
        ranks = [_rank(subject, label, layer) for label in subject.labels]
        add(say("Rank by divergence"), say("among calls, largest first"), ranks, judged=False)
    weights = [_kernel_tensor(subject, label, layer) for label in subject.labels]
    add(say("Weight norm"), "L2", [number(tensor.norm if tensor else None) for tensor in weights])
    ranges = [interval(tensor.minimum, tensor.maximum) if tensor else MISSING for tensor in weights]
    add(say("Weight range"), "", ranges)
    add(
        say("Zero filters"),
        say("exactly zero"),
        [_share(tensor.zero_filters, tensor.filters) if tensor else MISSING for tensor in weights],
    )
    distinct = [count(tensor.distinct) if tensor else MISSING for tensor in weights]
    add(say("Distinct values"), say("per filter, at most"), distinct)
    low, high = (_channel_extreme(subject, layer, end) for end in ("minimum", "maximum"))
    add(say("Output range"), say("over all images"), [interval(*ends) for ends in zip(low, high, strict=True)])
    for field, name, unit in (
        ("zero_share", say("Zeros"), say("share of outputs")),
        ("saturated_share", say("Saturated"), say("share of outputs")),
    ):
        add(name, unit, [percent(value) for value in _layer_values(subject, layer, field)])
    for field, name in (
        ("dead_units", say("Dead units")),
        ("constant_units", say("Constant units")),
        ("nonfinite", say("NaN or infinite")),
    ):
        add(
            name,
            "",
            [MISSING if value is None else count(int(value)) for value in _layer_values(subject, layer, field)],
        )
    return rows


def _share(some: int, total: int) -> Message:
    return say("{count} of {total}", count=count(some), total=count(total))


def _rank(subject: Subject, label: str, layer: Layer) -> str:
    """Where the call stands among all by its divergence in one run."""
    own = layer.numbers.get(label, {}).get("divergence")
    known = [entry.numbers.get(label, {}).get("divergence") for entry in subject.layers]
    values = [value for value in known if value is not None]
    if not own:
        return MISSING
    return _share(1 + sum(value > own for value in values), len(values))


def _place(subject: Subject, layer: Layer) -> charts.Chart | None:
    """The divergence of every call with this one pointed out; None where every call has a chapter, or none diverges."""
    if subject.detail == "all":
        return None
    series = [
        [entry.numbers.get(run.label, {}).get("divergence") for entry in subject.layers] for run in subject.others
    ]
    if not any(value for values in series for value in values):
        return None
    return charts.curves(
        series,
        say("Divergence of every call in order of execution, logarithmic; {call} is marked", call=layer.key),
        runs=[run.number for run in subject.others],
        logarithmic=True,
        mark=subject.layers.index(layer),
        width=260,
        height=100,
    )


def _histogram(subject: Subject, layer: Layer) -> dict[str, Any] | None:
    """The values of the call's weight (or of its first tensor) in every run, on shared intervals and one axis."""
    found = [(run, tensor) for run in subject.runs if (tensor := _first_tensor(subject, run.label, layer))]
    known = [(run, tensor) for run, tensor in found if tensor.minimum is not None and tensor.maximum is not None]
    if not known:
        return None
    low, high = min(tensor.minimum or 0.0 for _, tensor in known), max(tensor.maximum or 0.0 for _, tensor in known)
    if low == high:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    shares = [histogram_shares(subject.evidence[run.label], tensor, low, high) for run, tensor in known]
    told = {"tensor": known[0][1].name, "low": number(low), "high": number(high)}
    chart = charts.histogram_lines(
        [row.tolist() for row in shares],
        (low, high),
        say("Histogram of {tensor}, a line per run, from {low} to {high}", **told),
        runs=[run.number for run, _ in known],
    )
    return {
        "key": [(run, charts.run_stroke(run.number)) for run, _ in known],
        "chart": chart,
        "caption": say(
            "{tensor}: share of its {values} values in each of {intervals} even intervals, from {low} to {high}, the "
            "smallest and the largest value of all runs; logarithmic, one axis for all runs. A line that lies on "
            "another is drawn over it, dashed.",
            **told,
            values=count(known[0][1].entries),
            intervals=INTERVALS,
        ),
    }


def _first_tensor(subject: Subject, label: str, layer: Layer) -> TensorRecord | None:
    """The call's tensor with filters, or else its first one; None where the run has no histogram of it."""
    call, evidence = layer.calls.get(label), subject.evidence[label]
    if call is None or not evidence.has("weights", "histogram"):
        return None
    own = (tensor for tensor in evidence.tensors if tensor.name in call.tensors)
    return _kernel_tensor(subject, label, layer) or next(own, None)


def histogram_shares(evidence: Evidence, tensor: TensorRecord, low: float, high: float) -> Array:
    """Share of a tensor's values in even intervals from ``low`` to ``high``, shape (INTERVALS,).

    From the counts on fixed bins, a quarter octave wide, as if the values were evenly spread within a bin.
    """
    counts = evidence.array("weights", "histogram")[tensor.index].astype(np.float64)
    below = np.concatenate([[0.0], np.cumsum(counts)]) / max(1.0, float(counts.sum()))
    places = np.clip(histogram_edges(), tensor.minimum, tensor.maximum)
    occupied = np.flatnonzero(np.diff(below))
    first, last = (int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else (0, len(counts))
    edges = np.linspace(low, high, INTERVALS + 1)
    # the bins that are empty at both ends are left out: clipped, they would all lie on one point
    inside = np.interp(edges, places[first : last + 1], below[first : last + 1], left=0.0, right=1.0)
    inside[edges <= places[first]] = 0.0  # the bin of the smallest value may have no width left
    return np.asarray(np.diff(inside))


def _moved(subject: Subject, layer: Layer) -> dict[str, Any] | None:
    """How far the mean of each channel moved from the reference's; None where nothing moved or nothing is known."""
    reference = subject.labels[0]
    if reference not in layer.calls:
        return None
    series, rows = [], []
    for run in subject.others:
        shifts = channel_shifts(subject, run, layer)
        known = shifts[np.isfinite(shifts)]
        if known.size:
            order = np.argsort(-np.nan_to_num(shifts, nan=-1.0), kind="stable")[:NAMED_CHANNELS]
            named = [f"{channel} ({number(float(shifts[channel]))})" for channel in order if shifts[channel] > 0]
            text = say("most: channel {channels}", channels=", ".join(named)) if named else say("none moved")
            rows.append((run, charts.run_stroke(run.number), text))
            series.append(known.tolist())
    if not any(value > 0 for values in series for value in values):
        return None
    return {
        "runs": rows,
        "chart": charts.ranked_curves(
            series,
            say(
                "Shift of the mean of each channel of {call}, from the largest to the smallest, a line per run",
                call=layer.key,
            ),
            runs=[run.number for run, _, _ in rows],
        ),
        "caption": say(
            "Shift of each channel's mean over all images, in standard deviations of the channel in {reference}; "
            "the {channels} channels from the largest shift to the smallest. Channels that are constant there are left "
            "out.",
            reference=reference,
            channels=count(layer.call.channels),
        ),
    }


def channel_shifts(subject: Subject, run: Run, layer: Layer) -> Array:
    """|mean' - mean| / standard deviation of each channel of the reference, shape (C,); NaN where it has none.

    Empty where one of the two has no such channels. Channels are compared in their matched order where all were
    matched, else by their number.
    """
    means = []
    for label in (subject.labels[0], run.label):
        call, evidence = layer.calls.get(label), subject.evidence[label]
        if call is None or not evidence.has("layers", "channel_mean"):
            return np.zeros(0)
        means.append(evidence.channel("channel_mean", call.key).astype(np.float64))
    first, second = means
    if len(first) != len(second):
        return np.zeros(0)
    matched = (layer.numbers.get(run.label, {}).get("kernels") or {}).get("order")
    if matched and len(matched) == len(second):
        second = second[matched]
    reference = subject.evidence[subject.labels[0]]
    deviation = np.sqrt(reference.channel("channel_variance", layer.calls[subject.labels[0]].key).astype(np.float64))
    return np.asarray(np.abs(second - first) / np.where(deviation > 0, deviation, np.nan))


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
            alt = say(
                "Kernels of {call} in {run}, from {low} to {high}",
                call=layer.key,
                run=run.label,
                low=number(-limit),
                high=number(limit),
            )
            figures.append((run, png(picture, alt)))
    name, weight = next(iter(stored.values()))
    record = _kernel_tensor(subject, next(iter(stored)), layer)
    whole = record.shape if record else weight.shape
    colours = weight.ndim == 4 and weight.shape[1] == 3
    single = weight.ndim == 4 and weight.shape[1] == 1
    shown = say("{shown} of {total} filters", shown=count(weight.shape[0]), total=count(whole[0]))
    if weight.ndim > 1 and not single:
        shown = say(
            "{filters}, {shown} of {total} input channels",
            filters=shown,
            shown=count(weight.shape[1]),
            total=count(whole[1]),
        )
    if colours:
        how = say("the three input channels as red, green and blue about mid-gray")
    elif weight.shape[2:] == (1, 1):
        how = say("one row per filter, one column per input channel")
    elif single:
        how = say("one tile per filter, row by row")
    else:
        how = say("one row of tiles per filter, one column per input channel")
    return {
        "figures": figures,
        "scale": scale(-limit, limit, _palette(colours)),
        "caption": say(
            "{tensor}, shape {shape}: {shown}; {how}; one scale for all runs, symmetric about 0.",
            tensor=name,
            shape=shape(whole),
            shown=shown,
            how=how,
        ),
        "changes": _kernel_changes(subject, layer, {label: weight for label, (_, weight) in stored.items()}),
        "matched": matched,
        "norms": _norms(subject, layer),
    }


def _matched(subject: Subject, layer: Layer, stored: dict[str, tuple[str, Array]]) -> list[tuple[Run, str]]:
    """Bring each run's filters into the order of the reference's that they match; say so for each run."""
    said: list[tuple[Run, str]] = []
    for run in subject.others:
        found = layer.numbers.get(run.label, {}).get("kernels")
        if not found or run.label not in stored or found["by"] == "index":
            continue
        cosines = {name: number(found[name]) for name in ("matched", "by_index", "null")}
        if found["by"] == "cosine":
            name, weight = stored[run.label]
            stored[run.label] = name, weight[found["order"]]
            text = say(
                "filters in the order of those they match, one to one: mean cosine {matched}, in the order as it is "
                "{by_index}; chance reaches {null}.",
                **cosines,
            )
        else:
            text = say(
                "filters without counterparts: the best matching reaches mean cosine {matched}, in the order as it is "
                "{by_index}; chance reaches {null}.",
                **cosines,
            )
        said.append((run, text))
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
        alt = say(
            "Kernels of {call} in {run} less those in {reference}, within {limit} of 0",
            call=layer.key,
            run=run.label,
            reference=reference,
            limit=number(limit),
        )
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
    drawn: list[tuple[Run, charts.Chart, str]] = []
    for run in subject.runs:
        if run.label in norms:
            values = norms[run.label]
            zero = int((values == 0).sum())
            filters = count(len(values))
            text = (
                say("{zero} of {filters} filters are zero", zero=count(zero), filters=filters)
                if zero
                else plural(len(values), "{filters} filter, none zero", "{filters} filters, none zero", filters=filters)
            )
            label = say("Norm of each filter of {call} in {run}: {text}", call=layer.key, run=run.label, text=text)
            chart = charts.filter_norms(values.tolist(), top, label, run=run.number)
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
    tops = drawing.channel_tops(list(values.values()))
    bottom = -1.0 if low < 0 else 0.0
    figures, twins = [], []
    for run in subject.runs:
        if run.label in values:
            array = values[run.label]
            picture = drawing.activation_picture(array, low, high, PICTURE_WIDTH)
            alt = say(
                "{channels} channels of {call} in {run} for one probe image",
                channels=channels,
                call=layer.key,
                run=run.label,
            )
            figures.append((run, png(picture, alt)))
            scaled = array / tops[: len(array), None, None]
            twin = drawing.activation_picture(scaled, bottom, 1.0, PICTURE_WIDTH)
            twins.append((run, png(twin, say("{picture}, each channel on a scale of its own", picture=alt))))
    stored, grid = first.shape[-2:], layer.call.spatial_shape
    told = {
        "call": layer.key,
        "image": subject.reference.manifest.inputs["names"][shown],
        "last": channels - 1,
        "total": count(layer.call.channels),
    }
    caption = say(
        "Output of {call} for {image}: channels 0 to {last} of {total}; one scale for all runs and channels.", **told
    )
    if grid and tuple(grid) != stored:
        caption = say(
            "Output of {call} for {image}: channels 0 to {last} of {total}, averaged down from {grid} to {stored}; one "
            "scale for all runs and channels.",
            **told,
            grid=shape(grid),
            stored=shape(stored),
        )
    palette = drawing.DIVERGING if low < 0 else drawing.VIRIDIS
    ends = (say("\N{MINUS SIGN}channel's top") if low < 0 else "0", "0" if low < 0 else "", say("channel's top"))
    return {
        "figures": figures,
        "scale": scale(low, high, palette, largest),
        "caption": caption,
        "twins": twins,
        "twin_scale": scale(bottom, 1.0, palette, labels=ends),
        "twin_caption": say(
            "The same, each channel on a scale of its own for all runs, up to the {percentile}th percentile of its "
            "magnitudes: pale channels become visible; colours do not compare from one channel to another.",
            percentile=f"{drawing.CLIP_PERCENTILE:g}",
        ),
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
        alt = plural(
            len(images),
            "{method} at {call} over {n} probe image; a row per run: {runs}",
            "{method} at {call} over {n} probe images; a row per run: {runs}",
            method=method,
            call=layer.key,
            runs=names,
        )
        maxima = [(run, number(float(one.max(initial=0)))) for run, one in zip(runs, maps, strict=True)]
        agreement = [(run, _agreement(layer.numbers.get(run.label, {}), method)) for run in runs[1:]]
        sheets.append({"method": method, "figure": jpeg(sheet, alt), "maxima": maxima, "agreement": agreement})
    same, classes = explained_classes(subject, runs)
    told = {"call": layer.key, "shape": shape(maps[0].shape[-2:]), "classes": classes}
    return {
        "runs": runs,
        "sheets": sheets,
        "compared": len(runs) > 1,
        "scale": scale(0, 1, drawing.VIRIDIS, labels=("0", "", say("image's largest"))),
        "same_classes": same,
        "caption": say(
            "Maps at {call} of {shape} values, clamped at 0, scaled per image for all runs together, enlarged "
            "bilinearly. Classes explained: {classes}.",
            **told,
        )
        if len(runs) > 1
        else say(
            "Maps at {call} of {shape} values, clamped at 0, scaled per image, enlarged bilinearly. Classes explained: "
            "{classes}.",
            **told,
        ),
    }


def _agreement(numbers: Mapping[str, Any], method: str) -> str:
    measured = (numbers.get("maps") or {}).get(method) or {}
    return number(measured.get("pearson"))
