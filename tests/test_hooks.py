"""The call table, captures, and the promise that nothing of the model changes."""

from __future__ import annotations

import copy
import gc
import random
import warnings
import weakref
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
    published = torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.meta["_ops"]
    assert trace.multiply_adds / 1e9 == pytest.approx(published, abs=1e-3)
    assert next(call for call in trace.calls if call.type == "MultiheadAttention").kind == "attention"
    assert sum(trace.own_multiply_adds) == trace.multiply_adds
    linear, attention = trace.torchinfo_differences
    assert linear.startswith("Linear: 11.16 G here, 57.44 M in torchinfo: it counts a linear layer once")
    assert attention.startswith("MultiheadAttention: 6.29 G here, 0 in torchinfo: it does not see")


def test_torchinfo_agrees_on_convolutions() -> None:
    net = torchvision.models.resnet18()
    with hooks.undisturbed(net):
        trace = tracing.trace(net, torch.rand(1, 3, 64, 64))
    assert trace.torchinfo_differences == ()
    assert trace.counted_by_torchinfo["Conv2d"] == sum(
        own for call, own in zip(trace.calls, trace.own_multiply_adds, strict=True) if call.type == "Conv2d"
    )


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


def test_random_layers_follow_the_seed(zoo: Zoo) -> None:
    net = nn.Sequential(Noisy(False), zoo)
    first, second = (interpret.capture(net, IMAGES, "0")["0"] for _ in range(2))
    assert torch.equal(first, second)
    with hooks.undisturbed(net, seed=1):
        assert not torch.equal(tracing.run(net[0], IMAGES), first)


class Counter(nn.Module):
    """Puts new tensors in the place of its buffers, and NaN in one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("worst", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        self.worst[0] = torch.nan
        return x * 1


def test_reassigned_buffers_are_put_back() -> None:
    net = Counter()
    count = net.count
    interpret.layers(nn.Sequential(net), IMAGES)
    assert net.count is count
    assert float(count) == 0
    assert not torch.isnan(net.worst).any()


class Greedy(nn.Module):
    """Writes to its input."""

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return x / 0.25


def test_networks_that_write_to_their_input() -> None:
    images = IMAGES.clone()
    net = nn.Sequential(Greedy(), nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with interpret.audit(net, images) as evidence:
        assert evidence.array("layers", "noise_gram").max() < 1e-4
    assert torch.equal(images, IMAGES)


def test_models_are_not_kept_alive() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    alive = weakref.ref(net)
    interpret.layers(net, IMAGES)
    del net
    gc.collect()
    assert alive() is None


def test_layouts_follow_the_tensors() -> None:
    calls = {call.key: call for call in interpret.layers(torchvision.models.convnext_tiny(), torch.rand(1, 3, 64, 64))}
    permuted = calls["features.1.0.block.1"]
    assert (permuted.type, permuted.layout, permuted.channels, permuted.spatial_shape) == (
        "Permute",
        "NHWC",
        96,
        (16, 16),
    )
    assert calls["features.1.0.block.0"].layout == "NCHW"
    assert [call.key for call in calls.values() if call.stage_end] == [
        "features.1", "features.3", "features.5", "features",
    ]  # fmt: skip
    audio = nn.Sequential(nn.Conv1d(3, 7, 3), nn.BatchNorm1d(7), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    layouts = [call.layout for call in interpret.layers(audio, torch.rand(2, 3, 16))]
    assert layouts == ["NCL", "NCL", "NCL", "NCL", "NC"]


def test_parametrized_convolutions_keep_their_tensors() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten())
    calls = interpret.layers(net, IMAGES)
    assert [call.key for call in calls] == ["0", "1"]
    assert calls[0].parameters == 4 + 4 + 4 * 27
    with interpret.audit(net, IMAGES) as evidence:
        drawn = evidence.array("kernels", "0.weight")
        np.testing.assert_allclose(drawn, net[0].weight.detach().numpy(), rtol=1e-6)


class Odd(nn.Module):
    """Outputs that are no batch: a scalar, an empty tensor, patches and time steps folded into the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()
        self.conv = nn.Conv2d(3, 4, 3)
        self.steps = nn.LSTM(3, 4)
        self.list = nn.ParameterList([nn.Parameter(torch.ones(1))])

    def forward(self, x: Tensor) -> Tensor:
        self.same(x.mean())
        self.same(x[:, :0])
        self.same(x.mean((1, 2, 3)))
        patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4)
        folded = self.conv(patches)
        steps, _ = self.steps(x.flatten(2).permute(2, 0, 1)[: len(x)])
        return folded.mean((2, 3)).reshape(len(x), -1, 4).mean(1) * self.list[0] + steps.mean(0)


