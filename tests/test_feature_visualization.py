"""Pictures that excite units, images that do, and what units see of them: closed forms, peers, no trace left."""

from __future__ import annotations

import copy
import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from interpret import feature_visualization as visualization
from interpret import preprocessing
from interpret.errors import InterpretError, LayerError
from interpret.feature_visualization import (
    TopPatch,
    kernel_responses,
    maximize,
    maximize_activation,
    receptive_box,
    reconstruct,
    similarity,
    top_patches,
)
from interpret.gradients import guided
from interpret.hooks import capture, layers
from networks import digit_images, lite0, lively, photos, trained_digits

PLAIN: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}  # of networks that see the picture as it is
HALF = (0.5, 0.5, 0.5)
LITE0: dict[str, Any] = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(channels: int = 3) -> nn.Sequential:
    """conv - relu - pool - conv - relu, all in place where it can be."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, stride=2),
        nn.ReLU(inplace=True),
    )
    nn.init.normal_(net[0].weight)
    nn.init.normal_(net[3].weight)
    return net


def transformer() -> nn.Module:
    torch.manual_seed(4)
    net = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(net.heads.head.weight)
    return net


# ----- maximize: closed forms


@pytest.mark.parametrize("parametrization", ["pixels", "fourier"])
def test_linear_unit_is_maximised_by_the_signs_of_its_weights(parametrization: Any) -> None:
    weights = torch.randn(2, 64, generator=seeded())
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    net[1].weight.data, net[1].bias.data = weights, torch.tensor([0.0, 0.5])
    found = maximize(
        net, "1", 1, size=8, steps=300, learning_rate=0.2, parametrization=parametrization, robustness=False,
        input_channels=1, **PLAIN,
    )  # fmt: skip
    best = weights[1].clamp_min(0).sum().item() + 0.5
    assert found.end == pytest.approx(best, rel=2e-3 if parametrization == "pixels" else 2e-2)
    assert ((found.image.flatten() > 0.5) == (weights[1] > 0)).float().mean() > (
        0.999 if parametrization == "pixels" else 0.9
    )
    assert found.start == pytest.approx(0.5 + weights[1].sum().item() / 2, abs=0.2), "it begins at grey"


def test_normalisation_is_the_networks() -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.Flatten())
    net[0].weight.data = torch.tensor([1.0, -1.0, 2.0]).reshape(1, 3, 1, 1)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    found = maximize(
        net, "0", 0, size=4, parametrization="pixels", robustness=False, learning_rate=0.2, mean=mean, std=std
    )
    assert found.end == pytest.approx((1 - 0.1) / 0.5 + 0.2 / 0.25 + 2 * (1 - 0.3) / 2, rel=5e-3)
    assert found.image.mean((0, 2, 3)).tolist() == pytest.approx([1, 0, 1], abs=5e-3)


def test_defaults_are_imagenets() -> None:
    assert visualization.IMAGENET_MEAN == preprocessing.IMAGENET_MEAN
    assert visualization.IMAGENET_STD == preprocessing.IMAGENET_STD


def test_fourier_pictures_are_the_formula() -> None:
    canvas = visualization._Canvas((2, 3, 5, 6), "fourier", seeded(), torch.empty(0))
    parameters = canvas.parameters.detach().double().numpy()
    spectrum = parameters[..., 0] + 1j * parameters[..., 1]
    for i, j in np.ndindex(5, 4):
        frequency = math.hypot((i if i < 3 else i - 5) / 5, j / 6)
        spectrum[:, :, i, j] *= 0.25 / max(frequency, 1 / 6)
    values = np.fft.irfft2(spectrum, s=(5, 6)) * math.sqrt(30)
    colours = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    colours /= np.sqrt((colours**2).sum(0)).max()
    pictures = 1 / (1 + np.exp(-np.moveaxis(np.moveaxis(values, 1, -1) @ colours.T, -1, 1)))
    np.testing.assert_allclose(canvas.pictures().detach().numpy(), pictures, atol=1e-6)


def test_steps_are_adams() -> None:
    start = torch.randn(7, generator=seeded())
    ours, theirs = start.clone(), start.clone().requires_grad_()
    ascend = visualization._Adam(ours, 0.05)
    optimizer = torch.optim.Adam([theirs], 0.05, maximize=True)
    for step in range(20):
        gradient = torch.randn(7, generator=seeded(step))
        ascend(gradient)
        theirs.grad = gradient
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_transforms_shift_scale_and_turn() -> None:
    pictures = torch.rand(3, 2, 16, 24, generator=seeded())
    moved = visualization._moved(pictures, seeded(5))
    draws = 2 * torch.rand(4, 3, generator=seeded(5)).double().numpy() - 1
    for picture, result, (turn, zoom, across, down) in zip(pictures, moved, draws.T, strict=True):
        angle, scale = math.radians(10) * turn, 1 + 0.1 * zoom
        matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale  # (y, x)
        centre = np.array([7.5, 11.5])
        offset = centre - matrix @ centre + 0.06 * np.array([down * 16, across * 24])
        for plane, found in zip(picture.double().numpy(), result, strict=True):
            expected = scipy.ndimage.affine_transform(plane, matrix, offset, order=1, mode="grid-constant", cval=0.5)
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("unit", [(0, 0), (2, 1)])
def test_only_the_field_of_a_unit_changes(unit: tuple[int, int]) -> None:
    net, options = small(), {"size": 20, "parametrization": "pixels", "robustness": False}
    call = {call.key: call for call in layers(net, torch.zeros(1, 3, 20, 20))}["4"]
    begin = visualization._Canvas((1, 3, 20, 20), "pixels", seeded(), torch.empty(0)).pictures().detach()
    found = maximize(net, "4", 2, unit=unit, steps=20, **options).image
    changed = (found != begin).any(1)[0].nonzero()
    top, left, bottom, right = receptive_box(call, unit, (20, 20))
    assert len(changed)
    assert (changed.amin(0) >= torch.tensor([top, left])).all()
    assert (changed.amax(0) < torch.tensor([bottom, right])).all()


# ----- maximize: what is made large


class OneLogit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = small()
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.body(x).mean((2, 3)))}


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.stem, self.mix = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.stem(x).permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("net", "layer", "channel", "unit", "value"),
    [
        (small, "3", 1, None, lambda y: y[:, 1].mean()),  # before the activation in place
        (small, "4", 1, None, lambda y: y[:, 1].mean()),
        (small, "4", 1, "centre", lambda y: y[0, 1, 3, 3]),
        (small, "4", 0, (1, 5), lambda y: y[0, 0, 1, 5]),
        (small, "last", None, None, lambda y: y.square().mean()),
        (ChannelsLast, "mix", 6, (3, 5), lambda y: y[0, 3, 5, 6]),
        (transformer, "encoder.layers.encoder_layer_0", 5, None, lambda y: y[0, 1:, 5].mean()),
        (transformer, "encoder.layers.encoder_layer_1", 5, (2, 3), lambda y: y[0, 1 + 2 * 4 + 3, 5]),
        (transformer, "logits", 4, None, lambda y: y[0, 4]),
        (transformer, "heads", 4, None, lambda y: y[0, 4]),
        (OneLogit, "logits", 1, None, lambda y: y[0, 0]),
        (OneLogit, "logits", 0, None, lambda y: -y[0, 0]),
    ],
)
def test_objectives(net: Any, layer: str, channel: Any, unit: Any, value: Any) -> None:
    model = net().eval()
    found = maximize(model, layer, channel, unit=unit, size=32, steps=30, robustness=False, mean=HALF, std=HALF)
    seen = (found.image - 0.5) / 0.5
    if layer == "logits":
        output = model(seen)
        output = output["logits"] if isinstance(output, dict) else output
    else:
        output = next(iter(capture(model, seen, layer).values()))
    assert found.end == pytest.approx(value(output).item(), rel=1e-4, abs=1e-5)
    assert found.end > found.start + 0.01


def test_segmentation_logits_are_averaged() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 3)
    found = maximize(net, "logits", 2, size=9, steps=10)
    mean, std = (torch.tensor(x)[:, None, None] for x in (preprocessing.IMAGENET_MEAN, preprocessing.IMAGENET_STD))
    assert found.end == pytest.approx(net((found.image - mean) / std)[:, 2].mean().item(), rel=1e-4)


def test_trained_channel_is_excited_beyond_every_photo() -> None:
    natural = capture(lite0(), photos(96), "_conv_head")["_conv_head"][:, 5].mean((1, 2)).max().item()
    found = maximize(lite0(), "_conv_head", 5, size=96, steps=40, **LITE0)
    assert found.end > 3 * max(natural, found.start, 1.0)
    assert found.image.min() >= 0
    assert found.image.max() <= 1


def test_trained_class_logits_make_pictures_of_their_class() -> None:
    net, (images, labels) = trained_digits(), digit_images()
    logits = net(images).detach()
    made = []
    for label in range(10):
        found = maximize(net, "logits", label, size=8, steps=64, robustness=False, **PLAIN)
        assert found.image.shape == (1, 1, 8, 8)
        assert found.end > logits[labels == label, label].max()
        made.append(int(net(found.image).argmax()) == label)
    assert sum(made) >= 9, "a logit may be largest where another is larger still"


def test_diversity_makes_pictures_differ() -> None:
    net, options = trained_digits(), {"size": 8, "steps": 80, "batch": 3, **PLAIN}
    alike, apart = (
        similarity(capture(net, maximize_activation(net, "features.4", 3, diversity=weight, **options))["features.4"])
        for weight in (0.0, 20.0)
    )
    assert apart < alike - 0.1


def test_units_behind_closed_rectifiers_are_woken() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.ReLU6(inplace=True))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    net[2].bias.data.sub_(net[:3](torch.zeros(1, 3, 5, 5)).max() + 5)
    grey = torch.zeros(1, 3, 12, 12)
    assert not net(grey).any()
    found = maximize(net, "3", 1, size=12, steps=60, mean=HALF, std=HALF)
    assert (found.start, found.end > 0.3) == (0.0, True)
    net[2].bias.data.add_(1e4)
    full = maximize(net, "3", 1, size=12, steps=5, mean=HALF, std=HALF)
    begin = visualization._Canvas((1, 3, 12, 12), "fourier", seeded(), torch.empty(0)).pictures().detach()
    assert (full.start, full.end) == (6.0, 6.0)
    assert torch.equal(full.image, begin), "at its ceiling there is nothing to wake"


def test_similarity_is_the_formula() -> None:
    outputs = torch.randn(4, 3, 2, 5, generator=seeded())
    grams = []
    for output in outputs.double().numpy().reshape(4, 3, 10):
        gram = np.einsum("cp,dp->cd", output, output)
        grams.append(gram / np.sqrt((gram**2).sum()))
    pairs = [(grams[i] * grams[j]).sum() for i in range(4) for j in range(4) if i != j]
    assert similarity(outputs).item() == pytest.approx(np.mean(pairs), rel=1e-5)


def test_same_seed_same_bits() -> None:
    options = {"size": 24, "steps": 5, "batch": 2}
    first, again = (maximize(small(), "4", 1, seed=7, **options) for _ in range(2))
    other = maximize(small(), "4", 1, seed=8, **options)
    assert torch.equal(first.image, again.image)
    assert (first.start, first.end) == (again.start, again.end)
    assert not torch.equal(first.image, other.image)
    assert first.image.shape == (2, 3, 24, 24)
    assert not torch.equal(first.image[0], first.image[1])


def test_sizes_and_defaults() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1))
    plain: dict[str, Any] = {"mean": (0.0, 0.0), "std": (1.0, 1.0), "steps": 1}
    assert maximize_activation(net, "1", 0, **plain).shape == (2, 224, 224)
    assert maximize_activation(net, "1", 0, size=(9, 14), **plain).shape == (2, 9, 14)
    assert maximize_activation(nn.Flatten(), "logits", 0, size=2, steps=1).shape == (3, 2, 2)


def test_progress_counts_steps() -> None:
    seen: list[tuple[int, int]] = []
    maximize(small(), "4", 0, size=8, steps=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_half_precision_and_switched_off_gradients() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = small(), nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.body(x)
            return self.head(x)

    torch.manual_seed(0)
    net = Frozen()
    found = maximize(net, "head", 1, size=16, steps=10)
    assert found.end > found.start
    low = net.bfloat16()
    assert maximize(low, "head", 1, size=16, steps=3).image.dtype == torch.float32
    assert low.head.weight.dtype == torch.bfloat16
    assert maximize(net.double(), "head", 1, size=16, steps=3).image.dtype == torch.float32


# ----- nothing of the model changes


def state(model: nn.Module) -> list[Any]:
    return [
        [(name, tensor.clone()) for name, tensor in model.state_dict().items()],
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        [module.training for module in model.modules()],
        [(list(module._forward_hooks), list(module._forward_pre_hooks)) for module in model.modules()],
        [torch.get_rng_state(), torch.is_grad_enabled()],
        [random.getstate(), str(np.random.get_state())],  # noqa: NPY002
    ]


def assert_same(before: Any, after: Any) -> None:
    if isinstance(before, list | tuple):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    elif isinstance(before, Tensor):
        assert torch.equal(before, after)
    else:
        assert before == after


class Raises(nn.Module):
    """Fails from its n-th forward on; never where n is 0."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.runs, self.body, self.noise = at, [0], small(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.runs[0] += 1
        if 0 < self.at <= self.runs[0]:
            raise RuntimeError("enough")
        return self.noise(self.body(x))


