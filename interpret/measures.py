"""Evidence x Evidence -> aligned calls and their numbers. No model, no images, no judgement: that is for `findings`.

Images are matched by digest, in any order, and calls by name (or by order where the same architecture has other
names). Weights compare always; activations, maps and predictions only on images that both runs saw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpret.evidence import Call, Evidence, TensorRecord
from interpret.functional import agreement, similarity

Array = NDArray[Any]
Images = tuple[Array, Array]

CHUNK_ENTRIES = 1 << 22  # entries of Gram matrices that are unpacked at once: 32 MiB
DIVERGENCE_THRESHOLD = 1e-6  # the same weights on another machine's kernels differ by about 1e-7
NOISE_FACTOR = 10.0
COUNTERS = ("num_batches_tracked",)  # tensors that move without any change of the function


@dataclass(frozen=True, slots=True)
class Health:
    """What one run says of one call by itself; None where it was not recorded or does not apply.

    FORMAT.md describes the fields; `leverage` is the share of the largest image in all variance.
    """

    call: Call
    dead_units: int | None
    constant_units: int | None
    zero_share: float | None
    saturated_share: float | None
    nonfinite: int | None
    batchnorm_z_median: float | None
    batchnorm_z_p95: float | None
    batchnorm_log_variance: float | None
    noise_floor: float | None
    leverage: float | None


@dataclass(frozen=True, slots=True)
class TensorPair:
    """One tensor of the reference and its counterpart; either may be missing.

    Attributes:
        local_name: the name within its call: "weight", "running_var", ...
        status: "identical" (equal values), "changed", "reshaped", "added" or "removed".
        change: |W' - W| / |W|, 0 exactly where the values are equal; None where the shapes differ or one is missing.
        counted: False for counters that move without any change of the function (`num_batches_tracked`).
        changed_filters: filters whose values differ, exact.
        zeroed_filters: filters that are exactly zero now and were not.
    """

    local_name: str
    reference: TensorRecord | None
    other: TensorRecord | None
    status: str
    change: float | None
    counted: bool
    changed_filters: tuple[int, ...] = ()
    zeroed_filters: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The reference's name, or the other's where only the other has it."""
        tensor = self.reference or self.other
        assert tensor is not None
        return tensor.name


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

    pearson: float | None
    iou20: float | None
    centre_shift: float | None
    null_other_image: float | None
    null_gaussian: float | None
    images: int
    empty: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class CallPair:
    """One call of the reference and its counterpart; either may be missing.

    Attributes:
        aligned_by: "name" or "order"; None where there is no counterpart.
        weights: "identical", "changed", "reshaped", or "none" where the call has no tensors.
        weight_change: the largest change of its counted tensors.
        gram_change: g = |K - L| / |K| of the centred Gram matrices.
        mean_change: m = |u - v| / rms of the channel means.
        noise_floor: the larger one of the two runs.
        cka: debiased linear CKA.
        cka_p95: what CKA reaches by chance in one of twenty shuffles of the images.
        reasons: why numbers are missing.
    """

    reference: Call | None
    other: Call | None
    aligned_by: str | None
    health: Health | None
    other_health: Health | None
    tensors: tuple[TensorPair, ...] = ()
    weights: str = "none"
    weight_change: float | None = None
    gram_change: float | None = None
    mean_change: float | None = None
    noise_floor: float | None = None
    cka: float | None = None
    cka_p95: float | None = None
    maps: Mapping[str, MapAgreement] = field(default_factory=dict)
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
        return self.divergence is not None and self.divergence > self.threshold


@dataclass(frozen=True, slots=True)
class Flip:
    """One image that the two runs predict differently; `label` is None where unknown."""

    name: str
    label: int | None
    reference_class: int
    other_class: int


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
    reasons: tuple[str, ...]

    @property
    def images(self) -> int:
        """Number of common images."""
        return len(self.common[0])


