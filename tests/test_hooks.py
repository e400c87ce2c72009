"""The call table, captures, and the promise that nothing of the model changes."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import interpret
from interpret import hooks, tracing
from interpret.errors import InterpretError, LayerError


class Zoo(nn.Module):
    """What trips hooks: in-place operations, reuse, a shared module, tuples, an unused head, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.alias = self.stem[0]
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.recurrent = nn.LSTM(8, 5, batch_first=True)
        self.auxiliary = nn.Linear(8, 3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.block(x))
        x = self.relu(self.block(x)) * self.scale
        x, _ = self.recurrent(x.flatten(2).transpose(1, 2))
        return self.head(self.drop(x[:, -1]))


@pytest.fixture
def zoo() -> Zoo:
    torch.manual_seed(0)
    return Zoo()


IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_call_table(zoo: Zoo) -> None:
    calls = interpret.layers(zoo, IMAGES)
    table = {call.key: call for call in calls}
    assert list(table) == [
        "stem.0", "stem.1", "stem.2", "stem", "block", "relu", "block#1", "relu#1", "recurrent", "drop", "head", "",
    ]  # fmt: skip
    assert [call.position for call in calls] == list(range(12))
    assert [table[key].kind for key in ("stem.0", "stem.1", "relu#1", "stem", "head", "recurrent")] == [
        "convolution", "normalization", "activation", "container", "linear", "other",
    ]  # fmt: skip
    assert table["block#1"].name == "block"
    assert table["block#1"].occurrence == 1
    assert table["stem.0"].output_shape == (1, 8, 8, 8)
    assert table["stem.0"].input_shape == (1, 3, 8, 8)
    assert table["stem.0"].multiply_adds == 8 * 3 * 9 * 64, "of one image"
    assert table["head"].multiply_adds == 20
    assert table["stem.0"].parameters == 8 * 3 * 9
    assert table["block"].parameters == 8 * 8 * 9 + 8
    assert table["block#1"].parameters == 0, "parameters belong to the first execution"
    assert table["stem.1"].unit == "stem.0"
    assert table["stem.0"].unit == "stem.0"
    assert table[""].tensors == ("scale",)
    assert {key for key, call in table.items() if call.overwritten} == {"stem.1", "block", "block#1"}


def test_every_tensor_of_the_state_has_a_place(zoo: Zoo) -> None:
    with hooks.undisturbed(zoo):
        trace = tracing.trace(zoo, IMAGES)
    placed = [name for call in trace.calls for name in call.tensors]
    assert sorted([*placed, *trace.unused]) == sorted(zoo.state_dict())
    assert trace.unused == ("auxiliary.weight", "auxiliary.bias")
    assert "alias.weight" in dict.fromkeys(placed), "a shared module's second name belongs to its first"
    assert "Zoo" in trace.summary
    assert trace.summary_error == ""


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["relu", "layer1", "layer2", "layer3", "layer4"]),
        (
            "densenet121",
            ["features.relu0", "features.denseblock1", "features.denseblock2", "features.denseblock3", "features"],
        ),
        ("vgg11", ["features.4", "features.9", "features.14", "features.19", "avgpool"]),
    ],
)
def test_stages_end_where_people_say(name: str, stages: list[str]) -> None:
    calls = interpret.layers(torchvision.models.get_model(name), torch.rand(1, 3, 224, 224))
    assert [call.key for call in calls if call.stage_end and call.spatial_shape != (224, 224)][: len(stages)] == stages


def test_multiply_adds_of_token_models_count_every_token() -> None:
    """torchinfo counts a linear layer once, however many tokens pass through it."""
    vit = torchvision.models.vit_b_16()
    with hooks.undisturbed(vit):
        trace = tracing.trace(vit, torch.rand(1, 3, 224, 224))
    linear = next(call for call in trace.calls if call.name.endswith("mlp.0"))
    assert linear.multiply_adds == 197 * 768 * 3072
    assert trace.multiply_adds == pytest.approx(16.85e9, rel=1e-3)
    assert next(call for call in trace.calls if call.type == "MultiheadAttention").kind == "attention"


def test_channel_last_tokens() -> None:
    calls = interpret.layers(torchvision.models.swin_t(), torch.rand(1, 3, 64, 64))
    block = next(call for call in calls if call.name == "features.1.0")
    assert (block.layout, block.channels, block.spatial_shape) == ("NHWC", 96, (16, 16))


def test_capture_equals_torchvisions_feature_extractor() -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18().eval()
    images = torch.rand(2, 3, 64, 64)
    names = ["layer1.0.conv2", "layer2", "layer4.1.conv1", "fc"]
    ours = interpret.capture(net, images, names)
    with torch.no_grad():
        theirs = create_feature_extractor(net, names)(images)
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