USES = {
    "maximize": lambda net: maximize(net, "body.4", 1, size=16, steps=4),
    "top_patches": lambda net: top_patches(net, torch.rand(3, 3, 16, 16), "body.4", [0, 1], batch_size=1),
    "reconstruct": lambda net: reconstruct(net, torch.rand(2, 3, 16, 16), "body.4", 0, [(0, 1), (1, 1)], batch_size=1),
    "kernel_responses": lambda net: kernel_responses(net, torch.rand(3, 16, 16)),
}


@pytest.mark.parametrize("use", list(USES))
@pytest.mark.parametrize("at", [0, 1, 2])
def test_nothing_changes(use: str, at: int) -> None:
    net = Raises(at).train()
    next(net.parameters()).requires_grad_(False)
    generator = torch.get_rng_state()
    torch.manual_seed(11)
    images_drawn = torch.get_rng_state()
    before = state(net)
    if not at:
        USES[use](net)
    else:
        with pytest.raises(InterpretError, match="enough"):
            USES[use](net)
    after = state(net)
    if use != "maximize":  # the test itself draws its images
        after[4][0] = before[4][0] = images_drawn
    assert_same(before, after)
    torch.set_rng_state(generator)


# ----- top patches


def patch_images(count: int = 11) -> Tensor:
    return torch.randn(count, 3, 30, 22, generator=seeded(2))


