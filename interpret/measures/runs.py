"""One run: its arrays at hand, and what it says of each of its calls by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpret.evidence import Call, Evidence, TensorRecord
from interpret.functional import similarity
from interpret.measures.explanations import map_states

Array = NDArray[Any]
CHUNK_ENTRIES = 1 << 22  # entries of Gram matrices that are unpacked at once: 32 MiB
LARGEST_SPECTRUM = 256  # images up to which a spectrum is worth its time


@dataclass(frozen=True, slots=True)
class Health:
    """What one run says of one call by itself; None where it was not recorded or does not apply.

    FORMAT.md describes the fields; `leverage` is the share of the largest image in all variance, `effective_rank` that
    of the features' covariance, at most N - 1, `stage` counts the spatial sizes that ended before the call.
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
    effective_rank: float | None
    stage: int


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
            finite_or_none(self.column("zero_share")),
            finite_or_none(self.column("saturated_share")),
            _integers(self.column("nonfinite")),
            finite_or_none(self.column("batchnorm_z_median")),
            finite_or_none(self.column("batchnorm_z_p95")),
            finite_or_none(self.column("batchnorm_log_variance")),
            finite_or_none(self.noise_floor),
            finite_or_none(self._leverage()),
            finite_or_none(self._effective_rank()),
            self.stages,
        ]
        return tuple(Health(call, *values) for call, *values in zip(self.calls, *columns, strict=True))

    @cached_property
    def stages(self) -> list[int]:
        """How many stages ended before each call."""
        return [0, *accumulate(int(call.stage_end) for call in self.calls[:-1])]

    @cached_property
    def map_states(self) -> Mapping[str, Mapping[str, Array]]:
        """What became of every map; see :func:`interpret.measures.explanations.map_states`."""
        return map_states(self.evidence)

    def grams(self, positions: Array, images: Array | None, recentre: bool) -> Array:
        """Gram matrices of some calls over some images, shape (P, n, n) float64; NaN where not computable."""
        packed = self.array("layers", "gram")[positions]
        grams = similarity.unpack_gram(packed, self.count, images)
        grams = grams * self.array("layers", "gram_scale")[positions, None, None]
        return similarity.centre(grams) if recentre else grams

    def _effective_rank(self) -> Array:
        ranks = np.full(len(self.calls), np.nan)
        if self.evidence.has("layers", "gram") and self.count <= LARGEST_SPECTRUM:
            size = max(1, CHUNK_ENTRIES // self.count**2)
            for start in range(0, len(ranks), size):
                positions = np.arange(start, min(start + size, len(ranks)))
                ranks[positions] = similarity.effective_rank(self.grams(positions, None, recentre=False))
        return ranks

    def _leverage(self) -> Array:
        if not self.evidence.has("layers", "gram"):
            return np.full(len(self.calls), np.nan)
        rows = np.arange(self.count)
        diagonal = self.array("layers", "gram")[:, rows * self.count - rows * (rows - 1) // 2].astype(np.float64)
        total = diagonal.sum(1)
        return np.where(total > 0, diagonal.max(1) / np.where(total > 0, total, 1.0), np.nan)


def finite_or_none(values: Array) -> list[float | None]:
    """Floats, with None for what is not finite."""
    return [
        value if finite else None for value, finite in zip(values.tolist(), np.isfinite(values).tolist(), strict=True)
    ]


def _integers(values: Array) -> list[int | None]:
    return [None if value is None else int(value) for value in finite_or_none(values)]
