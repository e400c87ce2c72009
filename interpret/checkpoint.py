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
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

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
STEPS = ("global_step", "step", "iteration", "iter", "epoch")  # names of the training step; earlier ones win
DEEPEST = 5  # dicts within dicts; one that holds itself would never end

# Numbers of dtypes in archives of torch.export; its schema says that they will never change.
EXPORTED_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
    34: torch.uint32,
    35: torch.uint64,
}
STRIDED = 7  # the number of the only layout whose bytes are values one after the other

LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
TRUST = "or, if you trust its maker, pass --trust-pickle (trust_pickle=True): the file's code runs with your rights"
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
        format: "zip" (torch.save), "legacy" (torch.save before 1.6), "safetensors" or "pt2" (torch.export); "pickled
            module (trusted)" or "pickle (trusted)" where code of the file was run; "zip-sharded" and so on where an
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
        step: of the training: what the file says of it, else what its name does; None where neither does.
        module: the module that the weights came from, where the file is trusted and holds one.
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
    step: int | None = None
    module: nn.Module | None = field(default=None, repr=False)


def read_checkpoint(
    path: str | Path, uri: str | None = None, branch: str | None = None, *, trust_pickle: bool = False
) -> Checkpoint:
    """The weights in a file, without executing anything that the file says unless it is trusted.

    The kind of file is told by its content, never by its name. Where a file holds several states, plain weights win
    over averaged ones (EMA, SWA), in the order of ``PLAIN_BRANCHES``; averaged weights are taken where nothing else is
    there, or where ``branch`` asks for them; the log says which were taken. The wrappers ``module.`` (DataParallel) and
    ``_orig_mod.`` (torch.compile) are taken off the names.

    Args:
        path: a state_dict or a dict that holds one, saved by torch.save; a Lightning .ckpt; a .safetensors file; an
            archive of torch.export (.pt2), of which only the weights are read; the index of a sharded checkpoint
            (model.safetensors.index.json, pytorch_model.bin.index.json), whose shards lie beside it; or a folder with
            one such index, or that mlflow.pytorch.save_model wrote.
        uri: the name to record instead of the path.
        branch: which state to take: a key of the file's dict ("model_ema", "ema.model"), or the first part of the names
            ("teacher").
        trust_pickle: where a file is a pickled module, or holds more than weights, unpickle it all the same. That runs
            whatever code the file brings, with the rights of this process. Files that can be read safely still are.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or no checkpoint; each case has its own message.
    """
    file = _index_in(Path(path))
    form = _sniff(file)
    if re.search(r"[\ud800-\udfff]", str(file)):  # torch and safetensors would call the file damaged
        raise CheckpointError(f"the path {str(file)!r} holds bytes that are no UTF-8; rename it")
    form, content, files = (
        _read_shards(file, trust_pickle) if form == "index" else (*_read(file, form, trust_pickle), [file])
    )
    content, modules = _without_modules(content)
    form = "pickled module (trusted)" if modules else form
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
        step=_step_in(content, str(path) if uri is None else uri),
        module=None if prefix else modules.get(chosen),
    )
    if checkpoint.others:
        place = repr(checkpoint.branch) if checkpoint.branch else "the top level"
        others = first_few([repr(name) for name in checkpoint.others], 8)
        logger.info("%s: weights taken from %s; it also holds %s (choose with --branch)", checkpoint.uri, place, others)
    return checkpoint


def _step_in(content: object, name: str) -> int | None:
    """The training step that a checkpoint's content gives, or the name of its file or folder."""
    if isinstance(content, Mapping):
        for key in STEPS:
            if type(content.get(key)) is int and content[key] >= 0:
                return int(content[key])
    for part in reversed(re.split(r"[/\\]", name)[-2:]):
        for key in STEPS:
            if found := re.search(rf"(?<![a-z]){key}[=_-]?(\d{{1,15}})(?!\d)", part.lower()):
                return int(found[1])
    return None


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
    """The only index of a sharded checkpoint, or the model of MLflow, in a folder; anything else as it is."""
    found = [*path.glob("*.index.json")] or [*path.glob("data/model.pt[2h]")] if path.is_dir() else []
    return found[0] if len(found) == 1 else path


