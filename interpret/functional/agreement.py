"""How far two runs agree on what they look at and what they predict.

Maps are compared as they are stored, shape (..., H, W), one map or a stack. A value that cannot be computed is NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, ndtri

Array = NDArray[np.float64]


# Maps -----------------------------------------------------------------------------------------------------------------


def empty(maps: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a map shows nothing: no positive value. Shape (...)."""
    return np.asarray(~(maps.max((-2, -1)) > 0))


def pearson(first: NDArray[Any], second: NDArray[Any]) -> Array:
    """Pearson correlation of two maps, over their pixels.

    Args:
        first: shape (..., H, W).
        second: a shape that broadcasts with it.

    Returns:
        Shape (...), in [-1, 1]; NaN where a map is constant or not finite.
    """
    return np.asarray(np.clip(np.einsum("...i,...i->...", standardised(first), standardised(second)), -1.0, 1.0))


def standardised(maps: NDArray[Any]) -> Array:
    """Maps as unit vectors whose dot product is the Pearson correlation: pixels less their mean, over their norm.

    Returns:
        Shape (..., H * W); a row of NaN where the map is constant or not finite.
    """
    pixels = _flat(maps).astype(np.float64)
    size = np.sqrt(np.einsum("...i,...i->...", pixels, pixels))[..., None]
    pixels -= pixels.mean(-1, keepdims=True)
    norm = np.sqrt(np.einsum("...i,...i->...", pixels, pixels))[..., None]
    pixels /= np.where(norm > 1e-12 * size, norm, np.nan)
    return np.asarray(pixels)


def iou(first: NDArray[Any], second: NDArray[Any], share: float = 0.2) -> Array:
    """Intersection over union of the brightest pixels of two maps: the top k = ceil(share * H * W) of each.

    Of equal pixels the first in reading order counts as brighter. A map with fewer than k positive pixels has no such
    set (the choice among its zeros would be arbitrary). Two random maps reach share / (2 - share) = 0.11.

    Args:
        first: shape (..., H, W).
        second: same shape.
        share: part of the pixels that counts as bright.

    Returns:
        Shape (...), in [0, 1]; NaN where a map has fewer than k positive pixels or is not finite.
    """
    pixels = first.shape[-2] * first.shape[-1]
    k = math.ceil(share * pixels - 1e-9)  # 0.2 * 15 is 3.0000000000000004
    a, usable_a = _brightest(first, k)
    b, usable_b = _brightest(second, k)
    both = (a & b).sum(-1)
    return np.asarray(np.where(usable_a & usable_b, both / (2 * k - both), np.nan))


def centre_shift(first: NDArray[Any], second: NDArray[Any]) -> Array:
    """Distance between the centres of mass of two maps, as a share of the map's diagonal. Negative values count as 0.

    Returns:
        Shape (...), in [0, 1); NaN where a map is empty or not finite.
    """
    height, width = first.shape[-2:]
    return np.asarray(
        np.linalg.norm(_centre_of_mass(first) - _centre_of_mass(second), axis=-1) / math.hypot(height, width)
    )


def centred_gaussian(height: int, width: int) -> Array:
    """A map that looks at the middle whatever the image is: a Gaussian, sigma a quarter of each side.

    The null that every explanation has to beat: photographs have their object in the middle. Shape (H, W), maximum
    near 1.
    """
    y = (np.arange(height) - (height - 1) / 2) / (height / 4)
    x = (np.arange(width) - (width - 1) / 2) / (width / 4)
    return np.asarray(np.exp(-0.5 * (y[:, None] ** 2 + x**2)))


