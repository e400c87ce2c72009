"""Checkpoints of one training over layer and step: what changed when, what settled, how the weights spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from interpret import charts
from interpret.evidence import Array
from interpret.measures.timeline import MINIMUM_RUNS, SETTLED_CKA, SETTLED_REMAINING, TensorTimeline, Timeline
from interpret.sections.subject import Subject
from interpret.sections.wording import ROUNDING, count, level, number, percent

NAMES_PER_STEP = 6  # calls named beside the step at which they settled
MOST_HISTOGRAMS = 24
ROWS = 32  # intervals of values in the picture of a histogram
ENDS = (0.005, 0.995)  # what share of a tensor's entries lies below and above its picture
_STATISTICS = (
    ("weight_norm", "Weight norm", "L2, of tensors with two axes or more", True),
    ("output_rms", "Output", "root mean square of all values", True),
    ("effective_rank", "Effective rank", "dimensions that the probe images take up", False),
    ("zero_share", "Zeros", "share of exact zeros in the output", False),
    ("dead_share", "Dead units", "share of an activation's channels that never exceed 0", False),
    (
        "batchnorm_z_median",
        "BatchNorm drift",
        "distance of the input's mean from the running one, in its deviations",
        True,
    ),
)


def build(subject: Subject) -> dict[str, Any] | None:
    """The timeline; None where the runs are no checkpoints of one training and nobody said they were."""
    if subject.source is None:
        return None
    timeline = subject.source.timeline
    if timeline is None:
        dated = [origin.get("step") is not None for origin in subject.source.origins.values()]
        reason = subject.source.no_timeline
        return {"reason": reason} if all(dated) and len(dated) >= MINIMUM_RUNS else None
    stages = [place for place, layer in enumerate(subject.layers) if layer.id in subject.stage_ends]
    steps = [count(step) for step in timeline.steps]
    by_label = {run.label: run for run in subject.runs}
    histograms = _chosen(subject, timeline)
    return {
        "reason": None,
        "facts": _facts(timeline),
        "reasons": timeline.reasons,
        "key": [
            (charts.step_key(place, len(steps)), step, by_label[label])
            for place, (step, label) in enumerate(zip(steps, timeline.labels, strict=True))
        ],
        "grids": _grids(timeline, steps, stages),
        "settled": _settled(subject, timeline, steps),
        "statistics": _statistics(timeline, stages),
        "histograms": [_histogram(tensor, steps) for tensor in histograms],
        "histograms_total": count(len(timeline.tensors)),
        "ends": tuple(percent(share) for share in ENDS),
    }


def _facts(timeline: Timeline) -> list[tuple[str, str]]:
    weighted, compared = np.isfinite(timeline.remaining).any(1), np.isfinite(timeline.cka_to_last).any(1)
    steps = f"{count(timeline.steps[0])} to {count(timeline.steps[-1])}"
    return [
        ("Checkpoints", f"{len(timeline.steps)}, step {steps}"),
        ("Images that all of them saw", count(timeline.images)),
        ("Weights settled", f"{count((timeline.settled_weights >= 0).sum())} of {count(weighted.sum())} calls"),
        ("Outputs settled", f"{count((timeline.settled_outputs >= 0).sum())} of {count(compared.sum())} calls"),
    ]


def _grids(timeline: Timeline, steps: Sequence[str], stages: Sequence[int]) -> list[dict[str, Any]]:
    """Change from step to step, and what is missing to the last step, over calls and steps."""
    distance = 1 - timeline.cka_to_last
    distance[np.abs(distance) < ROUNDING] = 0.0
    drawn = (
        (
            "Weight change from step to step",
            "relative L2, the largest over a call's tensors; against the row above",
            timeline.weight_change,
            np.where(timeline.settled_weights < 0, -1, timeline.settled_weights + 1),
            99,
            f"what each tensor has to go to its last values is at most {percent(SETTLED_REMAINING)} of its way",
        ),
        (
            "1 \N{MINUS SIGN} CKA to the last checkpoint",
            "dissimilarity of the outputs, blind to scale and rotation",
            distance,
            timeline.settled_outputs,
            0,  # CKA of unrelated outputs scatters about 0
            f"CKA to the last checkpoint stays at {SETTLED_CKA} or above",
        ),
    )
    grids = []
    for title, text, values, marks, most, settled in drawn:
        if np.isfinite(values).any():
            low, high = _decades(values, most)
            chart = charts.level_grid(
                [[level(value, low, high) for value in column] for column in values.T.tolist()],
                f"{title} over calls and steps, logarithmic",
                rows=steps,
                marks=[None if mark < 0 else mark for mark in marks.tolist()],
                stages=stages,
            )
            ends = f"≤ {charts.power_of_ten(low)}", f"≥ {charts.power_of_ten(high)}"
            grids.append({"title": title, "text": text, "chart": chart, "ends": ends, "settled": settled})
    return grids


def _decades(values: Array, most: int) -> tuple[int, int]:
    """The powers of ten around the positive values, at most ``most`` and four decades."""
    positive = values[values > 0]
    if not positive.size:
        return -1, 0
    high = min(most, math.ceil(math.log10(positive.max()) - 1e-9))
    return max(min(math.floor(math.log10(positive.min()) + 1e-9), high - 1), high - 4), high


def _settled(subject: Subject, timeline: Timeline, steps: Sequence[str]) -> list[dict[str, Any]]:
    """What settled at which step; the last row is what never did."""
    rows = []
    for place, step in [*enumerate(steps[:-1]), (-1, f"not before {steps[-1]}")]:
        cells = []
        for settled, known in (
            (timeline.settled_weights, timeline.remaining),
            (timeline.settled_outputs, timeline.cka_to_last),
        ):
            found = np.flatnonzero((settled == place) & np.isfinite(known).any(1))
            layers = [subject.layers[position] for position in found]
            cells.append(
                {"total": count(len(layers)), "layers": layers[:NAMES_PER_STEP], "more": len(layers) > NAMES_PER_STEP}
            )
        if any(cell["layers"] for cell in cells):
            rows.append({"step": step, "cells": cells})
    return rows


def _statistics(timeline: Timeline, stages: Sequence[int]) -> list[tuple[str, str, charts.Chart]]:
    """Small charts of the statistics that move: a line per step over the depth of the network."""
    drawn = []
    for name, title, text, logarithmic in _STATISTICS:
        values = timeline.statistics[name]
        if np.nanmax(np.where(np.isfinite(values), np.abs(values), 0.0)) > 0:
            lines = [[value if math.isfinite(value) else None for value in line] for line in values.T.tolist()]
            label = f"{title} over the depth of the network, a line per step"
            drawn.append((title, text, charts.step_curves(lines, label, logarithmic=logarithmic, stages=stages)))
    return drawn


def _chosen(subject: Subject, timeline: Timeline) -> list[TensorTimeline]:
    """Tensors of the calls that matter, or of the last filters before them: in order, weights before others."""
    filters = [call.position for call in timeline.calls if call.kind in ("convolution", "linear") and call.tensors]
    matter = set()
    for layer in subject.chapters:
        call = timeline.calls[layer.position or 0]
        before = [position for position in filters if position <= call.position]
        matter.add(call.key if call.tensors or not before else timeline.calls[before[-1]].key)
    candidates = [tensor for tensor in timeline.tensors if tensor.call in matter and np.isfinite(tensor.shares).any()]
    ranked = sorted(candidates, key=lambda tensor: not tensor.name.endswith("weight"))[:MOST_HISTOGRAMS]
    return [tensor for tensor in candidates if tensor in ranked]


def _histogram(tensor: TensorTimeline, steps: Sequence[str]) -> dict[str, Any]:
    """One tensor's histograms over the steps."""
    low, high = _ends(tensor)
    edges = np.linspace(low, high, ROWS + 1)
    shares = np.diff(tensor.share_below(edges), axis=1)
    levels = [[level(share, -3, 0) or None for share in row] for row in shares.T[::-1].tolist()]
    quantiles = [[value if math.isfinite(value) else None for value in line] for line in tensor.quantiles.T.tolist()]
    label = f"Histograms of {tensor.name} over the steps, values from {number(low)} to {number(high)}"
    chart = charts.histogram_panel(levels, quantiles, (low, high), label, columns=steps)
    return {"name": tensor.name, "chart": chart}


def _ends(tensor: TensorTimeline) -> tuple[float, float]:
    """The axis: what holds the middle 99 % of the entries at every step; around the value where there is one only."""
    shares: Array = tensor.share_below(tensor.edges)
    low, high = np.inf, -np.inf
    for below in shares[np.isfinite(shares).all(1)]:
        ends = np.interp(ENDS, below, tensor.edges)
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    margin = 0.05 * (high - low) or 0.5 * abs(low) or 0.5
    return low - margin, high + margin
