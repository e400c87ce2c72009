"""Gram matrices of the probe images at every call, and how far they move by themselves."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from interpret.collectors import Array, Collector, Observation, Record, Setting, arrays
from interpret.evidence import Call
from interpret.functional.similarity import gram, gram_change, mean_change

FEATURES = 4096
GRIDS = (7, 4, 2, 1)
IN_MEMORY = 1 << 26
TWO_SUMS = 28 * 28  # positions from which two sums beat torch's pooling, up to three times


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where the features of some images lie in the file."""

    offset: int
    count: int
    width: int


class Gram(Collector):
    """Keeps the pooled features of every call until the end, then their centred Gram matrix.

    The features lie in a temporary file as soon as they are many: a matrix needs those of all images at once, but of
    one call at a time.

    A matrix of N x N is a sufficient statistic for every rotation-invariant similarity, so comparing needs neither
    model nor images. Pooling depends on the shape alone, or two runs would not be comparable.
    """

    name = "gram"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.features: list[list[_Rows]] = [[] for _ in setting.trace.calls]
        self.repeated: list[list[_Rows]] = [[] for _ in setting.trace.calls]
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # also where the audit fails
        self._last: _Rows | None = None

    def observe(self, seen: Observation) -> None:
        """Pool one chunk."""
        self.features[seen.call.position].append(self._pooled(seen))

    def repeat(self, seen: Observation) -> None:
        """Pool one repeated image."""
        self.repeated[seen.call.position].append(self._pooled(seen))

    def _pooled(self, seen: Observation) -> _Rows:
        if not seen.same_output or self._last is None:
            features = pool(seen.output, seen.call).numpy()
            self._last = _Rows(self._file.tell(), *features.shape)
            self._file.write(np.ascontiguousarray(features).data)
        return self._last

    def _read(self, parts: Sequence[_Rows]) -> Array:
        """Features (n, p) in float64."""
        rows = []
        for part in parts:
            self._file.seek(part.offset)
            values = np.frombuffer(self._file.read(4 * part.count * part.width), np.float32)
            rows.append(values.reshape(part.count, part.width))
        return np.concatenate(rows).astype(np.float64) if rows else np.empty((0, 0))

    def record(self) -> Record:
        """``gram``, ``gram_scale``, ``pooling`` and the noise floor."""
        count, calls = self.setting.count, self.setting.trace.calls
        self._last = None
        upper = np.triu_indices(count)
        packed = np.zeros((len(calls), len(upper[0])), np.float32)
        scale = np.full(len(calls), np.nan)
        noise = np.full((2, len(calls)), np.nan)
        for position in range(len(calls)):
            features = self._read(self.features[position])
            if len(features) != count or not np.isfinite(features).all():
                continue
            matrix = gram(features)
            scale[position] = np.abs(matrix).max()
            if scale[position] > 0:
                packed[position] = (matrix / scale[position])[upper]
            repeated = self._read(self.repeated[position])
            if repeated.shape[1:] == features.shape[1:] and np.isfinite(repeated).all():
                noise[:, position] = _noise(features[: len(repeated)], repeated)
        pooling = np.array([grid(call) or 0 for call in calls], np.int16)
        content = {
            "gram": packed,
            "gram_scale": scale,
            "pooling": pooling,
            "noise_gram": noise[0],
            "noise_mean": noise[1],
        }
        return arrays("layers", content)


def grid(call: Call) -> int | None:
    """The side g of the grid that a call's output is averaged to, or None where it is not spatial."""
    if call.spatial_shape is None:
        return None
    return next((side for side in GRIDS if call.channels * side**2 <= FEATURES), 1)


def pool(output: Tensor, call: Call) -> Tensor:
    """Features of every image, shape (n, p), float32.

    Spatial outputs are averaged to the grid, sequences to one mean per channel; of tokens the first and the mean of the
    others are taken; vectors stay as they are, and anything else is averaged to 4096 numbers.
    """
    side = grid(call)
    if side is not None:
        pooled = _averaged(output if call.layout == "NCHW" else output.permute(0, 3, 1, 2), side)
    elif call.layout == "NTC":
        pooled = torch.stack([output[:, 0], output[:, 1:].mean(1) if output.shape[1] > 1 else output[:, 0]], 1)
    elif call.layout == "NCL":
        pooled = output.mean(2)
    elif call.layout == "NC":
        pooled = output
    else:
        flat = output.reshape(len(output), 1, -1)
        pooled = functional.adaptive_avg_pool1d(flat.float(), min(FEATURES, flat.shape[2]))
    # a copy: the output may be overwritten, and must not be kept alive
    return pooled.flatten(1).to("cpu", torch.float32, copy=True)


def _averaged(features: Tensor, side: int) -> Tensor:
    """Adaptive average pooling of (n, C, H, W) to at most side x side; two plain sums where the grid divides it."""
    features = features.float()  # sums of half-precision numbers overflow
    count, channels, height, width = features.shape
    if height % side or width % side or height * width < TWO_SUMS:
        return functional.adaptive_avg_pool2d(features, (min(side, height), min(side, width)))
    rows = features.reshape(count * channels, side, height // side, width).sum(2)
    sums = rows.reshape(count, channels, side, side, width // side).sum(4)
    return sums / (height * width / side**2)


def _noise(features: Array, repeated: Array) -> tuple[float, float]:
    """Change of the Gram matrix and of the features' means between two passes over the same images."""
    width = np.array([features.shape[1]])
    means = mean_change(features.mean(0), repeated.mean(0), features.var(0), repeated.var(0), width)
    return float(gram_change(gram(features), gram(repeated))), float(means[0])
