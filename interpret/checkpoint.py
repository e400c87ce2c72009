"""Checkpoints: read safely, identified by content, loaded completely into a model that is built from a short spec."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import inspect
import pickle
import pickletools
import re
import struct
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import safetensors
import torch
from torch import Tensor, nn

from interpret.errors import CheckpointError, did_you_mean
from interpret.specs import failure, imported

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

# Where the weights lie in a checkpoint that also holds an optimizer and the like; earlier names win.
PLAIN_BRANCHES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net_state_dict",
    "net",
    "network",
    "weights",
    "model_weights",
    "params",
    "module",
)
AVERAGED = re.compile(r"(^|[_.])(ema|swa|averaged|shadow)([_.]|$)")

LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
FOREIGN = (
    (b"version https://git-lfs", "a Git-LFS pointer, not the weights themselves; run `git lfs pull` in its repository"),
    (b"\x89PNG", "a PNG image, not a checkpoint"),
    (b"\xff\xd8\xff", "a JPEG image, not a checkpoint"),
    (b"\x89HDF", "an HDF5 file (Keras?), not a PyTorch checkpoint"),
    (b"\x93NUMPY", "a NumPy array, not a checkpoint"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"<", "a web page, not a checkpoint; the download failed or needs a login"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The weights that a file holds, and how they were found in it.

    Attributes:
        uri: where the checkpoint came from, as it was given.
        path: the file that was read.
        file_sha256: of the file's bytes.
        format: "zip" (torch.save), "legacy" (torch.save before 1.6) or "safetensors".
        branch: the key of the file's dict that the weights came from, dotted where nested; None where the dict itself
            is the state.
        stripped_prefixes: what was taken off the names, in that order.
        dtypes: number of tensors of each dtype in the file, such as {"float32": 62, "int64": 20}.
        state: tensors by canonical name, in file order; once loaded, the model's own tensors and order.
        unexpected: names that the file holds and the model does not; known once loaded.
        missing: BatchNorm counters that the file lacks (nothing else may be missing); known once loaded.
    """

    uri: str
    path: Path
    file_sha256: str
    format: str
    branch: str | None
    stripped_prefixes: tuple[str, ...]
    dtypes: Mapping[str, int]
    state: Mapping[str, Tensor] = field(repr=False)
    unexpected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def read_checkpoint(path: str | Path, uri: str | None = None, branch: str | None = None) -> Checkpoint:
    """The weights in a file, without executing anything that the file says.

    The kind of file is told by its content, never by its name. Where a file holds several states, plain weights win
    over averaged ones (EMA, SWA), in the order of ``PLAIN_BRANCHES``; averaged weights are taken where nothing else is
    there, or where ``branch`` asks for them. The wrappers ``module.`` (DataParallel) and ``_orig_mod.`` (torch.compile)
    are taken off the names.

    Args:
        path: a state_dict or a dict that holds one, saved by torch.save; a Lightning .ckpt; a .safetensors file.
        uri: the name to record instead of the path.
        branch: which state to take: a key of the file's dict ("model_ema", "ema.model"), or the first part of the names
            ("teacher").

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or no checkpoint; each case has its own message.
    """
    file = Path(path)
    form = _sniff(file)
    content = _read_safetensors(file) if form == "safetensors" else _read_torch(file, form)
    chosen, state, prefixes = _choose_state(content, branch, file)
    canonical, stripped = canonical_names(state)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Checkpoint(
        uri=str(path) if uri is None else uri,
        path=file,
        file_sha256=digest,
        format=form,
        branch=chosen,
        stripped_prefixes=prefixes + stripped,
        dtypes=dict(Counter(dtype_name(tensor.dtype) for tensor in state.values())),
        state={canonical[name]: tensor.detach() for name, tensor in state.items()},
    )


