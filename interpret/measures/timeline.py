"""Checkpoints of one training in the order of their steps: what changed when, and from where on it stood still.

T runs of the same architecture, at least three. A call is named by the key that the run given first has for it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from interpret.errors import InterpretError
from interpret.evidence import Call, Evidence, TensorRecord
from interpret.functional import similarity
from interpret.functional.statistics import SKETCH_BUCKETS, histogram_edges
from interpret.language import Message, listed, say
from interpret.measures.runs import CHUNK_ENTRIES, Array, Run, finite_or_none
from interpret.measures.weights import COUNTERS

MINIMUM_RUNS = 3
SETTLED_REMAINING = 0.05  # of a tensor's way
SETTLED_CKA = 0.99
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
OF_HEALTH = (
    *("effective_rank", "leverage", "zero_share", "saturated_share", "dead_units", "constant_units", "nonfinite"),
    *("batchnorm_z_median", "batchnorm_log_variance"),
)


@dataclass(frozen=True, slots=True, eq=False)
class TensorTimeline:
    """One tensor over T steps; NaN where a run did not record it.

    Attributes:
        name: in the run given first that has it.
        call: key of its call; None where it belongs to none.
        edges: bin edges that all steps share, shape (B + 1,): those of `histogram_edges` around what is occupied, with
            the smallest and largest entry of all steps at the ends.
        shares: share of the entries in each bin, shape (T, B); rows sum to 1.
        minimum, maximum: of the finite entries, shape (T,).
        quantiles: at `QUANTILES`, shape (T, 5); within the bin of the true one, a quarter octave wide.
        change: |W_t - W_t-1| / |W_t-1|, shape (T,): exactly 0 where the values are equal, else estimated to about 2 %;
            NaN for the first step.
        change_to_last: |W_t - W_T| / |W_T|, shape (T,).
        remaining: |W_t - W_T| / max over s of |W_s - W_T|, shape (T,); 0 for a tensor that never moved.
    """

    name: str
    call: str | None
    edges: Array
    shares: Array
    minimum: Array
    maximum: Array
    quantiles: Array
    change: Array
    change_to_last: Array
    remaining: Array

    def share_below(self, values: Array) -> Array:
        """Share of the entries below each of V values, shape (T, V), as if evenly spread within a bin."""
        below = np.full((len(self.shares), len(values)), np.nan)
        for step, shares in enumerate(self.shares):
            if np.isfinite(shares).all():
                places = np.clip(self.edges, self.minimum[step], self.maximum[step])
                below[step] = np.interp(values, places, _cumulative(shares), left=0.0, right=1.0)
        return below


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """T checkpoints of one training in the order of their steps, and their L calls; NaN where there is no number.

    A call has settled at the first step from which on all checkpoints are close to the last one. The last checkpoint
    is close to itself, so settling there says nothing and counts as never.

    - Weights: `remaining` is at most 0.05: each tensor has put 95 % of its way behind it. The way is its largest
      distance to its last values, not the length of its path, in units of which a random walk has arrived as soon as
      there are many checkpoints. Under the nulls, a straight line at constant speed settles with 5 % of the steps
      left, a random walk, whose remaining distance falls as sqrt(1 - t/T), with 0.25 %.
    - Outputs: debiased CKA to the last checkpoint is at least 0.99. For unrelated outputs it is 0 with a standard
      deviation of sqrt(2 / (n (n - 3))), 0.02 for 64 images but 0.7 for 4.

    Attributes:
        labels: of the runs, in the order of their steps.
        steps: (T,), rising; 0, 1, 2, ... in the order given where a run has none.
        calls: of the run given first.
        images: number of images that all runs saw, which CKA is computed on.
        weight_change: from the step before to this one, shape (L, T), the largest over a call's tensors; NaN for the
            first step and for calls without weights.
        weight_change_to_last: relative to the last values, shape (L, T), the largest over a call's tensors.
        remaining: the largest over a call's tensors, shape (L, T); NaN where one of them is unknown.
        cka_to_previous, cka_to_last: debiased CKA, shape (L, T); NaN for the first step of the former.
        settled_weights, settled_outputs: index of the step at which a call settled, shape (L,); -1 for never.
        statistics: by name, shape (L, T): what each run says of its calls on its own images.
        tensors: every tensor but counters.
        reasons: why numbers are missing.
    """

    labels: tuple[str, ...]
    steps: tuple[int, ...]
    calls: tuple[Call, ...]
    images: int
    weight_change: Array
    weight_change_to_last: Array
    remaining: Array
    cka_to_previous: Array
    cka_to_last: Array
    settled_weights: Array
    settled_outputs: Array
    statistics: Mapping[str, Array]
    tensors: tuple[TensorTimeline, ...]
    reasons: tuple[Message, ...]

    def to_dict(self) -> dict[str, Any]:
        """The timeline in comparison.json: strict JSON, lists over the T steps; histograms stay in weights.npz.

        ::

            {"labels": [LABEL], "steps": [int], "images": int, "reasons": [str],
             "layers": [{"key", "settled": {"weights": step or null, "outputs": step or null}, "weight_change",
                         "weight_change_to_last", "weight_remaining", "cka_to_previous", "cka_to_last",
                         "statistics": {NAME: [float or null]}}],
             "tensors": [{"name", "call", "minimum", "maximum", "quantiles": {"0.05": [float or null], ...}}]}
        """
        return {
            "labels": list(self.labels),
            "steps": list(self.steps),
            "images": self.images,
            "reasons": list(self.reasons),
            "layers": [self._layer(call) for call in self.calls],
            "tensors": [
                {
                    "name": tensor.name,
                    "call": tensor.call,
                    "minimum": finite_or_none(tensor.minimum),
                    "maximum": finite_or_none(tensor.maximum),
                    "quantiles": {
                        str(share): finite_or_none(values)
                        for share, values in zip(QUANTILES, tensor.quantiles.T, strict=True)
                    },
                }
                for tensor in self.tensors
            ],
        }

    def _layer(self, call: Call) -> dict[str, Any]:
        place = call.position
        settled = {"weights": self.settled_weights, "outputs": self.settled_outputs}
        return {
            "key": call.key,
            "settled": {what: None if (step := at[place]) < 0 else self.steps[step] for what, at in settled.items()},
            "weight_change": finite_or_none(self.weight_change[place]),
            "weight_change_to_last": finite_or_none(self.weight_change_to_last[place]),
            "weight_remaining": finite_or_none(self.remaining[place]),
            "cka_to_previous": finite_or_none(self.cka_to_previous[place]),
            "cka_to_last": finite_or_none(self.cka_to_last[place]),
            "statistics": {name: finite_or_none(values[place]) for name, values in self.statistics.items()},
        }


def timeline_of(
    runs: Mapping[str, Run], origins: Mapping[str, Mapping[str, Any]]
) -> tuple[Timeline | None, Message | None]:
    """The timeline of runs that are checkpoints of one training, or None and why there is none.

    Args:
        runs: by label; the first one names the calls.
        origins: by label what is known of the run: `step`, a whole number or None.

    Raises:
        InterpretError: a step is not a whole number.
    """
    given = {label: _step(label, origins.get(label, {}).get("step")) for label in runs}
    steps = [step for step in given.values() if step is not None]
    if len(steps) < len(given):
        return None, say(
            "no step is known of {runs}", runs=listed(repr(label) for label, step in given.items() if step is None)
        )
    order = sorted(range(len(steps)), key=steps.__getitem__)
    matched, reason = _matched(runs)
    reason = _unfit(list(runs), steps, order) or reason
    if reason is not None:
        return None, reason
    checkpoints, steps = [matched[place] for place in order], [steps[place] for place in order]
    tensors = _tensors(matched, checkpoints)
    calls, images = matched[0].calls, _common_images(checkpoints)
    change, change_to_last, remaining = _of_calls(calls, tensors, len(steps))
    cka_to_previous, cka_to_last = _cka(checkpoints, images)
    timeline = Timeline(
        labels=tuple(checkpoint.label for checkpoint in checkpoints),
        steps=tuple(steps),
        calls=calls,
        images=len(images[0]),
        weight_change=change,
        weight_change_to_last=change_to_last,
        remaining=remaining,
        cka_to_previous=cka_to_previous,
        cka_to_last=cka_to_last,
        settled_weights=_settled(remaining <= SETTLED_REMAINING),
        settled_outputs=_settled(cka_to_last >= SETTLED_CKA),
        statistics=_statistics(checkpoints),
        tensors=tensors,
        reasons=_reasons(checkpoints, len(images[0])),
    )
    return timeline, None


# Which runs make a timeline -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Checkpoint:
    """A run, its calls in the order of the first run's, and its tensors by (first run's call, name within the call)."""

    label: str
    run: Run
    calls: tuple[Call, ...]
    tensors: Mapping[tuple[str | None, str], TensorRecord]

    @property
    def positions(self) -> Array:
        """Return the places of its calls in its own arrays, shape (L,)."""
        return np.array([call.position for call in self.calls], np.intp)


def _step(label: str, step: Any) -> int | None:
    try:
        return None if step is None else operator.index(step)
    except TypeError:
        raise InterpretError(f"the step of run {label!r} is {step!r}; give a whole number, or None") from None


def _unfit(labels: Sequence[str], steps: Sequence[int], order: Sequence[int]) -> Message | None:
    """Why runs with these steps make no timeline."""
    if len(labels) < MINIMUM_RUNS:
        return say(
            "a timeline takes at least {minimum} checkpoints of one training, not {count}",
            minimum=MINIMUM_RUNS,
            count=len(labels),
        )
    for one, other in pairwise(order):
        if steps[one] == steps[other]:
            return say(
                "runs {first} and {second} both have step {step}; leave one of them out",
                first=repr(labels[one]),
                second=repr(labels[other]),
                step=steps[one],
            )
    return None


def _matched(runs: Mapping[str, Run]) -> tuple[list[_Checkpoint], Message | None]:
    """The runs with their calls and tensors matched, or why they are no checkpoints of one network."""
    label, first = next(iter(runs.items()))
    checkpoints: list[_Checkpoint] = []
    shapes: dict[tuple[str | None, str], tuple[int, ...]] = {}
    for other, run in runs.items():
        calls = _counterparts(first.evidence, run.evidence)
        if calls is None:
            return [], say(
                "run {run} has another architecture than run {first}; a timeline takes one network",
                run=repr(other),
                first=repr(label),
            )
        tensors = _tensors_by_place(first.calls, calls, run.evidence)
        for place, tensor in tensors.items():
            if tensor.shape != shapes.setdefault(place, tensor.shape):
                return [], say(
                    "tensor {tensor} has shape {shape} in run {run}, and another one before",
                    tensor=repr(tensor.name),
                    shape=str(tensor.shape),
                    run=repr(other),
                )
        checkpoints.append(_Checkpoint(other, run, calls, tensors))
    return checkpoints, None


def _counterparts(first: Evidence, other: Evidence) -> tuple[Call, ...] | None:
    """The other's calls in the first's order: by name, or by order where the same architecture has other names."""
    if set(first.call) == set(other.call):
        calls = tuple(other.call[call.key] for call in first.calls)
    elif first.manifest.model["architecture_digest"] == other.manifest.model["architecture_digest"]:
        calls = other.calls
    else:
        return None
    pairs = zip(first.calls, calls, strict=True)
    same = all((a.type, a.kind, a.parameters) == (b.type, b.kind, b.parameters) for a, b in pairs)
    return calls if same else None


def _tensors_by_place(
    first: Sequence[Call], calls: Sequence[Call], evidence: Evidence
) -> dict[tuple[str | None, str], TensorRecord]:
    """The tensors that count, by the first run's call and by their name within the call; empty where not recorded."""
    if not evidence.has("weights", "sketch"):
        return {}
    homes = {own.key: (call.key, f"{own.name}.") for call, own in zip(first, calls, strict=True)}
    found = {}
    for tensor in evidence.tensors:
        key, prefix = (None, "") if tensor.call is None else homes[tensor.call]
        local_name = tensor.name.removeprefix(prefix)
        if local_name.rpartition(".")[2] not in COUNTERS:
            found[key, local_name] = tensor
    return found


