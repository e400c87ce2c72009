"""The flow between calls, against edges that follow from the networks' own source code."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import interpret
from interpret.evidence import Call


def calls_of(model: nn.Module, side: int = 8, channels: int = 3) -> tuple[Call, ...]:
    return interpret.layers(model.eval(), torch.rand(1, channels, side, side))


def flow(model: nn.Module, side: int = 8) -> dict[str, list[str] | None]:
    """Key to the keys of its sources; the network's input is "input"."""
    calls = calls_of(model, side)
    keys = {-1: "input"} | {call.position: call.key for call in calls}
    return {call.key: None if call.sources is None else [keys[s] for s in call.sources] for call in calls}


def conv(inside: int = 3, outside: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 1)


class Net(nn.Module):
    """Modules a, b, c (and others) in the order that `steps` runs them in."""

    def __init__(self, steps, **modules: nn.Module) -> None:
        super().__init__()
        self.steps = steps
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor):
        return self.steps(self, x)


def test_a_chain():
    assert flow(nn.Sequential(conv(), nn.ReLU(), conv())) == {"0": ["input"], "1": ["0"], "2": ["1"]}


def test_a_container_that_hands_on_is_no_step():
    net = nn.Sequential(nn.Sequential(conv(), nn.Sequential(nn.ReLU())), conv())
    assert flow(net) == {"0.0": ["input"], "0.1.0": ["0.0"], "0.1": None, "0": None, "1": ["0.1.0"]}


