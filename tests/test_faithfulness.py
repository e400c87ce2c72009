"""Trust in maps: curves against closed forms, loops and peers; cascades against copies shuffled by hand."""

from __future__ import annotations

import copy
import random
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from interpret.errors import InterpretError, LayerError
from interpret.faithfulness import (
    MOST_STAGES,
    _default_stages,
    _settle,
    _shuffle,
    blurred,
    cascading_randomization,
    control_maps,
    faithfulness,
)
from interpret.functional.agreement import centred_gaussian
from interpret.functional.faithfulness import (
    auc,
    beats,
    confidence_drop,
    mean_rank,
    pixel_counts,
    ranks,
    spearman,
)
from interpret.hooks import undisturbed
from interpret.maps import class_activation_maps
from interpret.tracing import trace
from networks import digit_images, lite0, lively, photos, trained_digits

RANDOM = np.random.default_rng(0)
METHODS = ("grad-cam", "eigen-cam")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def digits(count: int = 4) -> Tensor:
    return digit_images()[0][:count]


# The math -------------------------------------------------------------------------------------------------------------


def test_pixel_counts_go_from_none_to_all_in_even_steps() -> None:
    for pixels, steps in ((64, 20), (50176, 20), (7, 20), (25600, 20)):
        counts = pixel_counts(pixels, steps)
        assert counts.tolist() == [int(i * pixels / steps + 1e-9) for i in range(steps + 1)]
        assert (counts[0], counts[-1], len(counts)) == (0, pixels, steps + 1)
    with pytest.raises(ValueError, match="at least 1 step, not 0"):
        pixel_counts(64, 0)


def test_auc() -> None:
    assert auc(np.linspace(1.0, 0.0, 21), np.linspace(0.0, 1.0, 21)) == pytest.approx(0.5, abs=1e-15)
    fraction = np.sort(np.r_[0.0, RANDOM.random(19), 1.0])
    curves = RANDOM.random((3, 2, 21))
    np.testing.assert_allclose(auc(curves, fraction), torch.trapezoid(torch.tensor(curves), torch.tensor(fraction)))


def test_confidence_drop_by_hand() -> None:
    before, after = np.array([0.8, 0.8, 0.5, 0.0]), np.array([[0.2, 0.9, 0.5, 0.3], [0.0, 0.4, 0.25, 0.0]])
    np.testing.assert_allclose(confidence_drop(before, after), [[0.75, 0.0, 0.0, 0.0], [1.0, 0.5, 0.5, 0.0]])


def test_ranks_and_spearman_are_scipys() -> None:
    first, second = RANDOM.integers(0, 9, (2, 5, 6, 7)).astype(np.float32)  # many ties
    np.testing.assert_array_equal(ranks(first), scipy.stats.rankdata(first, axis=-1))
    theirs = [scipy.stats.spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(spearman(first, second), theirs, atol=1e-14)
    y, x = np.mgrid[:8, :8]
    peaks = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / 6) for a, b in ((2, 2), (4, 3))]
    assert spearman(*peaks) == pytest.approx(0.462411, abs=5e-7), "worked out elsewhere"


