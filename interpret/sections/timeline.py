"""Checkpoints of one training over layer and step: what changed when, what settled, how the weights spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from interpret import charts
from interpret.evidence import Array
from interpret.language import Message, say
from interpret.measures.timeline import MINIMUM_RUNS, SETTLED_CKA, SETTLED_REMAINING, TensorTimeline, Timeline
from interpret.sections.subject import Subject
from interpret.sections.wording import ROUNDING, count, number, percent
from interpret.shades import level

NAMES_PER_STEP = 6  # calls named beside the step at which they settled
MOST_HISTOGRAMS = 24
ROWS = 32  # intervals of values in the picture of a histogram
ENDS = (0.005, 0.995)  # what share of a tensor's entries lies below and above its picture
_STATISTICS = (
    ("weight_norm", say("Weight norm"), say("L2, of tensors with two axes or more"), True),
    ("output_rms", say("Output"), say("root mean square of all values"), True),
    ("effective_rank", say("Effective rank"), say("dimensions that the probe images take up"), False),
    ("zero_share", say("Zeros"), say("share of exact zeros in the output"), False),
    ("dead_share", say("Dead units"), say("share of an activation's channels that never exceed 0"), False),
    (
        "batchnorm_z_median",
        say("BatchNorm drift"),
        say("distance of the input's mean from the running one, in its deviations"),
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
    first, last = count(timeline.steps[0]), count(timeline.steps[-1])
    checkpoints = say("{count}, step {first} to {last}", count=len(timeline.steps), first=first, last=last)
    return [
        (say("Checkpoints"), checkpoints),
        (say("Images that all of them saw"), count(timeline.images)),
        (say("Weights settled"), _calls((timeline.settled_weights >= 0).sum(), weighted.sum())),
        (say("Outputs settled"), _calls((timeline.settled_outputs >= 0).sum(), compared.sum())),
    ]


def _calls(settled: int, total: int) -> Message:
    return say("{count} of {total} calls", count=count(settled), total=count(total))


def _grids(timeline: Timeline, steps: Sequence[str], stages: Sequence[int]) -> list[dict[str, Any]]:
    """Change from step to step, and what is missing to the last step, over calls and steps."""
    distance = 1 - timeline.cka_to_last
    distance[np.abs(distance) < ROUNDING] = 0.0
    drawn = (
        (
            say("Weight change from step to step"),
            say("relative L2, the largest over a call's tensors; against the checkpoint before"),
            timeline.weight_change[:, 1:],
            steps[1:],  # before the first step there is none
            timeline.settled_weights,
            99,
            say(
                "Below the thick line: what each tensor has to go to its last values is at most {share} of its way.",
                share=percent(SETTLED_REMAINING),
            ),
        ),
        (
            say("1 \N{MINUS SIGN} CKA to the last checkpoint"),
            say("dissimilarity of the outputs, blind to scale and rotation"),
            distance,
            steps,
            timeline.settled_outputs,
            0,  # CKA of unrelated outputs scatters about 0
            say("Below the thick line: CKA to the last checkpoint stays at {cka} or above.", cka=SETTLED_CKA),
        ),
    )
    grids = []
    for title, text, values, rows, marks, most, settled in drawn:
        if np.isfinite(values).any():
            low, high = _decades(values, most)
            chart = charts.level_grid(
                [[level(value, low, high) for value in column] for column in values.T.tolist()],
                say("{quantity} over calls and steps, logarithmic", quantity=title),
                rows=rows,
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
    for place, step in [*enumerate(steps[:-1]), (-1, say("not before {step}", step=steps[-1]))]:
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
    drawn: list[tuple[str, str, charts.Chart]] = []
    for name, title, text, logarithmic in _STATISTICS:
        values = timeline.statistics[name]
        if np.nanmax(np.where(np.isfinite(values), np.abs(values), 0.0)) > 0:
            lines = [[value if math.isfinite(value) else None for value in line] for line in values.T.tolist()]
            label = say("{quantity} over the depth of the network, a line per step", quantity=title)
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
    label = say(
        "Histograms of {tensor} over the steps, values from {low} to {high}",
        tensor=tensor.name,
        low=number(low),
        high=number(high),
    )
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
