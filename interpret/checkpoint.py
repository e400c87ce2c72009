"""Checkpoints: found in files of any kind, read without executing anything, identified by content."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import safetensors
import torch
from torch import Tensor

from interpret.errors import CheckpointError, did_you_mean

logger = logging.getLogger("interpret")

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
OPTIMIZER = re.compile(r"(^|[_.])(optim|optimizer)s?([_.]|$)")
COUNTERS = ("n_averaged", "steps")  # of torch's and of mmengine's averaged model, beside the module they wrap
# What tensors themselves ask a pickle for.
HARMLESS = re.compile(r"(torch\.(_utils\..*|\w+)|collections\.OrderedDict|_codecs\.encode|__builtin__\.(set|bytes))$")
DEEPEST = 5  # dicts within dicts; one that holds itself would never end

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
        path: the file that was read; of a sharded checkpoint its index.
        file_sha256: of the file's bytes. Of a sharded checkpoint, of the lines "<sha256>  <file name>" of the index and
            its shards, sorted by name.
        format: "zip" (torch.save), "legacy" (torch.save before 1.6) or "safetensors"; "zip-sharded" and so on where an
            index names several files.
        branch: the key of the file's dict that the weights came from, dotted where nested; None where the dict itself
            is the state.
        stripped_prefixes: what was taken off the names, in that order.
        dtypes: number of tensors of each dtype in the file, such as {"float32": 62, "int64": 20}.
        state: tensors by canonical name, in file order; once loaded, the model's own tensors and order.
        others: every other state that ``branch`` could have taken, and the :func:`state_sha256` of its canonical names;
            None where a tensor of it has no digest (sparse, quantized). Empty where the file holds nothing else.
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
    others: Mapping[str, str | None] = field(default_factory=dict)
    unexpected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def read_checkpoint(path: str | Path, uri: str | None = None, branch: str | None = None) -> Checkpoint:
    """The weights in a file, without executing anything that the file says.

    The kind of file is told by its content, never by its name. Where a file holds several states, plain weights win
    over averaged ones (EMA, SWA), in the order of ``PLAIN_BRANCHES``; averaged weights are taken where nothing else is
    there, or where ``branch`` asks for them; the log says which were taken. The wrappers ``module.`` (DataParallel) and
    ``_orig_mod.`` (torch.compile) are taken off the names.

    Args:
        path: a state_dict or a dict that holds one, saved by torch.save; a Lightning .ckpt; a .safetensors file; the
            index of a sharded checkpoint (model.safetensors.index.json, pytorch_model.bin.index.json), whose shards
            lie beside it; or a folder with one such index.
        uri: the name to record instead of the path.
        branch: which state to take: a key of the file's dict ("model_ema", "ema.model"), or the first part of the names
            ("teacher").

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or no checkpoint; each case has its own message.
    """
    file = _index_in(Path(path))
    form = _sniff(file)
    form, content, files = _read_shards(file) if form == "index" else (form, _read(file, form), [file])
    states = _find_states(content, file)
    _refuse_claims(states, sum(part.stat().st_size for part in files), file)
    chosen, prefix = _choose_state(states, branch, file)
    state, stripped = _unwrapped(states.pop(chosen))
    if prefix:
        below = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        state, inner = _unwrapped(below)
        stripped = (*stripped, prefix, *inner)
    checkpoint = Checkpoint(
        uri=str(path) if uri is None else uri,
        path=file,
        file_sha256=_files_sha256(files),
        format=form,
        branch=prefix.removesuffix(".") or chosen or None,
        stripped_prefixes=stripped,
        dtypes=dict(Counter(dtype_name(tensor.dtype) for tensor in state.values())),
        state={name: tensor.detach() for name, tensor in state.items()},
        others={name: _digest_of_other(other) for name, other in states.items() if name},
    )
    if checkpoint.others:
        place = repr(checkpoint.branch) if checkpoint.branch else "the top level"
        others = first_few([repr(name) for name in checkpoint.others], 8)
        logger.info("%s: weights taken from %s; it also holds %s (choose with --branch)", checkpoint.uri, place, others)
    return checkpoint


def canonical_names(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Each name without the marks of its wrappers, and the prefixes that were taken off.

    ``_orig_mod.`` (torch.compile) goes wherever it stands; ``module.`` (DataParallel, AveragedModel) where every name
    begins with it, the ``COUNTERS`` of averaged models aside. Wrappers nest, so this repeats until nothing is left to
    take off.

    >>> canonical_names(["_orig_mod.module.fc.weight", "_orig_mod.module.layer._orig_mod.bias"])[0].values()
    dict_values(['fc.weight', 'layer.bias'])
    """
    canonical = {name: name for name in names}
    stripped: list[str] = []
    while True:
        bare = {name: re.sub(r"(^|\.)_orig_mod\.", r"\1", short) for name, short in canonical.items()}
        prefix = "_orig_mod."
        if bare == canonical or len(set(bare.values())) < len(bare):
            wrapped = [short for short in canonical.values() if short not in COUNTERS]
            if not wrapped or not all(short.startswith("module.") for short in wrapped):
                return canonical, tuple(stripped)
            bare = {name: short.removeprefix("module.") for name, short in canonical.items()}
            prefix = "module."
        canonical = bare
        stripped.append(prefix)


