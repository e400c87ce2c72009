"""How far outputs moved, and how alike they represent the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from interpret.functional import similarity
from interpret.measures.alignment import Aligned, CommonImages
from interpret.measures.runs import Array, Run, finite_or_none

CHUNK_ENTRIES = 1 << 22  # entries of Gram matrices that are unpacked at once: 32 MiB


def compare_representations(
    reference: Run, other: Run, aligned: Aligned, common: CommonImages
) -> dict[int, dict[str, Any]]:
    """CKA, changes of Grams and means, and the noise floor of every paired call, by its row in `aligned`."""
    pairs = [(row, first, second) for row, (first, second, _) in enumerate(aligned) if first and second]
    if not pairs or common.how == "no":
        return {}
    rows = [row for row, _, _ in pairs]
    places = np.array([(first.position, second.position) for _, first, second in pairs])
    noise = np.fmax(reference.noise_floor[places[:, 0]], other.noise_floor[places[:, 1]])
    same_shape = np.array([a.channels == b.channels for _, a, b in pairs])
    grids = reference.column("pooling")[places[:, 0]], other.column("pooling")[places[:, 1]]
    same_shape &= (grids[0] == grids[1]) | np.isnan(grids[0]) | np.isnan(grids[1])  # NaN: not recorded, no Grams either
    all_images = len(common.here) == reference.count == other.count
    cka, p95, gram_change = _gram_numbers(reference, other, places, common, all_images)
    gram_change[~same_shape] = np.nan
    mean_change = np.full(len(pairs), np.nan)
    if all_images:
        mean_change[same_shape] = _mean_changes(reference, other, places[same_shape])
    reasons = _reasons(reference, other, places, len(common.here), same_shape, cka)
    columns = (finite_or_none(values) for values in (gram_change, mean_change, noise, cka, p95))
    names = ("gram_change", "mean_change", "noise_floor", "cka", "cka_p95", "reasons")
    return {row: dict(zip(names, values, strict=True)) for row, *values in zip(rows, *columns, reasons, strict=True)}


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
) -> tuple[Array, Array, Array]:
    """CKA, its 95th percentile of chance, and the relative change, of every pair of calls; chunk by chunk."""
    numbers = np.full((3, len(places)), np.nan)
    if not all(run.evidence.has("layers", "gram") for run in (reference, other)):
        return numbers[0], numbers[1], numbers[2]
    whole = np.arange(reference.count)
    chosen = [None if all_images and np.array_equal(place, whole) else place for place in (common.here, common.there)]
    size = max(1, CHUNK_ENTRIES // max(1, len(common.here) ** 2))
    for start in range(0, len(places), size):
        chunk = places[start : start + size]
        first = reference.grams(chunk[:, 0], chosen[0], recentre=not all_images)
        second = other.grams(chunk[:, 1], chosen[1], recentre=not all_images)
        numbers[0, start : start + size] = similarity.linear_cka(first, second)
        numbers[1, start : start + size] = similarity.permutation_p95(first, second)
        numbers[2, start : start + size] = similarity.gram_change(first, second)
    return numbers[0], numbers[1], numbers[2]


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