def _sniff(file: Path) -> str:
    """The format of a file by its first bytes, "index" for JSON; refuses what is no checkpoint."""
    if file.is_dir():
        suffixes = (".pt", ".pt2", ".pth", ".ckpt", ".safetensors", ".bin", ".tar", ".index.json")
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
    exported = any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names)
    if not exported and any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{str(file)!r} is a TorchScript archive, which carries code; save its weights where you trust it: "
            "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt')"
        )
    if not exported and not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(
            f"{str(file)!r} is a zip archive but not a checkpoint (it holds {', '.join(names[:3]) or 'nothing'}); "
            "if the checkpoint lies inside, unpack it"
        )
    _refuse_packed(members, file.stat().st_size, file)
    return "pt2" if exported else "zip"


def _refuse_packed(members: Iterable[zipfile.ZipInfo], size: int, file: Path) -> None:
    """Refuse entries of an archive of so many bytes that are compressed, or claim more than it has."""
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        # torch never compresses, and mapping such a file into memory would read the compressed bytes as weights.
        raise CheckpointError(
            f"checkpoint {str(file)!r} was packed again with compression; give the file that torch wrote"
        )
    claimed = sum(member.file_size for member in members)
    if claimed > size:
        raise CheckpointError(
            f"checkpoint {str(file)!r} has {size} bytes, but the entries in it claim {claimed}; it was not read. "
            "It is damaged or made to exhaust memory: copy or download it again from where you trust it"
        )


def _read_shards(index: Path, trusted: bool) -> tuple[str, dict[str, Tensor], list[Path]]:
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
        form = _sniff(shard)
        if form == "index":
            raise CheckpointError(f"{str(index)!r} names {shard.name!r} as a shard, which is JSON and holds no weights")
        form, content = _read(shard, form, trusted)
        forms.add(form)
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


class _UnsafeError(CheckpointError):
    """A file asks for more than weights."""


def _read(file: Path, form: str, trusted: bool) -> tuple[str, object]:
    """The format by which a file was opened, and its content."""
    if form == "safetensors":
        return form, _read_safetensors(file)
    if form == "pt2":
        return form, _read_exported(file)
    try:
        return form, _read_torch(file, form)
    except _UnsafeError:
        if not trusted:
            raise
    return "pickle (trusted)", _unpickle(file)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(file, framework="pt", device="cpu") as archive:
            return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {str(file)!r} is truncated or damaged ({error}); copy or download it again"
        ) from error


def _read_exported(file: Path) -> dict[str, Any]:
    """The weights of an archive of torch.export, by model where it holds several.

    torch.export.load unpickles without protection what it cannot read with it, so the bytes are read here, by the
    JSON that describes them. Older archives hold a file of torch.save, which is read safely.
    """
    states: dict[str, Any] = {}
    contents: dict[str, bytearray] = {}  # of each entry once: many tensors may be views of the same bytes
    with _damage_named(file), zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if any(archive.read(name).strip() != b"little" for name in names if name.endswith("/byteorder")):
            raise ValueError("its weights are not little-endian")
        for name in names:
            folder, _, last = name.rpartition("/")
            if last == "serialized_state_dict.pt" or (folder.endswith("data/weights") and last.endswith(".pt")):
                inside = io.BytesIO(archive.read(name))
                with zipfile.ZipFile(inside) as saved:
                    _refuse_packed(saved.infolist(), len(inside.getbuffer()), file)
                inside.seek(0)
                states[last.removesuffix(".pt")] = _read_torch(file, "pt2", inside)
            elif folder.endswith("data/weights") and last.endswith("_weights_config.json"):
                state = states[last.removesuffix("_weights_config.json")] = {}
                for key, entry in json.loads(archive.read(name))["config"].items():
                    place = f"{folder}/{entry['path_name']}"
                    if place not in contents:
                        contents[place] = bytearray(archive.read(place))
                    state[key] = _exported_tensor(contents[place], entry, f"{key!r} in {str(file)!r}")
    if not states:
        raise CheckpointError(
            f"{str(file)!r} is an archive of torch.export without weights that can be read; "
            "save the original model's state_dict: torch.save(model.state_dict(), 'weights.pt')"
        )
    return states if len(states) > 1 else next(iter(states.values()))