def test_top_patches_are_the_strongest_positions() -> None:
    net, images = small(), patch_images()
    found = top_patches(net, images, "3", [4, 0], count=5, batch_size=4)
    assert list(found) == [4, 0]
    output = net[:4](images).detach().numpy()
    for channel, patches in found.items():
        peaks = [(float(map_.max()), number, divmod(int(map_.argmax()), map_.shape[1])) for number, map_ in
                 enumerate(output[:, channel])]  # fmt: skip
        peaks.sort(key=lambda peak: -peak[0])
        assert [(patch.image, patch.position) for patch in patches] == [peak[1:] for peak in peaks[:5]]
        assert [patch.activation for patch in patches] == pytest.approx([peak[0] for peak in peaks[:5]], rel=1e-5)
    # along an axis: 1 pixel of padding; fields 3, 4 and 8 wide, 4 pixels apart
    for patch in found[0]:
        top, left = (max(0, 4 * place - 1) for place in patch.position)
        bottom, right = (min(4 * place + 7, limit) for place, limit in zip(patch.position, (30, 22), strict=True))
        assert patch.box == (top, left, bottom, right)


def test_nothing_outside_a_box_counts_and_all_that_counts_is_inside() -> None:
    net, images = lively("resnet18"), photos(96)
    call = {call.key: call for call in layers(net, images)}["layer2.0.conv2"]
    found = top_patches(net, images, "layer2.0.conv2", [3], count=4)
    assert call.receptive_field is not None
    inside_somewhere = 0
    for patch in found[3]:
        top, left, bottom, right = patch.box
        image = images[patch.image : patch.image + 1]
        other = torch.randn(image.shape, generator=seeded())
        other[:, :, top:bottom, left:right] = image[:, :, top:bottom, left:right]
        y, x = patch.position
        value = capture(net, other, "layer2.0.conv2")["layer2.0.conv2"][0, 3, y, x].item()
        assert value == pytest.approx(patch.activation, rel=1e-4, abs=1e-5)
        leaf = image.clone().requires_grad_()
        features = nn.Sequential(net.conv1, net.bn1, nn.ReLU(), net.maxpool, net.layer1)(leaf)
        block = net.layer2[0]
        block.conv2(block.relu(block.bn1(block.conv1(features))))[0, 3, y, x].backward()
        touched = leaf.grad.abs().sum((0, 1)).nonzero()
        assert (touched.amin(0) >= torch.tensor([top, left])).all()
        assert (touched.amax(0) < torch.tensor([bottom, right])).all()
        inside_somewhere += (bottom - top) * (right - left) < 96 * 96
    assert inside_somewhere, "a box that is the whole image proves nothing"


