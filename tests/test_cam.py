"""The formulas against their papers' equations in float64, closed forms and numpy's decompositions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interpret.errors import LayerError
from interpret.functional import cam


def sample(
    seed: int = 0, shape: tuple[int, int, int, int] = (3, 20, 9, 7), scale: float = 0.1
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(shape, generator=generator).relu_() + 0.01
    return activations, scale * torch.randn(shape, generator=generator)


def literal(method: str, a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The equations, one image and one channel at a time, in float64."""
    a, g = a.astype(np.float64), g.astype(np.float64)
    result = np.zeros((a.shape[0], *a.shape[2:]))
    for n in range(a.shape[0]):
        for k in range(a.shape[1]):
            A, G = a[n, k], g[n, k]
            if method == "grad-cam":
                result[n] += G.mean() * A
            elif method == "grad-cam++":
                alpha = np.where(G != 0, G**2 / (2 * G**2 + A.sum() * G**3 + 1e-6), 0)
                result[n] += (alpha * np.maximum(G, 0)).sum() * A
            elif method == "xgrad-cam":
                result[n] += (G * A).sum() / (A.sum() + 1e-7) * A
            elif method == "hires-cam":
                result[n] += G * A
            elif method == "layer-cam":
                result[n] += np.maximum(G, 0) * A
            elif method == "elementwise-grad-cam":
                result[n] += np.maximum(G * A, 0)
    return np.maximum(result, 0)


@pytest.mark.parametrize("method", cam.CAM_METHODS)
@pytest.mark.parametrize("block", [40, 1 << 16])
def test_gradient_maps_follow_their_equations(method: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cam, "BLOCK_ENTRIES", block)  # blocks of one channel, and all channels at once
    a, g = sample()
    ours = cam.gradient_maps(a, g, [method])[method]
    expected = literal(method, a.numpy(), g.numpy())
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), expected, rtol=2e-5, atol=1e-6 * expected.max())


def test_all_methods_at_once_equal_each_alone() -> None:
    a, g = sample(1)
    together = cam.gradient_maps(a, g, cam.ONE_PASS_METHODS)
    assert set(together) == set(cam.ONE_PASS_METHODS) - {"eigen-cam"}
    for method, map_ in together.items():
        torch.testing.assert_close(map_, cam.gradient_maps(a, g, [method])[method], rtol=0, atol=0)


def svd_map(features: np.ndarray) -> np.ndarray:
    """(HW, C) minus column means, times the first right singular vector, as numpy's SVD gives it."""
    maps = []
    for image in features.astype(np.float64):
        x = image.reshape(len(image), -1).T
        x = x - x.mean(0)
        maps.append((x @ np.linalg.svd(x, full_matrices=False)[2][0]).reshape(image.shape[1:]))
    return np.stack(maps)


@pytest.mark.parametrize("shape", [(2, 8, 5, 6), (2, 70, 4, 5), (2, 100, 12, 12), (1, 3, 1, 1), (2, 64, 2, 1)])
def test_eigen_cam_is_the_first_principal_component(shape: tuple[int, int, int, int]) -> None:
    a, _ = sample(2, shape)
    ours, expected = cam.eigen_cam(a).numpy(), svd_map(a.numpy())
    for mine, theirs in zip(ours, expected, strict=True):
        worst = min(np.abs(mine - theirs).max(), np.abs(mine + theirs).max())
        assert worst <= 1e-5 * max(np.abs(theirs).max(), 1e-6)


def test_eigen_cam_points_where_the_energy_is() -> None:
    features = torch.zeros(1, 4, 6, 6)
    features[:, :, 1:3, 1:3] = torch.tensor([1.0, -2.0, 3.0, 0.5])[None, :, None, None]
    map_ = cam.eigen_cam(features)[0]
    assert map_[1, 1] > 0 > map_[5, 5]
    torch.testing.assert_close(cam.eigen_cam(-features)[0], map_)


def test_near_ties_are_left_to_the_full_decomposition() -> None:
    vectors = torch.linalg.qr(torch.randn(60, 60, generator=torch.Generator().manual_seed(0))).Q
    values = torch.linspace(0.1, 0.2, 60)
    values[-2:] = torch.tensor([1.0, 1.0 + 1e-6])
    gram = vectors @ torch.diag(values) @ vectors.T
    assert cam._subspace_iteration(gram) is None
    assert cam._first_eigenvector(gram).shape == (60,)


def test_constant_features_have_no_component() -> None:
    assert torch.count_nonzero(cam.eigen_cam(torch.full((1, 60, 8, 8), 3.0))) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-4, 10))
def test_linear_head_makes_the_methods_agree(seed: int, scale: float) -> None:
    """Behind average pooling and a linear layer dY/dA_k = w_k / M everywhere: then Grad-CAM = HiResCAM = XGrad-CAM."""
    a, _ = sample(seed, (2, 6, 4, 4))
    weights = scale * torch.randn(6, generator=torch.Generator().manual_seed(seed + 1))
    g = (weights / 16)[None, :, None, None].expand_as(a)
    maps = cam.gradient_maps(a, g, ["grad-cam", "hires-cam", "xgrad-cam"])
    expected = torch.einsum("k,nkhw->nhw", weights / 16, a).clamp_min(0)
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * scale}
    for map_ in maps.values():
        torch.testing.assert_close(map_, expected, **tolerance)


def test_unknown_method_is_refused_with_a_hint() -> None:
    with pytest.raises(LayerError, match=r"'gradcam'; did you mean 'grad-cam'"):
        cam.check_methods(["gradcam"])


def test_non_finite_features_do_not_hang() -> None:
    features = torch.full((1, 60, 8, 8), torch.nan)
    assert torch.isnan(cam.eigen_cam(features)).all()
