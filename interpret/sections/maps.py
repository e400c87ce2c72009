"""Maps that several runs have of the same call, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interpret import drawing
from interpret.evidence import Array
from interpret.functional import agreement
from interpret.language import listed, say
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


def last_mapped(subject: Subject, runs: Sequence[Run]) -> Layer | None:
    """The last layer with a map of the same method in each of the runs; None where they display no common image."""
    if not subject.displayed:
        return None
    layers = (layer for layer in reversed(subject.layers) if all(run.label in layer.calls for run in runs))
    return next((layer for layer in layers if shared_methods(subject, layer, runs)), None)


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """Pearson correlations of one method's maps at one layer, image by image; NaN where there is none.

    Attributes:
        runs: label to the correlation of the run's map with the reference's, shape (D,): where both explain the same
            class on maps of the same size.
        other_image: mean correlation of the reference's map with its maps of the other displayed images, shape (D,).
        gaussian: correlation of the reference's map with a centred Gaussian, shape (D,).
    """

    runs: Mapping[str, Array]
    other_image: Array
    gaussian: Array

    def null(self, place: int) -> float:
        """The larger of the two nulls of an image: what its correlation has to exceed; NaN where neither is known."""
        return float(np.fmax(self.other_image[place], self.gaussian[place]))


def image_agreement(subject: Subject, layer: Layer, method: str) -> Agreement:
    """How far every run's maps of the first target agree with the reference's, with the nulls of each image.

    The means over the images are `pearson`, `null_other_image` and `null_gaussian` of comparison.json where the runs
    explain one class per image, the same in both.
    """
    reference = subject.runs[0]
    maps, classes = raw_maps(subject, layer, reference, method), explained(subject, reference)
    unit = agreement.standardised(maps)
    between = unit @ unit.T
    np.fill_diagonal(between, np.nan)
    known = np.isfinite(between)
    other_image = np.where(known.any(1), np.where(known, between, 0.0).sum(1) / np.maximum(known.sum(1), 1), np.nan)
    found = {}
    for run in subject.others:
        found[run.label] = np.full(len(maps), np.nan)
        other = raw_maps(subject, layer, run, method)
        if other.shape == maps.shape:
            targets = explained(subject, run)
            same = (targets == classes) & (targets >= 0)
            found[run.label][same] = agreement.pearson(maps[same], other[same])
    return Agreement(found, other_image, unit @ agreement.standardised(agreement.centred_gaussian(*maps.shape[1:])))


def explained(subject: Subject, run: Run) -> Array:
    """The class that the run's map of each displayed image explains, shape (D,); -1 for a score given in Python."""
    return np.asarray(subject.evidence[run.label].array("maps", "targets")[subject.displayed_by(run.label), 0])


def classes_at(subject: Subject, runs: Sequence[Run], place: int) -> list[str]:
    """The classes that the runs' maps of one displayed image explain: a single name where they all explain the same."""
    found = ((subject.evidence[run.label], int(explained(subject, run)[place])) for run in runs)
    return list(dict.fromkeys(class_name(evidence, target) for evidence, target in found))


def explained_classes(subject: Subject, runs: Sequence[Run]) -> tuple[bool, str]:
    """Whether the runs explain the same classes, and the classes of the first run in words."""
    chosen = [explained(subject, run).tolist() for run in runs]
    classes = listed([class_name(subject.evidence[runs[0].label], target) for target in chosen[0]], "; ")
    same = all(targets == chosen[0] for targets in chosen)
    return same, classes if same else say("{classes} (other runs explain other classes)", classes=classes)


def fitted(size: Sequence[int], side: int) -> tuple[int, int]:
    """The size (H, W) that a photo has once its longer side is at most ``side``."""
    ratio = min(1.0, side / max(size))
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))