def test_equal_images_rank_by_number_and_positions_by_order() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1))
    net[0].weight.data.zero_()
    net[0].bias.data = torch.tensor([1.0, -2.0])
    found = top_patches(net, torch.rand(5, 1, 4, 4), "0", [1], count=9, batch_size=2)
    assert found[1] == tuple(TopPatch(image, (0, 0), -2.0, (0, 0, 1, 1)) for image in range(5))


def test_top_patches_of_vectors_and_tokens() -> None:
    net, images = transformer(), torch.rand(5, 3, 32, 32, generator=seeded(2))
    (best, *_) = top_patches(net, images, "heads", [3], count=2)[3]
    with torch.no_grad():
        logits = net(images)[:, 3]
    assert (best.image, best.position, best.box) == (int(logits.argmax()), (0, 0), (0, 0, 32, 32))
    layer = "encoder.layers.encoder_layer_0"
    tokens = capture(net, images, layer)[layer][:, 1:, 7]
    (best, *_) = top_patches(net, images, layer, [7])[7]
    image, token = divmod(int(tokens.flatten().argmax()), 16)
    assert (best.image, best.position, best.box) == (image, divmod(token, 4), (0, 0, 32, 32))
    assert best.activation == pytest.approx(tokens.max().item(), rel=1e-5)
    (patch, *_) = top_patches(net, images, "conv_proj", [0], count=1)[0]
    y, x = patch.position
    assert patch.box == (8 * y, 8 * x, 8 * y + 8, 8 * x + 8)