class Run:
    """One run's evidence with its arrays at hand: each is read once."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.calls = evidence.calls
        self.count = int(evidence.manifest.inputs["count"])
        self._arrays: dict[tuple[str, str], Array] = {}

    def array(self, kind: str, key: str) -> Array:
        """One array of the evidence; see `Evidence.array`."""
        if (kind, key) not in self._arrays:
            self._arrays[kind, key] = self.evidence.array(kind, key)
        return self._arrays[kind, key]

    def column(self, statistic: str) -> Array:
        """One number per call, shape (L,) float64; NaN where it was not recorded."""
        if not self.evidence.has("layers", statistic):
            return np.full(len(self.calls), np.nan)
        return self.array("layers", statistic).astype(np.float64)

    def filters(self, statistic: str, tensor: TensorRecord) -> Array:
        """One statistic of a tensor per filter; see `Evidence.filters`."""
        start = self._filter_starts[tensor.index]
        return self.array("weights", statistic)[start : start + tensor.filters]

    @cached_property
    def _filter_starts(self) -> list[int]:
        return [0, *accumulate(tensor.filters for tensor in self.evidence.tensors)]

    @cached_property
    def noise_floor(self) -> Array:
        """How far each call differs from itself, shape (L,); NaN where not measured."""
        return np.fmax(self.column("noise_gram"), self.column("noise_mean"))

    @cached_property
    def health(self) -> tuple[Health, ...]:
        """What this run says of its calls, in their order."""
        columns: list[Sequence[Any]] = [
            _integers(self.column("dead_units")),
            _integers(self.column("constant_units")),
            _numbers(self.column("zero_share")),
            _numbers(self.column("saturated_share")),
            _integers(self.column("nonfinite")),
            _numbers(self.column("batchnorm_z_median")),
            _numbers(self.column("batchnorm_z_p95")),
            _numbers(self.column("batchnorm_log_variance")),
            _numbers(self.noise_floor),
            _numbers(self._leverage()),
        ]
        return tuple(Health(call, *values) for call, *values in zip(self.calls, *columns, strict=True))

    def grams(self, positions: Array, images: Array | None, recentre: bool) -> Array:
        """Gram matrices of some calls over some images, shape (P, n, n) float64; NaN where not computable."""
        packed = self.array("layers", "gram")[positions]
        grams = similarity.unpack_gram(packed, self.count, images)
        grams = grams * self.array("layers", "gram_scale")[positions, None, None]
        return similarity.centre(grams) if recentre else grams

    def _leverage(self) -> Array:
        if not self.evidence.has("layers", "gram"):
            return np.full(len(self.calls), np.nan)
        rows = np.arange(self.count)
        diagonal = self.array("layers", "gram")[:, rows * self.count - rows * (rows - 1) // 2].astype(np.float64)
        total = diagonal.sum(1)
        return np.where(total > 0, diagonal.max(1) / np.where(total > 0, total, 1.0), np.nan)


def measure(reference: Run, other: Run) -> Measures:
    """Everything that two runs say of each other.

    Args:
        reference: what the other run is measured against.
        other: the run in question.
    """
    activations, images, reasons = _match_images(reference, other)
    aligned = align(reference.evidence, other.evidence)
    weights, tensors, unused = _weights(reference, other, aligned, reasons)
    representations = _representations(reference, other, aligned, activations, images)
    maps, mapped = _maps(reference, other, aligned, reasons)
    predictions, predicted = _predictions(reference, other, activations, images, reasons)
    calls = tuple(
        CallPair(
            reference=first,
            other=second,
            aligned_by=aligned_by,
            health=None if first is None else reference.health[first.position],
            other_health=None if second is None else other.health[second.position],
            tensors=tensors[row],
            weights=_status(tensors[row]),
            weight_change=_largest(tensors[row]),
            maps=mapped.get(row, {}),
            **representations.get(row, {}),
        )
        for row, (first, second, aligned_by) in enumerate(aligned)
    )
    return Measures(
        reference=reference.evidence,
        other=other.evidence,
        calls=calls,
        unused=unused,
        same_architecture=all(_alike(pair) for pair in calls),
        weights=weights,
        activations=activations,
        common=(tuple(images[0].tolist()), tuple(images[1].tolist())),
        maps=maps,
        predicted=predicted,
        predictions=predictions,
        reasons=tuple(reasons),
    )


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
    return [_numbers(row) for row in mean]


# Which with which -----------------------------------------------------------------------------------------------------

Aligned = list[tuple[Call | None, Call | None, str | None]]


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


def _match_images(reference: Run, other: Run) -> tuple[str, Images, list[str]]:
    """How the images agree, the places of the common ones in both runs, and what to say of it."""
    first, second = reference.evidence.manifest.inputs, other.evidence.manifest.inputs
    same = _common(first["tensor_sha256"], second["tensor_sha256"])
    sources = _common(first["source_sha256"], second["source_sha256"])
    found = len(same[0])
    if found == reference.count == other.count:
        return "exact", same, []
    if found >= similarity.MINIMUM_IMAGES or (found > 1 and found >= len(sources[0])):
        reason = f"only {found} images are common to both runs ({reference.count} and {other.count})"
        return "subset", same, [f"{reason}; channel means, which cover all images of a run, are not compared"]
    if len(sources[0]) > 1:
        reason = f"{len(sources[0])} pictures are common, but each run prepared them in its own way"
        return "own-preprocessing", sources, [reason]
    return "no", _common([], []), ["activations and predictions need at least two images that both runs saw"]


def _common(first: Sequence[str | None], second: Sequence[str | None]) -> Images:
    """Places of equal digests, in the order of the first; a digest that occurs twice in both is matched twice."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, digest in enumerate(second):
        if digest is not None:
            places[digest].append(place)
    pairs = [(i, places[digest].pop(0)) for i, digest in enumerate(first) if digest is not None and places.get(digest)]
    return np.array([i for i, _ in pairs], np.intp), np.array([j for _, j in pairs], np.intp)


