"""Loading: a checkpoint into a model, completely or not at all."""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from interpret.checkpoint import AVERAGED, Checkpoint, canonical_names, first_few, is_plain
from interpret.errors import CheckpointError, did_you_mean
from interpret.tracing import canonical_name, unwrap

# What torch's own modules do while they load: copy, and (BatchNorm) tolerate a missing counter.
COPYING = (nn.Module._load_from_state_dict, _NormBase._load_from_state_dict)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_state(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as the model took it: every tensor of the model comes from the file, or nothing is changed.

    A root that all fitting names share (``model.`` of a Lightning module, ``encoder.``) is stripped only where more
    names fit without it. Modules that rename older keys while loading (torchvision's VisionTransformer, MaskRCNN) do
    so. As in PyTorch, the counter ``num_batches_tracked`` may be absent, as in files from before 0.4.1: nothing reads
    it at inference. It is then listed in ``missing``. Lazy modules (``nn.LazyConv2d``) become ordinary ones, of the
    sizes that the file's tensors have. The model's weights are copied for a roll-back only where loading might fail
    half-way: where modules load in their own way, or names do not fit.

    Args:
        model: receives the weights; may be wrapped by DataParallel or torch.compile.
        checkpoint: what :func:`interpret.checkpoint.read_checkpoint` returned.

    Returns:
        The checkpoint with ``state`` under the model's own names (without wrappers) in its order, and ``unexpected``,
        ``missing`` and ``stripped_prefixes`` filled in.

    Raises:
        CheckpointError: names or shapes do not fit; the model is as it was.
    """
    bare = unwrap(model)
    own = _tensors(bare)
    if not own:
        raise CheckpointError(f"{type(bare).__name__} has no weights, so no checkpoint can be loaded into it")
    canonical, _ = canonical_names(own)
    own_name = {canonical[name]: name for name in own}
    prefix = _root_prefix(checkpoint, own_name)
    given = {name.removeprefix(prefix): value for name, value in checkpoint.state.items() if name.startswith(prefix)}
    outside = [name for name in checkpoint.state if not name.startswith(prefix)]
    _refuse_unloadable(given, own_name, checkpoint)
    with _undone_on_failure(bare, checkpoint) as undo:
        _complete_lazy_modules(bare, given, canonical, undo)
        own = _tensors(bare)
        wanted = {canonical[name]: value for name, value in own.items()}
        unexpected = [name for name in given if name not in wanted]
        _refuse_valueless(bare, given, unexpected, wanted, checkpoint)
        given |= _tied(given, wanted)
        _refuse_shapes(given, wanted, bare, checkpoint)
        if _only_copies(bare, given, wanted):
            _refuse_deeper([*outside, *unexpected], bare, checkpoint)
        else:
            undo.callback(_restore, bare, {name: value.clone() for name, value in own.items()})
        fitting = OrderedDict((own_name.get(name, name), value) for name, value in given.items())
        if not unexpected and given.keys() >= wanted.keys():
            # under the model's own names: of its own version, which some modules insist on (torchvision's MNASNet)
            fitting._metadata = bare.state_dict()._metadata  # type: ignore[attr-defined]
        result = bare.load_state_dict(fitting, strict=False)
        unexpected = [*outside, *(canonical.get(name, name) for name in result.unexpected_keys)]
        _refuse_names([canonical.get(name, name) for name in result.missing_keys], unexpected, wanted, checkpoint)
        _refuse_deeper(unexpected, bare, checkpoint)

    state, counters = {}, []
    for name, value in own.items():
        key, short = canonical[name], canonical_name(name)
        if key in given:
            state[short] = given[key]
        elif key.endswith("num_batches_tracked"):
            counters.append(short)
        else:  # renamed by its module while it was loaded: the file has it under an older name
            state[short] = value.detach().clone()
    return dataclasses.replace(
        checkpoint,
        state=state,
        stripped_prefixes=checkpoint.stripped_prefixes + ((prefix,) if prefix else ()),
        unexpected=tuple(unexpected),
        missing=tuple(counters),
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


@contextmanager
def _undone_on_failure(model: nn.Module, checkpoint: Checkpoint) -> Iterator[ExitStack]:
    """Takes what undoes a change of the model, and does it where the block fails; modules may fail in their own way."""
    with ExitStack() as undo:
        try:
            yield undo
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{checkpoint.uri!r} cannot be loaded into {type(model).__name__}: {error}"
            ) from error
        undo.pop_all()


def _restore(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    for name, value in _tensors(model).items():
        if name in before and not torch.equal(value, before[name]):  # what cannot be written to was not changed
            value.copy_(before[name])


def _only_copies(model: nn.Module, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether loading is nothing but copies that cannot fail, so that there will be nothing to undo; shapes fit."""
    return all(
        type(module)._load_from_state_dict in COPYING
        and type(module).load_state_dict is nn.Module.load_state_dict
        and type(module).set_extra_state is nn.Module.set_extra_state
        and not vars(module).keys() & {"_load_from_state_dict", "load_state_dict", "set_extra_state"}
        and not module._load_state_dict_pre_hooks
        and not module._load_state_dict_post_hooks
        for module in model.modules()
    ) and all(
        name in given
        and (given[name].dtype == value.dtype or (given[name].dtype in FLOATS and value.dtype in FLOATS))
        and type(value) is Tensor
        and 0 not in value.stride()
        and not value.is_inference()
        for name, value in wanted.items()
    )


def _complete_lazy_modules(
    model: nn.Module, given: Mapping[str, Tensor], canonical: Mapping[str, str], undo: ExitStack
) -> None:
    """Make lazy modules ordinary ones of the file's sizes, as their first forward would; not those the file lacks."""
    with torch.random.fork_rng(devices=[]):  # they also draw initial values, in vain
        for name, module in model.named_modules(remove_duplicate=False):
            known = isinstance(module, LazyModuleMixin) and isinstance(module, (nn.Linear, _ConvNd, _NormBase))
            if not known or module.cls_to_become is None:
                continue
            names = [f"{name}.{tensor}" if name else tensor for tensor in ("weight", "running_mean")]
            sizing = [given[canonical[own]] for own in names if canonical.get(own) in given]
            if not sizing and any(own in canonical for own in names):
                continue
            rows, columns, *_ = (*sizing[0].shape, 1, 1) if sizing else (0, 0)
            if isinstance(module, nn.Linear):
                attribute, size = "in_features", columns
            elif isinstance(module, _ConvNd):
                attribute, size = "in_channels", rows if module.transposed else columns * module.groups
            else:
                attribute, size = "num_features", rows
            undo.callback(_undo_of(module))
            example = torch.empty(1, size, *getattr(module, "kernel_size", ()), device="meta")
            module._infer_parameters(module, (example,))
            setattr(module, attribute, size)  # torch leaves 0 where the weights were loaded before


def _undo_of(module: nn.Module) -> Callable[[], None]:
    """What makes a module lazy again: its class, its attributes with its dicts of hooks, and its empty tensors."""
    kind, attributes = type(module), dict(vars(module))
    dicts = [(value, dict(value)) for value in attributes.values() if isinstance(value, dict)]
    held = [*module._parameters.values(), *module._buffers.values()]
    tensors = [(value, type(value)) for value in held if value is not None and is_lazy(value)]

    def undo() -> None:
        module.__class__ = kind
        vars(module).clear()
        vars(module).update(attributes)
        for value, content in dicts:
            value.clear()
            value.update(content)
        for tensor, lazy in tensors:
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            tensor.__class__ = lazy

    return undo


def _root_prefix(checkpoint: Checkpoint, wanted: Container[str]) -> str:
    """The root under which most of the model's names are found; empty where none does better than the bare names."""
    fitting: Counter[str] = Counter({"": 0})
    for name in checkpoint.state:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in wanted:
                fitting["".join(f"{part}." for part in parts[:depth])] += 1
    most = max(fitting.values())
    if fitting[""] == most:
        return ""
    prefixes = [prefix for prefix, count in fitting.items() if count == most]
    prefixes = [prefix for prefix in prefixes if not AVERAGED.search(prefix)] or prefixes
    if len(prefixes) > 1:
        listed = ", ".join(repr(prefix) for prefix in prefixes[:4])
        raise CheckpointError(
            f"{checkpoint.uri!r} holds the model's weights under several roots: {listed}; "
            f"choose one with branch={prefixes[0][:-1]!r}"
        )
    return prefixes[0]


def _tied(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that the model shares with one that the file holds: safetensors keeps only one name of each."""

    def place(tensor: Tensor) -> tuple[object, ...]:
        return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype

    held = {place(value): given[name] for name, value in wanted.items() if name in given and value.numel()}
    return {name: held[place(value)] for name, value in wanted.items() if name not in given and place(value) in held}


def _refuse_unloadable(given: Mapping[str, Tensor], wanted: Iterable[str], checkpoint: Checkpoint) -> None:
    for name in wanted:
        tensor = given.get(name)
        if tensor is not None and not is_plain(tensor):
            kind = "quantized" if tensor.is_quantized else "without values (meta)" if tensor.is_meta else "sparse"
            raise CheckpointError(f"{name!r} in {checkpoint.uri!r} is {kind}; save the weights dense and dequantized")


def _refuse_valueless(
    model: nn.Module,
    given: Mapping[str, Tensor],
    unexpected: Sequence[str],
    wanted: Mapping[str, Tensor],
    checkpoint: Checkpoint,
) -> None:
    """Refuse meta tensors and modules that are still lazy: the file lacks theirs, or only a forward can tell them."""
    if any(is_lazy(value) for value in wanted.values()):
        _refuse_names([name for name in wanted if name not in given], unexpected, wanted, checkpoint)
    lazy = any(isinstance(module, LazyModuleMixin) for module in model.modules())
    if lazy or any(value.is_meta for value in wanted.values()):
        raise CheckpointError(
            f"{type(model).__name__} has weights without values (meta device or lazy modules of its own); "
            "build it on the CPU and run it once first"
        )


def _refuse_shapes(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], model: nn.Module, checkpoint: Checkpoint
) -> None:
    # PyTorch takes a vector of length 1 for a scalar, as files from before 0.4 hold it.
    pairs = {
        name: (tuple(given[name].shape), tuple(value.shape))
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape and (given[name].shape, value.ndim) != ((1,), 0)
    }
    if not pairs:
        return
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    if missing:
        _refuse_names(missing, [name for name in given if name not in wanted], wanted, checkpoint)
    last = [name for name, value in wanted.items() if value.ndim >= 2][-1:]
    heads = {(file[:1], own[:1]) for file, own in pairs.values()}
    if last and last[0] in pairs and len(heads) == 1 and all(file[1:] == own[1:] for file, own in pairs.values()):
        ((stored,), (built,)) = heads.pop()
        raise CheckpointError(
            f"{last[0]!r}: the checkpoint {checkpoint.uri!r} has {stored} classes, the model was built with {built}: "
            f"pass --model-arg num_classes={stored} (in Python, build the model with {stored} classes)"
        )
    listed = [f"{name} {file} against the model's {own}" for name, (file, own) in pairs.items()]
    raise CheckpointError(
        f"{checkpoint.uri!r} does not fit {type(model).__name__}: {len(pairs)} of {len(wanted)} tensors have another "
        f"shape ({first_few(listed)}); build the model with the arguments it was trained with"
    )


def _refuse_names(
    missing: Sequence[str], unexpected: Sequence[str], wanted: Mapping[str, Tensor], checkpoint: Checkpoint
) -> None:
    if not missing:
        return
    fits = len(wanted) - len(missing)
    wrong = 2 * fits < len(wanted)
    why = "it belongs to another architecture; " if wrong else ""
    hint = "" if wrong else did_you_mean(missing[0], unexpected)
    others = f"; unexpected: {first_few(unexpected)}" if unexpected else ""
    raise CheckpointError(
        f"{checkpoint.uri!r} does not fit the model: {why}{len(missing)} of {len(wanted)} tensors are missing: "
        f"{first_few(missing)}{others}; check --model and its --model-arg{hint}"
    )


def _refuse_deeper(unexpected: Iterable[str], model: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse a deeper network's weights: they hold every name of the shallower model, so that nothing would be missing.

    A model whose last part was cut off (a feature extractor) is legitimate, so blocks missing there pass.
    """
    named = {f"{name}.": module for name, module in model.named_modules() if name}
    canonical, _ = canonical_names(named)
    modules = {canonical[name].removesuffix("."): module for name, module in named.items()}
    last = next(reversed([name for name in modules if name and "." not in name]), "")
    for name in unexpected:
        parts = name.split(".")
        depth = next((d for d in range(len(parts) - 1, 0, -1) if ".".join(parts[:d]) in modules), 0)
        holder, extra = ".".join(parts[:depth]), ".".join(parts[: depth + 1])
        if depth and parts[0] != last and isinstance(modules[holder], (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            size = sum(1 for _ in modules[holder].children())
            raise CheckpointError(
                f"{checkpoint.uri!r} comes from a deeper network: it has {extra!r}, but {holder!r} of "
                f"{type(model).__name__} has only {size} parts; check --model"
            )
