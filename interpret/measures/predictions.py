"""Whether the runs predict the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interpret.functional import agreement, similarity
from interpret.language import Message, say
from interpret.measures.alignment import Aligned, CommonImages
from interpret.measures.representations import Representations
from interpret.measures.runs import Array, Run

LEAST_STAYED = 20  # images whose prediction stayed: one of them stands for the 5 % that leave by chance


@dataclass(frozen=True, slots=True)
class Flip:
    """One image that the two runs predict differently.

    Attributes:
        image: its place in the reference.
        label: None where unknown.
        leaves_at: key of the first call where this image's row of the Gram matrix moved further beyond the usual than
            those of 95 % of the images whose prediction stayed do at any call; None where it moves as the others do.
    """

    name: str
    label: int | None
    reference_class: int
    other_class: int
    image: int
    leaves_at: str | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """How far two runs predict the same on their common images.

    Attributes:
        images: images compared.
        kl_mean: mean of KL(reference || other) in nats; `kl_max` is the worst image.
        top5_overlap: mean Jaccard overlap of the five highest classes.
        logit_change: |z' - z| / |z| over all logits.
        accuracy, reference_accuracy, negative_flips, positive_flips: on images with a label; None without labels.
        churn_interval: 95 % Wilson interval of the share of changed predictions, 1 - `top1_agreement`.
        flips: the changed predictions.
    """

    images: int
    top1_agreement: float
    kl_mean: float
    kl_max: float
    top5_overlap: float
    logit_change: float
    labelled: int
    accuracy: float | None
    reference_accuracy: float | None
    negative_flips: int | None
    positive_flips: int | None
    churn_interval: tuple[float, float]
    flips: tuple[Flip, ...]

    @property
    def churn(self) -> float:
        """Share of images whose predicted class changed."""
        return len(self.flips) / self.images


def compare_predictions(
    reference: Run, other: Run, common: CommonImages, aligned: Aligned, representations: Representations
) -> tuple[Predictions | None, Message | None]:
    """How the predictions of the common images compare, or why they do not."""
    if common.how == "no":
        return None, None  # that images are missing is said already
    why = _not_comparable(reference, other)
    if why is None:
        first = reference.array("predictions", "logits")[common.here].astype(np.float64)
        second = other.array("predictions", "logits")[common.there].astype(np.float64)
        broken = int((~np.isfinite(first) | ~np.isfinite(second)).any(1).sum())
        if not broken:
            leaves = _leaves_at(first.argmax(1) != second.argmax(1), common, aligned, representations)
            return _compare_logits(reference, other, common, first, second, leaves), None
        why = say("the outputs of {count} of {total} images are not finite", count=broken, total=len(first))
    return None, say("predictions: {why}", why=why)


def _not_comparable(reference: Run, other: Run) -> Message | None:
    for name, run in ((say("the reference"), reference), (say("the other run"), other)):
        if not run.evidence.has("predictions", "logits"):
            return say("they were not recorded in {run}", run=name)
        shape = run.array("predictions", "logits").shape
        if len(shape) != 2:
            return say("the output of {run} is no vector of classes: shape {shape}", run=name, shape=str(shape))
    classes = [run.array("predictions", "logits").shape[1] for run in (reference, other)]
    if classes[0] != classes[1]:
        return say("the reference has {classes} classes, the other run {others}", classes=classes[0], others=classes[1])
    names = [run.evidence.manifest.model["class_names"] for run in (reference, other)]
    if None not in names and list(names[0]) != list(names[1]):
        return say("the class names differ")
    return None


def _leaves_at(
    flipped: Array, common: CommonImages, aligned: Aligned, representations: Representations
) -> list[str | None]:
    """For each image whose prediction flipped, the key of the call where it leaves the others; see :class:`Flip`."""
    moved = representations.row_changes
    if common.how == "own-preprocessing" or not moved.size or (~flipped).sum() < LEAST_STAYED:
        return [None] * int(flipped.sum())
    stayed, floor = moved[:, ~flipped], representations.thresholds[:, None]
    usual = np.maximum(np.quantile(stayed, 0.95, axis=1)[:, None], floor)
    excess = np.nan_to_num(moved[:, flipped] / usual)  # 0 where a Gram is missing
    # among so many calls every image is beyond the usual somewhere: what counts is how far those that stayed ever get,
    # each held against the others
    furthest = np.nan_to_num(stayed / np.maximum(quantile_of_others(stayed, 0.95), floor)).max(0)
    leaves = excess > np.quantile(furthest, 0.95)
    calls = [first for row in representations.rows if (first := aligned[row][0])]
    return [calls[where.argmax()].key if where.any() else None for where in leaves.T]


def quantile_of_others(values: Array, q: float) -> Array:
    """For each entry the quantile of the others in its row, linear between them as numpy's, shape (L, n), n >= 2."""
    count = values.shape[1]
    order = np.argsort(values, 1, kind="stable")
    ranks = np.argsort(order, 1, kind="stable")
    ordered = np.take_along_axis(values, order, 1)
    place = q * (count - 2)
    low = int(place)
    high = min(low + 1, count - 2)
    # without the entry, all behind it move up by one
    at_low, at_high = (
        np.where(ranks > index, ordered[:, index, None], ordered[:, index + 1, None]) for index in (low, high)
    )
    return np.asarray(at_low + (place - low) * (at_high - at_low))


def _compare_logits(
    reference: Run, other: Run, common: CommonImages, first: Array, second: Array, leaves: Sequence[str | None]
) -> Predictions:
    before, after = first.argmax(1), second.argmax(1)
    labels = np.full(len(before), -1)
    for run, place in ((other, common.there), (reference, common.here)):  # the reference's labels win
        if run.evidence.has("predictions", "labels"):
            own = run.array("predictions", "labels")[place]
            labels = np.where(own >= 0, own, labels)
    known = labels >= 0
    labelled = int(known.sum())
    negative, positive = agreement.flips(before, after, labels)
    divergence = agreement.kl_divergence(first, second)
    names = reference.evidence.manifest.inputs["names"]
    flips = tuple(
        Flip(names[place], int(labels[i]) if known[i] else None, int(before[i]), int(after[i]), int(place), leaves_at)
        for i, leaves_at in zip(np.flatnonzero(before != after), leaves, strict=True)
        for place in common.here[[i]]
    )
    size, other_size = (np.atleast_1d(np.linalg.norm(logits)) for logits in (first, second))
    return Predictions(
        images=len(before),
        top1_agreement=float((before == after).mean()),
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        top5_overlap=float(agreement.top_overlap(first, second).mean()),
        logit_change=float(similarity.relative(np.atleast_1d(np.linalg.norm(first - second)), size, other_size)[0]),
        labelled=labelled,
        accuracy=float((after == labels)[known].mean()) if labelled else None,
        reference_accuracy=float((before == labels)[known].mean()) if labelled else None,
        negative_flips=int(negative.sum()) if labelled else None,
        positive_flips=int(positive.sum()) if labelled else None,
        churn_interval=agreement.wilson_interval(len(flips), len(before)),
        flips=flips,
    )
