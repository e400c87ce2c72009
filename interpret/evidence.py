"""The evidence bundle: its data types, its one writer and its one reader. FORMAT.md describes every field."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import re
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from interpret import notebook
from interpret.errors import EvidenceError

SCHEMA_VERSION = 3
ARRAY_FILES = (
    "weights", "layers", "predictions", "maps", "attributions", "trust", "features", "kernels", "activations", "inputs",
)  # fmt: skip
NETWORK_INPUT = -1  # among the sources of a call: it uses the network's input itself
KINDS = ("convolution", "linear", "normalization", "activation", "pooling", "attention", "container", "other")
SLUG_LENGTH = 100  # of a key in file names, which MLflow makes 80 characters longer; systems allow 255 bytes
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time stamp of every archive member: the bytes must not depend on the clock

Array = NDArray[Any]
Fetch = Callable[[str, str | None], bytes]  # from a file's name, and its sha256 where the manifest lists it


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """Which pixels of the input a position of an output depends on, along (height, width).

    Attributes:
        size: side lengths of the field of one position, in pixels; may exceed the image.
        stride: pixels between the fields of neighbouring positions.
        start: first pixel of the first position's field; negative in the padding.
    """

    size: tuple[float, float]
    stride: tuple[float, float]
    start: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Call:
    """One execution of a named module; see FORMAT.md for each field."""

    key: str
    name: str
    occurrence: int
    position: int
    type: str
    kind: str
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...]
    layout: str
    parameters: int
    multiply_adds: int
    tensors: tuple[str, ...]
    unit: str
    stage_end: bool
    overwritten: bool
    weight_shape: tuple[int, ...] | None
    receptive_field: ReceptiveField | None
    token_grid: tuple[int, int] | None
    reaches_output: bool
    last: bool
    sources: tuple[int, ...] | None = None

    @property
    def slug(self) -> str:
        """Return the file name of this call's previews: ``<NNN>-<key with odd characters replaced>``, cut if long."""
        return f"{self.position:03d}-{re.sub(r'[^A-Za-z0-9._-]', '_', self.key)[:SLUG_LENGTH]}"

    @property
    def channels(self) -> int:
        """Return the number of channels of the output."""
        last = self.layout in ("NHWC", "NWTC", "NTC")
        return self.output_shape[-1 if last else 1] if len(self.output_shape) > 1 else 1

    @property
    def spatial_shape(self) -> tuple[int, int] | None:
        """Return (H, W) of the output, or None where it is not spatial."""
        if self.layout == "NCHW":
            return self.output_shape[2], self.output_shape[3]
        if self.layout == "NHWC":
            return self.output_shape[1], self.output_shape[2]
        return None

    @property
    def map_shape(self) -> tuple[int, int] | None:
        """Return (H, W) of the positions that a map of this call has: of its output, or of its image tokens."""
        return self.spatial_shape or self.token_grid

    @property
    def prefix_tokens(self) -> int:
        """Return the number of tokens before those of the image: class, distillation, registers."""
        return 0 if self.token_grid is None else self.output_shape[1] - math.prod(self.token_grid)

    @property
    def downsamples(self) -> bool:
        """Return whether a spatial output is smaller than the spatial input."""
        if self.spatial_shape is None or self.input_shape is None or len(self.input_shape) != 4:
            return False
        entering = self.input_shape[1:3] if self.layout == "NHWC" else self.input_shape[2:]
        return math.prod(self.spatial_shape) < math.prod(entering)


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What weights.json says of one tensor of the state; ``index`` is its row in weights.npz."""

    index: int
    name: str
    call: str | None
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    value_sha256: str
    entries: int
    filters: int
    norm: float | None
    mean: float | None
    standard_deviation: float | None
    minimum: float | None
    maximum: float | None
    zeros: int
    nonfinite: int
    zero_filters: int
    near_zero_filters: int
    distinct: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json, field by field."""

    schema_version: int
    tool: Mapping[str, str]
    libraries: Mapping[str, str]
    device: str
    seed: int
    status: str
    checkpoint: Mapping[str, Any]
    model: Mapping[str, Any]
    inputs: Mapping[str, Any]
    calls: tuple[Call, ...]
    unused: tuple[str, ...]
    collectors: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as it is written to JSON."""
        return dataclasses.asdict(self)


class Evidence:
    """One finished audit, read lazily from its folder.

    Use it as a context manager, or call :meth:`close`, to close its files and to delete a temporary bundle.

    Attributes:
        folder: where the bundle lies.
        manifest: manifest.json.
        calls: the calls in order of completion.
    """

    def __init__(self, folder: Path, manifest: Manifest, fetch: Fetch | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self._fetch = fetch
        self.calls = manifest.calls
        self._archives: dict[str, Mapping[str, Array]] = {}
        self._release: weakref.finalize[..., Any] | None = None

    def __repr__(self) -> str:
        model, inputs = self.manifest.model, self.manifest.inputs
        return f"Evidence({model['name']!r}, {len(self.calls)} calls, {inputs['count']} images, {str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what was audited on what, and how it is identified."""
        model, inputs, checkpoint = self.manifest.model, self.manifest.inputs, self.manifest.checkpoint
        facts = [
            ("Calls", len(self.calls)),
            ("Parameters", f"{model['parameters']:,}"),
            ("Multiply-adds", f"{model['multiply_adds']:,}"),
            ("Probe images", inputs["count"]),
            ("Status", self.manifest.status),
        ]
        rows = [
            ("Checkpoint", checkpoint["uri"] or "a module given in Python"),
            ("Weights, sha256", checkpoint["state_sha256"]),
            ("Probe set, sha256", inputs["probe_sha256"]),
            ("Evidence", self.folder),
            ("Digest", self.digest),
        ]
        return notebook.fragment(f"Audit of {model['name']}", facts, notebook.table(("", ""), rows))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Forget what was read, and delete the bundle if it is temporary."""
        self._archives.clear()
        if self._release is not None:
            self._release()

    @property
    def temporary(self) -> bool:
        """Whether the bundle goes with this object."""
        return self._release is not None

    @cached_property
    def call(self) -> Mapping[str, Call]:
        """The calls by key."""
        return {call.key: call for call in self.calls}

    @cached_property
    def tensors(self) -> tuple[TensorRecord, ...]:
        """The tensors of the state, in its order; empty where weights were not recorded."""
        entries = self.document("weights.json").get("tensors", ())
        return tuple(
            TensorRecord(index=index, **{**_known(TensorRecord, entry, "weights.json"), "shape": tuple(entry["shape"])})
            for index, entry in enumerate(entries)
        )

    def document(self, name: str) -> Mapping[str, Any]:
        """A JSON file of the bundle, such as "trust.json"; empty where it was not recorded.

        Raises:
            EvidenceError: it is missing, or does not match its digest.
        """
        content: Mapping[str, Any] = json.loads(self._read(name)) if name in self.manifest.files else {}
        return content

    @cached_property
    def summary(self) -> str:
        """Torchinfo's table, or an empty string where it was not recorded."""
        return self._read("summary.txt").decode() if "summary.txt" in self.manifest.files else ""

    @cached_property
    def journal(self) -> Mapping[str, Any]:
        """Times and environment, outside the digests; empty where the file is gone."""
        content = self._content("journal.json")
        return {} if content is None else json.loads(content)

    @cached_property
    def digest(self) -> str:
        """sha256 of manifest.json, which names the digest of every file: the identity of this evidence."""
        return hashlib.sha256((self.folder / "manifest.json").read_bytes()).hexdigest()

    def keys(self, kind: str) -> tuple[str, ...]:
        """Names of the arrays of one kind ("layers", "maps", ...); empty where that file was not recorded."""
        return tuple(self._archive(kind)) if f"{kind}.npz" in self.manifest.files else ()

    def has(self, kind: str, key: str) -> bool:
        """Whether the array is there."""
        return f"{kind}.npz" in self.manifest.files and key in self._archive(kind)

    def array(self, kind: str, key: str) -> Array:
        """One array.

        Args:
            kind: the file without its suffix: "weights", "layers", "predictions", "maps", "kernels", ...
            key: the array's name in that file; FORMAT.md lists them.

        Raises:
            EvidenceError: the array was not recorded, or the file does not match its digest.
        """
        if not self.has(kind, key):
            writers = ("statistics", "gram") if kind == "layers" else (kind,)
            messages = [self.manifest.collectors.get(name, {}).get("message", "") for name in writers]
            why = f" ({'; '.join(filter(None, messages))})" if any(messages) else ""
            raise EvidenceError(f"array {key!r} is not in {kind}.npz of {self.folder}{why}")
        return self._archive(kind)[key]

    def gram(self, key: str) -> Array | None:
        """Centred Gram matrix of a call, shape (N, N), float64; None where it was not recorded or not computable."""
        if not self.has("layers", "gram"):
            return None
        position, count = self.call[key].position, int(self.manifest.inputs["count"])
        scale = float(self.array("layers", "gram_scale")[position])
        if not np.isfinite(scale):
            return None
        gram = np.zeros((count, count))
        gram[np.triu_indices(count)] = self.array("layers", "gram")[position].astype(np.float64) * scale
        return gram + np.triu(gram, 1).T

    def channel(self, statistic: str, key: str) -> Array:
        """One statistic of a call per channel, shape (C,): "channel_mean", "channel_variance", ..."""
        start, stop = self._channel_offsets[self.call[key].position :][:2]
        return self.array("layers", statistic)[start:stop]

    def filters(self, statistic: str, tensor: TensorRecord) -> Array:
        """One statistic of a tensor per filter, shape (filters,): "filter_norm", "filter_digest", "filter_zeros"."""
        start, stop = self._filter_offsets[tensor.index :][:2]
        return self.array("weights", statistic)[start:stop]

    def verify(self) -> None:
        """Check every file against its digest.

        Raises:
            EvidenceError: a file is missing or was changed.
        """
        for path in self.manifest.files:
            self._read(path)

    @cached_property
    def _channel_offsets(self) -> Array:
        return np.concatenate([[0], np.cumsum(self.array("layers", "channels"))])

    @cached_property
    def _filter_offsets(self) -> Array:
        return np.cumsum([0, *(tensor.filters for tensor in self.tensors)])

    def _read(self, path: str) -> bytes:
        content = self._content(path)
        if content is None:
            raise EvidenceError(f"{path} is missing from the evidence bundle {self.folder}; run the audit again")
        if hashlib.sha256(content).hexdigest() != self.manifest.files[path]:
            raise EvidenceError(f"{path} in {self.folder} was changed after the audit: its sha256 does not match")
        return content

    def _content(self, path: str) -> bytes | None:
        """A file of the bundle, from where it lies; None where it is not there."""
        file = self.folder / path
        if file.is_file():
            return file.read_bytes()
        return None if self._fetch is None else self._fetch(path, self.manifest.files.get(path))

    def _archive(self, kind: str) -> Mapping[str, Array]:
        if kind not in self._archives:
            self._archives[kind] = np.load(io.BytesIO(self._read(f"{kind}.npz")), allow_pickle=False)
        return self._archives[kind]


