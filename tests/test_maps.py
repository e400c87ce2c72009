"""Maps of whole networks: against pytorch-grad-cam, against captures by hand, and where other tools go wrong."""

from functools import cache

import numpy as np
import pytest
import torch
from pytorch_grad_cam import (
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional

import interpret
from interpret.errors import InterpretError, LayerError
from interpret.functional.cam import ONE_PASS_METHODS as METHODS
from interpret.maps import Maps
from networks import lite0, lively, photos, without_in_place

PEERS = {
    "grad-cam": GradCAM,
    "grad-cam++": GradCAMPlusPlus,
    "xgrad-cam": XGradCAM,
    "hires-cam": HiResCAM,
    "layer-cam": LayerCAM,
    "elementwise-grad-cam": GradCAMElementWise,
    "eigen-cam": EigenCAM,
    "eigen-grad-cam": EigenGradCAM,
}
# float32 rounding of these two formulas dominates; more so where random gradients are tiny next to their constants
LIMITS = {True: {"grad-cam++": 2e-4, "xgrad-cam": 5e-4}, False: {"grad-cam++": 5e-3, "xgrad-cam": 5e-3}}
CASES = {
    "lite0": ("_blocks.5._project_conv", "_blocks.8._depthwise_conv", "_conv_head"),
    "resnet18": ("layer1.1.conv2", "layer3.0.conv1", "layer4.1.conv2"),
    "densenet121": (
        "features.denseblock2.denselayer3.conv2",
        "features.transition2.conv",
        "features.denseblock4.denselayer16.conv2",
    ),
}


@cache
def network(name: str) -> nn.Module:
    return lite0() if name == "lite0" else lively(name)


@cache
def our_maps(name: str, layers: tuple[str, ...]) -> Maps:
    return interpret.class_activation_maps(network(name), photos(), METHODS, layers=list(layers))


def peer_maps(method: str, model: nn.Module, layer: str, targets: Tensor) -> np.ndarray:
    """pytorch-grad-cam's finished maps, (N, H, W) in [0, 1]."""
    with PEERS[method](model=model, target_layers=[model.get_submodule(layer)]) as peer:
        return peer(photos(), targets=[ClassifierOutputTarget(int(target)) for target in targets])


def differences(method: str, maps: Maps, layer: str, peer: np.ndarray) -> np.ndarray:
    """Largest difference of each image on the [0, 1] scale; for eigen methods with the better of the two signs."""
    size = peer.shape[1:]
    worst = np.abs(maps.heatmap(method, layer, size).numpy() - peer).max((1, 2))
    if method.startswith("eigen"):
        flipped = Maps({(method, layer): -maps[method, layer]}, maps.targets).heatmap(method, layer, size).numpy()
        worst = np.minimum(worst, np.abs(flipped - peer).max((1, 2)))
    return worst


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, layers in CASES.items() for layer in layers])
def test_agrees_with_pytorch_grad_cam(name: str, layer: str, method: str) -> None:
    maps = our_maps(name, CASES[name])
    assert len(maps.targets.unique()) >= 2
    counts = maps[method, layer].abs().amax((1, 2)).numpy() > 1e-4  # a smaller map is rounding
    assert counts.sum() >= 2
    peer = peer_maps(method, network(name), layer, maps.targets[:, 0])
    limit = LIMITS[name == "lite0"].get(method, 1e-5)
    assert differences(method, maps, layer, peer)[counts].max() <= limit


@pytest.mark.parametrize("method", METHODS)
def test_outputs_that_an_in_place_relu_overwrites(method: str) -> None:
    """SqueezeNet's ReLUs overwrite its convolutions; the peer pairs what overwrote them with gradients from before."""
    layers = ("features.3.squeeze", "features.6.expand3x3", "features.12.squeeze")
    model = network("squeezenet1_1")
    copy = without_in_place(model)
    ours = our_maps("squeezenet1_1", layers)
    clean = interpret.class_activation_maps(copy, photos(), [method], layers=list(layers))
    for layer in layers:
        scale = clean[method, layer].abs().amax()
        assert (ours[method, layer] - clean[method, layer]).abs().amax() <= 1e-6 * scale
        peer = peer_maps(method, copy, layer, clean.targets[:, 0])
        counts = clean[method, layer].abs().amax((1, 2)).numpy() > 1e-4
        assert counts.sum() >= 2
        assert differences(method, clean, layer, peer)[counts].max() <= LIMITS[False].get(method, 1e-5)


def test_grad_cam_plus_plus_near_a_pole() -> None:
    """2 G^2 + S G^3 + eps vanishes somewhere in this layer: ours follows float64 there, the peer's float32 does not."""
    layer = "_blocks.2._project_conv"
    captured = interpret.capture(lite0(), photos(), layers=[layer], gradients=True)[layer]
    maps = interpret.class_activation_maps(lite0(), photos(), ["grad-cam++"], layers=[layer])
    a, g = captured.output.double(), captured.gradient.double()
    alpha = torch.where(g != 0, g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + 1e-6), 0.0)
    exact = torch.einsum("nk,nkhw->nhw", (alpha * g.clamp_min(0)).sum((2, 3)), a).clamp_min(0).float()
    truth = Maps({("grad-cam++", layer): exact}, maps.targets).heatmap("grad-cam++", layer, (160, 160)).numpy()
    peer = peer_maps("grad-cam++", lite0(), layer, maps.targets[:, 0])
    assert differences("grad-cam++", maps, layer, truth).max() <= 1e-6
    assert np.abs(peer - truth).max() > 2e-4


