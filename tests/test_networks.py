"""Networks of every build that users bring: each is audited whole, accounted for, and identical to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import interpret
from interpret.evidence import Evidence


class Pooled(nn.Module):
    """A trunk, averaged over positions, and a head."""

    def __init__(self, trunk: nn.Module, channels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x).mean((2, 3)))


class Scaled(nn.Conv2d):
    """A convolution of one's own, with a child and a parameter more."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.full((), 2.0))
        self.after = nn.BatchNorm2d(sizes[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(x) * self.gain)


class Dense(nn.Module):
    """Parts in containers that never run, kept in a dict by name; one is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3 + 4 * index, 4, 3, padding=1) for index in range(3)])
        self.heads = nn.ModuleDict({"main": nn.Linear(15, 3), "auxiliary": nn.Linear(15, 3)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.cat([x, functional.relu(block(x), inplace=False)], 1)
        return self.heads["main"](x.mean((2, 3)))


class Repeated(nn.Module):
    """One block that runs three times, overwrites its output, and has a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.again = self.block[0]
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.head(x.mean((2, 3)))


class Answers(nn.Module):
    """An auxiliary head, and an output of the form that is asked for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)
        self.auxiliary = nn.Linear(4, 3)
        self.form = form

    def forward(self, x: Tensor) -> object:
        features = self.trunk(x).mean((2, 3))
        logits, more = self.head(features), self.auxiliary(features)
        forms = {"tuple": (logits, more), "list": [logits, more], "dict": {"out": logits, "aux": more}}
        return forms[self.form]


class Tokens(nn.Module):
    """Patches, a class token, and channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        return self.head(x[:, 0])


class Recurrent(nn.Module):
    """Reads the rows of a picture one by one; time comes first in one of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(16, 6, batch_first=True)
        self.back = nn.LSTM(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.rows(x.mean(1))
        x, _ = self.back(x.transpose(0, 1))
        return self.head(x[-1])


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.LazyConv2d(4, 3)
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convolution(x).mean((2, 3)))


def lazy() -> nn.Module:
    net = Lazy()
    net(torch.rand(1, 3, 16, 16))
    return net


def tied() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    net[2].weight = net[1].weight
    return Pooled(net, 4)


def channels_last() -> nn.Module:
    return Pooled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 4).to(
        memory_format=torch.channels_last
    )


def normed() -> nn.Module:
    spectral = parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))
    return Pooled(nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), spectral), 4)


# name: builder, channels of the input, keys of convolutions that must have maps, tensors that belong to nothing
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, set[str], set[str]]] = {
    "one channel": (lambda: Pooled(nn.Conv2d(1, 4, 3), 4), 1, {"trunk"}, set()),
    "four channels": (lambda: Pooled(nn.Conv2d(4, 4, 3), 4), 4, {"trunk"}, set()),
    "convolution subclass with a child": (lambda: Pooled(Scaled(3, 4, 3), 4), 3, {"trunk"}, set()),
    "containers that never run": (
        Dense, 3, {"blocks.0", "blocks.1", "blocks.2"}, {"heads.auxiliary.weight", "heads.auxiliary.bias"},
    ),
    "a block three times": (Repeated, 3, {"stem", "block.0", "block.0#1", "block.0#2"}, set()),
    "tuple": (lambda: Answers("tuple"), 3, {"trunk"}, set()),
    "list": (lambda: Answers("list"), 3, {"trunk"}, set()),
    "dict": (lambda: Answers("dict"), 3, {"trunk"}, set()),
    "tokens": (Tokens, 3, {"patches"}, set()),
    "recurrent, no convolution": (Recurrent, 3, set(), set()),
    "lazy, run once": (lazy, 3, {"convolution"}, set()),
    "shared weights": (tied, 3, {"trunk.0", "trunk.1", "trunk.2"}, set()),
    "channels last": (channels_last, 3, {"trunk.0"}, set()),
    "parametrized weights": (normed, 3, {"trunk.0", "trunk.1"}, set()),
    "transposed and dilated": (
        lambda: Pooled(nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2), nn.ConvTranspose2d(4, 4, 2, 2)), 4),
        3, {"trunk.0", "trunk.1"}, set(),
    ),
    "half precision": (lambda: Pooled(nn.Conv2d(3, 4, 3), 4).bfloat16(), 3, {"trunk"}, set()),
    "frozen": (lambda: Pooled(nn.Conv2d(3, 4, 3), 4).requires_grad_(False), 3, {"trunk"}, set()),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def audited(request: pytest.FixtureRequest) -> Iterator[tuple[str, nn.Module, Evidence]]:
    build, channels, _, _ = NETWORKS[request.param]
    torch.manual_seed(0)
    net = build()
    images = torch.rand(5, channels, 16, 16, generator=torch.Generator().manual_seed(1))
    evidence = interpret.audit(net, images, batch_size=2, display_count=3)
    yield request.param, net, evidence
    evidence.close()


def test_every_network_is_audited_whole(audited: tuple[str, nn.Module, Evidence]) -> None:
    name, net, evidence = audited
    _, _, convolutions, unused = NETWORKS[name]
    manifest = evidence.manifest
    evidence.verify()
    assert manifest.status == "complete", manifest.collectors
    placed = [tensor for call in evidence.calls for tensor in call.tensors]
    assert sorted([*placed, *manifest.unused]) == sorted(net.state_dict()), "each tensor once"
    assert set(manifest.unused) == unused
    mapped = {key.partition("/")[2] for key in evidence.keys("maps") if "/" in key}
    assert mapped == convolutions
    states = {key: manifest.collectors[key] for key in ("kernels", "maps")}
    if convolutions:
        assert {state["status"] for state in states.values()} == {"ok"}
        drawn = {key.removesuffix(".weight") for key in evidence.keys("kernels")}
        assert {key.partition("#")[0] for key in convolutions} == drawn
    else:
        assert states["kernels"] == {"status": "skipped", "message": "the model has no convolution"}
        assert states["maps"]["message"] == "no call with a spatial output was chosen for maps"
    assert evidence.array("predictions", "logits").shape == (5, 3)
    comparison = interpret.compare(evidence, evidence)
    assert list(comparison.verdict.values()) == ["identical"]
    assert list(comparison.ranking.values()) == [()]


def test_its_report_is_drawn(audited: tuple[str, nn.Module, Evidence], tmp_path: Path) -> None:
    _, _, evidence = audited
    html = interpret.write_report(evidence, tmp_path, ("html",))["html"].read_text("utf-8")
    assert evidence.manifest.model["name"] in html