# ----- reconstruct


def deconvnet(net: nn.Sequential, image: Tensor, channel: int, position: tuple[int, int]) -> Tensor:
    """Zeiler and Fergus by hand: unpool to the switches, rectify, filter with the transposed kernels."""
    first, _, _, second, _ = net
    with torch.no_grad():
        pooled, switches = functional.max_pool2d(first(image).relu(), 2, return_indices=True)
        top = second(pooled).relu()
        alone = torch.zeros_like(top)
        alone[0, channel, position[0], position[1]] = top[0, channel, position[0], position[1]]
        spare = (pooled.shape[2] - 3) % 2, (pooled.shape[3] - 3) % 2
        back = functional.conv_transpose2d(alone.relu(), second.weight, stride=2, output_padding=spare)
        size = first(image).shape[2:]
        back = functional.max_unpool2d(back, switches, 2, output_size=size)
        return functional.conv_transpose2d(back.relu(), first.weight, padding=1)


def test_reconstruction_is_a_deconvnet() -> None:
    net, images = small(), patch_images(3)
    maps = net(images).detach()
    channel = int(maps.amax((2, 3)).amin(0).argmax())
    positions = [divmod(int(map_.argmax()), map_.shape[1]) for map_ in maps[:, channel]]
    found = reconstruct(net, images, "4", channel, positions, batch_size=2)
    call = {call.key: call for call in layers(net, images)}["4"]
    for image, result, position in zip(images, found, positions, strict=True):
        expected = deconvnet(net, image[None], channel, position)[0]
        assert expected.abs().max() > 0
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)
        top, left, bottom, right = receptive_box(call, position, (30, 22))
        outside = result.clone()
        outside[:, top:bottom, left:right] = 0
        assert not outside.any()