def _common_images(checkpoints: Sequence[_Checkpoint]) -> list[Array]:
    """For each run the places of the images that all of them saw, in one order."""
    digests = [checkpoint.run.evidence.manifest.inputs["tensor_sha256"] for checkpoint in checkpoints]
    shared = set.intersection(*(set(of_run) for of_run in digests)) - {None}
    order = [digest for digest in dict.fromkeys(digests[0]) if digest in shared]
    return [np.array([of_run.index(digest) for digest in order], np.intp) for of_run in digests]


def _reasons(checkpoints: Sequence[_Checkpoint], images: int) -> tuple[Message, ...]:
    """Why numbers of a timeline are missing."""
    reasons = []
    for what, kind, key in ((say("weights"), "weights", "sketch"), (say("Gram matrices"), "layers", "gram")):
        without = [one.label for one in checkpoints if not one.run.evidence.has(kind, key)]
        if without:
            reasons.append(say("{what} were not recorded in {runs}", what=what, runs=listed(map(repr, without))))
    if images < similarity.MINIMUM_IMAGES:
        reasons.append(
            say(
                "CKA takes at least {minimum} images that all runs saw, not {count}",
                minimum=similarity.MINIMUM_IMAGES,
                count=images,
            )
        )
    return tuple(reasons)