def small() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


def test_targets_of_every_form() -> None:
    images = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    net = small()
    maps = interpret.class_activation_maps(net, images, ("grad-cam", "eigen-cam"), targets=[[0, 1], [1, 2], [3, 3]])
    assert maps.targets.tolist() == [[0, 1], [1, 2], [3, 3]]
    assert maps["grad-cam", "2"].shape == (3, 2, 8, 8) == maps["eigen-cam", "2"].shape
    assert maps.heatmap("grad-cam", "2", (12, 12)).shape == (3, 2, 12, 12)
    one = interpret.class_activation_maps(net, images, targets=1)
    torch.testing.assert_close(one["grad-cam", "2"][0], maps["grad-cam", "2"][0, 1])
    each = interpret.class_activation_maps(net, images, targets=[1, 2, 3])
    torch.testing.assert_close(each["grad-cam", "2"][2], maps["grad-cam", "2"][2, 1])
    scores = interpret.class_activation_maps(net, images, targets=lambda output: output[:, 1])
    torch.testing.assert_close(scores["grad-cam", "2"], one["grad-cam", "2"])
    assert scores.targets.tolist() == [[-1], [-1], [-1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": 9}, "target class 9 is out of range: the model has 4 classes"),
        ({"targets": [0, 1]}, "do not fit 3 images"),
        ({"targets": "label "}, "unknown target"),
        ({"layers": "convv"}, "layer 'convv' matches none of the 7 calls"),
        ({"layers": ["6"]}, "layer '6' has no spatial output"),
        ({"methods": ("gradcam",)}, "did you mean 'grad-cam'"),
        ({"targets": lambda output: output}, "one score per image"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        interpret.class_activation_maps(small(), torch.rand(3, 3, 12, 12), **arguments)  # type: ignore[arg-type]


def test_missing_map_names_the_closest() -> None:
    maps = interpret.class_activation_maps(small(), torch.rand(2, 3, 12, 12))
    with pytest.raises(LayerError, match="no map of 'grad-cam' at layer '9'"):
        maps["grad-cam", "9"]
    with pytest.raises(LayerError, match="did you mean 'grad-cam'"):
        maps["grad-camm", "0"]
    assert list(maps) == [("grad-cam", "0"), ("grad-cam", "2")]
    assert len(maps) == 2


def test_heatmap_by_hand() -> None:
    raw = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]]])
    maps = Maps({("grad-cam", "x"): raw}, torch.zeros(2, 1, dtype=torch.int64))
    small = maps.heatmap("grad-cam", "x", (2, 2))
    torch.testing.assert_close(small[0], torch.tensor([[0.0, 0.0], [1 / 3, 1.0]]))
    assert torch.count_nonzero(small[1]) == 0, "a constant map is all zeros"
    large = maps.heatmap("grad-cam", "x", (8, 8))
    assert (float(large[0].amin()), float(large[0].amax())) == (0.0, 1.0)


class Reused(nn.Module):
    """One convolution and one in-place activation, each run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = self.relu(self.conv(x))
        return self.head(x.mean((2, 3)))


def test_every_execution_has_its_map() -> None:
    torch.manual_seed(0)
    net, images = Reused(), torch.rand(2, 3, 6, 6)
    maps = interpret.class_activation_maps(net, images, ("hires-cam",), layers=["conv"])
    assert maps.layers == ("conv", "conv#1")
    first = net.conv(images).detach().requires_grad_()
    second = net.conv(functional.relu(first)).detach()
    second_live = net.conv(functional.relu(first))
    logits = net.head(functional.relu(second_live).mean((2, 3)))
    scores = logits.gather(1, maps.targets).sum()
    gradients = torch.autograd.grad(scores, [first, second_live])
    for key, activation, gradient in zip(maps.layers, (first.detach(), second), gradients, strict=True):
        torch.testing.assert_close(maps["hires-cam", key], (activation * gradient).sum(1).clamp_min(0))


@pytest.mark.parametrize(
    "change", ["frozen", "partly frozen", "no_grad", "inference_mode", "train mode", "channels_last"]
)
def test_state_of_the_model_does_not_matter(change: str) -> None:
    net, images = small(), torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    expected = interpret.class_activation_maps(net, images, METHODS)
    if change == "frozen":
        net.requires_grad_(False)
    elif change == "partly frozen":
        net[0].requires_grad_(False)
    elif change == "train mode":
        net.train()
    elif change == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    if change in ("no_grad", "inference_mode"):
        with getattr(torch, change)():
            maps = interpret.class_activation_maps(net, images, METHODS)
    else:
        maps = interpret.class_activation_maps(net, images, METHODS)
    for item in expected:
        torch.testing.assert_close(maps[item], expected[item], rtol=1e-5, atol=1e-6)


def test_a_failing_model_is_named_and_left_as_it_was() -> None:
    net = small().train()
    with pytest.raises(InterpretError, match=r"Sequential failed on images of shape \(1, 4, 12, 12\)"):
        interpret.class_activation_maps(net, torch.rand(2, 4, 12, 12))
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_no_convolution_is_said() -> None:
    with pytest.raises(LayerError, match="no convolution with a spatial output"):
        interpret.class_activation_maps(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.rand(1, 3, 2, 2))