def _alike(pair: CallPair) -> bool:
    """Whether a call has a counterpart of its type with tensors of the same shapes."""
    a, b = pair.reference, pair.other
    if a is None or b is None or pair.weights == "reshaped":
        return False
    return (a.kind, a.type, a.parameters) == (b.kind, b.type, b.parameters)


# Weights --------------------------------------------------------------------------------------------------------------

Matched = list[tuple[str, TensorRecord | None, TensorRecord | None]]


def _weights(
    reference: Run, other: Run, aligned: Aligned, reasons: list[str]
) -> tuple[bool, list[tuple[TensorPair, ...]], tuple[TensorPair, ...]]:
    """Whether weights compare, the tensors of every aligned call, and those that belong to no call."""
    runs = {"the reference": reference, "the other run": other}
    missing = [name for name, run in runs.items() if not run.evidence.has("weights", "sketch")]
    if missing:
        reasons.append(f"weights were not recorded in {' and '.join(missing)}")
        return False, [()] * len(aligned), ()
    first, second = _tensors_by_call(reference.evidence), _tensors_by_call(other.evidence)
    matched = [_matched(first.get(a.key, {}) if a else {}, second.get(b.key, {}) if b else {}) for a, b, _ in aligned]
    *rows, unused = _tensor_pairs(reference, other, [*matched, _matched(first.get(None, {}), second.get(None, {}))])
    return True, rows, unused


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
    changes: dict[tuple[int, int], float | None] = {}
    if comparable:
        places = np.array([(a.index, b.index) for a, b in comparable])
        norms = np.array([(a.norm or 0.0, b.norm or 0.0) for a, b in comparable])
        sketches = reference.array("weights", "sketch")[places[:, 0]], other.array("weights", "sketch")[places[:, 1]]
        values = _numbers(similarity.sketch_change(*sketches, norms[:, 0], norms[:, 1]))
        changes = {(a.index, b.index): value for (a, b), value in zip(comparable, values, strict=True)}
    return [tuple(_tensor_pair(reference, other, *item, changes) for item in row) for row in rows]


def _tensor_pair(
    reference: Run,
    other: Run,
    local_name: str,
    a: TensorRecord | None,
    b: TensorRecord | None,
    changes: Mapping[tuple[int, int], float | None],
) -> TensorPair:
    counted = local_name.rpartition(".")[2] not in COUNTERS
    if a is None or b is None:
        return TensorPair(local_name, a, b, "added" if a is None else "removed", None, counted)
    if a.shape != b.shape:
        return TensorPair(local_name, a, b, "reshaped", None, counted)
    if a.value_sha256 == b.value_sha256:
        return TensorPair(local_name, a, b, "identical", 0.0, counted)
    digests, norms = reference.filters("filter_digest", a), reference.filters("filter_norm", a)
    other_digests, other_norms = other.filters("filter_digest", b), other.filters("filter_norm", b)
    changed = tuple(np.flatnonzero(digests != other_digests).tolist())
    zeroed = tuple(np.flatnonzero((other_norms == 0) & (norms > 0)).tolist())
    return TensorPair(local_name, a, b, "changed", changes[a.index, b.index], counted, changed, zeroed)


