"""One row per call, and the curves over the depth of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from interpret import charts
from interpret.language import listed, say
from interpret.sections.strips import weights_compare
from interpret.sections.subject import Layer, Run, Subject
from interpret.sections.wording import MISSING, count, dissimilarity, number, percent, scientific, shape
from interpret.shades import level

LEAST_RUNS = 3  # from which a matrix of the runs says more than their columns
RUNS_PER_TABLE = 3  # a wide table is split after so many runs, so that it fits the page
RUNS_PER_MATRIX = 12
NAMED_COLUMNS = 6  # of a matrix; more have markers alone as their heads
LEAST_SUMMED = 3  # rows in a row that are one line on paper where they say the same


def build(subject: Subject) -> dict[str, Any]:
    """Curves over depth and a table with a row per call."""
    stages = [index for index, layer in enumerate(subject.layers) if layer.id in subject.stage_ends]
    if subject.comparison is None:
        return {
            "compared": False,
            "curves": _single_curves(subject, stages),
            "columns": _single_columns(subject),
            "rows": _single_rows(subject),
            "listed": (len(subject.listed), len(subject.layers)),
        }
    numbers = [run.number for run in subject.others]

    def values(field: str, runs: Sequence[Run] = subject.others) -> list[list[float | None]]:
        return [
            [layer.numbers.get(run.label, {}).get(field) if run in runs else None for layer in subject.layers]
            for run in subject.others
        ]

    distances = [[dissimilarity(cka) for cka in series] for series in values("cka")]
    drawn = [
        (
            say("Weight change"),
            say("relative L2 change of a call's weights, the largest over its tensors"),
            values("weight_change", [run for run in subject.others if weights_compare(subject, run)]),
        ),
        (
            say("Divergence"),
            say(
                "relative change of the Gram matrix or of the channel means, whichever is larger; sees a change of "
                "scale"
            ),
            values("divergence"),
        ),
        (
            say("1 \N{MINUS SIGN} CKA"),
            say("dissimilarity of the representations, blind to scale and rotation"),
            distances,
        ),
    ]
    tables = [
        _overview_table(subject, subject.others[start : start + RUNS_PER_TABLE])
        for start in range(0, len(subject.others), RUNS_PER_TABLE)
    ]
    return {
        "compared": True,
        "runs": subject.others,
        "all_runs": subject.runs,
        "curves": [
            (
                title,
                text,
                charts.curves(
                    series,
                    say("{quantity} over the depth of the network, one line per run, logarithmic", quantity=title),
                    runs=numbers,
                    logarithmic=True,
                    joined=title != "Weight change",
                    stages=stages,
                ),
            )
            for title, text, series in drawn
            if any(value is not None for line in series for value in line)
        ],
        "matrix": _matrix(subject),
        "tables": tables,
        "listed": (len(subject.listed), len(subject.layers)),
    }


def _overview_table(subject: Subject, runs: Sequence[Run]) -> dict[str, Any]:
    rows = []
    weighed = {run.label: weights_compare(subject, run) for run in runs}
    first = (subject.comparison or {}).get("first_divergence", {})
    for layer in subject.listed:
        cells = []
        for run in runs:
            entry = layer.numbers.get(run.label, {})
            distance = dissimilarity(entry.get("cka"))
            if weighed[run.label]:
                cells.append(_cell(entry.get("weight_change"), number(entry.get("weight_change")), -4, 0))
            cells += [
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
    return {
        "runs": [(run, weighed[run.label]) for run in runs],
        "rows": rows,
        "lines": _lines(subject, runs, rows),
        "is_first": runs[0].number == 1,
    }


def _lines(subject: Subject, runs: Sequence[Run], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as they stand on paper: of neighbours that say the same one line, but each with a chapter its own."""
    lines: list[dict[str, Any]] = []
    alike: list[dict[str, Any]] = []

    def close(kind: tuple[str, ...] | None) -> None:
        if kind is None or len(alike) < LEAST_SUMMED:
            lines.extend({"row": row} for row in alike)
        else:
            layers = [row["layer"] for row in alike]
            told = {"count": count(len(layers)), "first": layers[0].key, "last": layers[-1].key}
            text = (
                say("{count} calls only in {runs}: {first} \N{HORIZONTAL ELLIPSIS} {last}", runs=listed(kind), **told)
                if kind
                else say("{count} calls without any change: {first} \N{HORIZONTAL ELLIPSIS} {last}", **told)
            )
            lines.append({"row": None, "text": text, "layers": layers})
        alike.clear()

    before: tuple[str, ...] | None = None
    for row in rows:
        kind = None if row["chapter"] or row["first"] else _kind(subject, runs, row["layer"])
        if kind != before or kind is None:
            close(before)
        alike.append(row)
        before = kind
    close(before)
    return lines