def test_spearman_of_maps_that_do_not_change_and_of_blank_ones() -> None:
    maps = RANDOM.random((3, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(spearman(maps, maps), 1.0)
    np.testing.assert_array_equal(spearman(maps, np.exp(maps)), 1.0)
    np.testing.assert_array_equal(spearman(maps, -maps), -1.0)
    maps[0], maps[1, 0, 0] = 0.1, np.nan
    assert np.isnan(spearman(maps, maps)).tolist() == [True, True, False]


def test_mean_rank() -> None:
    scores = np.array([[0.9, 0.8, 0.3], [0.5, 0.8, np.nan], [0.1, 0.2, 0.4]])
    np.testing.assert_allclose(mean_rank(scores, higher_is_better=True), [(1 + 1.5 + 2) / 3, 6.5 / 3, (3 + 3 + 1) / 3])
    np.testing.assert_allclose(mean_rank(scores, higher_is_better=False), [(3 + 2.5 + 1) / 3, 7.5 / 3, (1 + 1 + 2) / 3])


def test_what_beats_its_control() -> None:
    scores, controls = RANDOM.random((4, 1, 12)), RANDOM.random((1, 2, 12))
    for higher, won in ((True, scores > controls), (False, scores < controls)):
        share, p = beats(scores, controls, higher_is_better=higher)
        np.testing.assert_allclose(share, won.mean(-1))
        theirs = [[scipy.stats.binomtest(int(w.sum()), 12, alternative="greater").pvalue for w in row] for row in won]
        np.testing.assert_allclose(p, theirs, rtol=1e-12)
    share, p = beats(np.array([0.5, np.nan, 0.7]), np.array([0.5, 0.1, 0.6]), higher_is_better=True)
    assert (share, p) == (pytest.approx(1 / 3), pytest.approx(7 / 8)), "ties and NaN are defeats"
    assert beats(np.ones(4), np.zeros(4), higher_is_better=True)[1] > 0.05 > 2.0**-5
    with pytest.raises(ValueError, match="without an image"):
        beats(np.ones((2, 0)), np.ones((2, 0)), higher_is_better=True)


# Curves ---------------------------------------------------------------------------------------------------------------


class Weighted(nn.Module):
    """Two logits: the pixels' weighted sum, and 0."""

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.2 * noise(side, side, seed=5) ** 8)

    def forward(self, x: Tensor) -> Tensor:
        logit = (x[:, 0] * self.weight).sum((1, 2))
        return torch.stack([logit, torch.zeros_like(logit)], 1)


def test_the_curves_of_a_linear_model_are_exact() -> None:
    model, images = Weighted(), noise(2, 1, 8, 8, seed=1)
    heatmaps = noise(3, 2, 8, 8, seed=2)
    found = faithfulness(model, images, [0, 0], heatmaps, steps=16)
    weight = model.weight.detach().double().numpy().ravel()
    for m in range(3):
        for d in range(2):
            pixels, start = (picture[0].double().numpy().ravel() for picture in (images[d], blurred(images[d])))
            order = np.argsort(-heatmaps[m, d].numpy().ravel(), kind="stable")
            removed = np.cumsum(np.r_[0.0, (weight * pixels)[order]])[::4]
            restored = np.cumsum(np.r_[0.0, (weight * (pixels - start))[order]])[::4]
            deletion = 1 / (1 + np.exp(-(weight @ pixels - removed)))
            insertion = 1 / (1 + np.exp(-(weight @ start + restored)))
            masked = 1 / (1 + np.exp(-(weight * heatmaps[m, d].double().numpy().ravel()) @ pixels))
            np.testing.assert_allclose(found.deletion[m, d], deletion, atol=1e-6)
            np.testing.assert_allclose(found.insertion[m, d], insertion, atol=1e-6)
            assert found.deletion_auc[m, d] == pytest.approx(scipy.integrate.trapezoid(deletion, dx=1 / 16), abs=1e-6)
            assert found.insertion_auc[m, d] == pytest.approx(scipy.integrate.trapezoid(insertion, dx=1 / 16), abs=1e-6)
            assert found.drop[m, d] == pytest.approx(1 - masked / deletion[0], abs=1e-6)
    assert not found.increase.any()
    np.testing.assert_array_equal(found.fraction, np.arange(17) / 16)


def test_the_right_map_beats_the_controls_and_its_reverse_loses() -> None:
    model, images = Weighted(16), noise(6, 1, 16, 16, seed=1)
    share = model.weight.detach() * images[:, 0]
    right = share / share.amax((1, 2), keepdim=True)
    found = faithfulness(model, images, 0, torch.cat([torch.stack([right, 1 - right]), control_maps((16, 16), 6)]))
    for scores, higher in ((found.deletion_auc, False), (found.insertion_auc, True)):
        shares, p = beats(scores[:2, None], scores[None, 2:], higher_is_better=higher)
        np.testing.assert_array_equal(shares, [[1.0, 1.0], [0.0, 0.0]])
        np.testing.assert_allclose(p, [[2.0**-6] * 2, [1.0] * 2])
        assert mean_rank(scores, higher_is_better=higher)[[0, 1]].tolist() == [1.0, 4.0]


def test_drop_and_increase_of_heatmaps_of_one_brightness() -> None:
    model, images = Weighted(), noise(3, 1, 8, 8, seed=1)
    heatmaps = torch.tensor([1.0, 0.5, 0.0])[:, None, None, None].expand(3, 3, 8, 8)
    found = faithfulness(model, images, 0, heatmaps)
    logits = model(images)[:, 0].detach().double().numpy()
    before = 1 / (1 + np.exp(-logits))
    expected = [np.zeros(3), 1 - 1 / (1 + np.exp(-logits / 2)) / before, 1 - 0.5 / before]
    np.testing.assert_allclose(found.drop, expected, atol=1e-6)
    assert not found.increase.any()
    assert faithfulness(model, images, 1, heatmaps).increase.tolist() == [[False] * 3, [True] * 3, [True] * 3]


def probability(model: nn.Module, pixels: np.ndarray, label: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor(pixels, dtype=torch.float32)[None])[0].double().numpy()
    return float(np.exp(logits - logits.max())[label] / np.exp(logits - logits.max()).sum())


def test_the_curves_of_a_trained_network_are_those_of_a_loop() -> None:
    model, images, labels = trained_digits(), digits(2), [3, 1]
    heatmaps = (noise(2, 2, 8, 8) * 4).floor() / 4  # ties, in reading order; 20 steps do not divide 64 pixels
    found = faithfulness(model, images, labels, heatmaps)
    for m in range(2):
        for d in range(2):
            image, start = images[d].numpy(), blurred(images[d]).numpy()
            order = sorted(range(64), key=lambda pixel: (-float(heatmaps[m, d].flatten()[pixel]), pixel))
            for step in range(21):
                mask = np.zeros(64, bool)
                mask[order[: 64 * step // 20]] = True
                mask = mask.reshape(8, 8)
                for curve, pixels in (
                    (found.deletion, np.where(mask, 0.0, image)),
                    (found.insertion, np.where(mask, image, start)),
                ):
                    assert curve[m, d, step] == pytest.approx(probability(model, pixels, labels[d]), abs=1e-6)
            after = probability(model, image * heatmaps[m, d].numpy(), labels[d])
            before = probability(model, image, labels[d])
            assert found.probability[d] == pytest.approx(before, abs=1e-6)
            assert found.drop[m, d] == pytest.approx(max(0.0, before - after) / before, abs=1e-5)
            assert found.increase[m, d] == (after > before)


class Given:
    """A torchcam extractor that returns maps made elsewhere."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps, self._hooks_off = model, maps, nullcontext

    def __call__(self, *_: Any) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]


def test_torchcam_finds_the_same() -> None:
    model, images = lite0(), photos()[1:3, :, ::2, ::2].contiguous()  # 6400 pixels, which 20 divides
    maps = class_activation_maps(model, images, ["grad-cam"], "_blocks.10")
    labels = maps.targets[:, 0].tolist()
    heatmaps = maps.heatmap("grad-cam", "_blocks.10", (80, 80))
    ours = faithfulness(model, images, labels, heatmaps[None])
    for number in range(2):
        image, label = images[number : number + 1], labels[number : number + 1]
        extractor = Given(model, heatmaps[number : number + 1])
        softmax = torch.nn.Softmax(1)
        deletion = DeletionInsertionMetric(extractor, softmax, batch_size=4)
        insertion = DeletionInsertionMetric(extractor, softmax, baseline=blurred(image[0])[None], batch_size=4)
        change = ClassificationMetric(extractor, softmax)
        for metric in (deletion, insertion, change):
            metric.update(image, label)
        assert ours.deletion_auc[0, number] == pytest.approx(deletion.summary()["deletion_auc"], abs=1e-5)
        assert ours.insertion_auc[0, number] == pytest.approx(insertion.summary()["insertion_auc"], abs=1e-5)
        assert ours.drop[0, number] == pytest.approx(change.summary()["avg_drop"], abs=1e-4), "they divide by f + 1e-7"
        assert ours.increase[0, number] == bool(change.summary()["conf_increase"])


def test_pytorch_grad_cam_finds_the_same_but_for_the_division() -> None:
    model, images, heatmaps = trained_digits(), digits(8), noise(8, 8, 8)
    labels = digit_images()[1][:8].tolist()
    found = faithfulness(model, images, labels, heatmaps[None])
    arguments = images, heatmaps.numpy(), [ClassifierOutputSoftmaxTarget(label) for label in labels], model
    np.testing.assert_allclose(found.drop[0] * found.probability, DropInConfidence()(*arguments), atol=1e-6)
    np.testing.assert_array_equal(found.increase[0], IncreaseInConfidence()(*arguments) > 0)


def test_a_single_logit_answers_for_two_classes() -> None:
    both, images, heatmaps = Weighted(), noise(3, 1, 8, 8), noise(2, 3, 8, 8)

    def forward(model: nn.Module, pictures: Tensor) -> Tensor:
        return model(pictures)[:, :1]

    for label in (0, 1):
        single = faithfulness(both, images, [1 - label] * 3, heatmaps, forward=forward)
        pair = faithfulness(both, images, [label] * 3, heatmaps)
        np.testing.assert_allclose(single.deletion, pair.deletion, atol=1e-7)
        np.testing.assert_allclose(single.drop, pair.drop, atol=1e-6)


def test_chunks_bound_the_forwards_and_change_nothing() -> None:
    images, heatmaps = digits(3), noise(2, 3, 8, 8)
    sizes: list[int] = []
    seen: list[tuple[int, int]] = []

    def forward(model: nn.Module, pictures: Tensor) -> Tensor:
        sizes.append(len(pictures))
        return model(pictures)

    results = []
    for size in (1, 7, 1000):
        sizes.clear()
        seen.clear()
        results.append(
            faithfulness(
                trained_digits(), images, None, heatmaps, batch_size=size, forward=forward,
                progress=lambda done, total: seen.append((done, total)),
            )
        )  # fmt: skip
        assert max(sizes) <= size
        assert sum(sizes) == 3 * (1 + 2 + 2 * (1 + 2 * 19)), "unchanged ends once per image"
        assert seen == [(1, 3), (2, 3), (3, 3)]
    for other in results[1:]:
        np.testing.assert_allclose(other.deletion, results[0].deletion, atol=1e-6)
        np.testing.assert_allclose(other.insertion, results[0].insertion, atol=1e-6)
        np.testing.assert_allclose(other.drop, results[0].drop, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 64, 100])
def test_any_number_of_steps(steps: int) -> None:
    found = faithfulness(trained_digits(), digits(1), None, noise(1, 1, 8, 8), steps=steps)
    assert found.deletion.shape == found.insertion.shape == (1, 1, steps + 1)
    assert found.deletion[0, 0, 0] == found.insertion[0, 0, -1] == found.probability[0]
    assert np.isfinite(found.deletion).all()


def test_maps_that_rank_nothing_have_no_curve() -> None:
    heatmaps = noise(3, 2, 8, 8)
    heatmaps[0, 0] = 0.0
    heatmaps[1, 1, 0, 0] = torch.nan
    found = faithfulness(trained_digits(), digits(2), None, heatmaps)
    missing = [[True, False], [False, True], [False, False]]
    for curve in (found.deletion, found.insertion):
        np.testing.assert_array_equal(np.isnan(curve), np.broadcast_to(np.array(missing)[..., None], curve.shape))
    assert np.isnan(found.deletion_auc).tolist() == np.isnan(found.insertion_auc).tolist() == missing
    assert np.isnan(found.drop).tolist() == [[False, False], [False, True], [False, False]]
    assert not found.increase[1, 1]


def test_half_precision_is_measured_in_float32() -> None:
    half = copy.deepcopy(trained_digits()).bfloat16()
    images, heatmaps = digits(2), noise(1, 2, 8, 8)
    found = faithfulness(half, images.bfloat16(), None, heatmaps)
    full = faithfulness(copy.deepcopy(half).float(), images.bfloat16().float(), None, heatmaps)
    np.testing.assert_array_equal(found.deletion, full.deletion)
    assert next(half.parameters()).dtype == torch.bfloat16


def test_the_blur_is_that_of_rise() -> None:
    images = noise(2, 3, 224, 224)
    point = np.zeros((11, 11))
    point[5, 5] = 1
    kernel = torch.tensor(gaussian_filter(point, 5)).float() * torch.eye(3)[:, :, None, None]
    theirs = nn.functional.conv2d(images, kernel, padding=5)
    for image, expected in zip(images, theirs, strict=True):
        torch.testing.assert_close(blurred(image), expected, rtol=0, atol=1e-6)
    assert blurred(torch.ones(1, 8, 8))[0, 4, 4] == pytest.approx(1.0)
    assert blurred(noise(1, 1, 5)).shape == (1, 1, 5)


# Controls -------------------------------------------------------------------------------------------------------------


def test_controls_know_nothing_and_are_as_smooth_as_maps() -> None:
    controls = control_maps((64, 48), 5, seed=3, grid=(8, 6))
    assert controls.shape == (2, 5, 64, 48)
    assert (controls.amin((2, 3)) == 0).all()
    assert (controls.amax((2, 3)) == 1).all()
    torch.testing.assert_close(controls, control_maps((64, 48), 5, seed=3, grid=(8, 6)), rtol=0, atol=0)
    assert not torch.equal(controls[0], control_maps((64, 48), 5, seed=4, grid=(8, 6))[0])
    assert not torch.equal(controls[0, 0], controls[0, 1])
    gaussian = torch.tensor(centred_gaussian(64, 48)).float()
    expected = (gaussian - gaussian.min()) / (gaussian.max() - gaussian.min())
    torch.testing.assert_close(controls[1], expected.expand(5, 64, 48), rtol=0, atol=1e-6)
    random_maps = controls[0].numpy()
    step = np.abs(np.diff(random_maps, axis=-1)).max()
    assert step <= 1 / 8 / (1 - 2 / 8) + 0.1, "bilinear between points 8 pixels apart"
    neighbours = np.corrcoef(random_maps[..., 1:].ravel(), random_maps[..., :-1].ravel())[0, 1]
    assert neighbours > 0.95


# Nothing changes ------------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Draws numbers, counts its forwards, and fails at one of them."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.body = copy.deepcopy(trained_digits())
        self.register_buffer("forwards", torch.zeros(()))
        self.log: list[int] = []
        self.fails_at = fails_at
        self.train()
        self.body.features.eval()
        self.body.head.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        self.log.append(len(x))
        if len(self.log) - 1 == self.fails_at:
            raise RuntimeError("enough")
        return self.body(x + 1e-6 * torch.randn_like(x) * random.random() * np.random.rand())  # noqa: NPY002


def everything(model: nn.Module) -> dict[str, Any]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "flags": [module.training for module in model.modules()],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        "wanted": [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        "log": list(model.log),
        "random": (torch.get_rng_state().tolist(), python, numpy[1].tolist(), numpy[2:]),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    state, now = before.pop("state"), after.pop("state")
    assert all(torch.equal(state[name], now[name]) for name in state)
    assert before == after


@pytest.mark.parametrize("fails_at", [-1, 0, 3])
def test_nothing_of_the_model_changes(fails_at: int) -> None:
    model = Restless(fails_at)
    images, heatmaps = digits(), noise(1, 4, 8, 8)
    kept = images.clone(), heatmaps.clone()
    before = everything(model)
    with pytest.raises(InterpretError, match="enough") if fails_at >= 0 else nullcontext():
        faithfulness(model, images, None, heatmaps)
    assert_same(before, everything(model))
    assert torch.equal(images, kept[0])
    assert torch.equal(heatmaps, kept[1])


@pytest.mark.parametrize("fails_at", [-1, 0, 1, 3])
def test_nothing_of_the_model_changes_when_a_copy_loses_its_weights(fails_at: int) -> None:
    model = Restless(fails_at)
    before = everything(model)
    with pytest.raises(InterpretError, match="enough") if fails_at >= 0 else nullcontext():
        cascading_randomization(model, digits(), None, METHODS, "body.features.4")
    assert_same(before, everything(model))


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heatmaps": torch.zeros(2, 4, 4)}, "heatmaps of shape \\(2, 4, 4\\) do not fit"),
        ({"heatmaps": torch.zeros(1, 2, 4, 4)}, "do not fit images of shape \\(2, 1, 8, 8\\)"),
        ({"images": torch.zeros(0, 1, 8, 8), "heatmaps": torch.zeros(1, 0, 8, 8)}, "do not fit"),
        ({"targets": [3, 10]}, "target class 10 is out of range"),
        ({"targets": [1, 2, 3]}, "do not fit 2 images"),
        ({"targets": [[1, 2], [2, 3]]}, "several per image"),
        ({"targets": lambda output: output[:, 0]}, "not by a callable target"),
        ({"heatmaps": noise(1, 2, 8, 8) - 1.5}, "heatmaps hold -\\d.* scale them to \\[0, 1\\]"),
        ({"heatmaps": torch.tensor([torch.nan, 35.0]).repeat(1, 2, 8, 4)}, "heatmaps hold 35; scale them"),
        ({"heatmaps": torch.full((1, 2, 8, 8), torch.inf)}, "heatmaps hold inf"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"steps": 0}, "steps=0"),
        ({"forward": lambda model, images: images}, "gives no \\(N, K\\) logits"),
        ({"forward": lambda model, images: [{}]}, "gives no \\(N, K\\) logits"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"images": digits(2), "targets": None, "heatmaps": noise(1, 2, 8, 8)} | changes
    with pytest.raises(LayerError, match=message):
        faithfulness(trained_digits(), **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "features.9"}, "matches none"),
        ({"layer": "features.*"}, "maps of one layer"),
        ({"targets": [[1, 2]] * 4}, "one target per image"),
        ({"stages": ["features.0", "head"]}, "name the last module first"),
        ({"stages": []}, "do not run from the logits downwards"),
        ({"stages": ["tail"]}, "matches none"),
    ],
)
def test_what_cannot_be_followed_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"images": digits(), "targets": None, "methods": METHODS, "layer": "features.4"} | changes
    with pytest.raises(LayerError, match=message):
        cascading_randomization(trained_digits(), **arguments)


class Unique(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = trained_digits()

    def __deepcopy__(self, memo: Any) -> Unique:
        raise RuntimeError("there is but one")

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(LayerError, match="Unique cannot be copied: there is but one"):
        cascading_randomization(Unique(), digits(), None, METHODS, "body.features.4")


# Cascades -------------------------------------------------------------------------------------------------------------


def test_a_cascade_tells_maps_of_weights_from_maps_of_images() -> None:
    seen: list[tuple[int, int]] = []
    found = cascading_randomization(
        trained_digits(), digits(32), None, METHODS, "features.4", progress=lambda *step: seen.append(step)
    )
    assert found.layers == ("head", "features", "features.2")
    assert found.methods == METHODS
    assert found.similarity.shape == (3, 2, 32)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_allclose(found.similarity[0, 1], 1.0, atol=1e-12)
    assert (np.nanmean(found.similarity[:, 0], 1) < 0.5).all(), "grad-cam"
    assert (np.nanmean(found.similarity[1:, 1], 1) < 0.6).all(), "eigen-cam, once its layer is reached"


def test_the_first_stage_is_a_copy_shuffled_by_hand() -> None:
    model, images, labels = trained_digits(), digits(6), digit_images()[1][:6]
    found = cascading_randomization(model, images, labels, ["grad-cam"], "features.4", stages=["head"], seed=7)
    by_hand = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    weight = by_hand.head.weight.detach().flatten()[torch.randperm(160, generator=generator)].reshape(10, 16)
    bias = by_hand.head.bias.detach()[torch.randperm(10, generator=generator)]
    by_hand.head.load_state_dict({"weight": weight, "bias": bias})
    maps = [
        class_activation_maps(net, images, layers="features.4", targets=labels)["grad-cam", "features.4"]
        for net in (model, by_hand)
    ]
    for number in range(6):
        a, b = (found_map[number].numpy().ravel() for found_map in maps)
        assert found.similarity[0, 0, number] == pytest.approx(scipy.stats.spearmanr(a, b)[0], abs=1e-6)
    again = cascading_randomization(model, images, labels, ["grad-cam"], "features.4", stages=["head"], seed=7)
    np.testing.assert_array_equal(again.similarity, found.similarity)
    other = cascading_randomization(model, images, labels, ["grad-cam"], "features.4", stages=["head"], seed=8)
    assert not np.array_equal(other.similarity, found.similarity)


def test_the_class_stays_that_of_the_untouched_network() -> None:
    model, images = trained_digits(), digits(8)
    with torch.no_grad():
        predicted = model(images).argmax(1)
    unnamed, named = (
        cascading_randomization(model, images, targets, ["grad-cam"], "features.4") for targets in (None, predicted)
    )
    np.testing.assert_array_equal(unnamed.similarity, named.similarity)


def test_a_cascade_runs_the_network_as_the_user_does() -> None:
    def forward(model: nn.Module, pictures: Tensor) -> dict[str, Tensor]:
        assert model is not trained_digits(), "a copy"
        return {"logits": model(pictures)}

    arguments = trained_digits(), digits(), None, METHODS, "features.4"
    given, plain = cascading_randomization(*arguments, forward=forward), cascading_randomization(*arguments)
    np.testing.assert_array_equal(given.similarity, plain.similarity)
    half = copy.deepcopy(trained_digits()).bfloat16()
    found = cascading_randomization(half, digits().bfloat16(), *arguments[2:])
    full = cascading_randomization(copy.deepcopy(half).float(), digits().bfloat16().float(), *arguments[2:])
    np.testing.assert_array_equal(found.similarity, full.similarity)


def test_shuffling_moves_values_and_keeps_them() -> None:
    model = copy.deepcopy(trained_digits())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with undisturbed(model):
        calls = [call for call in trace(model, digits(1), counted=False).calls if call.key == "features.4"]
    _shuffle(model, calls, torch.Generator().manual_seed(0))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("features.4"))
        torch.testing.assert_close(value.flatten().sort()[0], before[name].flatten().sort()[0], rtol=0, atol=0)


def test_batch_normalization_settles_on_what_it_gets() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)
    ).eval()
    images = noise(5, 1, 8, 8)
    with undisturbed(net):
        calls = trace(net, images, counted=False).calls
        _settle(net, images, calls[2:], None)
        running = net[3].running_mean.clone(), net[3].running_var.clone()
        assert (net[1].running_mean == 0).all(), "before the first lost weight nothing changes"
        with torch.no_grad():
            got = net[:3](images).double()
    torch.testing.assert_close(running[0].double(), got.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(running[1].double(), got.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)


def test_stages_by_default_run_from_the_head_to_the_stem() -> None:
    with undisturbed(lite0()):
        calls = trace(lite0(), photos(), counted=False).calls
    starts = _default_stages(calls)
    assert list(starts) == ["_fc", "_swish#1", "_blocks.10", "_blocks.4", "_blocks.2", "_blocks.0"]
    assert list(starts.values())[-1] == 0
    torch.manual_seed(0)
    deep = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.ReLU()) for _ in range(8)), nn.Flatten(), nn.Linear(4, 2)
    )
    with undisturbed(deep):
        starts = _default_stages(trace(deep, noise(1, 1, 300, 300), counted=False).calls)
    assert len(starts) == MOST_STAGES
    assert (next(iter(starts)), list(starts.values())[-1]) == ("9", 0)


def test_stages_of_the_users_choice_reach_into_containers() -> None:
    model = lively("resnet18")
    found = cascading_randomization(model, photos(), None, METHODS, "layer4", stages=["fc", "layer4", "layer3.0"])
    assert found.layers == ("fc", "layer4", "layer3.0")
    assert np.isfinite(found.similarity).all()
    np.testing.assert_allclose(found.similarity[0, 1], 1.0, atol=1e-12)
    assert (found.similarity[1, 1] < 0.99).all()


def test_a_real_networks_grad_cam_depends_on_its_weights() -> None:
    found = cascading_randomization(lite0(), photos(), None, ("grad-cam", "eigen-cam"), "_conv_head")
    assert (np.nanmean(found.similarity[:, 0], 1) < 0.5).all()
    np.testing.assert_allclose(found.similarity[0, 1], 1.0, rtol=0, atol=1e-12)
    assert np.isfinite(found.similarity).all(), "no map went blank"
