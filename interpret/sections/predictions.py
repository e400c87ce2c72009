"""What each run says of each probe image, disagreement first, with the maps of the last layer that has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from interpret import charts, drawing
from interpret.evidence import Array, Evidence
from interpret.language import say
from interpret.sections.figures import jpeg
from interpret.sections.maps import (
    OVERLAY_SIDE,
    Agreement,
    classes_at,
    fitted,
    image_agreement,
    last_mapped,
    raw_maps,
    shared_methods,
)
from interpret.sections.subject import Layer, Subject, class_name
from interpret.sections.wording import count, number, percent

RUNS_PER_TABLE = 4  # a wide table is split after so many runs, so that it fits the page
PHOTO_SIDE = 192  # of a displayed image, in pixels


def build(subject: Subject) -> dict[str, Any] | None:
    """Rows of images with the top classes of every run, and the displayed ones with their pictures."""
    if not subject.reference.has("predictions", "logits"):
        return None
    probabilities = {
        run.label: softmax(subject.evidence[run.label])
        for run in subject.runs
        if subject.evidence[run.label].has("predictions", "logits")
    }
    rows = [_row(subject, index, probabilities) for index in range(len(subject.reference.manifest.inputs["names"]))]
    rows.sort(key=lambda row: (not row["disagrees"], row["least"], row["index"]))
    layer = last_mapped(subject, subject.runs)
    methods = shared_methods(subject, layer, subject.runs) if layer else []
    found = {method: image_agreement(subject, layer, method) for method in methods} if layer else {}
    probes = [_probe(subject, row, layer, found) for row in rows if row["index"] in subject.displayed]
    cells = [cell for probe in probes if probe["maps"] for row in probe["maps"]["rows"] for cell in row["cells"]]
    known = [cell for cell in cells if cell["known"]]
    return {
        "runs": subject.runs,
        "tables": [_table(subject, rows, start) for start in range(0, len(subject.runs), RUNS_PER_TABLE)],
        "rows": rows,
        "disagreements": count(sum(bool(row["disagrees"]) for row in rows)),
        "total": count(len(rows)),
        "compared": subject.comparison is not None,
        "labelled": any(row["label"] for row in rows),
        "left": any(place for row in rows for place in row["leaves"]),
        "layer": layer,
        "probes": probes,
        "weak": count(sum(cell["weak"] for cell in known)),
        "agreements": count(len(known)),
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


def _table(subject: Subject, rows: list[dict[str, Any]], start: int) -> dict[str, Any]:
    """The most likely class of every image in a few of the runs, with where the image leaves the reference."""
    part = slice(start, start + RUNS_PER_TABLE)
    lines = [{**row, "cells": list(zip(row["cells"][part], row["leaves"][part], strict=True))} for row in rows]
    return {"runs": subject.runs[part], "rows": lines, "is_first": start == 0}


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


def _probe(
    subject: Subject, row: dict[str, Any], layer: Layer | None, found: Mapping[str, Agreement]
) -> dict[str, Any]:
    """The row with its photo and, where there is a layer with maps, a strip of maps per run, a column per method."""
    photo = maps = None
    if subject.reference.has("inputs", "images"):
        image = subject.reference.array("inputs", "images")[row["index"]]
        alt = say("Probe image {image}", image=row["name"])
        photo = jpeg(drawing.Picture(drawing.photo_tile(image, PHOTO_SIDE)), alt)
        if layer is not None:
            maps = _maps(subject, row, image, layer, found)
    return {**row, "photo": photo, "maps": maps, "runs": subject.runs}


def _maps(
    subject: Subject, row: dict[str, Any], image: Array, layer: Layer, found: Mapping[str, Agreement]
) -> dict[str, Any]:
    """Strips of maps, on one scale per method for all runs, with their agreement and the nulls it has to beat."""
    methods = list(found)
    place, size = subject.displayed.index(row["index"]), fitted(image.shape[:2], OVERLAY_SIDE)
    heat = np.stack(
        [
            drawing.heatmap([raw_maps(subject, layer, run, method)[place] for run in subject.runs], size, shared=True)
            for method in methods
        ],
        axis=1,
    )
    photos = np.repeat(image[None], len(methods), axis=0)
    rows = []
    for run, strip in zip(subject.runs, heat, strict=True):
        alt = say(
            "Maps of {image} at {call} in {run}: {methods}",
            image=row["name"],
            call=layer.key,
            run=run.label,
            methods=", ".join(methods),
        )
        sheet = jpeg(drawing.overlay_sheet(photos, strip[None], OVERLAY_SIDE), alt)
        cells = [_agreement(found[method], run.label, place) for method in methods] if run.number else []
        rows.append({"run": run, "sheet": sheet, "cells": cells})
    return {
        "methods": methods,
        "classes": classes_at(subject, subject.runs, place),
        "rows": rows,
        "nulls": [
            (say("Another image"), [number(float(found[method].other_image[place])) for method in methods]),
            (say("Centred Gaussian"), [number(float(found[method].gaussian[place])) for method in methods]),
        ],
    }


def _agreement(found: Agreement, label: str, place: int) -> dict[str, Any]:
    """One correlation in words, and whether it is no better than the larger of its nulls."""
    value, null = float(found.runs[label][place]), found.null(place)
    return {"text": number(value), "known": np.isfinite(value), "weak": bool(value <= null)}


def softmax(evidence: Evidence) -> Array:
    """The shares of the classes, from the logits, shape (N, K)."""
    logits = evidence.array("predictions", "logits").astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
