"""How the calls of two architectures were paired."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from interpret import drawing
from interpret.evidence import Array, Call
from interpret.sections.figures import png, scale
from interpret.sections.subject import Run, Subject
from interpret.sections.wording import count, percent

MATRIX_WIDTH = 640  # of a picture, in pixels
LARGEST_CELL = 12
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
    alt = (
        f"Debiased CKA of the {rows} calls of {subject.labels[0]}, downwards, with the {columns} of {run.label}, "
        f"to the right; {len(pairs)} pairs run from the upper left to the lower right"
    )
    return {
        "run": run,
        "figure": png(drawing.Picture(np.ascontiguousarray(sheet), None), alt),
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
