"""EfficientNet-Lite0 with its published weights, from checkpoint files to a verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import interpret
from interpret.checkpoint import read_checkpoint
from interpret.comparison import Comparison
from interpret.evidence import Evidence
from interpret.loading import load_state
from networks import lite0, photos

Tamper = Callable[[dict[str, Tensor]], None]


def images() -> Tensor:
    """Eight real crops, (8, 3, 112, 112)."""
    whole = photos(224)
    return torch.cat([whole[:, :, :112, :112], whole[:, :, 100:212, 100:212]])


def blank() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def audit(path: Path, targets: object = "predicted") -> Evidence:
    model = blank()
    checkpoint = load_state(model, read_checkpoint(path))
    return interpret.audit(
        model, images(), checkpoint=checkpoint, targets=targets, methods=("grad-cam",), layers="stages", display_count=2
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    path = tmp_path_factory.mktemp("reference") / "published.pt"
    torch.save(lite0().state_dict(), path)
    return audit(path)


def compare(reference: Evidence, path: Path) -> Comparison:
    return interpret.compare(reference, audit(path, reference), labels=["reference", "other"])


def test_a_copy_in_another_format_under_another_prefix_is_identical(reference: Evidence, tmp_path: Path) -> None:
    path = tmp_path / "copy.safetensors"
    state = {f"module.{name}": tensor.clone() for name, tensor in lite0().state_dict().items()}
    safetensors.torch.save_file(state, path)
    result = compare(reference, path).to_dict()
    assert result["verdict"] == {"other": "identical"}
    assert result["ranking"] == {"other": []}
    assert result["first_divergence"] == {"other": None}
    digests = {run["label"]: run["state_sha256"] for run in result["runs"]}
    assert digests["other"] == digests["reference"]


def quantise(state: dict[str, Tensor]) -> None:
    for name, weight in state.items():
        if name.endswith("weight") and weight.ndim > 1:
            scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / 127
            scale[scale == 0] = 1
            weight.copy_((weight / scale).round() * scale)


def zero_filters(state: dict[str, Tensor]) -> None:
    quantise(state)
    weight = state["_blocks.7._expand_conv.weight"]
    weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))[: len(weight) * 3 // 10]] = 0


def scale_gamma(state: dict[str, Tensor]) -> None:
    state["_blocks.5._bn1.weight"] *= 1.01


def shift_bias(state: dict[str, Tensor]) -> None:
    state["_blocks.3._bn2.bias"][0] += 1


def spread_variance(state: dict[str, Tensor]) -> None:
    state["_blocks.7._bn0.running_var"] *= 4


def shuffle_head(state: dict[str, Tensor]) -> None:
    weight = state["_fc.weight"]
    weight.copy_(weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))])


@pytest.mark.parametrize(
    ("tamper", "verdict", "first"),
    [
        (quantise, "widespread", None),
        (zero_filters, "localized", "_blocks.7._expand_conv"),
        (scale_gamma, "localized", "_blocks.5._bn1"),
        (shift_bias, "localized", "_blocks.3._bn2"),
        (spread_variance, "localized", "_blocks.7._bn0"),
        (shuffle_head, "localized", "_fc"),
    ],
)
def test_tampered_checkpoints(
    reference: Evidence, tmp_path: Path, tamper: Tamper, verdict: str, first: str | None
) -> None:
    state = {name: tensor.clone() for name, tensor in lite0().state_dict().items()}
    tamper(state)
    torch.save({"state_dict": state}, tmp_path / "tampered.ckpt")
    comparison = compare(reference, tmp_path / "tampered.ckpt")
    assert comparison.verdict == {"other": verdict}
    if first is not None:
        assert comparison.ranking["other"][0] == first
    if tamper not in (quantise, zero_filters):
        assert comparison.first_divergence == {"other": first}


def test_same_function_with_other_weights(reference: Evidence, tmp_path: Path) -> None:
    """The channels inside one block in another order: every weight moves, the function does not."""
    state = {name: tensor.clone() for name, tensor in lite0().state_dict().items()}
    order = torch.randperm(480, generator=torch.Generator().manual_seed(0))
    for name in ("_expand_conv.weight", "_depthwise_conv.weight"):
        state[f"_blocks.7.{name}"] = state[f"_blocks.7.{name}"][order]
    for norm in ("_bn0", "_bn1"):
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"_blocks.7.{norm}.{name}"] = state[f"_blocks.7.{norm}.{name}"][order]
    state["_blocks.7._project_conv.weight"] = state["_blocks.7._project_conv.weight"][:, order]
    torch.save(state, tmp_path / "permuted.pt")
    assert compare(reference, tmp_path / "permuted.pt").verdict == {"other": "same-function"}