# Numbers --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """P tensors at one step, and whether they are known at all; what is not is NaN, without counts or digest."""

    sketch: Array
    counts: Array
    norm: Array
    minimum: Array
    maximum: Array
    digest: Array

    def distance(self, other: _State) -> Array:
        """|W - W'| of each tensor, shape (P,): exactly 0 where the values are equal, NaN where not finite."""
        with np.errstate(invalid="ignore"):
            distance = np.linalg.norm(self.sketch.astype(np.float64) - other.sketch, axis=1)
        distance[(self.digest == other.digest) & (self.digest != "")] = 0.0
        return np.where(np.isfinite(distance), distance, np.nan)


def _state(checkpoint: _Checkpoint, places: Sequence[tuple[str | None, str]]) -> _State:
    records = [checkpoint.tensors.get(place) for place in places]
    known = np.array([record is not None for record in records])
    rows = [record.index for record in records if record is not None]
    sketch = np.full((len(places), SKETCH_BUCKETS), np.nan, np.float32)
    counts = np.zeros((len(places), len(histogram_edges()) - 1))
    if rows:
        sketch[known] = checkpoint.run.array("weights", "sketch")[rows]
        counts[known] = checkpoint.run.array("weights", "histogram")[rows]
    norm, minimum, maximum = (
        np.array([np.nan if (value := getattr(record, name, None)) is None else value for record in records])
        for name in ("norm", "minimum", "maximum")
    )
    digest = np.array(["" if record is None else record.value_sha256 for record in records])
    return _State(sketch, counts, norm, minimum, maximum, digest)


