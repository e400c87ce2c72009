"""What each run says of each probe image, disagreement first, with the maps of the last layer that has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from interpret import charts, drawing
from interpret.evidence import Array, Evidence
from interpret.sections.figures import jpeg
from interpret.sections.maps import OVERLAY_SIDE, fitted, raw_maps, shared_methods
from interpret.sections.subject import Layer, Subject, class_name
from interpret.sections.wording import count, percent

PHOTO_SIDE = 192  # of a displayed image, in pixels


def build(subject: Subject) -> dict[str, Any] | None:
    """Rows of images with the top classes of every run, and the displayed ones with their pictures."""
    if not subject.reference.has("predictions", "logits"):
        return None
    probabilities = {
        run.label: _softmax(subject.evidence[run.label])
        for run in subject.runs
        if subject.evidence[run.label].has("predictions", "logits")
    }
    rows = [_row(subject, index, probabilities) for index in range(len(subject.reference.manifest.inputs["names"]))]
    rows.sort(key=lambda row: (not row["disagrees"], row["least"], row["index"]))
    layer = _last_mapped(subject)
    return {
        "runs": subject.runs,
        "rows": rows,
        "disagreements": count(sum(bool(row["disagrees"]) for row in rows)),
        "total": count(len(rows)),
        "compared": subject.comparison is not None,
        "labelled": any(row["label"] for row in rows),
        "left": any(place for row in rows for place in row["leaves"]),
        "layer": layer,
        "probes": [_probe(subject, row, layer) for row in rows if row["index"] in subject.displayed],
    }


def _row(subject: Subject, index: int, probabilities: Mapping[str, Array]) -> dict[str, Any]:
    """One probe image: its name, its label, and the top classes of each run (none where the run has no such image)."""
    inputs = subject.reference.manifest.inputs
    cells, leaves = [], []
    for run in subject.runs:
        leaves.append(_leaves_at(subject, run.label, index))
        sample = subject.sample(run.label, index)
        known = run.label in probabilities and sample is not None
        cells.append(_top(subject.evidence[run.label], probabilities[run.label][sample]) if known else [])
    first = [top[0] for top in cells if top]
    label = inputs["labels"][index] if inputs["labels"] else None
    return {
        "index": index,
        "name": str(inputs["names"][index]),
        "label": class_name(subject.reference, label) if label is not None and label >= 0 else None,
        "cells": cells,
        "leaves": leaves,
        "disagrees": len({best["name"] for best in first}) > 1,
        "least": min((best["value"] for best in first), default=1.0),
    }


def _leaves_at(subject: Subject, label: str, image: int) -> Layer | None:
    """The call where an image whose prediction flipped leaves the others; see measures.predictions.Flip."""
    found = {} if subject.comparison is None else subject.comparison["predictions"].get(label) or {}
    keys = [flip["leaves_at"] for flip in found.get("flips", ()) if flip["image"] == image]
    return subject.layer.get(keys[0]) if keys else None


def _top(evidence: Evidence, probabilities: Array, length: int = 3) -> list[dict[str, Any]]:
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


def _probe(subject: Subject, row: dict[str, Any], layer: Layer | None) -> dict[str, Any]:
    """The row with its photo, and a sheet of maps: a row per run, a column per method."""
    photo = sheet = None
    methods: list[str] = []
    if subject.reference.has("inputs", "images"):
        image = subject.reference.array("inputs", "images")[row["index"]]
        photo = jpeg(drawing.photo_sheet(image[None], PHOTO_SIDE), f"Probe image {row['name']}")
        if layer is not None:
            methods = shared_methods(subject, layer, subject.runs)
            place, size = subject.displayed.index(row["index"]), fitted(image.shape[:2], OVERLAY_SIDE)
            heat = [
                drawing.heatmap(
                    [raw_maps(subject, layer, run, method)[place] for run in subject.runs], size, shared=True
                )
                for method in methods
            ]
            photos = np.repeat(image[None], len(methods), axis=0)
            names = ", ".join(run.label for run in subject.runs)
            alt = f"Maps of {row['name']} at {layer.key}; rows: {names}; columns: {', '.join(methods)}"
            sheet = jpeg(drawing.overlay_sheet(photos, np.stack(heat, axis=1), OVERLAY_SIDE), alt)
    return {**row, "photo": photo, "sheet": sheet, "methods": methods, "runs": subject.runs}


def _last_mapped(subject: Subject) -> Layer | None:
    """The last layer with a map of the same method in every run; None where the runs display no common image."""
    if not subject.displayed:
        return None
    candidates = (layer for layer in reversed(subject.layers) if len(layer.calls) == len(subject.runs))
    return next((layer for layer in candidates if shared_methods(subject, layer, subject.runs)), None)


def _softmax(evidence: Evidence) -> Array:
    logits = evidence.array("predictions", "logits").astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
