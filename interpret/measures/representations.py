"""How far outputs moved, and how alike they represent the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interpret.functional import similarity
from interpret.measures.alignment import Aligned, CommonImages
from interpret.measures.runs import CHUNK_ENTRIES, Array, Run, finite_or_none

DIVERGENCE_THRESHOLD = 1e-6  # the same weights on another machine's kernels differ by about 1e-7
NOISE_FACTOR = 10.0
AMPLIFIED_FROM = 1e-5  # of 1 - CKA: what lies below is as good as equal


@dataclass(frozen=True, slots=True, eq=False)
class Representations:
    """What the outputs of P paired calls say on n common images.

    Attributes:
        rows: the calls' rows in `aligned`.
        numbers: by row what :class:`interpret.measures.CallPair` holds.
        row_changes: how far each image's row of the Gram matrix moved, shape (P, n); NaN where not computable.
        thresholds: the change that rounding explains, shape (P,).
    """

    rows: tuple[int, ...]
    numbers: Mapping[int, dict[str, Any]]
    row_changes: Array
    thresholds: Array


def compare_representations(reference: Run, other: Run, aligned: Aligned, common: CommonImages) -> Representations:
    """CKA, changes of Grams and means, and the noise floor of every paired call."""
    pairs = [(row, first, second) for row, (first, second, _) in enumerate(aligned) if first and second]
    if not pairs or common.how == "no":
        return Representations((), {}, np.zeros((0, 0)), np.zeros(0))
    rows = [row for row, _, _ in pairs]
    places = np.array([(first.position, second.position) for _, first, second in pairs])
    noise = np.fmax(reference.noise_floor[places[:, 0]], other.noise_floor[places[:, 1]])
    same_shape = np.array([a.channels == b.channels for _, a, b in pairs])
    grids = reference.column("pooling")[places[:, 0]], other.column("pooling")[places[:, 1]]
    same_shape &= (grids[0] == grids[1]) | np.isnan(grids[0]) | np.isnan(grids[1])  # NaN: not recorded, no Grams either
    all_images = len(common.here) == reference.count == other.count
    cka, p95, gram_change, neighbours, moved = _gram_numbers(reference, other, places, common, all_images)
    gram_change[~same_shape] = np.nan
    moved[~same_shape] = np.nan
    mean_change = np.full(len(pairs), np.nan)
    if all_images:
        mean_change[same_shape] = _mean_changes(reference, other, places[same_shape])
    reasons = _reasons(reference, other, places, len(common.here), same_shape, cka)
    columns = (
        finite_or_none(values)
        for values in (gram_change, mean_change, noise, cka, p95, neighbours, _amplification(cka))
    )
    names = (
        "gram_change",
        "mean_change",
        "noise_floor",
        "cka",
        "cka_p95",
        "neighbours",
        "log_amplification",
        "reasons",
    )
    numbers = {row: dict(zip(names, values, strict=True)) for row, *values in zip(rows, *columns, reasons, strict=True)}
    return Representations(tuple(rows), numbers, moved, threshold(noise))


def threshold(noise_floor: Array) -> Array:
    """The divergence that rounding explains: ten times the noise floor, at least 1e-6."""
    return np.fmax(NOISE_FACTOR * noise_floor, DIVERGENCE_THRESHOLD)


def _amplification(cka: Array) -> Array:
    """By how much each call makes the runs less alike than the call before: ln((d + e) / (d_before + e)), d = 1 - CKA.

    A supporting number: where a layer was damaged it leaps there, and so it does at layers that amplify.
    """
    distance = 1 - cka + AMPLIFIED_FROM
    before = np.concatenate([[AMPLIFIED_FROM], distance[:-1]]) if len(distance) else distance
    with np.errstate(invalid="ignore"):
        return np.log(distance / before)


def mean_cka(runs: Sequence[Run], keys: Sequence[Sequence[str]]) -> list[list[float | None]]:
    """Mean debiased CKA of every run with every other, over calls and images that all of them share.

    Args:
        runs: R runs.
        keys: for each shared call its key in every run, shape (P, R).

    Returns:
        R x R numbers; None where fewer than four images, or no call, are shared.
    """
    digests = [run.evidence.manifest.inputs["tensor_sha256"] for run in runs]
    shared = set.intersection(*({digest for digest in of_run if digest} for of_run in digests))
    images = [
        np.array([of_run.index(digest) for digest in digests[0] if digest in shared], np.intp) for of_run in digests
    ]
    total, count = np.zeros((len(runs), len(runs))), 0
    if len(images[0]) >= similarity.MINIMUM_IMAGES and all(run.evidence.has("layers", "gram") for run in runs):
        size = max(1, CHUNK_ENTRIES // len(images[0]) ** 2 // len(runs))
        for start in range(0, len(keys), size):
            chunk = keys[start : start + size]
            vectors = []
            for index, (run, chosen) in enumerate(zip(runs, images, strict=True)):
                positions = np.array([run.evidence.call[row[index]].position for row in chunk])
                vectors.append(similarity.cka_vectors(run.grams(positions, chosen, recentre=True)))
            stacked = np.stack(vectors, 1)
            matrices = stacked @ np.swapaxes(stacked, 1, 2)
            computable = np.isfinite(matrices).all((1, 2))
            total += matrices[computable].sum(0)
            count += int(computable.sum())
    mean = np.minimum(total / count, 1.0) if count else np.full_like(total, np.nan)
    return [finite_or_none(row) for row in mean]


def _gram_numbers(
    reference: Run, other: Run, places: Array, common: CommonImages, all_images: bool
) -> tuple[Array, Array, Array, Array, Array]:
    """CKA, its p95 of chance, the relative change and the shared neighbours, (P,) each, and the rows' changes (P, n).

    Chunk by chunk.
    """
    numbers = np.full((4, len(places)), np.nan)
    moved = np.full((len(places), len(common.here)), np.nan)
    if not all(run.evidence.has("layers", "gram") for run in (reference, other)):
        return (*numbers, moved)
    whole = np.arange(reference.count)
    chosen = [None if all_images and np.array_equal(place, whole) else place for place in (common.here, common.there)]
    size = max(1, CHUNK_ENTRIES // max(1, len(common.here) ** 2))
    for start in range(0, len(places), size):
        chunk = places[start : start + size]
        first = reference.grams(chunk[:, 0], chosen[0], recentre=not all_images)
        second = other.grams(chunk[:, 1], chosen[1], recentre=not all_images)
        vectors = similarity.cka_vectors(first), similarity.cka_vectors(second)
        numbers[0, start : start + size] = similarity.cka_of(*vectors)
        numbers[1, start : start + size] = similarity.chance_of(*vectors)
        numbers[2, start : start + size] = similarity.gram_change(first, second)
        numbers[3, start : start + size] = similarity.mutual_neighbours(first, second)
        moved[start : start + size] = similarity.row_changes(first, second)
    return (*numbers, moved)


def _mean_changes(reference: Run, other: Run, places: Array) -> Array:
    """Relative change of the channel means of every pair of calls with the same number of channels, shape (P,)."""
    if not all(run.evidence.has("layers", "channel_mean") for run in (reference, other)):
        return np.full(len(places), np.nan)
    channels = reference.array("layers", "channels")[places[:, 0]]
    values = []
    for run, positions in ((reference, places[:, 0]), (other, places[:, 1])):
        lengths = run.array("layers", "channels")
        starts = (np.cumsum(lengths) - lengths)[positions]
        # places of the calls' channels in the ragged arrays: each start, counted up call by call
        index = np.arange(channels.sum()) + np.repeat(starts - (np.cumsum(channels) - channels), channels)
        values += [run.array("layers", name)[index].astype(np.float64) for name in ("channel_mean", "channel_variance")]
    mean, variance, other_mean, other_variance = values
    return similarity.mean_change(mean, other_mean, variance, other_variance, channels)


def _reasons(
    reference: Run, other: Run, places: Array, images: int, same_shape: Array, cka: Array
) -> list[tuple[str, ...]]:
    """Why numbers of a pair of calls are missing."""
    scales = reference.column("gram_scale")[places[:, 0]], other.column("gram_scale")[places[:, 1]]
    broken = reference.column("nonfinite")[places[:, 0]], other.column("nonfinite")[places[:, 1]]
    result = []
    for index in range(len(places)):
        said = []
        for scale, count, whose in zip(scales, broken, ("reference", "run"), strict=True):
            if not np.isfinite(scale[index]):
                why = "values that are not finite" if count[index] > 0 else "not recorded"
                said.append(f"no Gram matrix in the {whose}: {why}")
        if not same_shape[index]:
            said.append("no divergence: the outputs differ in shape")
        if images < similarity.MINIMUM_IMAGES:
            said.append(f"no CKA: it needs at least {similarity.MINIMUM_IMAGES} common images, not {images}")
        elif np.isnan(cka[index]) and not said:
            said.append("no CKA: the output hardly differs from image to image")
        result.append(tuple(said))
    return result