@pytest.mark.filterwarnings("ignore")  # captum's own
@pytest.mark.parametrize("rule", ["deconvnet", "guided-backprop"])
def test_reconstruction_agrees_with_captum(rule: Any) -> None:
    from captum.attr import NeuronDeconvolution, NeuronGuidedBackprop

    torch.manual_seed(1)
    widths = (3, 8, 12, 16)
    blocks = [
        layer
        for before, after in itertools.pairwise(widths)
        for layer in (nn.Conv2d(before, after, 3, 2), nn.BatchNorm2d(after), nn.ReLU())
    ]
    net = nn.Sequential(*blocks).train()
    net(photos(64))
    net.eval()
    images, peer = photos(64)[:3], copy.deepcopy(net)
    ours = reconstruct(net, images, "7", 9, [(3, 4)] * 3, rule=rule)
    method = NeuronDeconvolution if rule == "deconvnet" else NeuronGuidedBackprop
    theirs = method(peer, peer[7]).attribute(images, (9, 3, 4)).detach()
    values = net[:8](images).detach()[:, 9, 3, 4]
    assert values.abs().min() > 1e-3
    torch.testing.assert_close(ours, theirs * values[:, None, None, None], rtol=1e-4, atol=1e-6)


def test_without_rectifiers_before_it_a_unit_projects_by_its_kernel() -> None:
    net, images = small(), patch_images(1)
    result = reconstruct(net, images, "0", 1, [(5, 6)])[0]
    value = net[0](images).detach()[0, 1, 5, 6]
    torch.testing.assert_close(result[:, 4:7, 5:8], net[0].weight.detach()[1] * value)


def test_reconstruction_of_tokens_and_reused_relu6() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.relu = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 4), nn.ReLU6()

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.relu(self.first(x)).flatten(2).transpose(1, 2)
            return self.relu(self.second(tokens))

    net, images = Reused(), torch.rand(1, 3, 16, 16, generator=seeded())
    result = reconstruct(net, images, "relu#1", 1, [(2, 3)], rule="guided-backprop")
    leaf = images.clone().requires_grad_()
    with guided("guided-backprop"):
        unit = net(leaf)[0, 11, 1]
    (unit**2 / 2).backward()
    torch.testing.assert_close(result, leaf.grad)
    outside = result.clone()
    outside[:, :, 8:12, 12:16] = 0
    assert not outside.any()


