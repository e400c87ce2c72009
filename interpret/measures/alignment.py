"""Which call belongs to which, and which image to which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interpret.evidence import Call, Evidence
from interpret.functional import similarity
from interpret.measures.runs import Array, Run

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
    reason: str | None = None


def align(reference: Evidence, other: Evidence) -> Aligned:
    """Pairs of calls: by name, or by order where the same architecture has other names.

    Returns:
        (reference's call, other's call, "name" or "order" or None) in the reference's order; a call that only the
        other run has comes behind the call that precedes it there.
    """
    digests = [evidence.manifest.model["architecture_digest"] for evidence in (reference, other)]
    if digests[0] == digests[1] and set(reference.call) != set(other.call):
        pairs = zip(reference.calls, other.calls, strict=True)
        return [(first, second, "name" if first.key == second.key else "order") for first, second in pairs]
    added: dict[str | None, Aligned] = defaultdict(list)
    predecessor: str | None = None
    for call in other.calls:
        if call.key in reference.call:
            predecessor = call.key
        else:
            added[predecessor].append((None, call, None))
    aligned = [*added[None]]
    for call in reference.calls:
        counterpart = other.call.get(call.key)
        aligned.append((call, counterpart, None if counterpart is None else "name"))
        aligned.extend(added[call.key])
    return aligned


def common_images(reference: Run, other: Run) -> CommonImages:
    """The images that both runs saw, in any order; failing that, the same pictures prepared in two ways."""
    first, second = reference.evidence.manifest.inputs, other.evidence.manifest.inputs
    same = matches(first["tensor_sha256"], second["tensor_sha256"])
    pictures = matches(first["source_sha256"], second["source_sha256"])
    found = len(same[0])
    if found == reference.count == other.count:
        return CommonImages("exact", *same)
    if found >= similarity.MINIMUM_IMAGES or (found > 1 and found >= len(pictures[0])):
        reason = (
            f"only {found} images are common to both runs ({reference.count} and {other.count}); "
            "channel means, which cover all images of a run, are not compared"
        )
        return CommonImages("subset", *same, reason)
    if len(pictures[0]) > 1:
        reason = f"{len(pictures[0])} pictures are common, but each run prepared them in its own way"
        return CommonImages("own-preprocessing", *pictures, reason)
    reason = "activations and predictions need at least two images that both runs saw"
    return CommonImages("no", *matches([], []), reason)


def matches(first: Sequence[str | None], second: Sequence[str | None]) -> tuple[Array, Array]:
    """Places of equal digests, in the order of the first; a digest that occurs twice in both is matched twice."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, digest in enumerate(second):
        if digest is not None:
            places[digest].append(place)
    pairs = [(i, places[digest].pop(0)) for i, digest in enumerate(first) if digest is not None and places.get(digest)]
    return np.array([i for i, _ in pairs], np.intp), np.array([j for _, j in pairs], np.intp)