def _status(tensors: Sequence[TensorPair]) -> str:
    """The status of a call, from its tensors that count."""
    counted = {tensor.status for tensor in tensors if tensor.counted}
    if counted & {"reshaped", "added", "removed"}:
        return "reshaped"
    return "changed" if "changed" in counted else "identical" if counted else "none"


def _largest(tensors: Sequence[TensorPair]) -> float | None:
    """The largest change of the tensors that count; None where their shapes differ."""
    if _status(tensors) == "reshaped":
        return None
    return max((tensor.change for tensor in tensors if tensor.counted and tensor.change is not None), default=None)


# Representations ------------------------------------------------------------------------------------------------------


def _representations(
    reference: Run, other: Run, aligned: Aligned, activations: str, images: Images
) -> dict[int, dict[str, Any]]:
    """CKA, changes of Grams and means, and the noise floor of every paired call, by its row in `aligned`."""
    pairs = [(row, first, second) for row, (first, second, _) in enumerate(aligned) if first and second]
    if not pairs or activations == "no":
        return {}
    rows = [row for row, _, _ in pairs]
    places = np.array([(first.position, second.position) for _, first, second in pairs])
    noise = np.fmax(reference.noise_floor[places[:, 0]], other.noise_floor[places[:, 1]])
    same_shape = np.array([a.channels == b.channels for _, a, b in pairs])
    grids = reference.column("pooling")[places[:, 0]], other.column("pooling")[places[:, 1]]
    same_shape &= (grids[0] == grids[1]) | np.isnan(grids[0]) | np.isnan(grids[1])  # NaN: not recorded, no Grams either
    all_images = len(images[0]) == reference.count == other.count
    cka, p95, gram_change = _gram_numbers(reference, other, places, images, all_images)
    gram_change[~same_shape] = np.nan
    mean_change = np.full(len(pairs), np.nan)
    if all_images:
        mean_change[same_shape] = _mean_changes(reference, other, places[same_shape])
    reasons = _reasons(reference, other, places, len(images[0]), same_shape, cka)
    columns = (_numbers(values) for values in (gram_change, mean_change, noise, cka, p95))
    names = ("gram_change", "mean_change", "noise_floor", "cka", "cka_p95", "reasons")
    return {row: dict(zip(names, values, strict=True)) for row, *values in zip(rows, *columns, reasons, strict=True)}