def test_every_execution_of_a_module_can_be_named() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x).relu_())

    net, image = Twice(), torch.randn(3, 8, 8, generator=seeded())
    once = functional.conv2d(image[None], net.conv.weight, net.conv.bias).detach()
    torch.testing.assert_close(kernel_responses(net, image, "conv"), once[0])
    torch.testing.assert_close(kernel_responses(net, image, "conv#1"), net(image[None])[0].detach())


def test_layers_that_not_every_image_reaches_are_refused() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.more = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.more(self.conv(x)) if x.mean() > 0 else self.conv(x)

    images = torch.stack((torch.ones(3, 8, 8), -torch.ones(3, 8, 8)))
    with pytest.raises(LayerError, match="'more' does not run on every image"):
        top_patches(Sometimes(), images, "more", [0], batch_size=1)


def test_sequences_without_a_grid_lie_in_a_column() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.linear = nn.Conv1d(3, 5, 3), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x.flatten(2)).transpose(1, 2)).mean(1)

    net, images = Rows(), torch.randn(3, 3, 10, 10, generator=seeded())
    along = net.conv(images.flatten(2)).detach()  # (N, C, 98): no square of tokens, with or without some in front
    for layer, values in (("conv", along), ("linear", net.linear(along.transpose(1, 2)).detach().transpose(1, 2))):
        patches = top_patches(net, images, layer, [3])[3]
        best = values[:, 3].max(1)
        order = best.values.argsort(descending=True).tolist()
        expected = [(image, (int(best.indices[image]), 0)) for image in order]
        assert [(patch.image, patch.position) for patch in patches] == expected


# ----- kernel responses


def test_kernel_responses_are_the_convolution() -> None:
    net, image = small(), patch_images(1)[0]
    expected = functional.conv2d(image[None], net[0].weight, net[0].bias, padding=1)[0].detach()
    assert (expected < 0).any(), "not what the activation in place leaves"
    torch.testing.assert_close(kernel_responses(net, image), expected)
    torch.testing.assert_close(kernel_responses(net, image, "3"), net[:4](image[None])[0].detach())
    net = trained_digits()
    image = digit_images()[0][3]
    expected = functional.conv2d(image[None], net.features[0].weight, padding=1)[0].detach()
    torch.testing.assert_close(kernel_responses(net, image), expected)


