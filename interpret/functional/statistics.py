"""Finishes the sums that collectors emit: merged moments, histograms on shared edges, sketches of weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SKETCH_BUCKETS = 1024
SKETCH_SEED = 20170  # part of the bundle format: sketches of different seeds cannot be compared
_OCTAVE_BINS = 4
_LOWEST, _HIGHEST = -20, 4  # octaves 2^-20 ... 2^4
_SIDE = (_HIGHEST - _LOWEST) * _OCTAVE_BINS + 1  # one more: what lies at or beyond 2^4


@dataclass(slots=True)
class Moments:
    """Count, mean and sum of squared deviations per channel, merged exactly from parts.

    Attributes:
        count: number of values per channel.
        mean: shape (C,), float64.
        deviations: sum of (x - mean)^2, shape (C,), float64.

    Source: Chan, Golub & LeVeque 1979: M2 = M2_a + M2_b + d^2 n_a n_b / n, d = mean_b - mean_a.
    """

    count: int
    mean: Array
    deviations: Array

    def merge(self, other: Moments) -> Moments:
        """The moments of both samples together."""
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        deviations = self.deviations + other.deviations + shift**2 * (self.count * other.count / count)
        return Moments(count, mean, deviations)

    @property
    def variance(self) -> Array:
        """Population variance, shape (C,)."""
        return self.deviations / max(self.count, 1)


def histogram_edges() -> Array:
    """The fixed histogram edges, shape (197,): four bins per power of two from 2^-20 to 2^4, mirrored about zero.

    The middle bins, between -2^-20 and 2^-20, hold what is nearly zero, split by sign (a zero counts as positive or
    negative by its sign bit); the outermost edges are infinite. Bins follow the leading bits of a float32, so counting
    needs no search and any two runs share them.
    """
    octaves = np.arange(_LOWEST, _HIGHEST)[:, None]
    inner = (2.0**octaves * (1 + np.arange(_OCTAVE_BINS) / _OCTAVE_BINS)).ravel()
    positive = np.concatenate([inner, [2.0**_HIGHEST, np.inf]])
    return np.concatenate([-positive[::-1], [0.0], positive])


def histogram(values: Array) -> Array:
    """Counts of float32 values in the bins of :func:`histogram_edges`, shape (196,) int32; NaN is left out."""
    flat = np.ascontiguousarray(values, np.float32).ravel()
    if np.isnan(flat).any():
        flat = flat[~np.isnan(flat)]
    bits = flat.view(np.uint32)
    # sign, exponent and two bits of the mantissa: 2048 bins in steps of a quarter octave
    fine = np.zeros(1 << 11, np.int64)
    for start in range(0, len(bits), 1 << 20):  # bincount works on int64: bounded copies
        fine += np.bincount(bits[start : start + (1 << 20)] >> 21, minlength=1 << 11)
    first = (127 + _LOWEST) * _OCTAVE_BINS
    last = first + _SIDE - 1
    sides = [
        np.concatenate([[side[:first].sum()], side[first:last], [side[last:].sum()]]) for side in fine.reshape(2, -1)
    ]
    return np.concatenate([sides[1][::-1], sides[0]]).astype(np.int32)


def count_sketch(values: Array) -> Array:
    """A linear sketch of a tensor, shape (1024,) float32: sketches of equal shapes subtract as the tensors do.

    Rows of 1024 entries get random signs, are rotated by a random shift and added up, so two entries share a bucket
    only across rows, with probability 1/1024: norm(sketch(a) - sketch(b)) estimates norm(a - b) with a relative
    standard deviation of about 1/sqrt(2 * 1024).

    Source: Charikar, Chen & Farach-Colton 2002 (count sketch), with rotation as the bucket function.
    """
    flat = np.ascontiguousarray(values, np.float32).ravel()
    signs, shifts = _sketch_functions()
    rows = -(-len(flat) // SKETCH_BUCKETS)
    sketch = np.zeros(2 * SKETCH_BUCKETS)
    for start in range(0, rows, len(signs)):
        part = flat[start * SKETCH_BUCKETS : (start + len(signs)) * SKETCH_BUCKETS]
        if len(part) % SKETCH_BUCKETS:
            part = np.concatenate([part, np.zeros(-len(part) % SKETCH_BUCKETS, np.float32)])
        bits = part.view(np.uint32).reshape(-1, SKETCH_BUCKETS)
        signed = (bits ^ signs[: len(bits)]).view(np.float32)
        for row, shift in zip(signed, np.roll(shifts, -start)[: len(signed)].tolist(), strict=True):
            sketch[shift : shift + SKETCH_BUCKETS] += row
    return (sketch[:SKETCH_BUCKETS] + sketch[SKETCH_BUCKETS:]).astype(np.float32)


@cache
def _sketch_functions() -> tuple[Array, Array]:
    """Sign bits of 1024 rows, (1024, 1024) uint32, and shifts of 65536 rows; both repeat with their own period."""
    generator = np.random.Generator(np.random.Philox(key=SKETCH_SEED))
    bits = np.unpackbits(np.frombuffer(generator.bytes(SKETCH_BUCKETS**2 // 8), np.uint8))
    shifts = generator.integers(0, SKETCH_BUCKETS, 1 << 16)
    return bits.astype(np.uint32).reshape(SKETCH_BUCKETS, SKETCH_BUCKETS) << 31, shifts
