"""Which call belongs to which, and which image to which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interpret.evidence import Call, Evidence
from interpret.functional import similarity
from interpret.language import Message, say
from interpret.measures.runs import Array, Run

NAMES_AGREE = 0.75  # share of the weights that must have the same shape under the same name
Aligned = list[tuple[Call | None, Call | None, str | None]]


@dataclass(frozen=True, slots=True, eq=False)
class CommonImages:
    """The images that two runs have in common.

    Attributes:
        how: "exact" (all are common), "subset" (some are), "own-preprocessing" (the same pictures, prepared
            differently) or "no".
        here: their places in the reference.
        there: their places in the other run.
        reason: what to say of it, where it is not "exact".
    """

    how: str
    here: Array
    there: Array
    reason: Message | None = None


def align(reference: Run, other: Run, common: CommonImages) -> Aligned:
    """Pairs of calls: by name; by order where the same architecture has other names; by similarity where names mislead.

    Names count where all are the same, or where most calls of the same name are of the same type with weights of the
    same shapes (a network with a layer more, or another head). Else (EfficientNet-Lite0 against Lite1) the calls are
    paired one to one, in order on both sides, so that their debiased CKA on the common images adds up to the most;
    only calls of a kind, and only where CKA is above what chance reaches.

    Returns:
        (reference's call, other's call, "name", "order", "similarity" or None) in the reference's order; a call that
        only the other run has comes behind the call that precedes it there.
    """
    first, second = reference.evidence, other.evidence
    same = first.manifest.model["architecture_digest"] == second.manifest.model["architecture_digest"]
    if same and set(first.call) != set(second.call):
        pairs = zip(first.calls, second.calls, strict=True)
        return [(a, b, "name" if a.key == b.key else "order") for a, b in pairs]
    if not same and not _names_agree(first, second):
        similar = _by_similarity(reference, other, common)
        if similar is not None:
            return _merged(first, second, similar, "similarity")
    return _merged(first, second, {call.key: call for call in second.calls if call.key in first.call}, "name")


def _merged(reference: Evidence, other: Evidence, counterparts: Mapping[str, Call], how: str) -> Aligned:
    """All calls of both, given the other's counterparts by the reference's keys."""
    of_other = {call.key: key for key, call in counterparts.items()}
    added: dict[str | None, Aligned] = defaultdict(list)
    predecessor: str | None = None
    for call in other.calls:
        if call.key in of_other:
            predecessor = of_other[call.key]
        else:
            added[predecessor].append((None, call, None))
    aligned = [*added[None]]
    for call in reference.calls:
        counterpart = counterparts.get(call.key)
        aligned.append((call, counterpart, None if counterpart is None else how))
        aligned.extend(added[call.key])
    return aligned


def _names_agree(reference: Evidence, other: Evidence) -> bool:
    """Whether equal names stand for the same layers."""
    shared = [(call, other.call[call.key]) for call in reference.calls if call.key in other.call]
    if len(shared) == len(reference.calls) == len(other.calls):
        return True
    alike = [a.type == b.type and a.weight_shape == b.weight_shape for a, b in shared if a.weight_shape]
    fewest = min(sum(call.weight_shape is not None for call in run.calls) for run in (reference, other))
    return sum(alike) >= NAMES_AGREE * max(1, fewest)


def _by_similarity(reference: Run, other: Run, common: CommonImages) -> dict[str, Call] | None:
    """The other's calls by the reference's keys; None where the runs share too few images, or hold no Grams."""
    runs, chance = (reference, other), similarity.chance_p95(len(common.here))
    if not chance < 1 or not all(run.evidence.has("layers", "gram") for run in runs):
        return None
    vectors = [
        similarity.cka_vectors(run.grams(np.arange(len(run.calls)), place, recentre=True))
        for run, place in zip(runs, (common.here, common.there), strict=True)
    ]
    scores = vectors[0] @ vectors[1].T - chance
    kinds = [np.array([call.kind for call in run.calls]) for run in runs]
    scores = np.where(kinds[0][:, None] == kinds[1], scores, 0.0)
    pairs = np.array(similarity.monotone_alignment(scores), np.intp).reshape(-1, 2)
    paired = vectors[0][pairs[:, 0]], vectors[1][pairs[:, 1]]
    above = similarity.cka_of(*paired) > similarity.chance_of(*paired)
    return {reference.calls[row].key: other.calls[column] for row, column in pairs[above]}


def common_images(reference: Run, other: Run) -> CommonImages:
    """The images that both runs saw, in any order; failing that, the same pictures prepared in two ways."""
    first, second = reference.evidence.manifest.inputs, other.evidence.manifest.inputs
    same = matches(first["tensor_sha256"], second["tensor_sha256"])
    pictures = matches(first["source_sha256"], second["source_sha256"])
    found = len(same[0])
    if found == reference.count == other.count:
        return CommonImages("exact", *same)
    if found >= similarity.MINIMUM_IMAGES or (found > 1 and found >= len(pictures[0])):
        reason = say(
            "only {count} images are common to both runs ({reference} and {other}); channel means, which cover all "
            "images of a run, are not compared",
            count=found,
            reference=reference.count,
            other=other.count,
        )
        return CommonImages("subset", *same, reason)
    if len(pictures[0]) > 1:
        count = len(pictures[0])
        reason = say("{count} pictures are common, but each run prepared them in its own way", count=count)
        return CommonImages("own-preprocessing", *pictures, reason)
    reason = say("activations and predictions need at least two images that both runs saw")
    return CommonImages("no", *matches([], []), reason)


def matches(first: Sequence[str | None], second: Sequence[str | None]) -> tuple[Array, Array]:
    """Places of equal digests, in the order of the first; a digest that occurs twice in both is matched twice."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, digest in enumerate(second):
        if digest is not None:
            places[digest].append(place)
    pairs = [(i, places[digest].pop(0)) for i, digest in enumerate(first) if digest is not None and places.get(digest)]
    return np.array([i for i, _ in pairs], np.intp), np.array([j for _, j in pairs], np.intp)
