"""How the calls of two architectures were paired."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from interpret import charts, drawing
from interpret.evidence import Array, Call
from interpret.language import say
from interpret.sections.figures import png, scale
from interpret.sections.subject import Run, Subject
from interpret.sections.wording import count, percent, shape

MATRIX_WIDTH = 640  # of a picture, in pixels
LARGEST_CELL = 12
AXIS_LENGTH = 606  # of the picture's width; with the axis on its left it is as wide as a chart
TALLEST = 1.4  # times the width, where the picture is as wide as a page
PATH, STAGE = (178, 24, 43), (255, 255, 255)


def build(subject: Subject) -> dict[str, Any] | None:
    """A picture for each run that was aligned by similarity; None where none was."""
    if subject.comparison is None:
        return None
    alignments = [
        _alignment(subject, run, cka)
        for run in subject.others
        if _pairs(subject, run) and (cka := subject.cka_matrix(run.label)) is not None
    ]
    return {"alignments": alignments, "runs": subject.runs} if alignments else None


def _pairs(subject: Subject, run: Run) -> list[tuple[Call, Call]]:
    """Calls of the reference and of a run that were paired by similarity."""
    return [
        (layer.calls[subject.labels[0]], layer.calls[run.label])
        for layer in subject.layers
        if layer.numbers[run.label].get("aligned_by") == "similarity"
    ]


def _alignment(subject: Subject, run: Run, matrix: Array) -> dict[str, Any]:
    pairs = _pairs(subject, run)
    stages = [_stages(subject.evidence[label].calls) for label in (subject.labels[0], run.label)]
    same = sum(stages[0][a.position] == stages[1][b.position] for a, b in pairs)
    rows, columns = matrix.shape
    cell = max(1, min(LARGEST_CELL, MATRIX_WIDTH // columns))
    drawn = drawing.VIRIDIS[drawing.indices(np.clip(np.nan_to_num(matrix), 0, 1), 0, 1)]
    drawn[~np.isfinite(matrix)] = 255
    sheet = drawn.repeat(cell, 0).repeat(cell, 1)
    for axis, found in enumerate(stages):
        for position in np.flatnonzero(np.diff(found)) + 1:
            line = slice(position * cell, position * cell + 1)
            sheet[(line, slice(None)) if axis == 0 else (slice(None), line)] = STAGE
    for a, b in pairs:
        sheet[a.position * cell : (a.position + 1) * cell, b.position * cell : (b.position + 1) * cell] = PATH
    alt = say(
        "Debiased CKA of the {rows} calls of {reference}, downwards, with the {columns} of {run}, to the right; "
        "{pairs} pairs run from the upper left to the lower right",
        rows=rows,
        reference=subject.labels[0],
        columns=columns,
        run=run.label,
        pairs=len(pairs),
    )
    return {
        "run": run,
        "figure": png(drawing.Picture(np.ascontiguousarray(sheet), None), alt),
        "width": min(100, int(100 * TALLEST * columns / rows / 5) * 5 or 5),
        "left": charts.call_axis(
            rows,
            _names(subject.evidence[subject.labels[0]].calls, stages[0]),
            say("Calls of {run}", run=subject.labels[0]),
            round(AXIS_LENGTH * rows / columns),
            vertical=True,
        ),
        "below": charts.call_axis(
            columns,
            _names(subject.evidence[run.label].calls, stages[1]),
            say("Calls of {run}", run=run.label),
            AXIS_LENGTH,
        ),
        "scale": scale(0.0, 1.0, drawing.VIRIDIS),
        "pairs": count(len(pairs)),
        "rows": count(rows),
        "columns": count(columns),
        "same_stage": percent(same / len(pairs)),
    }


def _stages(calls: Sequence[Call]) -> list[int]:
    """How many stages ended before each call."""
    ends = [int(call.stage_end) for call in calls]
    return [0, *accumulate(ends[:-1])]


def _names(calls: Sequence[Call], stages: Sequence[int]) -> list[tuple[int, int, str]]:
    """First and last call of each stage, and the spatial size at its end."""
    ends = [*(np.flatnonzero(np.diff(stages)).tolist()), len(calls) - 1]
    starts = [0, *(end + 1 for end in ends[:-1])]
    sizes = [calls[end].spatial_shape for end in ends]
    return [(start, end, shape(size) if size else "") for start, end, size in zip(starts, ends, sizes, strict=True)]
