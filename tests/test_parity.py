"""What docs/parity.md says of maps, coverage and localisation, with the code that measured it."""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import interpret
from interpret.functional.cam import ONE_PASS_METHODS
from networks import lite0, photos, without_in_place

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(f"script_{name}", str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


parity = script("parity")


# test_maps.py holds lite0, resnet18 and densenet121 against the peer
@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name in ("vgg11_bn", "convnext_tiny") for layer in parity.CASES[name]]
)
def test_maps_agree_with_pytorch_grad_cam(name: str, layer: str) -> None:
    early = layer == parity.CASES[name][0]  # where the peer's full decomposition takes half a minute
    methods = [method for method in ONE_PASS_METHODS if not (early and method.startswith("eigen"))]
    found = parity.map_distances(name, layer, methods, size=96)
    assert list(found) == methods
    for method, values in found.items():
        assert values["classes"] >= 2
        if values["counts"] == 0:
            assert (name, method) == ("convnext_tiny", "hires-cam")  # below 1e-4 everywhere: rounding
        else:
            assert values["peer"] <= parity.limit_of(name, method), method


def test_maps_of_a_trained_network_follow_the_formulas() -> None:
    model, images, layers = lite0(), photos(96)[:2], parity.CASES["lite0"]
    maps = interpret.class_activation_maps(model, images, ONE_PASS_METHODS, layers=list(layers))
    clean = without_in_place(model)
    for layer in layers:
        a, g = (x.double() for x in parity.gradient_pair(clean, layer, images, maps.targets[:, 0]))
        for method in ONE_PASS_METHODS:
            raw, exact = maps[method, layer].double(), parity.FORMULAS[method](a, g)
            if raw.abs().max() > parity.COUNTS:
                truth = parity.finished(exact, (96, 96))
                assert parity.apart(raw, truth, method.startswith("eigen")).max() <= 2e-5, (layer, method)


def test_the_formulas_by_hand() -> None:
    """One channel, two positions: A = (1, 2), G = (0.5, -0.25)."""
    a, g = torch.tensor([[[[1.0, 2.0]]]]).double(), torch.tensor([[[[0.5, -0.25]]]]).double()
    expected = {
        "grad-cam": [0.125, 0.25],
        "xgrad-cam": [0.0, 0.0],
        "hires-cam": [0.5, 0.0],
        "layer-cam": [0.5, 0.0],
        "elementwise-grad-cam": [0.5, 0.0],
        "grad-cam++": [0.5 * 0.25 / (0.5 + 3 * 0.125 + 1e-6), 2 * 0.5 * 0.25 / (0.5 + 3 * 0.125 + 1e-6)],
    }
    for method, values in expected.items():
        np.testing.assert_allclose(parity.FORMULAS[method](a, g)[0, 0], values, atol=1e-12, err_msg=method)
    np.testing.assert_allclose(parity.FORMULAS["eigen-cam"](a, g).abs(), [[[0.5, 0.5]]])


# test_models.py runs other networks
@pytest.mark.parametrize(
    ("kind", "name", "key"),
    [
        ("torchvision", "resnet18", "layer4.1.conv2"),
        ("torchvision", "mobilenet_v3_large", "features.16.0"),
        ("segmentation", "lraspp_mobilenet_v3_large", "classifier.high_classifier"),
        ("detection", "ssdlite320_mobilenet_v3_large", "head.classification_head.module_list.0.0.0"),
        ("timm", "edgenext_xx_small", "stages"),
        ("timm", "mobilevit_xxs", "final_conv.conv"),
        ("timm", "poolformer_s12", "stages.3.blocks.1.mlp.fc2"),
        ("timm", "mixer_s32_224", "norm"),
        ("timm", "cait_xxs24_224", "blocks_token_only.1.norm1"),
        ("timm", "deit_tiny_distilled_patch16_224", "blocks.11.norm1"),
    ],
)
def test_networks_need_no_user_code(kind: str, name: str, key: str) -> None:
    found = parity.covered(kind, name)
    assert not found.wrong, f"{found.key}: {found.wrong}"
    assert found.key == key


@pytest.mark.parametrize("name", parity.BOXES)
def test_grad_cam_finds_the_object(name: str) -> None:
    found, _ = parity.localisation(name, lite0())
    assert found >= parity.LEAST[name]
    controls = [parity.localisation(name, parity.shuffled(lite0(), seed))[0] for seed in range(2)]
    assert np.nanmean(controls) < min(found, parity.LEAST[name])


def test_energy_in_a_box_by_hand() -> None:
    """A map of one value has its box's share of the energy; one that is zero outside has all of it."""
    name = "coffee"  # 400 x 600
    left, top, right, bottom = parity.BOXES[name]
    flat = torch.ones(400, 600)
    assert parity.share_in_box(flat, name) == pytest.approx(1.0)
    inside = torch.zeros(400, 600)
    inside[top:bottom, left:right] = 1.0
    assert parity.share_in_box(inside, name) == pytest.approx(240_000 / ((right - left) * (bottom - top)))