def _unwrapped(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state under canonical names, and the prefixes that were taken off."""
    canonical, stripped = canonical_names(state)
    return {canonical[name]: tensor for name, tensor in state.items()}, stripped


def first_few(names: Sequence[str], count: int = 4) -> str:
    """The first few names, for a message.

    >>> first_few(["a", "b", "c"], 2)
    'a, b, ...'
    """
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without its library.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has values of its own, one after the other: not sparse, quantized, nested or meta."""
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)


def tensor_sha256(tensor: Tensor) -> str:
    """sha256 of dtype, shape and little-endian bytes in row-major order, wherever and however the tensor is stored.

    Raises:
        CheckpointError: the tensor is sparse or quantized, so it has no plain bytes.
    """
    if not is_plain(tensor):
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
    return _combined_sha256(
        {name: value if isinstance(value, str) else tensor_sha256(value) for name, value in state.items()}
    )


def _combined_sha256(digests: Mapping[str, str]) -> str:
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest_of_other(state: Mapping[str, Tensor]) -> str | None:
    if not all(is_plain(tensor) for tensor in state.values()):
        return None
    return state_sha256(_unwrapped(state)[0])


def _files_sha256(files: Sequence[Path]) -> str:
    digests = {}
    for file in files:
        with file.open("rb") as stream:
            digests[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _combined_sha256(digests) if len(files) > 1 else digests[files[0].name]


# --------------------------------------------------------------------------------------------------------------- files


def _index_in(path: Path) -> Path:
    """The only index of a sharded checkpoint in a folder; anything else as it is."""
    indexes = list(path.glob("*.index.json")) if path.is_dir() else []
    return indexes[0] if len(indexes) == 1 else path


def _sniff(file: Path) -> str:
    """The format of a file by its first bytes, "index" for JSON; refuses what is no checkpoint."""
    if file.is_dir():
        suffixes = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar", ".index.json")
        inside = [path.name for path in sorted(file.iterdir()) if path.name.endswith(suffixes)][:5]
        hint = f"; give one of its files: {', '.join(inside)}" if inside else "; give the checkpoint file itself"
        raise CheckpointError(f"checkpoint {str(file)!r} is a directory{hint}")
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(512)
    except FileNotFoundError:
        beside = file.parent.iterdir() if file.parent.is_dir() else ()
        near = [path.name for path in beside if path.name != file.name]  # it is there itself where a link is broken
        raise CheckpointError(f"checkpoint {str(file)!r} does not exist{did_you_mean(file.name, near)}") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(file)!r} cannot be read: {error.strerror or error}") from error
    if not head:
        raise CheckpointError(f"checkpoint {str(file)!r} is empty (0 bytes); save or download it again")
    if head.startswith(b"PK"):
        return _sniff_zip(file)
    if LEGACY_MAGIC in head[:20]:
        return "legacy"
    if head.lstrip().startswith(b"{") and b"\0" not in head[:8]:  # where a safetensors header's length has zeros
        return "index"
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
    claimed, size = sum(member.file_size for member in members), file.stat().st_size
    if claimed > size:
        raise CheckpointError(
            f"checkpoint {str(file)!r} has {size} bytes, but the entries in it claim {claimed}; it was not read. "
            "It is damaged or made to exhaust memory: copy or download it again from where you trust it"
        )
    return "zip"


