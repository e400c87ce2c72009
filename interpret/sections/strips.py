"""The network as a strip: one cell per call, in order of execution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interpret.language import say
from interpret.sections.subject import Run, Subject
from interpret.sections.wording import number
from interpret.shades import level


def strips(subject: Subject) -> list[dict[str, Any]]:
    """Rows of cells, one per call: how much its weights changed, and how far its output is from the reference's."""
    if subject.comparison is None:
        if not subject.reference.has("layers", "zero_share"):
            return []
        shares = [float(share) for share in subject.reference.array("layers", "zero_share")]
        return [_strip(subject, subject.runs[0], say("share of zeros in the output"), shares, -3, 0)]
    rows = []
    for run in subject.others:
        weights = [("weight_change", say("weight change"))] if weights_compare(subject, run) else []
        for field, name in (*weights, ("divergence", say("divergence"))):
            values = [layer.numbers.get(run.label, {}).get(field) for layer in subject.layers]
            rows.append(_strip(subject, run, name, values, -4, 0))
    return rows


def weights_compare(subject: Subject, run: Run) -> bool:
    """Whether a run is the reference's network: another one's calls were paired by similarity, not its weights."""
    return all(layer.numbers.get(run.label, {}).get("aligned_by") != "similarity" for layer in subject.layers)


def _strip(
    subject: Subject, run: Run, name: str, values: Sequence[float | None], low: int, high: int
) -> dict[str, Any]:
    starts = _stage_starts(subject)
    cells = [
        {
            "level": level(value, low, high),
            "title": say(
                "{position} {call}: {quantity} {value}",
                position="+" if layer.position is None else layer.position,
                call=layer.key,
                quantity=name,
                value=number(value),
            ),
            "layer": layer,
            "starts": layer.id in starts,
        }
        for layer, value in zip(subject.layers, values, strict=True)
    ]
    return {"run": run, "name": name, "cells": cells}


def _stage_starts(subject: Subject) -> frozenset[str]:
    """Layers that come right after the end of a stage."""
    pairs = zip(subject.layers, subject.layers[1:], strict=False)
    return frozenset(after.id for before, after in pairs if before.id in subject.stage_ends)


def stage_marks(subject: Subject) -> list[dict[str, Any]]:
    """Per call: whether a stage starts there, and the spatial size of that stage for the label under the strips."""
    starts = _stage_starts(subject)
    marks: list[dict[str, Any]] = []
    size = ""
    for layer in reversed(subject.layers):  # a stage bears the size that its end has
        shape = layer.call.spatial_shape
        if not size or layer.id in subject.stage_ends:
            size = _size(shape)
        is_start = layer.id in starts or layer is subject.layers[0]
        is_late = len(marks) < len(subject.layers) // 12  # a label there is written to the left
        marks.append({"starts": layer.id in starts, "label": size if is_start else "", "late": is_late})
        size = "" if is_start else size
    return marks[::-1]


def _size(shape: tuple[int, int] | None) -> str:
    """A spatial size in few characters, for there is little room under a strip."""
    if shape is None:
        return say("vector")
    height, width = shape
    return f"{height}²" if height == width else f"{height}\N{MULTIPLICATION SIGN}{width}"
