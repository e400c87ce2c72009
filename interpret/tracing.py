"""What a model is: its call table, read from one forward of one image."""

from __future__ import annotations

import fnmatch
import hashlib
import inspect
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchinfo
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchinfo.torchinfo import clear_cached_forward_pass

from interpret.dataflow import DataFlow
from interpret.errors import InterpretError, LayerError, did_you_mean
from interpret.evidence import Call, ReceptiveField
from interpret.receptive_fields import ReceptiveFields

Forward = Callable[[nn.Module, Tensor], Any]

MOST_PREFIX_TOKENS = 16  # class, distillation and register tokens before those of the image

_ACTIVATION_MODULE = "torch.nn.modules.activation"

_POOLING = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
PARAMETER_HOLDERS = (nn.ParameterList, nn.ParameterDict)
_NORMALIZATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True, slots=True)
class Trace:
    """What one forward of one image tells about a model.

    Attributes:
        calls: every execution of a named module with a tensor output, in order of completion.
        unused: state tensors whose module, and whose ancestors, never ran.
        summary: torchinfo's table, or an empty string.
        summary_error: why there is no table, or an empty string.
        output_shape: shape of the model's output for one image, or None where it is not a tensor.
        multiply_adds: of one forward of one image.
        own_multiply_adds: of each call, without the calls inside it.
        counted_by_torchinfo: torchinfo's multiply-adds by type of module; empty where there is no table.
        activation_bytes: of all outputs of one image, each tensor once.
        seconds: that the forward took, under observation.
    """

    calls: tuple[Call, ...]
    unused: tuple[str, ...]
    summary: str
    summary_error: str
    output_shape: tuple[int, ...] | None
    multiply_adds: int
    own_multiply_adds: tuple[int, ...]
    counted_by_torchinfo: Mapping[str, int]
    activation_bytes: int
    seconds: float

    @property
    def torchinfo_differences(self) -> tuple[str, ...]:
        """Where torchinfo counts other multiply-adds, and why: a sentence for each type that matters (1 % of all)."""
        own: Counter[str] = Counter()
        for call, count in zip(self.calls, self.own_multiply_adds, strict=True):
            own[call.type] += count
        linear = {call.type for call in self.calls if call.kind == "linear"}
        sentences = []
        for kind in sorted(own, key=lambda name: -abs(own[name] - self.counted_by_torchinfo.get(name, 0))):
            ours, theirs = own[kind], self.counted_by_torchinfo.get(kind, 0)
            if self.summary and abs(ours - theirs) > 0.01 * self.multiply_adds:
                why = "it does not see products that no module of its own makes"
                if kind in linear:
                    why = "it counts a linear layer once for each image, however many tokens or positions pass"
                elif theirs > ours:
                    why = "it counts additions of biases too"
                sentences.append(f"{kind}: {count_in_words(ours)} here, {count_in_words(theirs)} in torchinfo: {why}")
        return tuple(sentences)

    @property
    def architecture_digest(self) -> str:
        """sha256 over kind, type, shapes and number of parameters of every call; names do not enter."""
        rows = [(call.kind, call.type, call.output_shape, call.parameters) for call in self.calls]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def count_in_words(count: int) -> str:
    """A number of operations for people.

    >>> count_in_words(17_563_828_224), count_in_words(57_400_000), count_in_words(363)
    ('17.56 G', '57.40 M', '363')
    """
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:,}"


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` and data-parallel wrappers."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def canonical_name(name: str) -> str:
    """A module's or tensor's name without the wrappers of ``torch.compile``."""
    return name.replace("_orig_mod.", "").removesuffix("._orig_mod")


def modules_of(model: nn.Module) -> dict[nn.Module, str]:
    """The modules and their canonical names; of a compiled part the part alone, not its wrapper."""
    return {
        module: canonical_name(name)
        for name, module in model.named_modules()
        if not isinstance(getattr(module, "_orig_mod", None), nn.Module)
    }


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to in place; 0 where inference mode keeps no count."""
    return 0 if tensor.is_inference() else tensor._version


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the model's state under canonical names, in its order."""
    return {
        canonical_name(name): value for name, value in unwrap(model).state_dict().items() if isinstance(value, Tensor)
    }


def kind_of(module: nn.Module) -> str:
    """The kind of a module; one of :data:`interpret.evidence.KINDS`."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    if isinstance(module, nn.Linear | nn.Bilinear):
        return "linear"
    if isinstance(module, _NORMALIZATIONS):
        return "normalization"
    if isinstance(module, nn.MultiheadAttention) or "attention" in type(module).__name__.lower():
        return "attention"
    origins = {base.__module__ for base in type(module).__mro__}
    if _ACTIVATION_MODULE in origins:
        return "activation"
    if "torch.nn.modules.pooling" in origins:
        return "pooling"
    return "container" if any(True for _ in module.children()) else "other"


def output_tensor(output: Any) -> Tensor | None:
    """The tensor of a module's output: itself, or the first entry of a tuple or list; None where there is none."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


def with_output(output: Any, tensor: Tensor) -> Any:
    """A module's output with another tensor in the place of :func:`output_tensor`."""
    if isinstance(output, Tensor):
        return tensor
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: tensor})
    return type(output)((tensor, *output[1:]))


def input_tensor(arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> Tensor | None:
    """The first tensor among a module's arguments."""
    values = [*arguments, *(keywords or {}).values()]
    return next((value for value in values if isinstance(value, Tensor)), None)


def trace(model: nn.Module, images: Tensor, forward: Forward | None = None, *, counted: bool = True) -> Trace:
    """One forward of the first image: the call table, overwritten outputs, multiply-adds and torchinfo's table.

    Args:
        model: any network; call it inside :func:`undisturbed`.
        images: preprocessed, shape (N, C, H, W).
        forward: how to run it; see :func:`run`.
        counted: whether to count multiply-adds, follow receptive fields and the flow between calls, and make
            torchinfo's table; without, it costs one bare forward.

    Raises:
        InterpretError: the model fails on the image.
    """
    recorder = _Recorder(model)
    image = images[:1].clone()
    summary, summary_error = "", ""
    fused = without_onednn() if recorder.has_fused_recurrence else nullcontext()
    # the fused kernels of attention and recurrence are opaque to the counter of multiply-adds
    if not counted:
        with torch.no_grad(), recorder.watching():
            run(model, image, forward)
        return _with_reach(recorder, recorder.finish("", "not asked for", image), model, image, forward)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), fused:
        arguments = _Arguments((image,), {}) if forward is None else _arguments_of(model, image, forward)
        with recorder.watching(), recorder.flops, recorder.following(image, arguments):
            try:
                if arguments is None:
                    raise RuntimeError("it is not run once by one call")
                if taken := set(arguments.keywords) & set(inspect.signature(torchinfo.summary).parameters):
                    raise RuntimeError(f"it takes the keyword {sorted(taken)[0]!r} itself")
                table = torchinfo.summary(
                    model,
                    input_data=list(arguments.values),
                    verbose=0,
                    depth=100,
                    device=image.device,
                    **arguments.keywords,
                )
                summary = str(table)
                recorder.keep_table(table)
            except Exception as error:
                # torchinfo may fail in ways of its own; a bare forward tells the model's faults from those
                summary_error = f"torchinfo cannot summarise this model: {error.__cause__ or error}"
                recorder.restart()
                run(model, image, forward)
            finally:
                clear_cached_forward_pass()  # torchinfo would keep the model alive in a global
    return _with_reach(recorder, recorder.finish(summary, summary_error, image), model, image, forward)


def _with_reach(recorder: _Recorder, traced: Trace, model: nn.Module, image: Tensor, forward: Forward | None) -> Trace:
    """Mark the calls that the output does not depend on, where there may be some: see :func:`_reaching`."""
    if traced.output_shape is not None and not any(call.prefix_tokens for call in traced.calls):
        return traced
    reached = _reaching(model, image, traced.calls, forward)
    calls = [replace(call, reaches_output=call.key in reached) for call in traced.calls]
    return replace(traced, calls=tuple(_mark_last(calls, recorder.detects)))


def _reaching(model: nn.Module, image: Tensor, calls: Sequence[Call], forward: Forward | None) -> set[str]:
    """Keys of the calls with positions that the output depends on; of all calls where that cannot be found out.

    A last block that hands on only its class token, and heads beside the one that answers, have none. The gradient that
    is sent back is NaN: it passes where there is a path, whatever the weights are (a head may still be all zeros).
    """
    every = {call.key for call in calls}
    by_key = {call.key: call for call in calls}
    leaves: dict[str, Tensor] = {}
    executions: Counter[str] = Counter()
    names = modules_of(model)

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        tensor = output_tensor(output)
        if tensor is None:
            return None
        name, occurrence = names[module], executions[names[module]]
        executions[name] += 1
        call = by_key.get(f"{name}#{occurrence}" if occurrence else name)
        if call is None or call.map_shape is None or call.output_shape != tuple(tensor.shape):
            return None
        if tensor.requires_grad:
            leaves[call.key] = tensor
            return None
        leaf = leaves[call.key] = tensor.detach().requires_grad_()
        return with_output(output, leaf.clone() if call.overwritten else leaf)

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ExitStack() as stack, torch.enable_grad():
        for parameter in parameters:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        for module in names:
            stack.callback(module.register_forward_hook(hook).remove)
        scores = [tensor for tensor in scores_in(run(model, image, forward)) if tensor.requires_grad]
        if not scores or not leaves:
            return every
        nothing = [torch.full_like(score, torch.nan) for score in scores]
        try:
            gradients = torch.autograd.grad(scores, list(leaves.values()), nothing, allow_unused=True)
        except RuntimeError:  # operations without a backward
            return every
    reached = {
        key
        for key, gradient in zip(leaves, gradients, strict=True)
        if gradient is not None and bool(features(gradient, by_key[key]).isnan().any())
    }
    return reached or every


def scores_in(output: Any) -> list[Tensor]:
    """The tensors of a model's output that say what it decides: logits, or the scores of detections."""
    if isinstance(output, Mapping):
        return scores_in(next((output[key] for key in ("logits", "out", "scores") if key in output), None))
    if hasattr(output, "logits"):
        return scores_in(output.logits)
    if isinstance(output, list | tuple) and output and isinstance(output[0], Mapping):
        return [tensor for item in output for tensor in scores_in(item)]
    tensor = output_tensor(output)
    return [] if tensor is None else [tensor]


def features(tensor: Tensor, call: Call) -> Tensor:
    """A call's output, or a tensor of its shape, as (n, C, H, W): a view.

    Raises:
        ValueError: the call has no positions.
    """
    if call.layout == "NCHW":
        return tensor
    if call.layout == "NHWC":
        return tensor.permute(0, 3, 1, 2)
    if call.token_grid is None:
        raise ValueError(f"call {call.key!r} has no positions")
    view: Tensor = tensor[:, call.prefix_tokens :].transpose(1, 2).unflatten(2, call.token_grid)
    return view


@dataclass(frozen=True, slots=True)
class _Arguments:
    """What a model is called with."""

    values: tuple[Any, ...]
    keywords: Mapping[str, Any]

    def image(self) -> Tensor | None:
        return next(
            (
                value
                for value in (*self.values, *self.keywords.values())
                if isinstance(value, Tensor) and value.ndim == 4
            ),
            None,
        )


def _arguments_of(model: nn.Module, image: Tensor, forward: Forward) -> _Arguments | None:
    """What the user's function calls the model with, from a forward of its own; None where it does not call it once."""
    seen: list[_Arguments] = []

    def note(module: nn.Module, values: Any, keywords: Any) -> None:
        seen.append(_Arguments(values, keywords))

    handle = model.register_forward_pre_hook(note, with_kwargs=True, prepend=True)  # before the user's own change them
    try:
        run(model, image, forward)
    finally:
        handle.remove()
    return seen[0] if len(seen) == 1 else None


@contextmanager
def without_onednn() -> Iterator[None]:
    """Other CPU kernels than oneDNN's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # torch's own switch warns of Intel GPUs
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def refuse_unobservable(model: nn.Module) -> None:
    """Raise an InterpretError for modules that run without hooks, or cannot run yet."""
    if isinstance(model, torch.jit.ScriptModule):
        raise InterpretError(
            "TorchScript modules run without hooks, so nothing can be seen; give the original nn.Module"
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InterpretError(
                f"{name!r} is lazy and not initialised; run the model once, or load its weights, first"
            )


def run(model: nn.Module, images: Tensor, forward: Forward | None = None) -> Any:
    """The model's output.

    Args:
        model: any network.
        images: preprocessed, shape (N, C, H, W).
        forward: ``(model, images) -> output`` for a model that takes something else than one batch of images (several
            inputs, keywords, a list of images); None calls ``model(images)``.

    Raises:
        InterpretError: the model fails; the message quotes its error and the input's shape.
    """
    try:
        copy = images.clone()  # the model may write to its input
        return model(copy) if forward is None else forward(model, copy)
    except InterpretError:
        raise
    except Exception as error:  # whatever the user's network raises
        raise InterpretError(
            f"{type(model).__name__} failed on images of shape {tuple(images.shape)}: {type(error).__name__}: {error}; "
            "check the number of channels, the size and the preprocessing"
        ) from error


@dataclass(slots=True)
class _Seen:
    """What a hook notes of one execution; tensors are kept until the forward ends, so that identities stay unique."""

    name: str
    module: nn.Module
    input: Tensor | None
    output: Tensor
    version: int
    multiply_adds: int
    own_multiply_adds: int
    receptive_field: ReceptiveField | None
    sources: tuple[int, ...] | None


@dataclass(slots=True)
class _Started:
    """A module that is running: what was counted before it, and by now in the calls inside it."""

    module: nn.Module
    calls: int
    flops: int
    inside: int = 0


class _Recorder:
    """Builds the call table from the hooks of one forward."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = modules_of(model)
        # a parametrization computes its module's weights; it is no layer
        inside = {
            child for module in self.names if isinstance(module, ParametrizationList) for child in module.modules()
        }
        # the root has no name; it is a call only where tensors would otherwise belong to nothing
        holders = [model, *(child for child in model.children() if isinstance(child, PARAMETER_HOLDERS))]
        own_state = any(
            True for holder in holders for _ in (*holder.parameters(recurse=False), *holder.buffers(recurse=False))
        )
        self.watched = [module for module, name in self.names.items() if (name or own_state) and module not in inside]
        self.has_fused_recurrence = any(isinstance(module, nn.RNNBase) for module in self.names)
        self.flops = FlopCounterMode(display=False)
        self.seen: list[_Seen] = []
        self.started: list[_Started] = []
        self.before = 0
        self.output: Tensor | None = None
        self.detects = False
        self.fields: ReceptiveFields | None = None
        self.flow: DataFlow | None = None
        self.counted_by_torchinfo: dict[str, int] = {}
        self.clock = time.perf_counter()

    def restart(self) -> None:
        self.seen.clear()
        self.started.clear()
        self.before = self.flops.get_total_flops()
        if self.flow is not None:
            self.flow.restart()
        self.clock = time.perf_counter()

    @contextmanager
    def following(self, image: Tensor, arguments: _Arguments | None) -> Iterator[None]:
        """Follow the flow between calls, and receptive fields from the image among the model's arguments."""
        given = () if arguments is None else tree_leaves((arguments.values, arguments.keywords))
        self.flow = DataFlow([image, *(value for value in given if isinstance(value, Tensor))])
        seen = None if arguments is None else arguments.image()
        self.fields = None if seen is None else ReceptiveFields(seen)
        with self.flow, self.fields or nullcontext():
            yield

    def keep_table(self, table: torchinfo.ModelStatistics) -> None:
        """Keep what torchinfo counts, by type of module."""
        counted: Counter[str] = Counter()
        for layer in table.summary_list:
            if layer.is_leaf_layer and layer.executed:
                counted[layer.class_name] += layer.macs
        self.counted_by_torchinfo = dict(counted)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.clock = time.perf_counter()
        with ExitStack() as stack:
            for module in self.watched:
                stack.callback(module.register_forward_pre_hook(self._before).remove)
                stack.callback(module.register_forward_hook(self._after, with_kwargs=True).remove)
            stack.callback(self.model.register_forward_hook(self._root).remove)
            yield

    def _before(self, module: nn.Module, arguments: Any) -> None:
        self.started.append(_Started(module, len(self.seen), self.flops.get_total_flops()))

    def _after(self, module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        begun = self.started.pop()
        while begun.module is not module:  # a module that raised, and was caught inside the model, never ended
            begun = self.started.pop()
        flops = self.flops.get_total_flops() - begun.flops
        if self.started:
            self.started[-1].inside += flops
        tensor = output_tensor(output)
        if tensor is not None:
            self.seen.append(
                _Seen(
                    self.names[module],
                    module,
                    input_tensor(arguments, keywords),
                    tensor,
                    version_of(tensor),
                    flops // 2,
                    (flops - begun.inside) // 2,
                    None if self.fields is None else self.fields.of(tensor),
                    None if self.flow is None else self.flow.complete(begun.calls, output),
                )
            )

    def _root(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self.output = output_tensor(output)
        self.detects = isinstance(output, list | tuple) and any(isinstance(item, Mapping) for item in output)

    def finish(self, summary: str, summary_error: str, image: Tensor) -> Trace:
        calls: list[Call] = []
        executions: dict[str, int] = {}
        producers: dict[int, str] = {}
        layouts, certain = _layouts(self.seen)
        for position, seen in enumerate(self.seen):
            occurrence = executions.get(seen.name, 0)
            executions[seen.name] = occurrence + 1
            key = seen.name if occurrence == 0 else f"{seen.name}#{occurrence}"
            kind = kind_of(seen.module)
            shape = _one_image(seen.output)
            if kind in ("convolution", "linear"):
                producers[id(seen.output)] = key
            layout = layouts[position]
            calls.append(
                Call(
                    key=key,
                    name=seen.name,
                    occurrence=occurrence,
                    position=position,
                    type=type(seen.module).__name__,
                    kind=kind,
                    input_shape=None if seen.input is None else _one_image(seen.input),
                    output_shape=shape,
                    layout=layout,
                    parameters=0,
                    multiply_adds=seen.multiply_adds,
                    tensors=(),
                    unit=producers.get(id(seen.input), key) if kind == "normalization" else key,
                    stage_end=False,
                    overwritten=version_of(seen.output) != seen.version,
                    weight_shape=_weight_shape(seen.module),
                    receptive_field=seen.receptive_field,
                    token_grid=None,
                    reaches_output=True,
                    last=False,
                    sources=seen.sources,
                )
            )
        for key, count in Counter(call.key for call in calls).items():
            if count > 1:
                raise LayerError(
                    f"{key!r} is a module and would be a later execution of another one too; rename the module"
                )
        calls = _with_positions(calls, certain, (image.shape[-2], image.shape[-1]))
        calls = _mark_last(_mark_stage_ends(calls), self.detects)
        calls, unused = _assign_tensors(self.model, calls)
        whole = None if self.output is None else _one_image(self.output)
        total = (self.flops.get_total_flops() - self.before) // 2
        plain = [seen.output for seen in self.seen if seen.output.layout == torch.strided]
        outputs = {(output.data_ptr(), output.nbytes) for output in plain}
        return Trace(
            calls=tuple(calls),
            unused=unused,
            summary=summary,
            summary_error=summary_error,
            output_shape=whole,
            multiply_adds=total,
            own_multiply_adds=tuple(seen.own_multiply_adds for seen in self.seen),
            counted_by_torchinfo=self.counted_by_torchinfo,
            activation_bytes=sum(size for _, size in outputs),
            seconds=time.perf_counter() - self.clock,
        )


def _weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """The shape of the weight that a module runs with, parametrized or not."""
    weight = getattr(module, "weight", None)
    return _one_image(weight) if isinstance(weight, Tensor) else None


def _one_image(tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape)


def _layouts(seen: Sequence[_Seen]) -> tuple[list[str], list[bool]]:
    """Where the channels lie in every output, and whether that is certain.

    Some modules leave no doubt: convolutions, pooling and BatchNorm have them second, linear layers and LayerNorm last,
    in their input too. Others hand a tensor on, or keep the layout of an input of the same shape; that is followed by
    the tensors' identities.
    """
    last: dict[int, bool] = {}
    for item in seen:
        known = _channels_last(item.module, item.output)
        if known is not None:
            last[id(item.output)] = known
            if item.input is not None:
                last.setdefault(id(item.input), known)
    layouts, certain = [], []
    for item in seen:
        known = last.get(id(item.output))
        if known is None and item.input is not None and item.input.shape == item.output.shape:
            known = last.get(id(item.input))
        if known is not None:
            last[id(item.output)] = known
        shape = _one_image(item.output)
        names = {2: ("NC", "NC"), 3: ("NCL", "NTC"), 4: ("NCHW", "NHWC")}.get(len(shape), ("other", "other"))
        fallback = len(shape) == 3  # tokens, unless a one-dimensional convolution says otherwise
        layouts.append(names[fallback if known is None else known] if shape[:1] == (1,) else "other")
        certain.append(known is not None)
    return layouts, certain


def _channels_last(module: nn.Module, output: Tensor) -> bool | None:
    """Whether a module's channels are the last axis; None where its type does not say."""
    if output.ndim < 3:
        return None
    if isinstance(module, nn.Linear | nn.Bilinear | nn.MultiheadAttention | nn.RNNBase):
        return True
    if type(module) is nn.LayerNorm:  # subclasses that permute inside are common
        return len(module.normalized_shape) == 1
    channels_second = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.Upsample, *_POOLING)
    padding = any(base.__module__ == "torch.nn.modules.padding" for base in type(module).__mro__)
    return False if padding or isinstance(module, channels_second) else None


def _with_positions(calls: Sequence[Call], certain: Sequence[bool], image: tuple[int, int]) -> list[Call]:
    """Tell windows and attention matrices from pictures, and find the grid in which the tokens of sequences lie.

    Outputs (1, a, b, C) are windows of tokens unless a to b is as the image's height to its width, and an output of
    four axes whose module does not say where the channels lie is a picture only if it has about a picture's size. A
    sequence belongs to the nearest picture before it that has as many positions, or up to 16 fewer: tokens in front
    that are no part of the image. Else to one of half its sides, or, in a network without any picture, of the image's
    proportions.

    Args:
        calls: the call table.
        certain: whether a call's layout follows from its module or its neighbours.
        image: (H, W) of the image.
    """
    proportion = image[0] / image[1]
    sizes = {call.spatial_shape for call, sure in zip(calls, certain, strict=True) if sure and call.spatial_shape}
    grids: list[tuple[int, int]] = []
    placed = []
    for call, sure in zip(calls, certain, strict=True):
        if call.layout == "NHWC":
            height, width = call.output_shape[1:3]
            if abs(height - width * proportion) > 1 and abs(width - height / proportion) > 1:
                call = replace(call, layout="NWTC")
        elif call.layout == "NCHW" and not sure and sizes and not _is_near(call.spatial_shape, sizes):
            call = replace(call, layout="other")
        elif call.layout == "NTC":
            call = replace(call, token_grid=_token_grid(call.output_shape[1], grids, proportion))
        if call.map_shape is not None and call.map_shape not in grids[-1:]:
            grids.append(call.map_shape)
        placed.append(call)
    return placed


def _is_near(size: tuple[int, int] | None, sizes: set[tuple[int, int]]) -> bool:
    """Whether a picture has one of these sizes, but for some padding."""
    return size is not None and any(abs(size[0] - h) <= 3 and abs(size[1] - w) <= 3 for h, w in sizes)


def _token_grid(tokens: int, grids: Sequence[tuple[int, int]], proportion: float) -> tuple[int, int] | None:
    for height, width in reversed(grids):
        if height * width > 1 and 0 <= tokens - height * width <= MOST_PREFIX_TOKENS:
            return height, width
    for height, width in reversed(grids):
        half = -(-height // 2), -(-width // 2)
        if tokens == math.prod(half):
            return half
    if grids:
        return None
    for count in range(tokens, max(1, tokens - MOST_PREFIX_TOKENS - 1), -1):
        height = round(math.sqrt(count * proportion))
        if height and count % height == 0 and abs(height - count / height * proportion) < 1e-6:
            return height, count // height
    return None


def _mark_last(calls: Sequence[Call], detects: bool) -> list[Call]:
    """Mark the call that "last" names: the last convolution with positions that reach the output.

    Where calls with channels last follow it (tokens; Swin's and ConvNeXt's pictures) it is the last of those, or the
    picture after them. Where it is one of several branches, or adds a few channels to many (Inception, DenseNet), it is
    the module around it that joins them. Of detectors, whose pyramid ends in small side branches, it is the last
    convolution with the most channels.
    """
    usable = [
        call for call in calls if call.reaches_output and call.map_shape is not None and math.prod(call.map_shape) > 1
    ]
    convolutions = [call for call in usable if call.kind == "convolution"]
    chosen = (convolutions or usable)[-1:]
    if detects and convolutions:
        widest = max(call.channels for call in convolutions)
        chosen = [call for call in convolutions if call.channels == widest][-1:]
    elif chosen and any(_mixes_positions(call) for call in calls[chosen[0].position :]):
        streams = [call for call in usable if call.kind in ("normalization", "container", "convolution")]
        chosen = (streams or usable)[-1:]
    elif chosen:
        conv = chosen[0]
        joined = [call for call in usable if conv.name.startswith(f"{call.name}.") and call.position > conv.position]
        chosen = [call for call in joined if call.channels >= 2 * conv.channels][:1] or chosen
    if not chosen:  # nothing has more than one position
        chosen = [call for call in calls if call.kind == "convolution"][-1:]
    return [replace(call, last=call in chosen) for call in calls]


def _mixes_positions(call: Call) -> bool:
    return call.layout in ("NTC", "NHWC", "NWTC") or call.kind == "attention"


def _mark_stage_ends(calls: Sequence[Call]) -> list[Call]:
    """A stage ends at the last call of each spatial size over 1 x 1, among those that lie in the fewest other calls.

    The second condition passes over the first layers of a strided block, which still work at the size of the stage
    before.
    """
    kinds = {call.name: call.kind for call in calls if call.name}
    last: dict[tuple[int, int], tuple[int, int]] = {}
    for call in calls:
        size = call.map_shape
        parts = call.name.split(".")
        around = [kinds[outer] for end in range(1, len(parts)) if (outer := ".".join(parts[:end])) in kinds]
        if size is None or max(size) == 1 or "convolution" in around:  # padding inside a convolution is no stage
            continue
        depth = len(around)
        if size not in last or depth <= last[size][0]:
            last[size] = depth, call.position
    ends = {position for _, position in last.values()}
    return [replace(call, stage_end=call.position in ends) for call in calls]


def _assign_tensors(model: nn.Module, calls: Sequence[Call]) -> tuple[list[Call], tuple[str, ...]]:
    """Give every tensor of the state to its module's first call, or to the nearest ancestor that ran.

    The root counts only for tensors of its own: it always runs, and what lies below it without running is unused.
    """
    first_name = {id(module): canonical_name(name) for name, module in model.named_modules()}
    path_to_module = {canonical_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    key_of = {call.name: call.key for call in reversed(calls)}
    parameters = {canonical_name(name) for name, _ in model.named_parameters()}  # tied ones count once
    owned: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    unused: list[str] = []
    for name, tensor in state_of(model).items():
        path = name.rpartition(".")[0]
        owner = first_name[id(path_to_module[path])] if path in path_to_module else path
        if isinstance(path_to_module.get(path), PARAMETER_HOLDERS):
            owner = owner.rpartition(".")[0]  # never runs: its tensors are its parent's
        while owner not in key_of and "." in owner:
            owner = owner.rpartition(".")[0]
        if owner not in key_of:
            unused.append(name)
            continue
        owned.setdefault(key_of[owner], []).append(name)
        if name in parameters:
            sizes[key_of[owner]] = sizes.get(key_of[owner], 0) + tensor.numel()
    assigned = [
        replace(call, tensors=tuple(owned.get(call.key, ())), parameters=sizes.get(call.key, 0)) for call in calls
    ]
    return assigned, tuple(unused)


def select(calls: Sequence[Call], layers: Sequence[str] | str | None) -> tuple[Call, ...]:
    """The calls that ``layers`` names, in order of completion.

    Args:
        calls: the call table.
        layers: module names (all executions), call keys, globs, "last" (see :class:`interpret.evidence.Call`), "stages"
            (stage ends), or a list of these; None for all.

    Raises:
        LayerError: a name matches nothing.
    """
    if layers is None:
        return tuple(calls)
    chosen: set[str] = set()
    for pattern in [layers] if isinstance(layers, str) else layers:
        if pattern == "last":
            matches = [call.key for call in calls if call.last]
        elif pattern == "stages":
            matches = [call.key for call in calls if call.stage_end]
        else:
            exact = [call.key for call in calls if pattern in (call.key, call.name)]
            matches = exact or [call.key for call in calls if fnmatch.fnmatchcase(call.key, pattern)]
        if not matches:
            keys = [call.key for call in calls]
            hint = did_you_mean(pattern, keys)
            raise LayerError(
                f"layer {pattern!r} matches none of the {len(keys)} calls"
                f"{hint or '; list them with `interpret layers`'}"
            )
        chosen.update(matches)
    return tuple(call for call in calls if call.key in chosen)