class EvidenceWriter:
    """Writes one bundle; the manifest comes last, so an interrupted audit leaves none.

    Use it as a context manager: leaving it without :meth:`finish` removes what was written.

    Args:
        folder: where to write; must be empty or absent. None makes a temporary folder that lives as long as the
            evidence.

    Raises:
        EvidenceError: the folder holds something.
    """

    def __init__(self, folder: Path | None) -> None:
        self._temporary = folder is None
        self._existed = folder is not None and folder.exists()
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="interpret-"))
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise EvidenceError(f"{folder} is not empty; give a new or empty folder for the evidence")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._files: dict[str, str] = {}
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._finished:
            return
        if self._existed:
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            shutil.rmtree(self.folder)

    def text(self, path: str, content: str) -> None:
        """Write a text file that the digests cover."""
        self._write(path, content.encode("utf-8", "replace"))

    def json(self, path: str, content: Any) -> None:
        """Write strict JSON (no NaN, no infinity) that the digests cover."""
        self._write(path, json_bytes(content))

    def arrays(self, kind: str, arrays: Mapping[str, Array]) -> None:
        """Write ``kind``.npz: uncompressed, in the order given, without time stamps.

        Raises:
            EvidenceError: the archive's members cannot bear such a name.
        """
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for key, array in arrays.items():
                if re.search(r"[\0\ud800-\udfff]", key):
                    raise EvidenceError(
                        f"{key!r} cannot be stored: its name holds what is no text; rename the module that bears it"
                    )
                member = zipfile.ZipInfo(f"{key}.npy", EPOCH)
                with archive.open(member, "w", force_zip64=array.nbytes > 2**31) as stream:
                    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
        self._write(f"{kind}.npz", buffer.getbuffer())

    def finish(self, manifest: Manifest, journal: Mapping[str, Any]) -> Evidence:
        """Write journal.json and, last of all, manifest.json; return the evidence."""
        manifest = dataclasses.replace(manifest, files=dict(sorted(self._files.items())))
        (self.folder / "journal.json").write_bytes(json_bytes(journal))
        unfinished = self.folder / "manifest.json.part"
        unfinished.write_bytes(json_bytes(manifest.to_dict()))
        unfinished.replace(self.folder / "manifest.json")
        self._finished = True
        evidence = Evidence(self.folder, manifest)
        if self._temporary:
            evidence._release = weakref.finalize(evidence, shutil.rmtree, self.folder, ignore_errors=True)
        return evidence

    def _write(self, path: str, content: bytes | memoryview) -> None:
        (self.folder / path).write_bytes(content)
        self._files[path] = hashlib.sha256(content).hexdigest()