def test_outputs_that_are_no_batch() -> None:
    net = Odd()
    images = torch.rand(4, 3, 8, 8)
    with interpret.audit(net, images) as evidence:
        assert evidence.manifest.status == "complete"
        assert evidence.call["conv"].layout == "other"
        assert evidence.gram("conv") is None
        assert evidence.gram("same#2") is not None
        assert evidence.manifest.collectors["maps"]["status"] == "skipped"
        assert evidence.call[""].tensors == ("list.0",)


def test_what_cannot_be_observed_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; people still have such files
        scripted = torch.jit.trace(nn.Conv2d(3, 2, 3), IMAGES)
    with pytest.raises(InterpretError, match="TorchScript modules run without hooks"):
        interpret.layers(scripted, IMAGES)
    with pytest.raises(InterpretError, match=r"'0\.weight' is lazy and not initialised"):
        interpret.layers(nn.Sequential(nn.LazyConv2d(2, 3)), IMAGES)


def test_recurrence_is_counted() -> None:
    net = nn.Sequential(nn.LSTM(8, 16, batch_first=True))
    assert interpret.layers(net, torch.rand(2, 10, 8))[0].multiply_adds == 10 * 4 * 16 * (8 + 16)


def test_a_summary_that_fails_midway_counts_nothing_twice(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sum(call.multiply_adds for call in interpret.layers(zoo, IMAGES) if call.kind != "container")

    def broken(model: nn.Module, input_data: list[Tensor], **keywords: object) -> None:
        model(*input_data)
        raise RuntimeError("too late")

    monkeypatch.setattr("torchinfo.summary", broken)
    with hooks.undisturbed(zoo):
        assert tracing.trace(zoo, IMAGES).multiply_adds == expected


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
        interpret.class_activation_maps(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2)), IMAGES, layers="last")


def test_torchinfo_failing_is_not_the_models_fault(monkeypatch: pytest.MonkeyPatch, zoo: Zoo) -> None:
    def broken(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("no table today")

    monkeypatch.setattr("torchinfo.summary", broken)
    with hooks.undisturbed(zoo):
        trace = tracing.trace(zoo, IMAGES)
    assert trace.summary == ""
    assert "no table today" in trace.summary_error
    assert len(trace.calls) == 12


class OddMemory(nn.Module):
    """Outputs that are sparse, or lie in memory otherwise than their shape says."""

    def __init__(self) -> None:
        super().__init__()
        self.sparse = Sparse()
        self.turned = Turned()

    def forward(self, x: Tensor) -> Tensor:
        return self.turned(x) + self.sparse(x).to_dense()[:, :4]


class Sparse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).to_sparse()


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight @ x.mean((2, 3)).T).T


def test_outputs_of_odd_memory() -> None:
    assert [call.key for call in interpret.layers(OddMemory(), IMAGES)] == ["turned", "sparse"]
    with interpret.audit(OddMemory(), IMAGES) as evidence:
        assert evidence.manifest.status == "complete"
        assert evidence.gram("turned") is not None
        assert evidence.gram("sparse") is None, "a sparse output has no features"


class Depth(nn.Module):
    """Takes a keyword that torchinfo has too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 2, 3)

    def forward(self, image: Tensor, *, depth: Tensor) -> Tensor:
        return self.convolution(torch.cat([image, depth], 1)).mean((2, 3))


def test_keywords_that_torchinfo_takes_itself() -> None:
    net = Depth()
    with hooks.undisturbed(net):
        traced = tracing.trace(net, IMAGES, lambda model, images: model(images, depth=images[:, :1]))
    assert [call.key for call in traced.calls] == ["convolution"]
    assert traced.summary_error.endswith("it takes the keyword 'depth' itself")


def test_a_models_own_hooks_run_once_under_torchinfo() -> None:
    net = nn.Sequential(nn.Conv2d(4, 2, 3))
    net.register_forward_pre_hook(lambda module, inputs: (torch.cat([inputs[0], inputs[0][:, :1]], 1),))
    with hooks.undisturbed(net):
        traced = tracing.trace(net, IMAGES, lambda model, images: model(images))
    assert traced.summary_error == ""
    assert "Conv2d" in traced.summary