def _tensors(given: Sequence[_Checkpoint], checkpoints: Sequence[_Checkpoint]) -> tuple[TensorTimeline, ...]:
    """Every tensor over the steps, all tensors of two steps at once; named by the run given first that has them."""
    places = list(dict.fromkeys(place for one in given for place in one.tensors))
    if not places:
        return ()
    names = {place: tensor.name for one in reversed(given) for place, tensor in one.tensors.items()}
    states = [_state(one, places) for one in checkpoints]
    last, unknown = states[-1], np.full(len(places), np.nan)
    steps = [similarity.relative(a.distance(b), a.norm, b.norm) for a, b in pairwise(states)]
    distance = np.stack([state.distance(last) for state in states], 1)
    to_last = np.stack(
        [similarity.relative(d, last.norm, state.norm) for d, state in zip(distance.T, states, strict=True)], 1
    )
    farthest = np.fmax.reduce(distance, 1, keepdims=True)
    remaining = distance / np.where(farthest > 0, farthest, 1.0)
    change = np.stack([unknown, *steps], 1)
    counts, low, high = (
        np.stack([getattr(state, name) for state in states], 1) for name in ("counts", "minimum", "maximum")
    )
    return tuple(
        TensorTimeline(names[place], place[0], *_histogram(counts[row], low[row], high[row]), *numbers)
        for row, (place, *numbers) in enumerate(zip(places, change, to_last, remaining, strict=True))
    )