def _brightest(maps: NDArray[Any], k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mask of the k brightest pixels, shape (..., H * W), and whether the map has k positive ones, shape (...)."""
    pixels = _flat(maps)
    kth = np.partition(pixels, -k, axis=-1)[..., -k, None]
    above, ties = pixels > kth, pixels == kth
    # of the pixels equal to the k-th brightest, the first ones fill the set: what a stable sort gives, without the sort
    mask = above | (ties & (ties.cumsum(-1) <= k - above.sum(-1, keepdims=True)))
    return mask, ((pixels > 0).sum(-1) >= k) & np.isfinite(pixels).all(-1)


def _flat(maps: NDArray[Any]) -> NDArray[Any]:
    return maps.reshape(*maps.shape[:-2], maps.shape[-2] * maps.shape[-1])


def _centre_of_mass(maps: NDArray[Any]) -> Array:
    """(y, x) of the centre of mass in pixels, shape (..., 2); NaN where the map is empty or not finite."""
    weight = np.maximum(np.asarray(maps, np.float64), 0.0)
    total = weight.sum((-2, -1))
    usable = (total > 0) & np.isfinite(total)
    y = weight.sum(-1) @ np.arange(maps.shape[-2])
    x = weight.sum(-2) @ np.arange(maps.shape[-1])
    return np.where(usable[..., None], np.stack([y, x], -1) / np.where(usable, total, 1.0)[..., None], np.nan)


# Predictions ----------------------------------------------------------------------------------------------------------


def kl_divergence(reference: ArrayLike, other: ArrayLike) -> Array:
    """Kullback-Leibler divergence KL(p || q) in nats of the predicted distributions, from logits, in float64.

    Args:
        reference: logits of p, shape (..., K).
        other: logits of q, same shape.

    Returns:
        Shape (...), at least 0.

    >>> round(float(kl_divergence([0.0, 0.0], [0.0, np.log(3.0)])), 6)
    0.143841
    """
    log_p = log_softmax(np.asarray(reference, np.float64), axis=-1)
    log_q = log_softmax(np.asarray(other, np.float64), axis=-1)
    return np.asarray(np.maximum((np.exp(log_p) * (log_p - log_q)).sum(-1), 0.0))


def top_overlap(reference: NDArray[Any], other: NDArray[Any], k: int = 5) -> Array:
    """Jaccard overlap of the k highest classes of two sets of logits; of equal logits the lower class counts as higher.

    Args:
        reference: logits, shape (..., K).
        other: logits, same shape.
        k: how many classes; cut down to K.

    Returns:
        Shape (...), in [0, 1].
    """
    k = min(k, reference.shape[-1])
    masks = []
    for logits in (reference, other):
        mask = np.zeros(logits.shape, bool)
        np.put_along_axis(mask, np.argsort(-logits, axis=-1, kind="stable")[..., :k], True, axis=-1)
        masks.append(mask)
    both = (masks[0] & masks[1]).sum(-1)
    return np.asarray(both / (2 * k - both))


def flips(
    reference: NDArray[np.int64], other: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images were right and became wrong, and which were wrong and became right.

    Args:
        reference: classes that the reference predicts, shape (N,).
        other: classes that the other run predicts, same shape.
        labels: true classes, shape (N,); -1 where unknown, which is no flip.

    Returns:
        Negative flips and positive flips, shape (N,) each.

    Source: Yan et al. 2021, arXiv:2011.09161.
    """
    known = labels >= 0
    right, now_right = reference == labels, other == labels
    return known & right & ~now_right, known & ~right & now_right


def wilson_interval(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share: what `hits` out of `total` say about the share among all images.

    Raises:
        ValueError: total is 0, or hits lies outside 0 ... total.

    Source: Wilson 1927, Journal of the American Statistical Association 22.

    >>> [round(bound, 3) for bound in wilson_interval(0, 64)]
    [0.0, 0.057]
    """
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"a share needs 0 <= hits <= total and total > 0, not {hits} of {total}")
    z = float(ndtri(0.5 + confidence / 2))
    share = hits / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At 0 and at `total` the bounds are exactly 0 and 1; rounding must not push them outside.
    return 0.0 if hits == 0 else centre - half, 1.0 if hits == total else centre + half