def _kind(subject: Subject, runs: Sequence[Run], layer: Layer) -> tuple[str, ...] | None:
    """The runs that alone have a call, none of them where nothing changed; None where its row has more to say."""
    labels = [subject.labels[0], *(run.label for run in runs)]
    having = tuple(label for label in labels if label in layer.calls)
    if having and len(having) < len(labels):
        return having
    before = layer.numbers.get(subject.labels[0], {})
    for run in runs:
        entry = layer.numbers.get(run.label, {})
        changes = (entry.get("weight_change") or 0.0, entry.get("divergence"), dissimilarity(entry.get("cka")) or 0.0)
        if any(change != 0.0 for change in changes) or entry.get("dead_units") != before.get("dead_units"):
            return None
    return ()


def _dead(entry: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Dead units, with the reference's count where it differs."""
    own, before = entry.get("dead_units"), reference.get("dead_units")
    if own is None:
        return MISSING
    return count(own) if before in (None, own) else f"{count(before)} \N{RIGHTWARDS ARROW} {count(own)}"


def _cell(value: float | None, text: str, low: int, high: int) -> dict[str, Any]:
    return {"text": text, "level": level(value, low, high), "sort": -1.0 if value is None else value}


_SINGLE = (
    (say("Zeros"), "zero_share", say("share of exact zeros in the output")),
    (say("Saturated"), "saturated_share", say("share of values at the upper bound of a bounded activation")),
    (say("Dead"), "dead_units", say("channels of an activation that never exceed 0")),
    (say("Constant"), "constant_units", say("channels that do not vary")),
    (
        say("BN drift"),
        "batchnorm_z_median",
        say(
            "median over channels of the distance of the input's mean from the running one, in running standard "
            "deviations"
        ),
    ),
    (say("Noise floor"), "noise_gram", say("relative change of the Gram matrix when the same weights run again")),
)


def _single_columns(subject: Subject) -> list[tuple[str, str]]:
    return [(name, text) for name, field, text in _SINGLE if subject.reference.has("layers", field)]


def _single_rows(subject: Subject) -> list[dict[str, Any]]:
    fields = [field for _, field, _ in _SINGLE if subject.reference.has("layers", field)]
    columns = {field: subject.reference.array("layers", field) for field in fields}
    norms: dict[str | None, float] = {}
    for tensor in subject.reference.tensors:
        if tensor.filters:
            norms[tensor.call] = math.hypot(norms.get(tensor.call, 0.0), tensor.norm or 0.0)
    rows = []
    for layer in subject.listed:
        cells = [{"text": number(norms.get(layer.key)), "level": None, "sort": norms.get(layer.key, -1)}]
        for field in fields:
            value = float(columns[field][layer.position])
            known = value if math.isfinite(value) else None
            write = percent if field.endswith("_share") else _whole if field.endswith("_units") else number
            text = write(known)
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


def _whole(value: float | None) -> str:
    return MISSING if value is None else count(value)


def _single_curves(subject: Subject, stages: Sequence[int]) -> list[tuple[str, str, charts.Chart]]:
    drawn: list[tuple[str, str, charts.Chart]] = []
    for name, field, text in _SINGLE[:1] + _SINGLE[-1:]:
        if subject.reference.has("layers", field):
            values = [
                float(value) if math.isfinite(value) else None for value in subject.reference.array("layers", field)
            ]
            if any(value is not None for value in values):
                chart = charts.curves(
                    [values],
                    say("{quantity} over the depth of the network", quantity=name),
                    runs=[0],
                    logarithmic=field == "noise_gram",
                    stages=stages,
                )
                drawn.append((name, text, chart))
    return drawn


def _matrix(subject: Subject) -> list[dict[str, Any]] | None:
    """1 - mean CKA of every run with every other, as text and level; None for few runs or where none is known.

    As many tables as keep each as wide as a page, of about as many columns.
    """
    assert subject.comparison is not None
    rows = subject.comparison["mean_cka"]
    if len(rows) < LEAST_RUNS or all(value is None for row in rows for value in row):
        return None
    cells = [
        [_similarity_cell(dissimilarity(value), own=i == j) for j, value in enumerate(row)]
        for i, row in enumerate(rows)
    ]
    tables = -(-len(rows) // RUNS_PER_MATRIX)
    width = -(-len(rows) // tables)
    return [
        {
            "runs": subject.runs[start : start + width],
            "named": len(rows) <= NAMED_COLUMNS,
            "rows": [(run, line[start : start + width]) for run, line in zip(subject.runs, cells, strict=True)],
        }
        for start in range(0, len(rows), width)
    ]


def _similarity_cell(distance: float | None, own: bool) -> tuple[str, int | None]:
    if distance is None or own:
        return MISSING, None
    return scientific(distance), level(distance, -4, 0)