@pytest.mark.parametrize("inplace", [False, True])
def test_the_addition_of_a_residual_block_belongs_to_the_activation_behind_it(inplace: bool):
    def block(net: Net, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = net.b(net.relu(net.a(x)))
        y += x
        return net.relu(y)

    net = Net(block, stem=conv(), a=conv(), b=conv(), relu=nn.ReLU(inplace))
    expected = {"stem": ["input"], "a": ["stem"], "relu": ["a"], "b": ["relu"], "relu#1": ["stem", "b"]}
    assert flow(net) == expected


def test_an_addition_at_the_end_of_a_container_makes_it_a_step():
    inner = Net(lambda net, x: x + net.a(x), a=conv())
    net = nn.Sequential(conv(), inner, conv())
    assert flow(net) == {"0": ["input"], "1.a": ["0"], "1": ["0", "1.a"], "2": ["1"]}


def test_dense_concatenation():
    def dense(net: Net, x: Tensor) -> Tensor:
        features = [x]
        for name in "abc":
            features.append(net.get_submodule(name)(torch.cat(features, 1)))
        return torch.cat(features, 1)

    block = Net(dense, a=conv(3), b=conv(6), c=conv(9))
    assert flow(nn.Sequential(conv(), block)) == {
        "0": ["input"],
        "1.a": ["0"],
        "1.b": ["0", "1.a"],
        "1.c": ["0", "1.a", "1.b"],
        "1": ["0", "1.a", "1.b", "1.c"],
    }


def test_branches():
    block = Net(lambda net, x: torch.cat([net.a(x), net.b(x), functional.max_pool2d(x, 1)], 1), a=conv(), b=conv())
    net = nn.Sequential(conv(), block, conv(9))
    assert flow(net) == {"0": ["input"], "1.a": ["0"], "1.b": ["0"], "1": ["0", "1.a", "1.b"], "2": ["1"]}


def test_an_operation_in_place_changes_what_others_of_its_memory_hold():
    def through_a_view(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        net.relu(y.flatten(1))  # writes into y
        return net.b(y)

    net = Net(through_a_view, a=conv(), b=conv(), relu=nn.ReLU(inplace=True))
    assert flow(net) == {"a": ["input"], "relu": ["a"], "b": ["relu"]}


def test_writing_into_one_half_leaves_the_other_as_it_is():
    def halves(net: Net, x: Tensor) -> Tensor:
        first, second = net.a(x).chunk(2, 1)
        first += net.b(x)
        return net.c(first) + net.d(second)

    net = Net(halves, a=conv(3, 6), b=conv(), c=conv(), d=conv())
    assert flow(net) == {"a": ["input"], "b": ["input"], "c": ["a", "b"], "d": ["a"]}


def test_a_buffer_that_is_filled_piece_by_piece():
    def pieces(net: Net, x: Tensor) -> Tensor:
        buffer = torch.empty(1, 6, *x.shape[2:])
        buffer[:, :3] = net.a(x)
        buffer[:, 3:] = net.b(x)
        return net.c(buffer)

    assert flow(Net(pieces, a=conv(), b=conv(), c=conv(6)))["c"] == ["a", "b"]


def test_what_was_overwritten_is_no_source():
    def overwritten(net: Net, x: Tensor) -> Tensor:
        kept = net.a(x).clone()
        kept.copy_(net.b(x))
        return net.c(kept) + torch.zeros_like(net.a(x)).add(1)

    assert flow(Net(overwritten, a=conv(), b=conv(), c=conv()))["c"] == ["b"]


def test_a_shape_is_no_source():
    net = Net(lambda net, x: net.b(torch.ones_like(net.a(x)) + x.new_zeros(x.shape)), a=conv(), b=conv())
    assert flow(net) == {"a": ["input"], "b": []}


def test_a_module_that_runs_twice_is_two_steps():
    net = Net(lambda net, x: net.b(net.a(net.a(x)) + x), a=conv(), b=conv())
    assert flow(net) == {"a": ["input"], "a#1": ["a"], "b": ["input", "a#1"]}


def test_functional_operations_belong_to_the_next_call():
    net = Net(lambda net, x: net.b(functional.relu(net.a(x).sigmoid()).permute(0, 1, 3, 2)), a=conv(), b=conv())
    assert flow(net) == {"a": ["input"], "b": ["a"]}


def test_a_container_of_functional_operations_is_a_step():
    inner = Net(lambda net, x: functional.conv2d(x, net.unused.weight).relu(), unused=conv())
    assert flow(nn.Sequential(conv(), inner, conv())) == {"0": ["input"], "1": ["0"], "2": ["1"]}


def test_functional_operations_behind_the_last_call_make_their_container_a_step():
    inner = Net(lambda net, x: functional.relu(net.a(x)), a=conv())
    assert flow(nn.Sequential(inner, conv())) == {"0.a": ["input"], "0": ["0.a"], "1": ["0"]}


def test_a_convolution_around_its_padding_is_a_step():
    class Padded(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 3, 3)
            self.pad = nn.ZeroPad2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(self.pad(x), self.weight, self.bias)

    assert flow(nn.Sequential(Padded(), nn.ReLU())) == {"0.pad": ["input"], "0": ["0.pad"], "1": ["0"]}


def test_outputs_in_tuples_are_followed_apart():
    pair = Net(lambda net, x: (net.a(x), net.b(x)), a=conv(), b=conv())

    def use(net: Net, x: Tensor) -> Tensor:
        first, second = net.pair(x)
        return net.d(net.c(first) + second)

    net = Net(use, pair=pair, c=conv(), d=conv())
    expected = {"pair.a": ["input"], "pair.b": ["input"], "pair": None, "c": ["pair.a"], "d": ["pair.b", "c"]}
    assert flow(net) == expected


def test_outputs_in_dicts_are_followed():
    named = Net(lambda net, x: OrderedDict(x=net.a(x), y=[x + 1]), a=conv())
    net = Net(lambda net, x: net.b((out := net.named(x))["x"] + out["y"][0]), named=named, b=conv())
    assert flow(net) == {"named.a": ["input"], "b": ["input", "named.a"]}


def test_recurrence_and_attention_are_steps():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(), nn.Linear(3, 2)
            self.attention, self.lstm = nn.MultiheadAttention(3, 1, batch_first=True), nn.LSTM(3, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)
            mixed = tokens + self.attention(tokens, tokens, tokens)[0]
            return self.head(self.lstm(mixed)[0])

    assert flow(Tokens()) == {"stem": ["input"], "attention": ["stem"], "lstm": ["stem", "attention"], "head": ["lstm"]}


def test_what_leaves_torch_is_not_followed():
    net = Net(lambda net, x: net.b(torch.from_numpy(net.a(x).numpy().copy())), a=conv(), b=conv())
    assert flow(net) == {"a": ["input"], "b": []}


def test_every_block_of_resnet18_adds_two_outputs():
    edges = flow(torchvision.models.resnet18(weights=None), 64)
    before = "maxpool"
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            shortcut = f"{name}.downsample.1" if stage > 1 and block == 0 else before
            assert set(edges[f"{name}.relu#1"] or ()) == {f"{name}.bn2", shortcut}
            assert edges[f"{name}.conv1"] == [before]
            assert edges[name] is None
            before = f"{name}.relu#1"
    assert edges["avgpool"] == [before]
    assert edges["fc"] == ["avgpool"]
    assert sum(len(sources or ()) > 1 for sources in edges.values()) == 8


def test_dense_layers_of_densenet121_take_all_before_them():
    edges = flow(torchvision.models.densenet121(weights=None), 64)
    for block, layers in enumerate((6, 12, 24, 16), 1):
        first = "features.pool0" if block == 1 else f"features.transition{block - 1}.pool"
        outputs = [first, *(f"features.denseblock{block}.denselayer{i + 1}.conv2" for i in range(layers))]
        for i in range(layers):
            assert edges[f"features.denseblock{block}.denselayer{i + 1}.norm1"] == outputs[: i + 1]
        assert edges[f"features.denseblock{block}"] == outputs


def test_a_block_of_a_vision_transformer():
    vit = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16)
    edges = flow(vit, 32)
    block = "encoder.layers.encoder_layer_0"
    assert edges[f"{block}.ln_1"] == ["encoder.dropout"]
    assert edges[f"{block}.ln_2"] == ["encoder.dropout", f"{block}.dropout"]
    assert edges[block] == ["encoder.dropout", f"{block}.dropout", f"{block}.mlp.4"]
    assert edges["encoder.ln"] == [block]


def test_nothing_is_disturbed_and_the_digest_stays():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).train()
    images = torch.rand(2, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    followed = interpret.layers(model, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert interpret.layers(model, images) == followed


def test_sources_come_before_the_calls_that_use_them():
    for name in ("googlenet", "shufflenet_v2_x0_5", "mnasnet0_5", "swin_t"):
        arguments = {"init_weights": False} if name == "googlenet" else {}
        calls = calls_of(torchvision.models.get_model(name, weights=None, **arguments), 64)
        steps = [call for call in calls if call.sources is not None]
        assert all(source < call.position for call in steps for source in call.sources or ())
        named = {calls[source] for call in steps for source in call.sources or () if source >= 0}
        assert named <= set(steps)
        unused = [call.key for call in steps if call not in named]
        assert unused == [steps[-1].key], name
