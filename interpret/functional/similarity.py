"""How alike two representations are, from stored Gram matrices alone.

A Gram matrix K of a call is N x N: the inner products of the N images' features, after the mean over the images was
taken off. Every function takes one matrix or a stack of them, shape (..., N, N), in any order of the leading axes,
and returns float64. A value that cannot be computed (too few images, a constant call, values that are not finite) is
NaN; the reading side writes it as null with a reason.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

Array = NDArray[np.float64]

MINIMUM_IMAGES = 4  # the debiased estimate divides by n - 3
# Off-diagonal structure below this share of the whole matrix is the rounding of float32 storage, not a representation.
ROUNDING = 1e-6


def gram(features: ArrayLike) -> Array:
    """Gram matrix of centred features: K = Xc Xc^T, Xc = X - mean over the images.

    The features are centred before the product: centring K afterwards loses all digits where the mean is large.

    Args:
        features: X, shape (..., N, D).

    Returns:
        Shape (..., N, N).

    >>> gram([[1.0], [3.0]])
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean(-2, keepdims=True)
    return np.asarray(centred @ np.swapaxes(centred, -1, -2))


def unpack_gram(packed: NDArray[Any], count: int, images: NDArray[np.intp] | None = None) -> Array:
    """Whole Gram matrices from stored upper triangles.

    Args:
        packed: upper triangles row by row, shape (..., N(N+1)/2).
        count: N.
        images: the images to keep, in the order wanted; None keeps all as they are.

    Returns:
        Shape (..., N, N), or (..., n, n) for n chosen images: the sub-matrix, not yet centred again.

    >>> unpack_gram(np.array([1.0, 2.0, 3.0]), 2)
    array([[1., 2.],
           [2., 3.]])
    """
    place = np.zeros((count, count), np.intp)
    place[np.triu_indices(count)] = np.arange(count * (count + 1) // 2)
    place = place + np.triu(place, 1).T
    if images is not None:
        place = place[np.ix_(images, images)]
    return np.asarray(packed, np.float64)[..., place]


def centre(gram: Array) -> Array:
    """Doubly centred Gram matrix H K H, H = I - 1/n: what the features centred over these images would give.

    >>> centre(np.eye(2))
    array([[ 0.5, -0.5],
           [-0.5,  0.5]])
    """
    rows = gram.mean(-1, keepdims=True)
    return np.asarray(gram - rows - np.swapaxes(rows, -1, -2) + rows.mean(-2, keepdims=True))


def u_centre(gram: Array) -> Array:
    """U-centred Gram matrix: zero diagonal, and rows that sum to zero.

    With A = K off the diagonal and 0 on it, and r_i = sum_j A_ij / (n - 2):
    U_ij = A_ij - r_i - r_j + sum(A) / ((n - 1)(n - 2)) for i != j, and 0 on the diagonal.

    Args:
        gram: shape (..., N, N), N >= 3; raw or centred Grams give the same.

    Raises:
        ValueError: there are fewer than three images.

    Source: Szekely and Rizzo 2014, Annals of Statistics 42, definition 2.
    """
    count = gram.shape[-1]
    if count < 3:
        raise ValueError(f"U-centring divides by n - 2: it needs at least 3 images, not {count}")
    off_diagonal = gram * ~np.eye(count, dtype=bool)
    rows = off_diagonal.sum(-1, keepdims=True) / (count - 2)
    total = off_diagonal.sum((-2, -1), keepdims=True) / ((count - 1) * (count - 2))
    return np.asarray((off_diagonal - rows - np.swapaxes(rows, -1, -2) + total) * ~np.eye(count, dtype=bool))


def hsic_u(first: Array, second: Array) -> Array:
    """Unbiased Hilbert-Schmidt independence criterion: <U(K), U(L)>_F / (n (n - 3)).

    Args:
        first: Gram matrix K, shape (..., N, N), N >= 4.
        second: Gram matrix L over the same images in the same order, same shape.

    Raises:
        ValueError: there are fewer than four images.

    Source: Song et al. 2012, Journal of Machine Learning Research 13, theorem 2.
    """
    count = first.shape[-1]
    if count < MINIMUM_IMAGES:
        raise ValueError(f"the unbiased HSIC divides by n - 3: it needs at least {MINIMUM_IMAGES} images, not {count}")
    return np.asarray((u_centre(first) * u_centre(second)).sum((-2, -1)) / (count * (count - 3)))


def cka_vectors(grams: Array) -> Array:
    """U-centred Grams as unit vectors: the dot product of two of them is their debiased CKA.

    Returns:
        Shape (..., N * N); a row of NaN where CKA cannot be computed: N < 4, a constant call, values that are not
        finite.
    """
    count = grams.shape[-1]
    flat = (*grams.shape[:-2], count * count)
    if count < MINIMUM_IMAGES:
        return np.full(flat, np.nan)
    vectors = u_centre(grams).reshape(flat)
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    whole = np.linalg.norm(grams.reshape(flat), axis=-1, keepdims=True)
    computable = norm > ROUNDING * whole  # also False for NaN
    return np.where(computable, vectors / np.where(computable, norm, 1.0), np.nan)


def linear_cka(first: Array, second: Array) -> Array:
    """Debiased linear CKA: HSIC_u(K, L) / sqrt(HSIC_u(K, K) HSIC_u(L, L)).

    1 for representations that agree up to rotation and scale; around 0, and possibly below, for independent ones,
    however many features there are. The biased form comes out at 0.98 for pure noise with 64 images and 4096
    features.

    Args:
        first: Gram matrix K, shape (..., N, N).
        second: Gram matrix L over the same images in the same order, same shape.

    Returns:
        Shape (...); NaN where it cannot be computed.

    Source: Kornblith et al. 2019, arXiv:1905.00414, with the estimate of Song et al. 2012; see Murphy et al. 2024,
    arXiv:2405.01012.
    """
    return cka_of(cka_vectors(first), cka_vectors(second))


def cka_of(first: Array, second: Array) -> Array:
    """Debiased CKA of representations given as unit vectors; see :func:`cka_vectors`. Shape (...)."""
    return np.asarray(np.minimum(np.einsum("...i,...i->...", first, second), 1.0))


def cka_matrix(first: Array, second: Array) -> Array:
    """Debiased CKA of every call of one run with every call of another, by one matrix product.

    Args:
        first: Grams of L calls, shape (L, N, N).
        second: Grams of M calls over the same images in the same order, shape (M, N, N).

    Returns:
        Shape (L, M); NaN where it cannot be computed.
    """
    return np.minimum(cka_vectors(first) @ cka_vectors(second).T, 1.0)


def permutation_p95(first: Array, second: Array, permutations: int = 100, seed: int = 0) -> Array:
    """95th percentile of debiased CKA when the images of one side are shuffled: what chance alone reaches.

    The mean of that distribution is 0 and its standard deviation sqrt(2 / (n (n - 3))), whatever the two matrices are.

    Args:
        first: Gram matrix K, shape (..., N, N).
        second: Gram matrix L over the same images in the same order, same shape.
        permutations: how many shuffles; all pairs of matrices share them.
        seed: of the shuffles.

    Returns:
        Shape (...); NaN where CKA cannot be computed.
    """
    return chance_of(cka_vectors(first), cka_vectors(second), permutations, seed)


def chance_of(first: Array, second: Array, permutations: int = 100, seed: int = 0) -> Array:
    """What :func:`permutation_p95` gives, of representations given as unit vectors; see :func:`cka_vectors`."""
    count = math.isqrt(first.shape[-1])
    # float32 halves the memory traffic, which is the whole cost; a percentile of chance does not need more digits.
    fixed, shuffled = first.astype(np.float32), second.astype(np.float32)
    rng = np.random.default_rng(seed)
    chance = np.empty((permutations, *fixed.shape[:-1]), np.float32)
    for index in range(permutations):
        order = rng.permutation(count)
        chance[index] = np.einsum("...i,...i->...", fixed, shuffled[..., np.add.outer(order * count, order).ravel()])
    return np.asarray(np.quantile(chance, 0.95, axis=0), np.float64)


def gram_change(reference: Array, other: Array) -> Array:
    """Relative change of the Gram matrix, with its scale: g = |K - L|_F / |K|_F.

    CKA does not see a call whose output is scaled or slightly shifted; this does. Where the reference is constant (K
    = 0) the other's norm takes its place, so that a call which came alive gives 1; two constant calls give 0.

    Args:
        reference: centred Gram matrix K, shape (..., N, N).
        other: centred Gram matrix L over the same images in the same order, same shape.

    Returns:
        Shape (...); NaN where a Gram is not finite.
    """
    difference = np.linalg.norm(reference - other, axis=(-2, -1))
    return relative(difference, np.linalg.norm(reference, axis=(-2, -1)), np.linalg.norm(other, axis=(-2, -1)))


def mean_change(
    mean: Array, other_mean: Array, variance: Array, other_variance: Array, channels: NDArray[np.int64]
) -> Array:
    """Change of the channel means in units of the reference's root mean square.

    m = |u - v| / sqrt(|u|^2 + s),  s = the sum of the channels' variances.

    A constant that is added to a channel leaves the centred Gram untouched; this sees it. The measure divides by the
    whole root mean square and not by |u|, because |u| is close to 0 behind a normalization.

    Args:
        mean: u, the channel means of L calls joined end to end, shape (C_1 + ... + C_L,).
        other_mean: v, same shape.
        variance: the reference's variances of the channels, same shape.
        other_variance: the other's, same shape.
        channels: C_1 ... C_L, shape (L,).

    Returns:
        Shape (L,); 0 where both are zero throughout; NaN where a mean is not finite.

    >>> mean_change(np.array([3.0, 0.0]), np.array([3.0, 0.1]), np.array([16.0, 0.0]), np.zeros(2), np.array([2]))
    array([0.02])
    """
    call = np.repeat(np.arange(len(channels)), channels)

    def norm(squares: Array) -> Array:
        return np.asarray(np.sqrt(np.bincount(call, squares, len(channels))))

    u, v = np.asarray(mean, np.float64), np.asarray(other_mean, np.float64)
    with np.errstate(invalid="ignore"):  # infinite means: the result is NaN, as promised
        return relative(norm((u - v) ** 2), norm(u**2 + variance), norm(v**2 + other_variance))


def sketch_change(reference: Array, other: Array, norm: Array, other_norm: Array) -> Array:
    """Relative change of T tensors, estimated from their sketches: |s(W) - s(W')| / |W|.

    Args:
        reference: sketches of the tensors W, shape (T, S).
        other: sketches of the tensors W', same shape.
        norm: exact norms |W|, shape (T,).
        other_norm: exact norms |W'|, shape (T,); they take the place of |W| where that is 0.

    Returns:
        Shape (T,); NaN where a tensor is not finite.
    """
    difference = np.linalg.norm(np.asarray(reference, np.float64) - np.asarray(other, np.float64), axis=-1)
    return relative(difference, np.asarray(norm, np.float64), np.asarray(other_norm, np.float64))


def sketch_cosine(change: Array, norm: Array, other_norm: Array) -> Array:
    """Cosine of T tensors from the estimated relative change: (|W|^2 + |W'|^2 - |W - W'|^2) / (2 |W| |W'|).

    The norms are exact, so the error is that of the change alone: 1 for equal tensors, and off by about 0.03 for
    unrelated ones.

    Args:
        change: |W - W'| / |W|, of :func:`sketch_change`, shape (T,).
        norm: |W|, shape (T,).
        other_norm: |W'|, shape (T,).

    Returns:
        Shape (T,), in [-1, 1]; NaN where a tensor is zero throughout or not finite.
    """
    product = norm * other_norm
    cosine = (norm**2 + other_norm**2 - (change * norm) ** 2) / np.where(product > 0, 2 * product, 1.0)
    return np.asarray(np.where(product > 0, np.clip(cosine, -1.0, 1.0), np.nan))


def row_changes(reference: Array, other: Array) -> Array:
    """How far each image's row of the Gram matrix moved: |K_i - L_i| / |K_i|.

    Args:
        reference: centred Gram matrix K, shape (..., N, N).
        other: centred Gram matrix L over the same images in the same order, same shape.

    Returns:
        Shape (..., N); NaN where a Gram is not finite.
    """
    return relative(
        np.linalg.norm(reference - other, axis=-1), *(np.linalg.norm(k, axis=-1) for k in (reference, other))
    )


def relative(difference: Array, size: Array, other_size: Array) -> Array:
    """A difference in units of the reference's size, or of the other's where the reference's is 0; 0 where both are.

    NaN where nothing finite comes out.

    >>> relative(np.array([1.0, 2.0, 0.0]), np.array([4.0, 0.0, 0.0]), np.array([5.0, 2.0, 0.0]))
    array([0.25, 1.  , 0.  ])
    """
    scale = np.where(size == 0, other_size, size)
    change = difference / np.where(scale == 0, 1.0, scale)
    return np.where(np.isfinite(change), change, np.nan)


def leverage(gram: Array) -> Array:
    """Share of the largest image in all variance: max_i K_ii / tr(K). Above 0.25, one image dominates every similarity.

    Returns:
        Shape (...), between 1/N and 1; NaN for a constant call.
    """
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
    total = diagonal.sum(-1)
    return np.asarray(np.where(total > 0, diagonal.max(-1) / np.where(total > 0, total, 1.0), np.nan))


def effective_rank(gram: Array) -> Array:
    """Effective rank of the features' covariance: exp(-sum p log p), p = the eigenvalues of K over their sum.

    The spectrum is that of the covariance (squared singular values). RankMe (arXiv:2210.02885) takes the singular
    values themselves and comes out higher. At most N - 1.

    Returns:
        Shape (...); NaN for a constant call or one that is not finite.

    Source: Roy and Vetterli 2007, EUSIPCO, with the covariance's spectrum.
    """
    finite = np.isfinite(gram).all((-2, -1), keepdims=True)
    eigenvalues = np.maximum(np.linalg.eigvalsh(np.where(finite, gram, 0.0)), 0.0)
    total = eigenvalues.sum(-1, keepdims=True)
    share = eigenvalues / np.where(total > 0, total, 1.0)
    return np.asarray(np.where(total[..., 0] > 0, np.exp(entr(share).sum(-1)), np.nan))


def mutual_neighbours(first: Array, second: Array, k: int = 5) -> Array:
    """Share of each image's k nearest neighbours that both representations agree on, averaged over the images.

    A second opinion beside CKA that one outlying image cannot move. Two unrelated representations share k / (n - 1).
    Distances come from the Gram: d_ij^2 = K_ii + K_jj - 2 K_ij.

    Args:
        first: Gram matrix K, shape (..., N, N).
        second: Gram matrix L over the same images in the same order, same shape.
        k: neighbours, at most N - 1.

    Returns:
        Shape (...), in [0, 1]; NaN for fewer than four images, a constant call, or one that is not finite.

    Source: Huh et al. 2024, arXiv:2405.07987.
    """
    count = first.shape[-1]
    if count < MINIMUM_IMAGES:
        return np.full(first.shape[:-2], np.nan)
    masks = []
    for gram in (first, second):
        diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
        distance = diagonal[..., :, None] + diagonal[..., None, :] - 2 * gram
        distance = np.where(np.eye(count, dtype=bool), np.inf, distance)
        nearest = np.argpartition(distance, min(k, count - 1) - 1, -1)[..., : min(k, count - 1)]
        mask = np.zeros(gram.shape, bool)
        np.put_along_axis(mask, nearest, True, -1)
        masks.append(mask)
    share = (masks[0] & masks[1]).sum((-2, -1)) / (count * min(k, count - 1))
    usable = [np.isfinite(gram).all((-2, -1)) & (np.trace(gram, axis1=-2, axis2=-1) > 0) for gram in (first, second)]
    return np.asarray(np.where(usable[0] & usable[1], share, np.nan))


def chance_p95(count: int) -> float:
    """About what debiased CKA of N images reaches by chance in one of twenty shuffles: 1.645 sqrt(2 / (n (n - 3)))."""
    return float(1.645 * np.sqrt(2 / (count * (count - 3)))) if count >= MINIMUM_IMAGES else np.nan


def monotone_alignment(scores: Array) -> list[tuple[int, int]]:
    """The one-to-one pairs, in order on both sides, whose scores add up to the most; gaps cost nothing.

    Args:
        scores: shape (L, M); what is not above 0, or NaN, is never paired.

    Returns:
        (row, column) pairs, both rising.

    Source: Needleman and Wunsch 1970, Journal of Molecular Biology 48.

    >>> monotone_alignment(np.array([[0.9, 0.0, 0.0], [0.0, 0.1, 0.8]]))
    [(0, 0), (1, 2)]
    """
    gains = np.where(scores > 0, scores, 0.0)
    rows, columns = gains.shape
    best = np.zeros((rows + 1, columns + 1))
    for row in range(rows):
        # left to right, the best that ends in a column is the running maximum of: from above, or paired here
        best[row + 1, 1:] = np.maximum.accumulate(np.maximum(best[row, 1:], best[row, :-1] + gains[row]))
    pairs = []
    row, column = rows, columns
    while row and column:
        if best[row, column] == best[row - 1, column]:
            row -= 1
        elif best[row, column] == best[row, column - 1]:
            column -= 1
        else:
            row, column = row - 1, column - 1
            pairs.append((row, column))
    return pairs[::-1]