def _read_shards(index: Path) -> tuple[str, dict[str, Tensor], list[Path]]:
    """The format of the shards that an index names, its tensors in its order, and all files that were read."""
    places = _read_index(index)
    shards = [index.parent / name for name in sorted(set(places.values()))]
    present = {path.name for path in index.parent.iterdir()}
    absent = [shard.name for shard in shards if shard.name not in present]
    if absent:
        raise CheckpointError(
            f"{str(index)!r} names {len(shards)} shards, of which {len(absent)} are not beside it: "
            f"{first_few(absent)}; copy or download all of them into its folder"
        )
    forms, tensors = set(), {}
    for shard in shards:
        forms.add(form := _sniff(shard))
        if form == "index":
            raise CheckpointError(f"{str(index)!r} names {shard.name!r} as a shard, which is JSON and holds no weights")
        content = _read(shard, form)
        held = content if isinstance(content, Mapping) else {}
        named = [name for name, place in places.items() if place == shard.name]
        lacking = [name for name in named if not isinstance(held.get(name), Tensor)]
        unnamed = [str(name) for name in held if places.get(name) != shard.name]
        for names, fault in ((lacking, "does not hold"), (unnamed, "holds, against the index,")):
            if names:
                raise CheckpointError(
                    f"{str(shard)!r} and its index {index.name!r} are not of the same checkpoint: the shard {fault} "
                    f"{len(names)} tensors: {first_few(names)}; copy or download both again"
                )
        tensors.update({name: held[name] for name in named})
    return f"{'+'.join(sorted(forms))}-sharded", {name: tensors[name] for name in places}, [index, *shards]


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name to shard, all of which lie in the index's own folder."""
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{str(index)!r} begins like the JSON index of a sharded checkpoint but cannot be read as one ({error}); "
            "copy or download it again"
        ) from error
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(
            f"{str(index)!r} is JSON but no index of a sharded checkpoint: it has no 'weight_map' from names of "
            "tensors to names of files; give the checkpoint file itself"
        )
    for name in places.values():
        if name in ("", "..") or "\0" in name or PureWindowsPath(name).name != name:
            raise CheckpointError(
                f"{str(index)!r} names the shard {name!r}; shards are only read from the index's own folder, "
                "so it must be a plain file name"
            )
    return places


def _read(file: Path, form: str) -> object:
    return _read_safetensors(file) if form == "safetensors" else _read_torch(file, form)


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
            f"{str(file)!r} is a pickled model, not its weights: loading it would run code ({first_few(unsafe)}). "
            "Save the weights where you trust it: "
            "torch.save(torch.load(FILE, weights_only=False).state_dict(), 'weights.pt')"
        )
    if unsafe:
        return (
            f"{str(file)!r} holds more than weights: it asks for {first_few(unsafe, 12)}, which is not allowed; "
            "nothing was executed. Load it where you trust it and save only the state_dict with torch.save"
        )
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return (
        f"{str(file)!r} cannot be read by PyTorch's safe loader ({reason[1] if reason else error}); "
        "save its state_dict with plain torch.save"
    )