def test_capture_is_safe_against_in_place_operations(zoo: Zoo) -> None:
    captured = interpret.capture(zoo, IMAGES, gradients=True, inputs=True)
    assert captured["block"].output.min() < 0, "before the ReLU that overwrites it"
    assert captured["relu"].output.min() == 0
    torch.testing.assert_close(captured["relu"].input, captured["block"].output)
    # the same network written out without in-place operations
    zoo.eval().requires_grad_(False)
    with torch.no_grad():
        stem = torch.relu(zoo.stem[1](zoo.stem[0](IMAGES)))
    first = zoo.block(stem).requires_grad_()
    second = zoo.block(torch.relu(first))
    tokens = (torch.relu(second) * zoo.scale).flatten(2).transpose(1, 2)
    logits = zoo.head(zoo.recurrent(tokens)[0][:, -1])
    gradients = torch.autograd.grad(logits.max(1).values.sum(), [first, second])
    for key, gradient in zip(("block", "block#1"), gradients, strict=True):
        torch.testing.assert_close(captured[key].gradient, gradient, rtol=1e-5, atol=1e-8)


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "flags": [module.training for module in model.modules()],
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()],
        "modules": [id(module) for module in model.modules()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in model.modules()
        ],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002
        "python": random.getstate(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_equal(before: Any, after: Any) -> None:
    assert type(before) is type(after)
    if isinstance(before, Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, np.ndarray):
        assert np.array_equal(before, after)
    elif isinstance(before, dict | list):
        assert len(before) == len(after)
        for key in before if isinstance(before, dict) else range(len(before)):
            assert_equal(before[key], after[key])
    else:
        assert before == after


class Noisy(nn.Module):
    """Draws random numbers and counts its executions in a buffer, also in evaluation mode."""

    def __init__(self, fail: bool) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.fail = fail

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if self.fail and len(x) > 1:
            raise RuntimeError("deliberate")
        return x + 1e-3 * torch.rand_like(x) * random.random() * np.random.rand()  # noqa: NPY002


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("what", ["layers", "capture", "maps", "audit"])
def test_nothing_of_the_model_changes(zoo: Zoo, what: str, fail: bool) -> None:
    net = nn.Sequential(Noisy(fail), zoo)
    net.train()
    zoo.stem.eval()
    zoo.block.requires_grad_(False)
    zoo.head(torch.rand(2, 5)).sum().backward()
    act = {
        "layers": lambda: interpret.layers(net, IMAGES),
        "capture": lambda: interpret.capture(net, IMAGES, gradients=True),
        "maps": lambda: interpret.class_activation_maps(net, IMAGES),
        "audit": lambda: interpret.audit(net, IMAGES).close(),
    }[what]
    before = snapshot(net)
    if fail and what != "layers":
        with pytest.raises(InterpretError, match="deliberate"):
            act()
    else:
        act()
    assert_equal(before, snapshot(net))


def test_random_layers_are_reproducible(zoo: Zoo) -> None:
    net = nn.Sequential(Noisy(False), zoo)
    first, second = (interpret.capture(net, IMAGES, "1.head")["1.head"] for _ in range(2))
    with hooks.undisturbed(net, seed=0):
        assert first.shape == second.shape == (3, 4)


def test_select_by_name_key_glob_and_word(zoo: Zoo) -> None:
    calls = interpret.layers(zoo, IMAGES)

    def keys(*patterns: str) -> list[str]:
        return [call.key for call in tracing.select(calls, list(patterns))]

    assert keys("block") == ["block", "block#1"]
    assert keys("block#1") == ["block#1"]
    assert keys("stem.*") == ["stem.0", "stem.1", "stem.2"]
    assert keys("last") == ["block#1"]
    assert keys("head", "stem") == ["stem", "head"], "in order of completion"
    assert len(tracing.select(calls, None)) == len(calls)
    with pytest.raises(LayerError, match=r"layer 'blocks' matches none of the 12 calls; did you mean 'block'"):
        keys("blocks")


def test_architecture_digest_ignores_names_and_weights() -> None:
    def digest(model: nn.Module) -> str:
        with hooks.undisturbed(model):
            return tracing.trace(model, IMAGES).architecture_digest

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    named = nn.Sequential()
    named.add_module("a", nn.Conv2d(3, 4, 3))
    named.add_module("b", nn.ReLU())
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    assert digest(plain) == digest(named) != digest(other)


def test_wrapped_models_are_unwrapped(zoo: Zoo) -> None:
    wrapped = nn.DataParallel(copy.deepcopy(zoo))
    assert [call.key for call in interpret.layers(wrapped, IMAGES)] == [
        call.key for call in interpret.layers(zoo, IMAGES)
    ]
    compiled = torch.compile(zoo)
    assert interpret.capture(compiled, IMAGES, "head").keys() == {"head"}


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.conv(x)
        return {"features": features, "logits": features.mean((2, 3))}


def test_outputs_that_are_mappings() -> None:
    maps = interpret.class_activation_maps(Dictionary(), IMAGES)
    assert maps["grad-cam", "conv"].shape == (3, 6, 6)
    with pytest.raises(LayerError, match=r"not \(N, K\) logits"):
        interpret.class_activation_maps(nn.Conv2d(3, 4, 3), IMAGES, layers=[""])


def test_torchinfo_failing_is_not_the_models_fault(monkeypatch: pytest.MonkeyPatch, zoo: Zoo) -> None:
    def broken(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("no table today")

    monkeypatch.setattr("torchinfo.summary", broken)
    with hooks.undisturbed(zoo):
        trace = tracing.trace(zoo, IMAGES)
    assert trace.summary == ""
    assert "no table today" in trace.summary_error
    assert len(trace.calls) == 12