def json_bytes(content: Any) -> bytes:
    """Strict, readable JSON: UTF-8, two spaces, a final newline, no NaN and no infinity.

    What is no text, such as odd bytes in the name of a file, becomes a question mark.
    """
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def read_evidence(folder: str | Path, fetch: Fetch | None = None) -> Evidence:
    """The evidence bundle that lies in a folder.

    Args:
        folder: the bundle, or a folder whose ``interpret/`` or ``evidence/`` subfolder is the bundle.
        fetch: gives the content of a file that does not lie there, when it is first read; the manifest must lie there.

    Raises:
        EvidenceError: no bundle is there, the audit was not finished, or a newer version wrote it.
    """
    given = Path(folder)
    candidates = [given, given / "interpret", given / "evidence"]
    found = next((path for path in candidates if (path / "manifest.json").is_file()), None)
    if found is None:
        if not given.exists():
            raise EvidenceError(f"evidence folder {str(given)!r} does not exist")
        parts = any(path.suffix == ".npz" for path in given.iterdir()) if given.is_dir() else False
        what = (
            "holds an unfinished audit (no manifest.json)" if parts else "holds no evidence bundle (no manifest.json)"
        )
        raise EvidenceError(f"{str(given)!r} {what}; run `interpret audit ... --out FOLDER` to make one")
    try:
        content = json.loads((found / "manifest.json").read_text("utf-8"))
        version = content["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise EvidenceError(f"{found / 'manifest.json'} cannot be read as a manifest: {error}") from error
    if not isinstance(version, int) or not 0 < version <= SCHEMA_VERSION:
        raise EvidenceError(
            f"{found} has bundle version {version}, but this release reads up to {SCHEMA_VERSION}; "
            "upgrade mlflow-interpret"
        )
    try:
        return Evidence(found, _manifest(_upgraded(content), found), fetch)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvidenceError(f"{found / 'manifest.json'} is damaged ({error}); run the audit again") from error


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest of an older version as one of today's; `schema_version` stays what the bundle says."""
    if content["schema_version"] < 2 and isinstance(content.get("calls"), list):
        added = {"weight_shape": None, "receptive_field": None}
        content["calls"] = [{**added, **call} for call in content["calls"]]
        content["checkpoint"].setdefault("others", {})
        content["inputs"].setdefault("skipped", [])
        content["settings"].setdefault("forward", None)
    if content["schema_version"] < 3 and isinstance(content.get("calls"), list):
        convolutions = [call["key"] for call in content["calls"] if call["kind"] == "convolution"]
        content["calls"] = [
            {"token_grid": None, "reaches_output": True, "last": call["key"] in convolutions[-1:], **call}
            for call in content["calls"]
        ]
        content["settings"] = {"refused": {}, "notes": {}, "trust": False, "features": {}, **content["settings"]}
    if isinstance(content.get("calls"), list):
        content["calls"] = [{"sources": None, **call} for call in content["calls"]]
    content["settings"].setdefault("kernels", [])
    content["checkpoint"].setdefault("step", None)
    return content


def _manifest(content: Mapping[str, Any], folder: Path) -> Manifest:
    names = {item.name for item in dataclasses.fields(Manifest)}
    missing = sorted(names - set(content))
    if missing:
        raise EvidenceError(f"{folder / 'manifest.json'} lacks {', '.join(missing)}; the bundle is damaged")
    for item in dataclasses.fields(Manifest):
        if str(item.type).startswith("Mapping") and not isinstance(content[item.name], dict):
            raise EvidenceError(f"{item.name} in {folder / 'manifest.json'} is no object; the bundle is damaged")
    calls = tuple(_call(entry) for entry in content["calls"])
    known = {key: value for key, value in content.items() if key in names}
    return Manifest(**{**known, "calls": calls, "unused": tuple(content["unused"])})


def _call(entry: Mapping[str, Any]) -> Call:
    values = _known(Call, entry, "an entry of calls")
    for name in ("input_shape", "output_shape", "tensors", "weight_shape", "token_grid", "sources"):
        values[name] = None if values[name] is None else tuple(values[name])
    if values["receptive_field"] is not None:
        field = _known(ReceptiveField, values["receptive_field"], "a receptive field")
        values["receptive_field"] = ReceptiveField(**{name: tuple(pair) for name, pair in field.items()})
    return Call(**values)


def _known(kind: type, entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a data type in a JSON object; others, of later releases, are passed over."""
    names = [item.name for item in dataclasses.fields(kind) if item.name != "index"]
    if not isinstance(entry, dict):
        raise EvidenceError(f"{where} is no object; the bundle is damaged")
    missing = [name for name in names if name not in entry]
    if missing:
        raise EvidenceError(f"{where} lacks {', '.join(missing)}; the bundle is damaged")
    return {name: entry[name] for name in names}


def as_evidence(evidence: Evidence | str | Path) -> Evidence:
    """The evidence itself, or the bundle in the folder that was given."""
    return evidence if isinstance(evidence, Evidence) else read_evidence(evidence)


def unique_labels(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with " (2)", " (3)", ... behind repeated ones.

    >>> unique_labels(["a", "b", "a"])
    ('a', 'b', 'a (2)')
    """
    labels: list[str] = []
    for name in names:
        label, count = name, 2
        while label in labels:
            label, count = f"{name} ({count})", count + 1
        labels.append(label)
    return tuple(labels)
