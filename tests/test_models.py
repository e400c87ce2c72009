"""Real architectures: nothing of them changes, also when they raise, and every tensor of the state has a place."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import scipy.special  # noqa: F401 (its first import adds a warning filter; audits import it late)
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import interpret
from interpret import hooks, tracing
from interpret.checkpoint import read_checkpoint
from interpret.errors import InterpretError
from interpret.loading import load_state

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def build(name: str, **arguments: Any) -> nn.Module:
    """A network with seeded random weights."""
    torch.manual_seed(0)
    if name.startswith("timm:"):
        return pytest.importorskip("timm").create_model(name.removeprefix("timm:"), num_classes=5, **arguments)
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = False
    model = torchvision.models.get_model(name, weights=None, **arguments)
    if name == "vgg11_bn":
        model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(512 * 49, 5))  # its own holds 120 M parameters
    return model


# Before and after ----------------------------------------------------------------------------------------------------


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a caller could find changed, by name."""
    found: dict[str, Any] = {
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": np.random.get_state()[1].copy(),  # noqa: NPY002
        "numpy's place in it": np.random.get_state()[2:],  # noqa: NPY002
        "python's random state": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "attention's fast path": torch.backends.mha.get_fastpath_enabled(),
        "oneDNN": torch.backends.mkldnn.enabled,
        "fused attention": torch.backends.cuda.math_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled(),
        "threads": torch.get_num_threads(),
        "warning filters": list(warnings.filters),
        "state's names": list(model.state_dict()),
    }
    for name, value in vars(torch_module).items():
        if name.startswith("_global") and "hook" in name and hasattr(value, "__len__"):
            found[f"torch's {name}"] = list(value)
    for name, parameter in model.named_parameters():
        found[f"{name}: identity"] = id(parameter), parameter.data_ptr(), id(parameter.grad)
        found[f"{name}: writes"] = parameter._version
        found[f"{name}: values"] = parameter.detach().clone()
        found[f"{name}: requires_grad"] = parameter.requires_grad
        found[f"{name}: grad"] = None if parameter.grad is None else parameter.grad.clone()
        found[f"{name}: hooks"] = len(parameter._backward_hooks or ())
    for name, buffer in model.named_buffers():
        found[f"{name}: identity"] = id(buffer), buffer.data_ptr()
        found[f"{name}: values"] = buffer.clone()
    for name, module in model.named_modules():
        found[f"{name}: module"] = id(module), type(module), list(vars(module))
        for attribute, value in vars(module).items():
            if isinstance(value, dict):  # modules, hooks, and what networks cache
                value = [(key, id(entry)) for key, entry in value.items()]
            elif isinstance(value, set):
                value = sorted(value)
            elif not isinstance(value, bool | int | float | str | tuple | type(None)):
                value = id(value)
            found[f"{name}: {attribute}"] = value
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as before."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return isinstance(b, Tensor) and torch.equal(a, b)
        return np.array_equal(a, b) if isinstance(a, np.ndarray) else type(a) is type(b) and a == b

    missing = object()
    return [name for name in {**before, **after} if not same(before.get(name, missing), after.get(name, missing))]