def test_kernel_responses_of_a_real_network() -> None:
    found = kernel_responses(lite0(), photos(64)[0])
    stem = lite0()._conv_stem
    with torch.no_grad():
        padded = functional.pad(photos(64)[:1], (0, 1, 0, 1))
        expected = functional.conv2d(padded, stem.weight, stride=2)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ----- errors


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda net: maximize(net, "44", 0, size=8), "layer '44' matches none .* did you mean '4'"),
        (lambda net: maximize(net, "*", 0, size=8), r"names 5 calls \('0', '1', '2', '3', ...\); name one"),
        (lambda net: maximize(net, "4", 5, size=8), r"channel 5 is out of range: layer '4' has 5 \(0 to 4\)"),
        (lambda net: maximize(net, "4", -1, size=8), "channel -1 is out of range"),
        (lambda net: maximize(net, "4", 0, unit=(9, 0), size=8), r"unit \(9, 0\) is no position .* 1 x 1"),
        (lambda net: maximize(net, "4", 0, unit="center", size=8), "unit 'center' is no position"),  # type: ignore[arg-type]
        (lambda net: maximize(net, "4", unit="centre", size=8), "needs the channel"),
        (lambda net: maximize(net, "4", 0, parametrization="pixel"), "did you mean 'pixels'"),  # type: ignore[arg-type]
        (lambda net: maximize(net, "4", 0, steps=0), "at least 1 step"),
        (lambda net: maximize(net, "4", 0, learning_rate=math.nan), "a rate above 0"),
        (lambda net: maximize(net, "4", 0, diversity=1.0), "batch > 1"),
        (lambda net: maximize(net, "4", 0, size=0), "give at least 1"),
        (lambda net: maximize(net, "4", 0, size=8, input_channels=1), "do not fit pictures of 1 channels"),
        (lambda net: maximize(net, "4", 0, size=8, std=(1.0, 0.0, 1.0)), "positive"),
        (lambda net: maximize(nn.Sequential(net, nn.Flatten(0)), "logits", 0, size=8), "no .N, K. or"),
        (lambda net: maximize(Rounds(), "conv", 0, size=8), "has no gradient with respect to the images"),
        (lambda net: top_patches(net, torch.rand(2, 3, 8, 8), "4", [0, 7]), "channel 7 is out of range"),
        (lambda net: top_patches(net, torch.rand(2, 3, 8, 8), "4", [0], count=0), "count=0"),
        (lambda net: top_patches(net, torch.rand(2, 3, 8, 8), "4", [0], batch_size=0), "batch_size=0"),
        (lambda net: reconstruct(net, torch.rand(2, 3, 8, 8), "4", 0, [(0, 0)]), "1 positions do not fit 2 images"),
        (lambda net: reconstruct(net, torch.rand(1, 3, 8, 8), "4", 0, [(0, 1)]), "do not lie in layer '4'"),
        (lambda net: reconstruct(net, torch.rand(1, 3, 8, 8), "4", 9, [(0, 0)]), "channel 9 is out of range"),
        (lambda net: reconstruct(net, torch.rand(1, 3, 8, 8), "4", 0, [(0, 0)], rule="plain"), "rule 'plain'"),  # type: ignore[arg-type]
        (
            lambda net: reconstruct(nn.Sequential(net[0], nn.SiLU()), torch.rand(1, 3, 8, 8), "1", 0, [(0, 0)]),
            "cannot be guided: deconvnet is a rule for ReLUs.* silu",
        ),
        (lambda net: reconstruct(net, torch.rand(3, 8, 8), "4", 0, [(0, 0)]), "no preprocessed images"),
        (lambda net: top_patches(net, torch.rand(0, 3, 8, 8), "4", [0]), "no preprocessed images"),
        (lambda net: kernel_responses(net, torch.rand(1, 3, 8, 8)), "no preprocessed images"),
        (lambda net: kernel_responses(nn.Sequential(nn.ReLU()), torch.rand(3, 8, 8)), "has no convolution"),
        (lambda net: kernel_responses(nn.Sequential(nn.Unflatten(1, (1, 3))), torch.rand(3, 8, 8), "0"), "no channels"),
    ],
)
def test_errors_say_what_to_do(use: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        use(small())


class Rounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.detach().round())


def test_the_scale_of_the_objective_does_not_matter() -> None:
    """Weights as small as 1e-9 of others: gradients far below the constant of Adam's usual form."""
    torch.manual_seed(0)
    weight = torch.randn(1, 3, 5, 5)
    ends = []
    for scale in (1.0, 1e-9):
        net = nn.Sequential(nn.Conv2d(3, 1, 5, bias=False))
        with torch.no_grad():
            net[0].weight.copy_(weight * scale)
        ends.append(maximize(net, "0", 0, size=16, steps=30).end / scale)
    assert ends[1] == pytest.approx(ends[0], rel=1e-2)


def test_responses_of_half_precision() -> None:
    net, image = nn.Sequential(nn.Conv2d(3, 4, 3)).bfloat16(), torch.randn(3, 8, 8, generator=seeded())
    expected = functional.conv2d(image[None], net[0].weight.float(), net[0].bias.float())[0]
    torch.testing.assert_close(kernel_responses(net, image), expected.detach())
