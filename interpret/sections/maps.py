"""Maps that several runs have of the same call, image by image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from interpret import drawing
from interpret.evidence import Array
from interpret.sections.subject import Layer, Run, Subject, class_name

OVERLAY_SIDE = 104  # of a photo in a chapter's overlay sheet


def shared_methods(subject: Subject, layer: Layer, runs: Sequence[Run]) -> list[str]:
    """Methods with a map of this layer in every run that has the layer."""
    recorded = [drawing.map_methods(subject.evidence[run.label], layer.calls[run.label].key) for run in runs]
    return [method for method in recorded[0] if all(method in other for other in recorded)] if recorded else []


def raw_maps(subject: Subject, layer: Layer, run: Run, method: str) -> Array:
    """Raw maps of the first target of the displayed images, in the reference's order: (D, h, w)."""
    stored = subject.evidence[run.label].array("maps", f"{method}/{layer.calls[run.label].key}")
    return np.asarray(stored[subject.displayed_by(run.label), 0])


def explained_classes(subject: Subject, runs: Sequence[Run]) -> tuple[bool, str]:
    """Whether the runs explain the same classes, and the classes of the first run in words."""
    chosen = []
    for run in runs:
        stored = subject.evidence[run.label].array("maps", "targets")
        chosen.append(stored[subject.displayed_by(run.label), 0].tolist())
    names = [class_name(subject.evidence[runs[0].label], target) for target in chosen[0]]
    same = all(targets == chosen[0] for targets in chosen)
    return same, "; ".join(names) + ("" if same else " (other runs explain other classes)")


def fitted(size: Sequence[int], side: int) -> tuple[int, int]:
    """The size (H, W) that a photo has once its longer side is at most ``side``."""
    ratio = min(1.0, side / max(size))
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))