def in_the_middle_of_training(model: nn.Module) -> nn.Module:
    """Train mode with a part in evaluation mode, frozen parameters, gradients of a step, and the user's own hooks."""
    model.train()
    children = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    children[len(children) // 3].eval()
    parameters = list(model.parameters())
    for parameter in parameters[: len(parameters) // 4]:
        parameter.requires_grad_(False)
    for parameter in parameters[len(parameters) // 2 :: 2]:
        parameter.grad = torch.full_like(parameter, 0.25)
    middle = children[len(children) // 2]
    middle.register_forward_hook(lambda module, arguments, output: None)
    middle.register_forward_pre_hook(lambda module, arguments: None)
    middle.register_state_dict_post_hook(lambda module, state, prefix, metadata: None)
    middle.register_state_dict_pre_hook(lambda module, prefix, keep: None)
    middle.register_load_state_dict_post_hook(lambda module, keys: None)
    heads = [module for module in model.modules() if isinstance(module, nn.Linear | nn.AdaptiveAvgPool2d)]
    heads[-1].register_full_backward_hook(lambda module, into, out: None)  # torch forbids it before an in-place ReLU
    return model


ACTS: dict[str, Callable[[nn.Module], object]] = {
    "layers": lambda model: interpret.layers(model, IMAGES),
    "capture": lambda model: interpret.capture(model, IMAGES, gradients=True, inputs=True),
    "maps": lambda model: interpret.class_activation_maps(model, IMAGES, ("grad-cam", "eigen-cam")),
    "audit": lambda model: interpret.audit(model, IMAGES).close(),
}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002 (states that no seed gives)
    before = everything(model)
    yield
    assert differences(before, everything(model)) == []


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vgg11_bn",
        "densenet121",
        "squeezenet1_1",
        "shufflenet_v2_x0_5",
        "mobilenet_v2",
        "efficientnet_b0",
        "convnext_tiny",
        "swin_t",
        "googlenet",
        "timm:mobilenetv3_small_050",
    ],
)
def test_nothing_of_a_network_changes(name: str) -> None:
    model = in_the_middle_of_training(build(name))
    for act in ACTS.values():
        with unchanged(model):
            act(model)


class Explosive(torch.autograd.Function):
    """The identity, whose backward raises."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("deliberate")


class Fault:
    """Raises after n executions, and ever after."""

    def __init__(self, executions: int) -> None:
        self.left = executions

    def __call__(self, output: Tensor) -> None:
        if self.left <= 0:
            raise RuntimeError("deliberate")
        self.left -= 1

    def hook(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self(output)


class Wrapped(nn.Module):
    """A part of a network, and what happens to its output."""

    def __init__(self, inner: nn.Module, act: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self.inner = inner
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        output = self.inner(x)
        new = self.act(output)
        return output if new is None else new


def part_of(model: nn.Module, share: float) -> str:
    """The name of the convolution or linear layer at a share of the way through the network."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    names = [name for name in names if "aux" not in name]  # they do not run in evaluation mode
    return names[round(share * (len(names) - 1))]


@contextmanager
def wrapped(model: nn.Module, name: str, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    parent, _, own = name.rpartition(".")
    inner = model.get_submodule(name)
    setattr(model.get_submodule(parent), own, Wrapped(inner, act))
    yield
    setattr(model.get_submodule(parent), own, inner)


@pytest.mark.parametrize(
    ("name", "share"),
    [("resnet18", 0.0), ("resnet18", 0.5), ("resnet18", 1.0), ("googlenet", 0.5), ("swin_t", 0.3), ("swin_t", 1.0)],
)
def test_nothing_changes_when_a_forward_raises(name: str, share: float) -> None:
    model = in_the_middle_of_training(build(name))
    part = part_of(model, share)
    for what, act in ACTS.items():
        for start in {"layers": [0], "audit": [0, 1, 3]}.get(what, [0, 1]):  # the trace, the forward, the noise floor
            fault = Fault(start)
            handle = model.get_submodule(part).register_forward_hook(fault.hook)
            with unchanged(model), pytest.raises(InterpretError, match="deliberate"):
                act(model)
            handle.remove()
            assert fault.left == 0
        fails = nullcontext() if what == "layers" else pytest.raises(InterpretError, match="deliberate")
        with wrapped(model, part, Fault(1)), unchanged(model), fails:
            act(model)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "swin_t"])
def test_nothing_changes_when_a_backward_raises(name: str) -> None:
    model = in_the_middle_of_training(build(name))
    with wrapped(model, part_of(model, 0.5), Explosive.apply):
        with unchanged(model), pytest.raises((InterpretError, RuntimeError), match="deliberate"):
            ACTS["capture"](model)
        with unchanged(model), pytest.raises(InterpretError, match="deliberate"):
            ACTS["maps"](model)
        with unchanged(model), interpret.audit(model, IMAGES) as evidence:
            assert evidence.manifest.status == "partial"
            assert "deliberate" in evidence.manifest.collectors["maps"]["message"]


def test_a_fault_that_passes_leaves_nothing_behind() -> None:
    """The first forward fails once, as where memory is short; the second one goes through."""
    model = in_the_middle_of_training(build("resnet18"))
    faults = [RuntimeError("deliberate")]

    def once(output: Tensor) -> None:
        if faults:
            raise faults.pop()

    with wrapped(model, part_of(model, 0.5), once), unchanged(model):
        calls = interpret.layers(model, IMAGES)
    assert len({call.key for call in calls}) == len(calls)
    assert calls[-1].name == "fc"


class Caching(nn.Module):
    """Keeps what it computes from its weights in evaluation mode, as LeViT, TinyViT and EfficientFormer do."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(3))
        self.cache: dict[str, Tensor] = {}
        self.shapes: list[torch.Size] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.cache.clear()
        elif "bias" not in self.cache:
            self.cache["bias"] = self.bias[:, None, None] * 1
        self.shapes.append(x.shape)
        self.last = x
        self.extra = x.mean()
        return x + (self.bias[:, None, None] if self.training else self.cache["bias"])


@pytest.mark.parametrize("what", list(ACTS))
def test_what_a_network_keeps_on_itself_is_put_back(what: str) -> None:
    """A cache without a graph would leave its weights without gradients, and old values behind new weights."""
    model = nn.Sequential(Caching(), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with unchanged(model):
        ACTS[what](model)
    model(IMAGES).sum().backward()
    assert model[0].bias.grad is not None


# Every tensor has a place --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("alexnet", 64, {}),
        ("vgg11_bn", 32, {}),
        ("densenet121", 32, {}),
        ("squeezenet1_0", 32, {}),
        ("googlenet", 32, {}),
        ("inception_v3", 75, {}),
        ("shufflenet_v2_x0_5", 32, {}),
        ("mobilenet_v2", 32, {}),
        ("mobilenet_v3_small", 32, {}),
        ("mnasnet0_5", 32, {}),
        ("efficientnet_b0", 32, {}),
        ("regnet_y_400mf", 32, {}),
        ("convnext_tiny", 32, {}),
        ("vit_b_32", 64, {"image_size": 64}),
        ("swin_t", 32, {}),
        ("swin_v2_t", 64, {}),
        ("maxvit_t", 224, {}),
        ("deeplabv3_mobilenet_v3_large", 64, {"weights_backbone": None, "aux_loss": True}),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 64, {"weights_backbone": None, "min_size": 64}),
        ("timm:levit_128s", 224, {}),
        ("timm:hrnet_w18_small", 32, {}),
        ("timm:xcit_nano_12_p16_224", 64, {"img_size": 64}),
    ],
)
def test_every_tensor_of_a_network_has_a_place(name: str, size: int, arguments: dict[str, Any]) -> None:
    model = build(name, **arguments)
    with hooks.undisturbed(model):
        trace = tracing.trace(model, torch.rand(1, 3, size, size))
    places = Counter([*(tensor for call in trace.calls for tensor in call.tensors), *trace.unused])
    assert places == Counter(dict.fromkeys(model.state_dict(), 1))
    sizes = {tensor: parameter.numel() for tensor, parameter in model.named_parameters()}
    for call in trace.calls:
        assert call.parameters == sum(sizes.get(tensor, 0) for tensor in call.tensors)
    ran = {call.name: call.key for call in reversed(trace.calls)}
    for call in trace.calls:
        for tensor in call.tensors:
            own = tensor.rpartition(".")[0]
            assert own not in ran or ran[own] == call.key, "a module that ran owns its tensors"
    assert all("aux" in tensor.lower() for tensor in trace.unused), "nothing but auxiliary heads stands still"
    assert trace.summary_error == ""


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_networks_that_ask_for_their_version_load(tmp_path: Path, suffix: str) -> None:
    """MNASNet refuses a state without the version that `state_dict()` notes beside the tensors."""
    model = build("mnasnet0_5")
    file = tmp_path / f"model.{suffix}"
    state = model.state_dict()
    torch.save(state, file) if suffix == "pt" else safetensors.torch.save_file(state, file)
    other = torchvision.models.mnasnet0_5(weights=None)
    load_state(other, read_checkpoint(file))
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)
