"""Class activation map formulas: activations and gradients in, raw maps out.

Six methods are sums over channels, L = ReLU(sum_k f(A_k, G_k)), so each is written once as the contribution of a block
of channels, and :func:`gradient_maps` reads activations and gradients once for all of them, block by block while they
are in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from interpret.errors import LayerError, did_you_mean

BLOCK_ENTRIES = 1 << 16  # entries of one block of channels: 256 KiB in float32, four such blocks fit a common L2 cache
SUBSPACE_SIDE = 48  # from here on subspace iteration beats LAPACK's full decomposition
GRAD_CAM_PLUS_PLUS_EPSILON = (
    1e-6  # the peers' constants: with others the maps of the literature's code cannot be reproduced
)
XGRAD_CAM_EPSILON = 1e-7


def grad_cam(activations: Tensor, gradients: Tensor, products: Tensor) -> Tensor:
    """Grad-CAM: sum_k a_k A_k with a_k = mean over positions of dY/dA_k.

    Args:
        activations: A, a block of channels of one image, shape (C, M) with M = H W positions.
        gradients: dY/dA of the target score before softmax, same shape.
        products: gradients * activations, same shape.

    Returns:
        The block's contribution to the map, shape (M,), in the units of Y; the ReLU comes after the sum over blocks.

    Source: Selvaraju et al. 2017, eq. 1-2, arXiv:1610.02391.
    """
    return gradients.mean(1) @ activations


def grad_cam_plus_plus(activations: Tensor, gradients: Tensor, products: Tensor) -> Tensor:
    """Grad-CAM++: sum_k w_k A_k with w_k = sum over positions of a ReLU(G), a = G^2 / (2 G^2 + S_k G^3 + eps).

    S_k is the sum of A_k. Gradients of trained networks are often small next to sqrt(eps): then eps decides the
    weights, as in the peers. Shapes as in :func:`grad_cam`.

    Source: Chattopadhay et al. 2018, eq. 19 (which assumes exp(Y)), arXiv:1710.11063.
    """
    # in float64: where S_k < 0 the quotient has poles, and near one float32 rounding alone would move the map by 1e-3
    wide = gradients.double()
    sums = activations.sum(1, keepdim=True, dtype=torch.float64)
    squares = wide.square()
    denominator = (wide * sums).add_(2.0).mul_(squares).add_(GRAD_CAM_PLUS_PLUS_EPSILON)
    weights = squares.mul_(wide.clamp_min_(0.0)).div_(denominator).sum(1)
    return weights.to(activations.dtype) @ activations


def xgrad_cam(activations: Tensor, gradients: Tensor, products: Tensor) -> Tensor:
    """XGrad-CAM: sum_k w_k A_k with w_k = sum over positions of G A / (S_k + eps), S_k the sum of A_k.

    Unstable where S_k is near 0, as in layers of mixed sign. Shapes as in :func:`grad_cam`.

    Source: Fu et al. 2020, eq. 8, arXiv:2008.02312.
    """
    return (products.sum(1) / (activations.sum(1) + XGRAD_CAM_EPSILON)) @ activations


def hires_cam(activations: Tensor, gradients: Tensor, products: Tensor) -> Tensor:
    """HiResCAM: sum_k G_k A_k. Shapes as in :func:`grad_cam`.

    Source: Draelos & Carin 2020, arXiv:2011.08891.
    """
    return products.sum(0)


def layer_cam(activations: Tensor, gradients: Tensor, products: Tensor) -> Tensor:
    """LayerCAM: sum_k ReLU(G_k) A_k. Shapes as in :func:`grad_cam`.

    Source: Jiang et al. 2021, eq. 4-6, doi:10.1109/TIP.2021.3089943.
    """
    return gradients.clamp_min(0.0).mul_(activations).sum(0)


def elementwise_grad_cam(activations: Tensor, gradients: Tensor, products: Tensor) -> Tensor:
    """Element-wise Grad-CAM: sum_k ReLU(G_k A_k). Shapes as in :func:`grad_cam`.

    Source: pytorch-grad-cam's GradCAMElementWise, after Gildenblat 2021.
    """
    return products.clamp_min(0.0).sum(0)


CAM_METHODS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "grad-cam": grad_cam,
    "grad-cam++": grad_cam_plus_plus,
    "xgrad-cam": xgrad_cam,
    "hires-cam": hires_cam,
    "layer-cam": layer_cam,
    "elementwise-grad-cam": elementwise_grad_cam,
}
EIGEN_METHODS = ("eigen-cam", "eigen-grad-cam")
ONE_PASS_METHODS = (*CAM_METHODS, *EIGEN_METHODS)  # one forward and one backward serve all of them, at all layers
OWN_PASS_METHODS = ("cam", "ablation-cam", "score-cam", "attention-rollout")
MAP_METHODS = (*ONE_PASS_METHODS, *OWN_PASS_METHODS)
ATTRIBUTION_METHODS = (
    "saliency",
    "input-x-gradient",
    "guided-backprop",
    "deconvnet",
    "integrated-gradients",
    "smooth-grad",
    "guided-grad-cam",
    "full-grad",
)


def check_methods(methods: Sequence[str], known: Sequence[str] = MAP_METHODS) -> tuple[str, ...]:
    """The methods, without repetition.

    Raises:
        LayerError: one of them is not among the known ones.
    """
    for method in methods:
        if method in known:
            continue
        if method in ATTRIBUTION_METHODS:
            raise LayerError(f"{method!r} gives no maps of layers but attributions of the input: interpret.attribution")
        raise LayerError(f"unknown method {method!r}{did_you_mean(method, known)}; known: {', '.join(known)}")
    return tuple(dict.fromkeys(methods))


def gradient_maps(activations: Tensor, gradients: Tensor, methods: Sequence[str]) -> dict[str, Tensor]:
    """Maps of several gradient methods from one reading of activations and gradients.

    Args:
        activations: A, shape (N, C, H, W).
        gradients: dY/dA, same shape.
        methods: names in :data:`CAM_METHODS` or "eigen-grad-cam".

    Returns:
        One (N, H, W) tensor per method: ReLU'd for the methods of :data:`CAM_METHODS`, signed for "eigen-grad-cam".

    >>> a = torch.tensor([[[[1.0, 2.0]]]]); g = torch.tensor([[[[0.5, -0.25]]]])
    >>> gradient_maps(a, g, ["hires-cam"])["hires-cam"]
    tensor([[[0.5000, 0.0000]]])
    """
    count, channels, height, width = activations.shape
    positions = height * width
    step = max(1, BLOCK_ENTRIES // max(positions, 1))
    sums = [name for name in methods if name in CAM_METHODS]
    maps = {name: activations.new_zeros(count, positions) for name in sums}
    a, g = activations.reshape(count, channels, positions), gradients.reshape(count, channels, positions)
    if sums:
        for image in range(count):
            for start in range(0, channels, step):
                block_a, block_g = a[image, start : start + step], g[image, start : start + step]
                products = block_a * block_g
                for name in sums:
                    maps[name][image] += CAM_METHODS[name](block_a, block_g, products)
    result = {name: map_.clamp_min_(0.0).reshape(count, height, width) for name, map_ in maps.items()}
    if "eigen-grad-cam" in methods:
        result["eigen-grad-cam"] = eigen_cam(activations * gradients)
    return result


def cam(activations: Tensor, weights: Tensor) -> Tensor:
    """CAM: sum_k w_k A_k with the weights of a linear head that reads the mean of A; it has no ReLU.

    Args:
        activations: A of one image, shape (C, H, W).
        weights: the head's rows of the targets, shape (R, C).

    Returns:
        Shape (R, H, W), signed; its mean is the logit without the bias.

    Source: Zhou et al. 2016, eq. 2, arXiv:1512.04150.
    """
    return torch.einsum("rk,khw->rhw", weights, activations)


def ablation_cam(activations: Tensor, score: Tensor, ablated: Tensor) -> Tensor:
    """Ablation-CAM: ReLU(sum_k w_k A_k) with w_k = (Y - Y_k) / abs(Y), Y_k the score without channel k.

    The paper divides by Y; with abs(Y) a channel that supports a target of negative score keeps a positive weight. A
    score of exactly 0 divides nothing.

    Args:
        activations: A of one image, shape (C, H, W).
        score: Y of the targets, shape (R,).
        ablated: Y_k, shape (C, R).

    Returns:
        Shape (R, H, W), non-negative, in the units of A.

    Source: Desai & Ramaswamy 2020, eq. 5-7, doi:10.1109/WACV45572.2020.9093360.
    """
    weights = (score - ablated) / torch.where(score == 0, 1.0, score.abs())
    return torch.einsum("kr,khw->rhw", weights, activations).clamp_min(0.0)


def channel_masks(activations: Tensor, size: tuple[int, int]) -> Tensor:
    """Each channel as a mask in [0, 1] over the image: bilinear, then min-max; zeros where it is constant.

    Args:
        activations: shape (C, H, W).
        size: (H, W) of the image.

    Returns:
        Shape (C, *size).
    """
    masks = functional.interpolate(activations[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
    return (masks - low).div_(torch.where(high > low, high - low, 1.0))


def score_cam(activations: Tensor, scores: Tensor) -> Tensor:
    """Score-CAM: ReLU(sum_k w_k A_k), w the softmax over the channels of the scores of the masked images.

    Channels that are constant mask nothing and have no weight.

    Args:
        activations: A of one image, shape (C, H, W).
        scores: of the image times each channel's mask, shape (C, R).

    Returns:
        Shape (R, H, W), non-negative, in the units of A.

    Source: Wang et al. 2020, eq. 2-5, arXiv:1910.01279.
    """
    flat = activations.flatten(1)
    varies = flat.amax(1) > flat.amin(1)
    if not varies.any():
        return activations.new_zeros(scores.shape[1], *activations.shape[1:])
    weights = torch.where(varies[:, None], scores, -torch.inf).softmax(0)
    return torch.einsum("kr,khw->rhw", weights, activations).clamp_min(0.0)


def attention_rollout(attentions: Tensor, prefix: int) -> Tensor:
    """Attention rollout: what each image token hands to the class token through all blocks.

    The product over the blocks of (A + I) / 2, the identity for the residual path; of it the first row, or the mean of
    all rows where there is no class token. It knows no class: it is the same for every target.

    Args:
        attentions: A of every block, averaged over the heads, rows that sum to 1, shape (L, T, T).
        prefix: tokens before those of the image.

    Returns:
        Shape (T - prefix,), non-negative.

    Source: Abnar & Zuidema 2020, arXiv:2005.00928.
    """
    identity = torch.eye(attentions.shape[-1], dtype=attentions.dtype, device=attentions.device)
    rows = identity[:1] if prefix else identity.mean(0, keepdim=True)
    for attention in attentions.flip(0):  # a row times the blocks from the last to the first
        rows = (rows @ attention + rows) / 2
    return rows[0, prefix:]


def eigen_cam(features: Tensor) -> Tensor:
    """EigenCAM: the projection of every position on the first principal component, signed.

    X = (positions x channels) minus the mean of each channel; the map is X v1 with v1 the first right singular vector.
    It is found from the smaller of the two Gram matrices. A singular vector has no sign of its own: the one is taken
    for which the map correlates positively with the mean absolute activation (Muhammad & Yeasin's maps are read as
    "where the energy is").

    Args:
        features: A for EigenCAM, dY/dA * A for Eigen-Grad-CAM, shape (N, C, H, W).

    Returns:
        Shape (N, H, W), in the units of the features; zeros where the features are constant.

    Source: Muhammad & Yeasin 2020, arXiv:2008.00299.
    """
    count, channels, height, width = features.shape
    flat = features.reshape(count, channels, height * width)
    maps = torch.stack([_first_component(image) for image in flat])
    energy = flat.abs().mean(1)
    energy = energy - energy.mean(1, keepdim=True)
    sign = torch.where((maps * energy).sum(1, keepdim=True) < 0, -1.0, 1.0).to(maps.dtype)
    return (maps * sign).reshape(count, height, width)


def _first_component(features: Tensor) -> Tensor:
    """X v1 of one image, shape (M,), for features (C, M)."""
    centred = features - features.mean(1, keepdim=True)
    channels, positions = centred.shape
    if channels <= positions:
        return _first_eigenvector(centred @ centred.T) @ centred
    vector = _first_eigenvector(centred.T @ centred)
    # the map is sigma u; X Xt u = sigma^2 u gives sigma without a second decomposition
    return vector.mul(torch.linalg.vector_norm(centred @ vector))


def _first_eigenvector(gram: Tensor) -> Tensor:
    """Eigenvector of the largest eigenvalue of a symmetric positive semi-definite matrix, shape (side,)."""
    if not torch.isfinite(gram).all():
        return torch.full_like(gram[0], torch.nan)
    vector: Tensor | None = _subspace_iteration(gram) if len(gram) >= SUBSPACE_SIDE else None
    if vector is None:
        vector = torch.linalg.eigh(gram).eigenvectors[:, -1]
    return vector


def _subspace_iteration(gram: Tensor, columns: int = 8, rounds: int = 12, tolerance: float = 2e-6) -> Tensor | None:
    """The first eigenvector by block power iteration with Rayleigh-Ritz, or None where it has not converged.

    The start is deterministic: the columns of the largest diagonal entries. It stops when residual / gap, the bound on
    the angle to the true vector (Davis-Kahan), is below the tolerance; near-ties never get there and are left to a
    full decomposition.
    """
    start = torch.topk(gram.diagonal(), columns).indices.sort().values
    block = gram[:, start]
    for _ in range(rounds):
        basis = torch.linalg.qr(gram @ block).Q
        image = gram @ basis
        values, rotation = torch.linalg.eigh(basis.T @ image)
        vector: Tensor = basis @ rotation[:, -1]
        mapped = image @ rotation[:, -1]
        residual = torch.linalg.vector_norm(mapped - values[-1] * vector)
        if residual <= tolerance * (values[-1] - values[-2]):
            return vector.div_(torch.linalg.vector_norm(vector))
        block = image @ rotation
    return None