def _unsafe_globals(file: Path, form: str) -> list[str]:
    """The functions and classes that a file asks for beyond tensors, read without executing it."""
    damaged = suppress(
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        ValueError,
        RuntimeError,
        AttributeError,
        TypeError,
        LookupError,
        EOFError,
        OSError,
    )
    with damaged:
        if form == "zip":
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    with damaged:  # torch's own look gives up on what cloudpickle writes, as MLflow does
        if form == "zip":
            with zipfile.ZipFile(file) as archive:
                pickled = [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
        else:
            pickled = [file.read_bytes()]  # a damaged length would make a file ask for more than memory holds
        stream = io.BytesIO(pickled[0])
        # legacy: magic number, version, system, then the object
        opcodes = [item for _ in range(1 if form == "zip" else 4) for item in pickletools.genops(stream)]
        asked = {str(argument).replace(" ", ".") for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}
        return sorted(name for name in asked if not HARMLESS.match(name))
    return []


# ----------------------------------------------------------------------------------------------- choosing among states


def _find_states(content: object, file: Path) -> dict[str, dict[str, Tensor]]:
    """Every state in a file by its branch, dotted where nested; empty for the file's dict itself."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{str(file)!r} holds a {type(content).__name__}, not a dict of weights; save a state_dict"
        )
    states = {".".join(path): state for path, state in _states(content, ())}
    if not states:
        keys = ", ".join(repr(key) for key in list(content)[:6]) or "none"
        raise CheckpointError(f"{str(file)!r} holds no weights (its keys: {keys}); save the model's state_dict")
    return states


def _refuse_claims(states: Mapping[str, Mapping[str, Tensor]], size: int, file: Path) -> None:
    """Refuse tensors that repeat a few bytes to claim more memory than the whole file takes."""
    for state in states.values():
        for name, tensor in state.items():
            claimed = tensor.numel() * tensor.element_size()
            if is_plain(tensor) and claimed > size:
                raise CheckpointError(
                    f"{name!r} in {str(file)!r} claims {claimed} bytes, more than the file has ({size}); "
                    "save it with .contiguous() where you trust it"
                )


def _choose_state(states: Mapping[str, Mapping[str, Tensor]], branch: str | None, file: Path) -> tuple[str, str]:
    """Which state to take, and the prefix of its names where ``branch`` means those."""
    if branch and branch in states:
        return branch, ""
    ranked = sorted(states, key=_preference)
    best = ranked[0]
    if branch:
        names = _unwrapped(states[best])[0]
        if any(name.startswith(f"{branch}.") for name in names):
            return best, f"{branch}."
        known = [name for name in states if name] + sorted({name.split(".")[0] for name in names})
        raise CheckpointError(
            f"{str(file)!r} has no branch {branch!r}{did_you_mean(branch, known)}; it has: {', '.join(known[:12])}"
        )
    rivals = [rival for rival in ranked if _preference(rival) == _preference(best)]
    if len(rivals) > 1:
        raise CheckpointError(
            f"{str(file)!r} holds several states: {', '.join(rivals)}; choose one with branch={rivals[0]!r}"
        )
    return best, ""


def _states(content: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every nested dict that holds weights. Those of an optimizer are numbered or lie under its name; they are not."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if any(value.ndim for value in tensors.values()):
        yield path, tensors
    for key, value in content.items():
        nested = isinstance(key, str) and isinstance(value, Mapping) and len(path) < DEEPEST
        if nested and not OPTIMIZER.search(key.lower()):
            yield from _states(value, (*path, key))


def _preference(branch: str) -> tuple[int, int, int]:
    """Sorts states: named plain weights, the dict itself, averaged weights, anything else."""
    keys = branch.split(".")
    if AVERAGED.search(branch.lower()):
        return 2, 0, len(keys)
    if not branch:
        return 1, 0, 0
    if all(key in PLAIN_BRANCHES for key in keys):
        return 0, PLAIN_BRANCHES.index(keys[0]), len(keys)
    return 3, 0, 0