def _histogram(counts: Array, minimum: Array, maximum: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Shared edges (B + 1,), shares (T, B), minimum and maximum (T,), and quantiles (T, 5) of one tensor's steps."""
    occupied = np.flatnonzero(counts.any(0))
    if not len(occupied) or not np.isfinite(minimum).any():
        nothing = np.full((len(counts), 1), np.nan)
        return np.zeros(2), nothing, minimum, maximum, np.repeat(nothing, len(QUANTILES), 1)
    edges = histogram_edges()[occupied[0] : occupied[-1] + 2]
    edges = np.clip(edges, np.fmin.reduce(minimum), np.fmax.reduce(maximum))
    counts = counts[:, occupied[0] : occupied[-1] + 1]
    total = counts.sum(1, keepdims=True)
    shares = np.where(total > 0, counts / np.where(total > 0, total, 1.0), np.nan)
    quantiles = np.full((len(counts), len(QUANTILES)), np.nan)
    for step in np.flatnonzero(total[:, 0] > 0):
        ends = np.clip(edges, minimum[step], maximum[step])
        quantiles[step] = np.interp(QUANTILES, _cumulative(shares[step]), ends)
    return edges, shares, minimum, maximum, quantiles


def _cumulative(shares: Array) -> Array:
    return np.concatenate([[0.0], np.cumsum(shares)])


def _of_calls(calls: Sequence[Call], tensors: Sequence[TensorTimeline], count: int) -> tuple[Array, Array, Array]:
    """Change, change to the last step and what remains of every call, each (L, T): the largest over its tensors."""
    position = {call.key: call.position for call in calls}
    owned = [tensor for tensor in tensors if tensor.call is not None]
    rows = np.array([position[tensor.call] for tensor in owned if tensor.call is not None], np.intp)
    columns = [
        np.array([getattr(tensor, name) for tensor in owned]).reshape(-1, count)
        for name in ("change", "change_to_last", "remaining")
    ]
    change, to_last = np.full((2, len(calls), count), np.nan)
    remaining = np.full((len(calls), count), -np.inf)
    np.fmax.at(change, rows, columns[0])
    np.fmax.at(to_last, rows, columns[1])
    np.maximum.at(remaining, rows, columns[2])  # unknown as soon as one tensor is
    return change, to_last, np.where(np.isneginf(remaining), np.nan, remaining)


def _cka(checkpoints: Sequence[_Checkpoint], images: Sequence[Array]) -> tuple[Array, Array]:
    """Debiased CKA of every call to the previous and to the last step, each (L, T): of all pairs by one product."""
    length, count = len(checkpoints[0].calls), len(checkpoints)
    recorded = [one.run.evidence.has("layers", "gram") for one in checkpoints]
    pairs = np.full((length, count, count), np.nan)
    size = max(1, CHUNK_ENTRIES // max(1, len(images[0])) ** 2 // count)
    for start in range(0, length if len(images[0]) >= similarity.MINIMUM_IMAGES else 0, size):
        chunk = slice(start, start + size)
        vectors = np.full((len(range(length)[chunk]), count, len(images[0]) ** 2), np.nan)
        for step, (one, chosen) in enumerate(zip(checkpoints, images, strict=True)):
            if recorded[step]:
                vectors[:, step] = similarity.cka_vectors(one.run.grams(one.positions[chunk], chosen, recentre=True))
        pairs[chunk] = np.minimum(vectors @ vectors.swapaxes(1, 2), 1.0)
    to_previous = np.full((length, count), np.nan)
    to_previous[:, 1:] = np.diagonal(pairs, 1, 1, 2)
    return to_previous, pairs[:, :, -1]


def _settled(close: Array) -> Array:
    """Index of the first step from which on every step is close, shape (L,); -1 where only the last one is."""
    steps = close.shape[1]
    first = steps - np.logical_and.accumulate(close[:, ::-1], 1).sum(1)
    return np.where(first < steps - 1, first, -1)


def _statistics(checkpoints: Sequence[_Checkpoint]) -> dict[str, Array]:
    """What each run says of its calls, by name, each (L, T)."""
    columns = [_of_run(one) for one in checkpoints]
    return {name: np.stack([column[name] for column in columns], 1) for name in columns[0]}


def _of_run(checkpoint: _Checkpoint) -> dict[str, Array]:
    """A run's statistics, each (L,)."""
    run, positions = checkpoint.run, checkpoint.positions
    squares = np.full(len(positions), np.nan)
    for tensor in run.evidence.tensors:
        if tensor.call is not None and tensor.filters:
            place = run.evidence.call[tensor.call].position
            squares[place] = np.nansum([squares[place], (tensor.norm or 0.0) ** 2])
    found = {"weight_norm": np.sqrt(squares)[positions]}
    mean, rms, channels = _moments(run)
    found |= {"output_mean": mean[positions], "output_rms": rms[positions]}
    health = [run.health[position] for position in positions.tolist()]
    for name in OF_HEALTH:
        values = [getattr(of_call, name) for of_call in health]
        found[name] = np.array([np.nan if value is None else value for value in values], np.float64)
    activation = np.array([call.kind == "activation" for call in checkpoint.calls])
    with np.errstate(divide="ignore", invalid="ignore"):
        found["dead_share"] = np.where(activation, found["dead_units"] / channels[positions], np.nan)
    return found


def _moments(run: Run) -> tuple[Array, Array, Array]:
    """Mean and root mean square of each call's output over all channels, and the number of channels, each (L,)."""
    channels = run.column("channels")
    if not run.evidence.has("layers", "channel_mean"):
        return np.full_like(channels, np.nan), np.full_like(channels, np.nan), channels
    mean, variance = (run.array("layers", f"channel_{name}").astype(np.float64) for name in ("mean", "variance"))
    call = np.repeat(np.arange(len(channels)), channels.astype(np.intp))
    with np.errstate(invalid="ignore"):
        sums = [np.bincount(call, values, len(channels)) for values in (mean, mean**2 + variance)]
        return sums[0] / channels, np.sqrt(sums[1] / channels), channels