def _gram_numbers(
    reference: Run, other: Run, places: Array, images: Images, all_images: bool
) -> tuple[Array, Array, Array]:
    """CKA, its 95th percentile of chance, and the relative change, of every pair of calls; chunk by chunk."""
    numbers = np.full((3, len(places)), np.nan)
    if not all(run.evidence.has("layers", "gram") for run in (reference, other)):
        return numbers[0], numbers[1], numbers[2]
    whole = np.arange(reference.count)
    chosen = [None if all_images and np.array_equal(place, whole) else place for place in images]
    size = max(1, CHUNK_ENTRIES // max(1, len(images[0]) ** 2))
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


# Maps -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One method's maps at one aligned call: the row in `aligned`, and the arrays' names in both runs."""

    row: int
    method: str
    name: str
    other_name: str


def _maps(
    reference: Run, other: Run, aligned: Aligned, reasons: list[str]
) -> tuple[str, dict[int, dict[str, MapAgreement]]]:
    """How the explained classes agree, and the agreement of every method's maps by row in `aligned`."""
    candidates = _candidates(reference, other, aligned)
    if not candidates:
        reasons.append("maps: no call has maps of the same method in both runs")
        return "no", {}
    how, places = _same_targets(reference, other)
    if how == "no":
        reason = "no displayed image is explained for the same class in both runs"
        reasons.append(f"maps: {reason}; audit with the targets of the reference")
        found = {candidate: _no_agreement(reason) for candidate in candidates}
    else:
        found = {}
        stacks: dict[tuple[int, ...], list[tuple[_Candidate, Array, Array]]] = defaultdict(list)
        for candidate in candidates:
            first, second = reference.array("maps", candidate.name), other.evidence.array("maps", candidate.other_name)
            if first.shape[2:] != second.shape[2:]:
                found[candidate] = _no_agreement("the maps differ in size")
            else:
                stacks[first.shape[2:]].append((candidate, first, second))
        for stack in stacks.values():
            found |= _agreements(stack, places)
    result: dict[int, dict[str, MapAgreement]] = defaultdict(dict)
    for candidate in candidates:
        result[candidate.row][candidate.method] = found[candidate]
    return how, dict(result)


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
    for image, other_image in zip(*_common(digests, other_digests), strict=True):
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
    for (candidate, _, _), numbers, empty in zip(
        stack, zip(*map(_numbers, columns), strict=True), vanished, strict=True
    ):
        pearson, iou20, centre_shift, other_image, gaussian = numbers
        reason = "the maps are empty or constant" if pearson is None else None
        result[candidate] = MapAgreement(
            pearson, iou20, centre_shift, other_image, gaussian, len(places), empty, reason
        )
    return result


def _no_agreement(reason: str) -> MapAgreement:
    return MapAgreement(None, None, None, None, None, 0, 0, reason)


def _mean(values: Array) -> Array:
    """Mean over the last axis of what is finite; NaN where nothing is."""
    finite = np.isfinite(values)
    count = finite.sum(-1)
    return np.where(count > 0, np.where(finite, values, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


# Predictions ----------------------------------------------------------------------------------------------------------


def _predictions(
    reference: Run, other: Run, activations: str, images: Images, reasons: list[str]
) -> tuple[Predictions | None, str]:
    """The predictions of the common images, and how they compare."""
    if activations == "no":
        return None, "no"
    why = _not_comparable(reference, other)
    if why is None:
        first, second = (
            run.array("predictions", "logits")[place].astype(np.float64)
            for run, place in zip((reference, other), images, strict=True)
        )
        broken = int((~np.isfinite(first) | ~np.isfinite(second)).any(1).sum())
        if not broken:
            return _compare_logits(reference, other, images, first, second), activations
        why = f"the outputs of {broken} of {len(first)} images are not finite"
    reasons.append(f"predictions: {why}")
    return None, "no"


def _not_comparable(reference: Run, other: Run) -> str | None:
    for name, run in (("the reference", reference), ("the other run", other)):
        if not run.evidence.has("predictions", "logits"):
            return f"they were not recorded in {name}"
        shape = run.array("predictions", "logits").shape
        if len(shape) != 2:
            return f"the output of {name} is no vector of classes: shape {shape}"
    classes = [run.array("predictions", "logits").shape[1] for run in (reference, other)]
    if classes[0] != classes[1]:
        return f"the reference has {classes[0]} classes, the other run {classes[1]}"
    names = [run.evidence.manifest.model["class_names"] for run in (reference, other)]
    if None not in names and list(names[0]) != list(names[1]):
        return "the class names differ"
    return None


def _compare_logits(reference: Run, other: Run, images: Images, first: Array, second: Array) -> Predictions:
    before, after = first.argmax(1), second.argmax(1)
    labels = np.full(len(before), -1)
    for run, place in zip((other, reference), images[::-1], strict=True):  # the reference's labels win
        if run.evidence.has("predictions", "labels"):
            own = run.array("predictions", "labels")[place]
            labels = np.where(own >= 0, own, labels)
    known = labels >= 0
    labelled = int(known.sum())
    negative, positive = agreement.flips(before, after, labels)
    divergence = agreement.kl_divergence(first, second)
    names = reference.evidence.manifest.inputs["names"]
    flips = tuple(
        Flip(names[images[0][i]], int(labels[i]) if known[i] else None, int(before[i]), int(after[i]))
        for i in np.flatnonzero(before != after)
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


def _numbers(values: Array) -> list[float | None]:
    """Floats, with None for what is not finite."""
    return [
        value if finite else None for value, finite in zip(values.tolist(), np.isfinite(values).tolist(), strict=True)
    ]


def _integers(values: Array) -> list[int | None]:
    return [None if value is None else int(value) for value in _numbers(values)]