def load_state(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as the model took it: every tensor of the model comes from the file, or nothing is changed.

    A root that all fitting names share (``model.`` of a Lightning module, ``encoder.``) is stripped only where more
    names fit without it. Modules that rename older keys while loading (torchvision's VisionTransformer, MaskRCNN) do
    so. As in PyTorch, the counter ``num_batches_tracked`` may be absent, as in files from before 0.4.1: nothing reads
    it at inference. It is then listed in ``missing``.

    Args:
        model: receives the weights; may be wrapped by DataParallel or torch.compile.
        checkpoint: what :func:`read_checkpoint` returned.

    Returns:
        The checkpoint with ``state`` under the model's own names (without wrappers) in its order, and ``unexpected``,
        ``missing`` and ``stripped_prefixes`` filled in.

    Raises:
        CheckpointError: names or shapes do not fit; the model is as it was.
    """
    bare = _unwrap(model)
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
        key, short = canonical[name], name.replace("_orig_mod.", "")
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


def canonical_names(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Each name without the marks of its wrappers, and the prefixes that were taken off.

    ``_orig_mod.`` (torch.compile) goes wherever it stands; ``module.`` (DataParallel, AveragedModel) where every name
    begins with it, the counter ``n_averaged`` aside. Wrappers nest, so this repeats until nothing is left to take off.

    >>> canonical_names(["_orig_mod.module.fc.weight", "_orig_mod.module.layer._orig_mod.bias"])[0].values()
    dict_values(['fc.weight', 'layer.bias'])
    """
    canonical = {name: name for name in names}
    stripped: list[str] = []
    while True:
        bare = {name: re.sub(r"(^|\.)_orig_mod\.", r"\1", short) for name, short in canonical.items()}
        prefix = "_orig_mod."
        if bare == canonical or len(set(bare.values())) < len(bare):
            wrapped = [short for short in canonical.values() if short != "n_averaged"]
            if not wrapped or not all(short.startswith("module.") for short in wrapped):
                return canonical, tuple(stripped)
            bare = {name: short.removeprefix("module.") for name, short in canonical.items()}
            prefix = "module."
        canonical = bare
        stripped.append(prefix)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without its library.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def tensor_sha256(tensor: Tensor) -> str:
    """sha256 of dtype, shape and little-endian bytes in row-major order, wherever and however the tensor is stored.

    Raises:
        CheckpointError: the tensor is sparse or quantized, so it has no plain bytes.
    """
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError("a sparse or quantized tensor has no digest; store it dense and dequantized")
    digest = hashlib.sha256(f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}\n".encode())
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[plain.element_size()]
    values = plain.contiguous().flatten().view(integer).numpy()  # NumPy has no bfloat16: its bits as integers
    digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).view("uint8").data)
    return digest.hexdigest()


def state_sha256(state: Mapping[str, Tensor] | Mapping[str, str]) -> str:
    """The identity of weights, whatever file, order or wrapper they came in.

    sha256 of the lines "<sha256 of the tensor>  <name>", sorted by name: names, dtypes, shapes and bytes all count.

    Args:
        state: tensors by canonical name, or their :func:`tensor_sha256` where these are known already.
    """
    digests = {name: value if isinstance(value, str) else tensor_sha256(value) for name, value in state.items()}
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------------- files


def _sniff(file: Path) -> str:
    """The format of a file by its first bytes; refuses what is no checkpoint."""
    if file.is_dir():
        suffixes = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar")
        inside = [path.name for path in sorted(file.iterdir()) if path.suffix in suffixes][:5]
        hint = f"; give one of its files: {', '.join(inside)}" if inside else "; give the checkpoint file itself"
        raise CheckpointError(f"checkpoint {str(file)!r} is a directory{hint}")
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(512)
    except FileNotFoundError:
        near = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
        raise CheckpointError(f"checkpoint {str(file)!r} does not exist{did_you_mean(file.name, near)}") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(file)!r} cannot be read: {error.strerror or error}") from error
    if not head:
        raise CheckpointError(f"checkpoint {str(file)!r} is empty (0 bytes); save or download it again")
    if head.startswith(b"PK"):
        return _sniff_zip(file)
    if LEGACY_MAGIC in head[:20]:
        return "legacy"
    if len(head) > 8 and head[8:9] == b"{":
        if 8 + struct.unpack("<Q", head[:8])[0] > size:
            raise CheckpointError(
                f"checkpoint {str(file)!r} is truncated: its safetensors header is cut off; copy it again"
            )
        return "safetensors"
    for magic, description in FOREIGN:
        if head.lstrip().startswith(magic):
            raise CheckpointError(f"{str(file)!r} is {description}")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{str(file)!r} is a tar archive; unpack it first")
    if head[:1] == b"\x80":
        raise CheckpointError(
            f"{str(file)!r} is a pickle that torch.save did not write; "
            "load it where you trust it and save the state_dict with torch.save"
        )
    raise CheckpointError(
        f"{str(file)!r} is not a checkpoint: it begins with {head[:8]!r}; expected a file of torch.save or safetensors"
    )


