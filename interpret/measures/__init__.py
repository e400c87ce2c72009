"""Evidence x Evidence -> aligned calls and their numbers. No model, no images, no judgement: that is for `verdicts`.

Images are matched by digest, in any order, and calls by name, by order where the same architecture has other names, or
by similarity where names mean nothing. Weights compare always; activations, maps and predictions only on images that
both runs saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from interpret.evidence import Call, Evidence
from interpret.functional.matching import Matching
from interpret.language import Message
from interpret.measures.alignment import align, common_images
from interpret.measures.kernels import match_kernels
from interpret.measures.maps import MapAgreement, compare_maps
from interpret.measures.predictions import Predictions, compare_predictions
from interpret.measures.representations import DIVERGENCE_THRESHOLD, NOISE_FACTOR, compare_representations
from interpret.measures.runs import Health, Run
from interpret.measures.weights import TensorPair, compare_weights

OPERATION = "fx:"  # begins the key of a functional operation, in the call table of a model that was run as a graph


@dataclass(frozen=True, slots=True)
class CallPair:
    """One call of the reference and its counterpart; either may be missing.

    Attributes:
        aligned_by: "name", "order" or "similarity"; None where there is no counterpart.
        gram_change: g = |K - L| / |K| of the centred Gram matrices.
        mean_change: m = |u - v| / rms of the channel means.
        noise_floor: the larger one of the two runs.
        cka: debiased linear CKA.
        cka_p95: what CKA reaches by chance in one of twenty shuffles of the images.
        neighbours: share of the five nearest images that both agree on; unrelated ones share 5 / (n - 1).
        log_amplification: by how much this call makes the runs less alike than the call before.
        kernels: which kernel is which, where both runs hold this call's kernels and they differ.
        same_images: whether both saw the very same tensors; else a change may be that of the preprocessing.
        reasons: why numbers are missing.
    """

    reference: Call | None
    other: Call | None
    aligned_by: str | None
    health: Health | None
    other_health: Health | None
    tensors: tuple[TensorPair, ...] = ()
    gram_change: float | None = None
    mean_change: float | None = None
    noise_floor: float | None = None
    cka: float | None = None
    cka_p95: float | None = None
    neighbours: float | None = None
    log_amplification: float | None = None
    kernels: Matching | None = None
    maps: Mapping[str, MapAgreement] = field(default_factory=dict)
    same_images: bool = True
    reasons: tuple[str, ...] = ()

    @property
    def call(self) -> Call:
        """The reference's call, or the other's where only the other has it."""
        call = self.reference or self.other
        assert call is not None
        return call

    @property
    def key(self) -> str:
        """Key of the call."""
        return self.call.key

    @property
    def presence(self) -> str:
        """Whether the other run's call is "paired", "added" or "removed"."""
        return "added" if self.reference is None else "removed" if self.other is None else "paired"

    @property
    def weights(self) -> str:
        """What its counted tensors are: "identical", "changed", "reshaped", or "none" where there are none."""
        counted = {tensor.status for tensor in self.tensors if tensor.counted}
        if counted & {"reshaped", "added", "removed"}:
            return "reshaped"
        return "changed" if "changed" in counted else "identical" if counted else "none"

    @property
    def weight_change(self) -> float | None:
        """The largest change of its counted tensors; None where shapes differ."""
        if self.weights == "reshaped":
            return None
        return max((t.change for t in self.tensors if t.counted and t.change is not None), default=None)

    @property
    def divergence(self) -> float | None:
        """max(g, m): how far the output moved, with its scale; None where neither was computed."""
        return max((x for x in (self.gram_change, self.mean_change) if x is not None), default=None)

    @property
    def threshold(self) -> float:
        """The divergence that rounding explains: ten times the noise floor, at least 1e-6."""
        return max(DIVERGENCE_THRESHOLD, NOISE_FACTOR * (self.noise_floor or 0.0))

    @property
    def diverges(self) -> bool:
        """Whether the output moved by more than rounding explains."""
        return self.same_images and self.divergence is not None and self.divergence > self.threshold


@dataclass(frozen=True, slots=True)
class Measures:
    """Everything that was measured between a reference and one other run.

    Attributes:
        calls: the reference's calls in order, with the other's added calls behind their predecessors.
        unused: tensors that belong to no call.
        same_architecture: every call has a counterpart of its type with tensors of the same shapes.
        activations, maps, predicted: "exact" (all images are common), "subset" (some are), "own-preprocessing" (the
            same pictures, prepared differently) or "no".
        common: places of the common images in the reference, and in the other run.
        images_reason: why not all images are common; None where they are.
        reasons: why something cannot be compared.
    """

    reference: Evidence
    other: Evidence
    calls: tuple[CallPair, ...]
    unused: tuple[TensorPair, ...]
    same_architecture: bool
    weights: bool
    activations: str
    common: tuple[tuple[int, ...], tuple[int, ...]]
    maps: str
    predicted: str
    predictions: Predictions | None
    images_reason: Message | None
    reasons: tuple[Message, ...]

    @property
    def images(self) -> int:
        """Number of common images."""
        return len(self.common[0])

    @property
    def other_network(self) -> bool:
        """Whether calls were paired by similarity: two networks, whose weights have nothing to do with each other."""
        return any(pair.aligned_by == "similarity" for pair in self.calls)


def measure(reference: Run, other: Run) -> Measures:
    """Everything that two runs say of each other.

    Args:
        reference: what the other run is measured against.
        other: the run in question.
    """
    common = common_images(reference, other)
    aligned = align(reference, other, common)
    tensors, unused, no_weights = compare_weights(reference, other, aligned)
    representations = compare_representations(reference, other, aligned, common)
    mapped, maps, no_maps = compare_maps(reference, other, aligned)
    predictions, no_predictions = compare_predictions(reference, other, common, aligned, representations)
    kernels = match_kernels(reference, other, aligned)
    graph = any(key.startswith(OPERATION) for run in (reference, other) for key in run.evidence.call)
    calls = tuple(
        CallPair(
            reference=first,
            other=second,
            aligned_by=aligned_by,
            health=None if first is None else reference.health[first.position],
            other_health=None if second is None else other.health[second.position],
            tensors=tensors[row],
            kernels=kernels.get(row),
            maps=mapped.get(row, {}),
            same_images=common.how != "own-preprocessing",
            **representations.numbers.get(row, {}),
        )
        for row, (first, second, aligned_by) in enumerate(aligned)
    )
    return Measures(
        reference=reference.evidence,
        other=other.evidence,
        calls=calls,
        unused=unused,
        same_architecture=all(_alike(pair) for pair in calls if not (graph and _only_in_one_form(pair))),
        weights=no_weights is None,
        activations=common.how,
        common=(tuple(common.here.tolist()), tuple(common.there.tolist())),
        maps=maps,
        predicted="no" if predictions is None else common.how,
        predictions=predictions,
        images_reason=common.reason,
        reasons=tuple(why for why in (common.reason, no_weights, no_maps, no_predictions) if why is not None),
    )


def _only_in_one_form(pair: CallPair) -> bool:
    """Whether a call is missing only because one run was audited as a graph: operations, and containers of modules."""
    return pair.presence != "paired" and (pair.key.startswith(OPERATION) or pair.call.kind == "container")


def _alike(pair: CallPair) -> bool:
    """Whether a call has a counterpart of its type with tensors of the same shapes."""
    a, b = pair.reference, pair.other
    if a is None or b is None or pair.weights == "reshaped":
        return False
    return (a.kind, a.type, a.parameters) == (b.kind, b.type, b.parameters)