def _exported_tensor(content: bytearray, entry: Mapping[str, Any], name: str) -> Tensor:
    meta = entry["tensor_meta"]
    if entry["use_pickle"] or meta["layout"] != STRIDED or meta["dtype"] not in EXPORTED_DTYPES:
        raise CheckpointError(
            f"{name} is no plain tensor (a class of its own, sparse, of a rare dtype), which is not read from archives "
            "of torch.export; save the original model's state_dict with torch.save"
        )
    dtype = EXPORTED_DTYPES[meta["dtype"]]
    values = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    sizes, strides = ([number["as_int"] for number in meta[key]] for key in ("sizes", "strides"))
    return values.as_strided(sizes, strides, meta["storage_offset"]["as_int"])  # refuses to reach beyond the bytes


def _read_torch(file: Path, form: str, inside: io.BytesIO | None = None) -> object:
    """What torch.save wrote into a file, or into an entry of the archive that the file is."""
    with _damage_named(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols: what cannot be read is refused below
        try:
            # weights_only is always said: left out, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD would switch the protection off
            return torch.load(inside or file, map_location="cpu", weights_only=True, mmap=form == "zip")
        except pickle.UnpicklingError as error:
            raise _UnsafeError(_unsafe_message(file, form, error)) from error


def _unpickle(file: Path) -> object:
    """All that a trusted file holds; runs its code. Modules are also searched in the current folder."""
    logger.warning("%s: unpickled on trust, which runs the file's code with your rights", file)
    sys.path.insert(0, folder := str(Path.cwd()))
    try:
        return torch.load(file, map_location="cpu", weights_only=False)
    except (Exception, SystemExit) as error:  # whatever the file's own code raises
        raise CheckpointError(
            f"{str(file)!r} cannot be unpickled ({type(error).__name__}: {error}); its classes must be importable "
            "under the names they had when it was saved: run in the folder that holds them or set PYTHONPATH"
        ) from error
    finally:
        with suppress(ValueError):  # the file's code may have changed the path itself
            sys.path.remove(folder)


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Every error of a reader is damage: a broken file can fail anywhere in it."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise CheckpointError(
            f"checkpoint {str(file)!r} is truncated or damaged ({reason}); copy or download it again"
        ) from error


def _unsafe_message(file: Path, form: str, error: pickle.UnpicklingError) -> str:
    if form == "pt2":
        return (
            f"the weights in {str(file)!r} are a pickle that cannot be read safely; "
            "save the original model's state_dict with torch.save"
        )
    unsafe = _unsafe_globals(file, form)
    if any(name.startswith("torch.nn.modules.") for name in unsafe):
        return (
            f"{str(file)!r} is a pickled model, not its weights: loading it would run code ({first_few(unsafe)}). "
            "Save the weights where you trust it: "
            f"torch.save(torch.load(FILE, weights_only=False).state_dict(), 'weights.pt'); {TRUST}"
        )
    if unsafe:
        return (
            f"{str(file)!r} holds more than weights: it asks for {first_few(unsafe, 12)}, which is not allowed; "
            f"nothing was executed. Load it where you trust it and save only the state_dict with torch.save; {TRUST}"
        )
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return (
        f"{str(file)!r} cannot be read by PyTorch's safe loader ({reason[1] if reason else error}); "
        f"save its state_dict with plain torch.save; {TRUST}"
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


def _without_modules(content: object) -> tuple[object, dict[str, nn.Module]]:
    """The content with the states of its modules in their places, and the modules by branch."""
    if isinstance(content, nn.Module):
        return content.state_dict(), {"": content}
    if not isinstance(content, Mapping):
        return content, {}
    modules = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, nn.Module)}
    return {**content, **{key: module.state_dict() for key, module in modules.items()}}, modules


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