def _sniff_zip(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(
            f"checkpoint {str(file)!r} is truncated or damaged ({error}); copy or download it again"
        ) from error
    names = [member.filename for member in members]
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
        raise CheckpointError(
            f"{str(file)!r} is a torch.export archive (.pt2), which hides the modules; "
            "save the original model's state_dict: torch.save(model.state_dict(), 'weights.pt')"
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{str(file)!r} is a TorchScript archive, which carries code; save its weights where you trust it: "
            "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt')"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(
            f"{str(file)!r} is a zip archive but not a checkpoint (it holds {', '.join(names[:3]) or 'nothing'}); "
            "if the checkpoint lies inside, unpack it"
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        # torch.save never compresses, and mapping such a file into memory would read the compressed bytes as weights.
        raise CheckpointError(
            f"checkpoint {str(file)!r} was packed again with compression; give the file that torch.save wrote"
        )
    return "zip"


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(file, framework="pt", device="cpu") as archive:
            return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {str(file)!r} is truncated or damaged ({error}); copy or download it again"
        ) from error


def _read_torch(file: Path, form: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what cannot be read is refused below
            # weights_only is always said: left out, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD would switch the protection off
            return torch.load(file, map_location="cpu", weights_only=True, mmap=form == "zip")
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unsafe_message(file, form, error)) from error
    except Exception as error:  # a damaged file can fail anywhere in the reader
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise CheckpointError(
            f"checkpoint {str(file)!r} is truncated or damaged ({reason}); copy or download it again"
        ) from error


def _unsafe_message(file: Path, form: str, error: pickle.UnpicklingError) -> str:
    unsafe = _unsafe_globals(file, form)
    if any(name.startswith("torch.nn.modules.") for name in unsafe):
        return (
            f"{str(file)!r} is a pickled model, not its weights: loading it would run code ({_first(unsafe)}). "
            "Save the weights where you trust it: "
            "torch.save(torch.load(FILE, weights_only=False).state_dict(), 'weights.pt')"
        )
    if unsafe:
        return (
            f"{str(file)!r} holds more than weights: it asks for {_first(unsafe, 12)}, which is not allowed; nothing "
            "was executed. Load it where you trust it and save only the state_dict with torch.save"
        )
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return (
        f"{str(file)!r} cannot be read by PyTorch's safe loader ({reason[1] if reason else error}); "
        "save its state_dict with plain torch.save"
    )


def _unsafe_globals(file: Path, form: str) -> list[str]:
    """The functions and classes that a file asks for beyond tensors, read without executing it."""
    with suppress(pickle.UnpicklingError, ValueError, RuntimeError, AttributeError):
        if form == "zip":
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
        with file.open("rb") as stream:  # legacy: magic number, version, system, then the object
            opcodes = [item for _ in range(4) for item in pickletools.genops(stream)]
        asked = {str(argument).replace(" ", ".") for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}
        return sorted(name for name in asked if not re.match(r"torch\.(_utils\.|\w+$)|collections\.OrderedDict$", name))
    return []


# ----------------------------------------------------------------------------------------------- choosing among states


def _choose_state(
    content: object, branch: str | None, file: Path
) -> tuple[str | None, dict[str, Tensor], tuple[str, ...]]:
    """The branch, its tensors, and the prefix that ``branch`` named, if it named one."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{str(file)!r} holds a {type(content).__name__}, not a dict of weights; save a state_dict"
        )
    states = dict(_states(content, ()))
    if not states:
        keys = ", ".join(repr(key) for key in list(content)[:6]) or "none"
        raise CheckpointError(f"{str(file)!r} holds no weights (its keys: {keys}); save the model's state_dict")
    named = {".".join(path): state for path, state in states.items()}
    if branch and branch in named:
        return branch, named[branch], ()
    ranked = sorted(states, key=_preference)
    path = ranked[0]
    if branch:
        below = {name: value for name, value in states[path].items() if name.startswith(f"{branch}.")}
        if below:
            return branch, {name.removeprefix(f"{branch}."): value for name, value in below.items()}, (f"{branch}.",)
        known = [name for name in named if name] + sorted({name.split(".")[0] for name in states[path]})
        raise CheckpointError(
            f"{str(file)!r} has no branch {branch!r}{did_you_mean(branch, known)}; it has: {', '.join(known[:12])}"
        )
    rivals = [".".join(rival) for rival in ranked if _preference(rival) == _preference(path)]
    if len(rivals) > 1:
        raise CheckpointError(
            f"{str(file)!r} holds several states: {', '.join(rivals)}; choose one with branch={rivals[0]!r}"
        )
    return ".".join(path) or None, states[path], ()


def _states(content: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every nested dict that holds weights. Optimizers number theirs, so they are not among them."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if any(value.ndim for value in tensors.values()):
        yield path, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from _states(value, (*path, key))


def _preference(path: tuple[str, ...]) -> tuple[int, int, int]:
    """Sorts states: named plain weights, the dict itself, averaged weights, anything else."""
    if any(AVERAGED.search(key.lower()) for key in path):
        return 2, 0, len(path)
    if not path:
        return 1, 0, 0
    if all(key in PLAIN_BRANCHES for key in path):
        return 0, PLAIN_BRANCHES.index(path[0]), len(path)
    return 3, 0, 0


# ----------------------------------------------------------------------------------------------- fitting file to model


def _unwrap(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


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
        f"shape ({_first(listed)}); build the model with the arguments it was trained with"
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
    others = f"; unexpected: {_first(unexpected)}" if unexpected else ""
    raise CheckpointError(
        f"{checkpoint.uri!r} does not fit the model: {why}{len(missing)} of {len(wanted)} tensors are missing: "
        f"{_first(missing)}{others}; check --model and its --model-arg{hint}"
    )


def _refuse_deeper(unexpected: Iterable[str], model: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse a deeper network's weights: they hold every name of the shallower model, so that nothing would be missing.

    A model whose last part was cut off (a feature extractor) is legitimate, so blocks missing there pass.
    """
    named = {f"{name}.": module for name, module in model.named_modules()}
    canonical, _ = canonical_names(name for name in named if name != ".")
    modules = {canonical[name].removesuffix("."): module for name, module in named.items() if name != "."}
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


def _first(names: Sequence[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


# ----------------------------------------------------------------------------------------------------- building models


def build_model(spec: str, arguments: Mapping[str, object] | None = None) -> nn.Module:
    """The model that a spec names, with random weights.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``package.module:callable`` or ``path/to/file.py:callable``.
        arguments: keyword arguments of the builder. Strings are read as Python literals where they are one (``5``,
            ``0.1``, ``[1, 2]``, ``None``; also ``true`` and ``false``), else kept.

    Raises:
        CheckpointError: the spec names nothing, the builder fails, or it returns no module.
    """
    given = {key: _literal(value) for key, value in (arguments or {}).items()}
    source, _, name = spec.partition(":")
    if source == "torchvision":
        return _call(_torchvision_builder(name), {**given, **_no_downloads(name, given, spec)}, spec)
    if source == "timm":
        return _call(_timm_builder(name, given, spec), given, spec)
    with imported(spec, CheckpointError) as target:
        if isinstance(target, nn.Module):
            if given:
                raise CheckpointError(f"{spec!r} is a module that was built already: it takes no {', '.join(given)}")
            return target
        if not callable(target):
            raise CheckpointError(
                f"{spec!r} is a {type(target).__name__}; name a function or class that returns an nn.Module"
            )
        return _call(target, given, spec)


def _call(target: Callable[..., Any], arguments: Mapping[str, object], spec: str) -> nn.Module:
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # some builtins hide their signature
        parameters = {}
    if parameters and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise CheckpointError(
                    f"{spec!r} has no argument {key!r}{did_you_mean(key, parameters)}; it has {', '.join(parameters)}"
                )
    try:
        model = target(**arguments)
    except (Exception, SystemExit) as error:
        raise CheckpointError(failure(spec, "failed", error)) from error
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{spec!r} returned a {type(model).__name__}; it must return an nn.Module")
    return model


def _literal(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value in ("true", "false"):
        return value == "true"
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _torchvision_builder(name: str) -> Callable[..., Any]:
    from torchvision import models  # 1 s, and only where it is asked for

    known = models.list_models()
    if name.lower() not in known:
        weights = "; give weights as the CHECKPOINT, they imply their model" if "_Weights" in name else ""
        raise CheckpointError(f"torchvision has no model {name!r}{did_you_mean(name.lower(), known)}{weights}")
    builder: Callable[..., Any] = models.get_model_builder(name)
    return builder


def _no_downloads(name: str, given: Mapping[str, object], spec: str) -> dict[str, object]:
    """The arguments that keep a torchvision builder from the network, and from its slow random initialisation."""
    _refuse_pretrained(given, ("weights", "weights_backbone", "pretrained"), spec)
    parameters = inspect.signature(_torchvision_builder(name)).parameters
    quiet: dict[str, object] = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    if name.lower() in ("googlenet", "inception_v3"):  # without it they warn that their initialisation will change
        quiet["init_weights"] = given.get("init_weights", False)
    return quiet


def _timm_builder(name: str, given: Mapping[str, object], spec: str) -> Callable[..., Any]:
    _refuse_pretrained(given, ("pretrained",), spec)
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{spec!r} needs timm, which is not installed; run `pip install timm`") from error
    if not timm.is_model(name):
        raise CheckpointError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")

    def create(**arguments: object) -> Any:
        return timm.create_model(name, pretrained=False, **arguments)

    return create


def _refuse_pretrained(given: Mapping[str, object], names: Iterable[str], spec: str) -> None:
    for name in names:
        if name in given:
            raise CheckpointError(f"{spec!r}: leave out the argument {name!r}; the weights come from the checkpoint")


# ----------------------------------------------------------------------------------------------- torchvision's weights


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """An entry of torchvision's weights enums: all that is known of it without a download.

    Attributes:
        uri: as it was given.
        spec: the model's spec for :func:`build_model`, and ``arguments`` for it.
        transform: the weights' own preprocessing.
        class_names: None where the weights do not classify.
        weights: the enum's entry.
    """

    uri: str
    spec: str
    arguments: Mapping[str, object]
    transform: Callable[..., Any]
    class_names: tuple[str, ...] | None
    weights: WeightsEnum

    def read(self) -> Checkpoint:
        """The weights, downloaded once by torchvision into its cache.

        Raises:
            CheckpointError: they are neither in the cache nor to be had, or do not match the digest in their name.
        """
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(self.weights.url).name
        if not cached.exists():
            try:
                with redirect_stdout(sys.stderr):  # where it says what it downloads: stdout is for results
                    self.weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
            except (URLError, OSError) as error:
                raise CheckpointError(
                    f"{self.uri!r} cannot be downloaded ({getattr(error, 'reason', error)}); "
                    f"fetch {self.weights.url} elsewhere and put it at {cached}"
                ) from error
            except RuntimeError as error:
                raise CheckpointError(f"{self.uri!r} was not downloaded correctly: {error}") from error
        checkpoint = read_checkpoint(cached, uri=self.uri)
        digest = re.search(r"-([0-9a-f]{8,})\.", cached.name)
        if digest and not checkpoint.file_sha256.startswith(digest[1]):
            raise CheckpointError(f"{cached} does not match the digest in its name; delete it and run again")
        return checkpoint


def weights_of(uri: str) -> PublishedWeights:
    """What torchvision's weights ``torchvision:ResNet50_Weights.IMAGENET1K_V2`` imply; reads metadata only.

    Raises:
        CheckpointError: torchvision has no such weights.
    """
    from torchvision import models

    enums = {name: models.get_model_weights(name) for name in models.list_models()}
    name = uri.removeprefix("torchvision:")
    kind, _, entry = name.partition(".")
    model = next((model for model, enum in enums.items() if enum.__name__ == kind), None)
    if model is None or entry not in enums[model].__members__:
        known = [f"{enum.__name__}.{member}" for enum in enums.values() for member in enum.__members__]
        raise CheckpointError(f"torchvision has no weights {name!r}{did_you_mean(name, known)}")
    weights = enums[model][entry]
    family = models.get_model_builder(model).__module__.split(".")[2]
    if family in ("detection", "optical_flow", "quantization", "video"):
        # Their builders change more than arguments (FrozenBatchNorm2d, its eps), or take something else than an image.
        raise CheckpointError(
            f"{uri!r}: weights of {family} are not built here; "
            "save their state_dict and name a function of your own that builds the model as --model"
        )
    categories = weights.meta.get("categories")
    return PublishedWeights(
        uri=uri,
        spec=f"torchvision:{model}",
        arguments=_published_arguments(model, weights),
        transform=weights.transforms(),
        class_names=tuple(categories) if categories else None,
        weights=weights,
    )


def _published_arguments(model: str, weights: WeightsEnum) -> dict[str, object]:
    """What torchvision's builder would change in the architecture for these weights."""
    arguments: dict[str, object] = {}
    if weights.meta.get("categories"):
        arguments["num_classes"] = len(weights.meta["categories"])
    if model.startswith("vit_"):
        arguments["image_size"] = weights.meta["min_size"][0]
    if "aux_loss" in inspect.signature(_torchvision_builder(model)).parameters:
        arguments["aux_loss"] = True
    if model in ("googlenet", "inception_v3"):
        arguments["transform_input"] = True
    if model == "googlenet":
        arguments["aux_logits"] = False
    return arguments
