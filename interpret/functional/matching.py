"""Which kernel of one layer is which of another's: filters matched one to one by their cosine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float64]

SAME_ORDER = 0.9  # mean cosine in the order as it is, from which filters need no matching
ABOVE_CHANCE = 0.1  # that a matching must beat its null by
SHUFFLES = 20


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """Filters of one tensor, and which of the other's each of them is.

    Attributes:
        order: for each filter of the first the matched filter of the second, shape (C,).
        cosines: of the matched pairs, shape (C,); 0 where a filter is zero.
        by_index: mean cosine of filters with the same number; in this mean and the others a pair counts by the product
            of its norms, so that filters near zero, whose direction is noise, do not count.
        matched: mean cosine of the best one-to-one matching.
        null: what that reaches for filters without any relation: the second's, each with its entries shuffled.
        by: "index" (the order agrees), "cosine" (a matching beats its null), or None: there is no counterpart.
    """

    order: NDArray[np.intp]
    cosines: Array
    by_index: float
    matched: float
    null: float
    by: str | None


def match_filters(first: NDArray[Any], second: NDArray[Any], seed: int = 0) -> Matching:
    """Match filters one to one (Hungarian method), where their order does not agree and a match beats chance.

    Best matchings of unrelated filters are no small thing: 480 filters of nine entries reach a mean cosine of 0.67.
    So a matching counts only where it is 0.1 above that of shuffled entries (mean of twenty shuffles).

    Args:
        first: kernels, shape (C, ...).
        second: kernels of the same shape.
        seed: of the shuffles.

    Raises:
        ValueError: the shapes differ.

    Source: Kuhn 1955; Li et al. 2016, arXiv:1511.07543 (matching units of two networks).
    """
    if first.shape != second.shape:
        raise ValueError(f"kernels of shapes {first.shape} and {second.shape} have no filters to match one to one")
    (a, sizes), (b, other_sizes) = _directions(first), _directions(second)

    def mean(cosines: Array, order: NDArray[np.intp]) -> float:
        weights = sizes * other_sizes[order]
        return float((cosines * weights).sum() / weights.sum()) if weights.any() else 0.0

    own = np.arange(len(a))
    cosines = np.einsum("ci,ci->c", a, b)
    by_index = mean(cosines, own)
    if by_index >= SAME_ORDER:
        return Matching(own, cosines, by_index, by_index, np.nan, "index")
    order, best = _best(a, b)
    rng = np.random.default_rng(seed)
    shuffled = (_best(a, rng.permuted(b, axis=1)) for _ in range(SHUFFLES))
    null = float(np.mean([mean(chance, places) for places, chance in shuffled]))
    matched = mean(best, order)
    if matched < null + ABOVE_CHANCE:
        return Matching(own, cosines, by_index, matched, null, None)
    return Matching(order, best, by_index, matched, null, "cosine")


def _directions(kernels: NDArray[Any]) -> tuple[Array, Array]:
    """Filters as unit vectors, and their norms; zero, or not finite, filters as zeros."""
    flat = kernels.reshape(len(kernels), -1).astype(np.float64)
    flat = np.where(np.isfinite(flat).all(1, keepdims=True), flat, 0.0)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.where(norm > 0, norm, 1.0)), norm[:, 0]


def _best(a: Array, b: Array) -> tuple[NDArray[np.intp], Array]:
    similarity = a @ b.T
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return columns, similarity[rows, columns]
