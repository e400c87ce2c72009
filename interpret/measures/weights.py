"""Which tensors changed, by how much, and in which filters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interpret.evidence import Evidence, TensorRecord
from interpret.functional import similarity
from interpret.language import Message, say
from interpret.measures.alignment import Aligned
from interpret.measures.runs import Run, finite_or_none

COUNTERS = ("num_batches_tracked",)  # tensors that move without any change of the function
Matched = list[tuple[str, TensorRecord | None, TensorRecord | None]]


@dataclass(frozen=True, slots=True)
class TensorPair:
    """One tensor of the reference and its counterpart; either may be missing.

    Attributes:
        local_name: the name within its call: "weight", "running_var", ...
        status: "identical" (equal values), "changed", "reshaped", "added" or "removed".
        change: |W' - W| / |W|, 0 exactly where the values are equal, else estimated to about 2 %; None where the shapes
            differ or one is missing.
        cosine: of W and W', 1 exactly where the values are equal; None where `change` is, or a tensor is zero.
        counted: False for counters that move without any change of the function (`num_batches_tracked`).
        changed_filters: filters whose values differ, exact.
        zeroed_filters: filters that are exactly zero now and were not.
        moved_filters: filters that are, bit for bit, another filter of the reference: reordered channels.
    """

    local_name: str
    reference: TensorRecord | None
    other: TensorRecord | None
    status: str
    change: float | None
    counted: bool
    cosine: float | None = None
    changed_filters: tuple[int, ...] = ()
    zeroed_filters: tuple[int, ...] = ()
    moved_filters: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The reference's name, or the other's where only the other has it."""
        tensor = self.reference or self.other
        assert tensor is not None
        return tensor.name


def compare_weights(
    reference: Run, other: Run, aligned: Aligned
) -> tuple[list[tuple[TensorPair, ...]], tuple[TensorPair, ...], Message | None]:
    """The tensors of every aligned call, those that belong to no call, and why there are none of either."""
    missing = [run for run in (reference, other) if not run.evidence.has("weights", "sketch")]
    if missing:
        where = say("the reference") if missing[0] is reference else say("the other run")
        if len(missing) > 1:
            where = say("the reference and the other run")
        return [()] * len(aligned), (), say("weights were not recorded in {runs}", runs=where)
    first, second = _tensors_by_call(reference.evidence), _tensors_by_call(other.evidence)
    matched = [_matched(first.get(a.key, {}) if a else {}, second.get(b.key, {}) if b else {}) for a, b, _ in aligned]
    *rows, unused = _tensor_pairs(reference, other, [*matched, _matched(first.get(None, {}), second.get(None, {}))])
    return rows, unused, None


def _tensors_by_call(evidence: Evidence) -> dict[str | None, dict[str, TensorRecord]]:
    """The tensors by the key of their call (None: of no call) and by their name within it."""
    groups: dict[str | None, dict[str, TensorRecord]] = defaultdict(dict)
    for tensor in evidence.tensors:
        prefix = "" if tensor.call is None else f"{evidence.call[tensor.call].name}."
        groups[tensor.call][tensor.name.removeprefix(prefix)] = tensor
    return groups


def _matched(first: Mapping[str, TensorRecord], second: Mapping[str, TensorRecord]) -> Matched:
    names = [*first, *(name for name in second if name not in first)]
    return [(name, first.get(name), second.get(name)) for name in names]


def _tensor_pairs(reference: Run, other: Run, rows: Sequence[Matched]) -> list[tuple[TensorPair, ...]]:
    """Matched tensors with their changes; all sketches are compared at once."""
    comparable = [
        (a, b)
        for row in rows
        for _, a, b in row
        if a is not None and b is not None and a.shape == b.shape and a.value_sha256 != b.value_sha256
    ]
    changes: dict[tuple[int, int], tuple[float | None, float | None]] = {}
    if comparable:
        places = np.array([(a.index, b.index) for a, b in comparable])
        norms = np.array([(a.norm or 0.0, b.norm or 0.0) for a, b in comparable])
        sketches = reference.array("weights", "sketch")[places[:, 0]], other.array("weights", "sketch")[places[:, 1]]
        change = similarity.sketch_change(*sketches, norms[:, 0], norms[:, 1])
        cosine = similarity.sketch_cosine(change, norms[:, 0], norms[:, 1])
        values = zip(finite_or_none(change), finite_or_none(cosine), strict=True)
        changes = {(a.index, b.index): value for (a, b), value in zip(comparable, values, strict=True)}
    return [tuple(_tensor_pair(reference, other, *item, changes) for item in row) for row in rows]


def _tensor_pair(
    reference: Run,
    other: Run,
    local_name: str,
    a: TensorRecord | None,
    b: TensorRecord | None,
    changes: Mapping[tuple[int, int], tuple[float | None, float | None]],
) -> TensorPair:
    counted = local_name.rpartition(".")[2] not in COUNTERS
    if a is None or b is None:
        return TensorPair(local_name, a, b, "added" if a is None else "removed", None, counted)
    if a.shape != b.shape:
        return TensorPair(local_name, a, b, "reshaped", None, counted)
    if a.value_sha256 == b.value_sha256:
        return TensorPair(local_name, a, b, "identical", 0.0, counted, 1.0 if a.norm else None)
    digests, norms = reference.filters("filter_digest", a), reference.filters("filter_norm", a)
    other_digests, other_norms = other.filters("filter_digest", b), other.filters("filter_norm", b)
    changed = digests != other_digests
    zeroed = (other_norms == 0) & (norms > 0)
    # zero filters are all alike; one that is still in its place elsewhere is a copy, not a move
    moved = changed & (other_norms > 0) & np.isin(other_digests, digests[changed])
    filters = (tuple(np.flatnonzero(mask).tolist()) for mask in (changed, zeroed, moved))
    change, cosine = changes[a.index, b.index]
    return TensorPair(local_name, a, b, "changed", change, counted, cosine, *filters)
