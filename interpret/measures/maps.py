"""Whether maps of the same classes still look where they looked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interpret.functional import agreement
from interpret.language import Message, say
from interpret.measures.alignment import Aligned, matches
from interpret.measures.runs import Array, Run, finite_or_none


@dataclass(frozen=True, slots=True)
class MapAgreement:
    """Agreement of one method's maps at one call, averaged over images that both runs explain for the same class.

    Attributes:
        images: maps compared.
        empty: maps of the other run that show nothing where the reference's show something.
        null_other_image: Pearson correlation of the reference's maps of different images.
        null_gaussian: Pearson correlation of the reference's maps with a centred Gaussian.
        reason: why numbers are missing.
    """

    pearson: float | None = None
    iou20: float | None = None
    centre_shift: float | None = None
    null_other_image: float | None = None
    null_gaussian: float | None = None
    images: int = 0
    empty: int = 0
    reason: str | None = None


def compare_maps(
    reference: Run, other: Run, aligned: Aligned
) -> tuple[dict[int, dict[str, MapAgreement]], str, Message | None]:
    """The agreement of every method's maps by row in `aligned`, how the explained classes agree, and why not."""
    candidates = _candidates(reference, other, aligned)
    if not candidates:
        return {}, "no", say("maps: no call has maps of the same method in both runs")
    how, places = _same_targets(reference, other)
    reason = None
    found: dict[_Candidate, MapAgreement] = {}
    if how == "no":
        why = say("no displayed image is explained for the same class in both runs")
        reason = say("maps: {why}; audit with the targets of the reference", why=why)
        found = {candidate: MapAgreement(reason=why) for candidate in candidates}
    else:
        stacks: dict[tuple[int, ...], list[tuple[_Candidate, Array, Array]]] = defaultdict(list)
        for candidate in candidates:
            # kept by the run only for the reference, which is compared with every other
            first, second = reference.array("maps", candidate.name), other.evidence.array("maps", candidate.other_name)
            if first.shape[2:] != second.shape[2:]:
                found[candidate] = MapAgreement(reason="the maps differ in size")
            else:
                stacks[first.shape[2:]].append((candidate, first, second))
        for stack in stacks.values():
            found |= _agreements(stack, places)
    rows: dict[int, dict[str, MapAgreement]] = defaultdict(dict)
    for candidate in candidates:
        rows[candidate.row][candidate.method] = found[candidate]
    return dict(rows), how, reason


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One method's maps at one aligned call: the row in `aligned`, and the arrays' names in both runs."""

    row: int
    method: str
    name: str
    other_name: str


def _candidates(reference: Run, other: Run, aligned: Aligned) -> list[_Candidate]:
    methods: dict[str, list[str]] = defaultdict(list)
    for name in reference.evidence.keys("maps"):
        method, _, key = name.partition("/")
        methods[key].append(method)
    there = set(other.evidence.keys("maps"))
    return [
        _Candidate(row, method, f"{method}/{first.key}", f"{method}/{second.key}")
        for row, (first, second, _) in enumerate(aligned)
        if first and second
        for method in methods.get(first.key, ())
        if f"{method}/{second.key}" in there
    ]


def _same_targets(reference: Run, other: Run) -> tuple[str, Array]:
    """Where both explain the same class of an image: rows of (image, rank, other's image, other's rank)."""
    shown = []
    for run in (reference, other):
        targets = run.array("maps", "targets")
        shown.append((targets, run.evidence.manifest.inputs["tensor_sha256"][: len(targets)]))
    (targets, digests), (other_targets, other_digests) = shown
    places = []
    for image, other_image in zip(*matches(digests, other_digests), strict=True):
        ranks = {int(target): rank for rank, target in enumerate(other_targets[other_image])}
        for rank, target in enumerate(targets[image].tolist()):
            if target >= 0 and target in ranks:
                places.append((image, rank, other_image, ranks[target]))
    complete = len(places) == targets.size == other_targets.size
    return ("exact" if complete else "subset" if places else "no"), np.array(places, np.intp).reshape(-1, 4)


def _agreements(stack: Sequence[tuple[_Candidate, Array, Array]], places: Array) -> dict[_Candidate, MapAgreement]:
    """Agreement of maps of one size: all methods and calls of that size at once, shape (M, P, h, w)."""
    first = np.stack([maps[places[:, 0], places[:, 1]] for _, maps, _ in stack])
    second = np.stack([maps[places[:, 2], places[:, 3]] for _, _, maps in stack])
    unit, other_unit = agreement.standardised(first), agreement.standardised(second)
    # the control takes one map per image: maps of two classes of one image are no control for each other
    control = unit[:, np.unique(places[:, 0], return_index=True)[1]]
    pairs = np.triu_indices(control.shape[1], 1)
    columns = (
        _mean(np.einsum("mpi,mpi->mp", unit, other_unit)),
        _mean(agreement.iou(first, second)),
        _mean(agreement.centre_shift(first, second)),
        _mean((control @ control.swapaxes(1, 2))[:, pairs[0], pairs[1]]),
        _mean(unit @ agreement.standardised(agreement.centred_gaussian(*first.shape[2:]))),
    )
    vanished = (agreement.empty(second) & ~agreement.empty(first)).sum(1).tolist()
    result = {}
    rows = zip(*(finite_or_none(column) for column in columns), strict=True)
    for (candidate, _, _), row, empty in zip(stack, rows, vanished, strict=True):
        pearson, iou20, centre_shift, other_image, gaussian = row
        reason = "the maps are empty or constant" if pearson is None else None
        result[candidate] = MapAgreement(
            pearson, iou20, centre_shift, other_image, gaussian, len(places), empty, reason
        )
    return result


def _mean(values: Array) -> Array:
    """Mean over the last axis of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    count = finite.sum(-1)
    return np.where(count > 0, np.where(finite, values, 0.0).sum(-1) / np.maximum(count, 1), np.nan)
