"""How far a map can be trusted: areas under curves, confidence changes, ranks, and what beats a control.

A value that cannot be computed is NaN. Stacks of any number of leading axes are taken everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtrc

Array = NDArray[np.float64]


def pixel_counts(pixels: int, steps: int) -> NDArray[np.int64]:
    """How many pixels are altered after each step, shape (S + 1,): floor(i P / S), from 0 to all.

    Raises:
        ValueError: there are no steps.

    >>> pixel_counts(10, 4).tolist()
    [0, 2, 5, 7, 10]
    """
    if steps < 1:
        raise ValueError(f"a curve needs at least 1 step, not {steps}")
    return np.arange(steps + 1) * pixels // steps


def auc(curve: ArrayLike, fraction: ArrayLike) -> Array:
    """Area under a curve by the trapezoidal rule, shape (...).

    Args:
        curve: values, shape (..., S + 1).
        fraction: where they were taken, increasing, shape (S + 1,).

    >>> float(auc([1.0, 0.5, 0.0], [0.0, 0.5, 1.0]))
    0.5
    """
    values = np.asarray(curve, np.float64)
    return np.asarray((values[..., 1:] + values[..., :-1]) / 2 @ np.diff(np.asarray(fraction, np.float64)))


def confidence_drop(before: ArrayLike, after: ArrayLike) -> Array:
    """Average drop of one image: max(0, f - f') / f, in [0, 1]; 0 where f = 0.

    Args:
        before: f, probability of the target on the image.
        after: f', on the image times its heatmap; a shape that broadcasts.

    Source: Chattopadhay et al. 2018, section 4.1, arXiv:1710.11063.
    """
    f, masked = np.broadcast_arrays(np.asarray(before, np.float64), np.asarray(after, np.float64))
    return np.asarray(np.divide(np.maximum(f - masked, 0.0), f, out=np.zeros_like(f), where=f != 0))


def ranks(values: NDArray[Any]) -> Array:
    """Ranks from 1 along the last axis, smallest first; equal values share the mean of their ranks."""
    # as scipy.stats.rankdata, whose import alone takes a second or two
    rows = values.reshape(-1, values.shape[-1])
    result = np.empty(rows.shape)
    for row, rank in zip(rows, result, strict=True):
        ordered = np.sort(row)
        rank[:] = (np.searchsorted(ordered, row, "left") + np.searchsorted(ordered, row, "right") + 1) / 2
    return result.reshape(values.shape)


def spearman(first: NDArray[Any], second: NDArray[Any]) -> Array:
    """Spearman's rank correlation of two maps over their pixels.

    Args:
        first: shape (..., H, W).
        second: same shape.

    Returns:
        Shape (...), in [-1, 1]; NaN where a map is constant or not finite.
    """
    a, b = _unit_ranks(first), _unit_ranks(second)
    return np.asarray(np.clip(np.einsum("...i,...i->...", a, b), -1.0, 1.0))


def _unit_ranks(maps: NDArray[Any]) -> Array:
    """Ranks of the pixels less their mean, over their norm, shape (..., H * W)."""
    pixels = maps.reshape(*maps.shape[:-2], -1)
    deviations = ranks(pixels) - (pixels.shape[-1] + 1) / 2  # exactly 0 where all are equal
    norm = np.linalg.norm(deviations, axis=-1, keepdims=True)
    usable = (norm > 0) & np.isfinite(pixels).all(-1, keepdims=True)
    return np.asarray(deviations / np.where(usable, norm, np.nan))


def mean_rank(scores: NDArray[Any], *, higher_is_better: bool) -> Array:
    """Place of each method, averaged over images: 1 for one that is best on every image.

    Args:
        scores: of M methods on D images, shape (M, D). NaN comes last.
        higher_is_better: true for insertion, false for deletion and drop.

    Returns:
        Shape (M,), in [1, M]; methods with equal scores share the mean of their places.
    """
    costs = np.where(np.isnan(scores), np.inf, -scores if higher_is_better else scores)
    return np.asarray(ranks(costs.T).mean(0))


def beats(scores: NDArray[Any], controls: NDArray[Any], *, higher_is_better: bool) -> tuple[Array, Array]:
    """Share of the images where a map beats its control, and the p-value of a one-sided sign test over the images.

    p = P(at least as many wins | Binomial(D, 1/2)). Ties and NaN count as defeats, which is on the safe side: a blank
    map beats nothing. The smallest p that D images can give is 2^-D: four images can never reach 0.05, five can
    (0.03), and only if all of them are won. With several methods and controls, the smallest of many p-values is small
    by chance; multiply it by their number.

    Args:
        scores: of the map, image by image, shape (..., D).
        controls: of the control on the same images; a shape that broadcasts.
        higher_is_better: true for insertion, false for deletion and drop.

    Returns:
        Shape (...) each, in [0, 1].

    Raises:
        ValueError: there is no image.

    >>> share, p = beats(np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.5, 0.5, 0.5, 0.5]), higher_is_better=True)
    >>> float(share), float(p)
    (0.75, 0.3125)
    """
    won = scores > controls if higher_is_better else scores < controls
    count = won.shape[-1]
    if count == 0:
        raise ValueError("nothing can be said about a map without an image")
    wins = won.sum(-1)
    return np.asarray(wins / count), np.asarray(bdtrc(wins - 1.0, count, 0.5))
