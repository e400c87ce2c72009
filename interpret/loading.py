"""Loading: a checkpoint into a model, completely or not at all."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from interpret.checkpoint import AVERAGED, Checkpoint, canonical_names, first_few
from interpret.errors import CheckpointError, did_you_mean
from interpret.tracing import canonical_name, unwrap


def load_state(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as the model took it: every tensor of the model comes from the file, or nothing is changed.

    A root that all fitting names share (``model.`` of a Lightning module, ``encoder.``) is stripped only where more
    names fit without it. Modules that rename older keys while loading (torchvision's VisionTransformer, MaskRCNN) do
    so. As in PyTorch, the counter ``num_batches_tracked`` may be absent, as in files from before 0.4.1: nothing reads
    it at inference. It is then listed in ``missing``.

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
    own = {name: value for name, value in bare.state_dict().items() if isinstance(value, Tensor)}
    if not own:
        raise CheckpointError(f"{type(bare).__name__} has no weights, so no checkpoint can be loaded into it")
    if any(value.is_meta or nn.parameter.is_lazy(value) for value in own.values()):
        raise CheckpointError(
            f"{type(bare).__name__} has weights without values (meta device or lazy modules); "
            "build it on the CPU and run it once first"
        )
    canonical, _ = canonical_names(own)
    wanted = {canonical[name]: value for name, value in own.items()}
    prefix = _root_prefix(checkpoint, wanted)
    given = {name.removeprefix(prefix): value for name, value in checkpoint.state.items() if name.startswith(prefix)}
    outside = [name for name in checkpoint.state if not name.startswith(prefix)]
    given |= _tied(given, wanted)
    _refuse_unloadable(given, wanted, checkpoint)
    _refuse_shapes(given, wanted, bare, checkpoint)

    before = {name: value.clone() for name, value in own.items()}
    own_name = {canonical[name]: name for name in own}
    try:
        result = bare.load_state_dict({own_name.get(name, name): value for name, value in given.items()}, strict=False)
        unexpected = [*outside, *(canonical.get(name, name) for name in result.unexpected_keys)]
        _refuse_names([canonical.get(name, name) for name in result.missing_keys], unexpected, wanted, checkpoint)
        _refuse_deeper(unexpected, bare, checkpoint)
    except Exception as error:  # modules may load in their own way, and fail in their own way
        for name, value in bare.state_dict().items():
            if name in before:
                value.copy_(before[name])
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{checkpoint.uri!r} cannot be loaded into {type(bare).__name__}: {error}") from error

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


def _root_prefix(checkpoint: Checkpoint, wanted: Mapping[str, Tensor]) -> str:
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


def _refuse_unloadable(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    for name in wanted:
        tensor = given.get(name)
        if tensor is not None and (tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta):
            kind = "quantized" if tensor.is_quantized else "without values (meta)" if tensor.is_meta else "sparse"
            raise CheckpointError(f"{name!r} in {checkpoint.uri!r} is {kind}; save the weights dense and dequantized")


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
