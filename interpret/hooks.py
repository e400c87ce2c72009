"""One forward and one backward of a model under observation, with everything restored afterwards.

The rules, each from a fault seen in practice: a call is keyed by name and execution, because modules run several
times; an output that an in-place operation will overwrite is found by a first forward and cloned; gradients are taken
by tensor hooks and :func:`torch.autograd.grad`, never by ``backward()``, so the user's ``.grad`` and module hooks stay
as they are.
"""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint as checkpointing

from interpret.errors import LayerError
from interpret.evidence import Call
from interpret.graph import names_operations, with_operations
from interpret.targets import target_scores
from interpret.tracing import (
    Forward,
    input_tensor,
    modules_of,
    output_tensor,
    refuse_unobservable,
    run,
    select,
    trace,
    unwrap,
    with_output,
)

Visit = Callable[[Call, nn.Module, Tensor | None, Tensor], Tensor | None]


@contextmanager
def undisturbed(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Evaluation mode, frozen parameters, gradients on, a fixed seed; all undone on leaving, also after an error.

    Restored: every module's attributes (training flag, buffers, hooks, caches that a forward fills), every parameter's
    ``requires_grad``, the values of buffers, random states of torch, numpy and Python.
    """
    refuse_unobservable(model)
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    contents = [
        (value, copy.copy(value))
        for _, values in attributes
        for value in values.values()
        if type(value) in (dict, list, set, OrderedDict) and value is not sys.modules and "__builtins__" not in value
    ]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = [buffer for buffer in model.buffers() if buffer.layout == torch.strided and not buffer.is_meta]
    buffers = [(buffer, buffer.detach().clone()) for buffer in plain]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (the user's global state)
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.is_cuda})
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        with ExitStack() as stack:
            for mode in (torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad()):
                stack.enter_context(mode)
            stack.enter_context(_without_checkpointing())
            if "torch._dynamo" in sys.modules:  # compiled parts run as written: compiled code calls no hooks
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 (networks that draw from the global state)
            torch.backends.mha.set_fastpath_enabled(
                False
            )  # the fused path bypasses modules and counts no multiply-adds
            model.eval()
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter in trainable:
            parameter.requires_grad_(True)
        with torch.no_grad():
            for buffer, before in buffers:
                if not _same(buffer, before):
                    buffer.copy_(before)
        for module, values in attributes:
            vars(module).clear()
            vars(module).update(values)
        for value, content in contents:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def in_float32(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """The model and its images; float32 copies of both where the model's weights are half precision.

    In half precision maps differ from those of the same weights in float32 (correlations down to 0), so none are made.

    Raises:
        LayerError: the model cannot be copied.
    """
    low = (torch.float16, torch.bfloat16)
    if not any(tensor.dtype in low for tensor in (*model.parameters(), *model.buffers())):
        return model, images
    try:
        return copy.deepcopy(model).float(), images.float()
    except Exception as error:  # whatever a network's parts raise when they are copied
        raise LayerError(
            f"maps need float32, and {type(model).__name__} in half precision cannot be copied ({error}); "
            "convert it by model.float()"
        ) from error


class _KeepGradients(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch._C._set_grad_enabled and arguments and not arguments[0]:
            return None
        return function(*arguments, **(keywords or {}))


def with_gradients() -> AbstractContextManager[Any]:
    """While open, ``torch.no_grad`` inside a model's forward (a frozen backbone) switches nothing off."""
    return _KeepGradients()


class _Plain:
    """Stands in for torch's implementation of gradient checkpointing: runs the function, and nothing again."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        return function(*arguments)

    @staticmethod
    def generator(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Iterator[None]:
        yield


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Run gradient-checkpointed parts once: what runs again in the backward would not be what the hooks saw.

    Networks hold the function `checkpoint` itself under names of their own, so what it calls is replaced.
    """
    names = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")  # 2.6; 2.14
    stand_ins = {"CheckpointFunction": _Plain, **dict.fromkeys(names, _Plain.generator)}
    kept = {name: vars(checkpointing)[name] for name in stand_ins if name in vars(checkpointing)}
    vars(checkpointing).update({name: stand_ins[name] for name in kept})
    try:
        yield
    finally:
        vars(checkpointing).update(kept)


@contextmanager
def visiting(
    model: nn.Module, calls: Sequence[Call], visit: Visit, enter: Callable[[Call, Tensor | None], None] | None = None
) -> Iterator[None]:
    """While open, for one forward: ``visit(call, module, input, output)`` sees every call; what it returns replaces it.

    ``enter(call, input)`` comes before the call runs, when no in-place operation has overwritten the input yet.
    Executions that :func:`trace` did not see (networks that run differently from image to image) are passed over.
    """
    by_name: dict[str, dict[int, Call]] = {}
    for call in calls:
        by_name.setdefault(call.name, {})[call.occurrence] = call
    executions: dict[str, int] = {}

    def hook(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> Any:
        tensor = output_tensor(output)
        if tensor is None:
            return None
        name = names[module]
        occurrence = executions.get(name, 0)
        executions[name] = occurrence + 1
        call = by_name[name].get(occurrence)
        if call is None:
            return None
        new = visit(call, module, input_tensor(arguments, keywords), tensor)
        return None if new is None else with_output(output, new)

    def before(module: nn.Module, arguments: Any, keywords: Any) -> None:
        name = names[module]
        call = by_name[name].get(executions.get(name, 0))
        if enter is not None and call is not None:
            enter(call, input_tensor(arguments, keywords))

    names = modules_of(model)
    with ExitStack() as stack:
        for module, name in names.items():
            if name in by_name:
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
                if enter is not None:
                    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield


def gradient_leaf(output: Tensor, overwritten: bool) -> tuple[Tensor, Tensor | None]:
    """The tensor whose gradient is wanted, and what the hook must return in place of the output (None for no change).

    Parameters are frozen, so the first call of every branch has no graph behind it: it becomes a leaf itself, which
    spares the gradient of everything before it. A leaf may not be overwritten in place; the network gets a copy where
    it would.
    """
    if output.requires_grad:
        return output, None
    leaf = output.detach().requires_grad_()
    return leaf, leaf.clone() if overwritten else leaf


def backward(score: Tensor, leaves: Sequence[Tensor], again: bool = False) -> None:
    """Send the gradient of a score to the hooks of the leaves; ``again`` keeps the graph for another target.

    Raises:
        LayerError: the network's backward pass fails.
    """
    try:
        torch.autograd.grad(score, leaves, retain_graph=again, allow_unused=True)
    except RuntimeError as error:
        reason = str(error).partition(" Hint:")[0].rstrip(".")
        raise LayerError(
            f"the backward pass failed: {reason}; where the model checkpoints its gradients, switch that off"
        ) from error


def observed(model: nn.Module, layers: Sequence[str] | str | None) -> nn.Module:
    """The module to run so that the layers are calls: the model itself, or its graph where operations are named.

    Raises:
        LayerError: operations are named, and the model cannot be traced.
    """
    model = unwrap(model)
    if layers is None or not names_operations(layers):
        return model
    with undisturbed(model):
        return with_operations(model, layers)


def layers(model: nn.Module, images: Tensor, forward: Forward | None = None) -> tuple[Call, ...]:
    """Every call of a model, containers included, in order of completion.

    Args:
        model: any network; nothing of it is changed.
        images: preprocessed, shape (N, C, H, W); only the first is used.
        forward: ``(model, images) -> output`` where it is not ``model(images)``.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    >>> [(call.key, call.kind, call.output_shape) for call in layers(net, torch.zeros(1, 3, 8, 8))][:2]
    [('0', 'convolution', (1, 8, 6, 6)), ('1', 'activation', (1, 8, 6, 6))]
    """
    model = unwrap(model)
    with undisturbed(model):
        return trace(model, images, forward).calls


@dataclass(frozen=True, slots=True)
class Captured:
    """What :func:`capture` keeps of one call: detached tensors, None where not asked for or not reached."""

    output: Tensor
    input: Tensor | None
    gradient: Tensor | None


def capture(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[str] | str | None = None,
    inputs: bool = False,
    gradients: bool = False,
    targets: Any = None,
    forward: Forward | None = None,
) -> Mapping[str, Any]:
    """Outputs of calls, and if asked their inputs and gradients, safe against in-place operations.

    Args:
        model: any network; nothing of it is changed.
        images: preprocessed, shape (N, C, H, W).
        layers: which calls; see :func:`select`. None for all. Names that begin with `fx:` are functional operations;
            see :func:`interpret.graph.with_operations`.
        inputs: also keep each call's first input tensor.
        gradients: also keep dY/d(output), Y the sum of the images' target scores.
        targets: which class of each image Y is; None for the predicted one. See :func:`target_scores`.
        forward: ``(model, images) -> output`` where it is not ``model(images)``: several inputs, keywords, a list.

    Returns:
        key -> output, or key -> ``Captured(output, input, gradient)`` where inputs or gradients are asked for. Tensors
        are detached.
    """
    model = observed(model, layers)
    kept: dict[str, Captured] = {}
    with undisturbed(model), ExitStack() as stack:
        calls = select(trace(model, images, forward, counted=False).calls, layers)
        leaves: list[Tensor] = []
        entered: dict[str, Tensor] = {}

        def visit(call: Call, module: nn.Module, source: Tensor | None, output: Tensor) -> Tensor | None:
            new = None
            if gradients:
                leaf, new = gradient_leaf(output, call.overwritten)
                if new is not None:
                    leaves.append(leaf)
                handle = leaf.register_hook(lambda gradient: keep_gradient(call.key, gradient))
                stack.callback(handle.remove)
            kept[call.key] = Captured(output.detach().clone(), entered.pop(call.key, None), None)
            return new

        def enter(call: Call, source: Tensor | None) -> None:
            if source is not None:
                entered[call.key] = source.detach().clone()

        def keep_gradient(key: str, gradient: Tensor) -> None:
            kept[key] = replace(kept[key], gradient=gradient.detach().clone())

        stack.enter_context(visiting(model, calls, visit, enter if inputs else None))
        with torch.set_grad_enabled(gradients):
            output = run(model, images, forward)
            if gradients:
                scores, _ = target_scores(output, targets)
                backward(scores.sum(), leaves)
    if inputs or gradients:
        return kept
    return {key: value.output for key, value in kept.items()}
