"""Probe sets: the images of an audit, frozen in a folder, so that it can be repeated to the bit.

The preprocessed tensors themselves are kept, for they may depend on the release of Pillow; FORMAT.md lists the fields.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import interpret
from interpret.auditing import LIBRARIES, targets_of
from interpret.errors import ImageError, LayerError, did_you_mean
from interpret.evidence import EPOCH, Array, Evidence, json_bytes
from interpret.images import ProbeImages, allocate_images
from interpret.targets import Targets, are_several

SCHEMA_VERSION = 1
INDEX, ARRAYS = "probe.json", "images.npz"


@dataclass(frozen=True, slots=True, eq=False)
class ProbeSet:
    """What an audit is repeated on.

    Attributes:
        images: tensors, pictures, names, digests, preprocessing and labels.
        targets: "predicted", "label", a class index, class indices image by image, (N, R) int64, or a list of these.
        class_names: None where they are not known.
    """

    images: ProbeImages
    targets: Targets
    class_names: tuple[str, ...] | None


def write_probe(
    probe: ProbeImages,
    folder: str | Path,
    *,
    targets: Targets = "predicted",
    class_names: Sequence[str] | None = None,
) -> ProbeSet:
    """The probe set that was written: images, preprocessing, labels and targets, as :func:`read_probe` gives them back.

    The same set gives the same bytes. After an error nothing of it is left.

    Args:
        probe: the images; tensors are stored contiguous, in the order (N, C, H, W).
        folder: where to write; must be empty or absent.
        targets: what audits shall explain: "predicted", "label", a class index, one per image, an (N, R) array, the
            evidence of an audit, whose targets are taken image by image, or a list of these.
        class_names: the names of the classes.

    Raises:
        ImageError: the folder holds something, or a name cannot be written as JSON.
        LayerError: targets are no class indices, or labels or targets do not fit the images or the class names.
    """
    folder, names = Path(folder), None if class_names is None else tuple(class_names)
    parts = [_stored_target(target, probe) for target in (targets if are_several(targets) else [targets])]
    _refuse_other_classes(probe, parts, names)
    content = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "mlflow-interpret", "version": interpret.__version__},
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "count": len(probe),
        "displayed": len(probe.pictures),
        "shape": list(probe.images.shape[1:]),
        "names": list(probe.names),
        "source_sha256": list(probe.source_sha256),
        "tensor_sha256": list(probe.tensor_sha256),
        "probe_sha256": probe.probe_sha256,
        "preprocessing": dict(probe.preprocessing),
        "labels": None if probe.labels is None else list(probe.labels),
        "skipped": [{"name": name, "reason": reason} for name, reason in probe.skipped],
        "class_names": None if names is None else list(names),
        "targets": parts,
    }
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ImageError(f"names, class names and preprocessing must be plain JSON: {error}") from error
    with _new_folder(folder):
        _write_arrays(folder / ARRAYS, probe)
        content["files"] = {ARRAYS: _file_sha256(folder / ARRAYS)}
        unfinished = folder / f"{INDEX}.part"
        unfinished.write_bytes(json_bytes({**content, "sha256": _sha256(content)}))
        unfinished.replace(folder / INDEX)
    return ProbeSet(probe, _targets(parts), names)


def read_probe(folder: str | Path, *, display_count: int | None = None) -> ProbeSet:
    """The probe set in a folder, every tensor as it was frozen, to the bit.

    An audit is repeated with ``audit(model, probe.images, targets=probe.targets, class_names=probe.class_names)``.

    Args:
        folder: as :func:`write_probe` or ``interpret probe`` wrote it.
        display_count: how many of the pictures to take; all by default.

    Raises:
        ImageError: no probe set is there, a newer release wrote it, a file of it was changed, or it has too few
            pictures.
    """
    if display_count is not None and (isinstance(display_count, bool) or not isinstance(display_count, int)):
        raise ImageError(f"display count {display_count!r} is no whole number")
    folder = Path(folder)
    content = _read_index(folder)
    try:
        _verify(folder / ARRAYS, content["files"][ARRAYS])
        count, displayed = content["count"], content["displayed"]
        if display_count is not None and (display_count < 0 or displayed < min(display_count, count)):
            raise ImageError(
                f"{str(folder)!r} holds pictures of {displayed} of {count} images, not of {display_count}; "
                f"display fewer, or freeze it again with more"
            )
        images = allocate_images((count, *content["shape"]))
        with np.load(folder / ARRAYS, allow_pickle=False) as archive:
            pictures = archive["pictures"][:display_count]
            for index in range(count):
                images[index] = torch.from_numpy(archive[_key(index)])
        probe = ProbeImages(
            names=tuple(content["names"]),
            images=images,
            pictures=pictures,
            source_sha256=tuple(content["source_sha256"]),
            tensor_sha256=tuple(content["tensor_sha256"]),
            probe_sha256=content["probe_sha256"],
            preprocessing=content["preprocessing"],
            labels=None if content["labels"] is None else tuple(content["labels"]),
            skipped=tuple((entry["name"], entry["reason"]) for entry in content["skipped"]),
        )
        names = None if content["class_names"] is None else tuple(content["class_names"])
        return ProbeSet(probe, _targets(content["targets"]), names)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        raise ImageError(f"the probe set {str(folder)!r} is damaged ({error}); freeze it again") from error


def _read_index(folder: Path) -> dict[str, Any]:
    """probe.json without its own digest."""
    file = folder / INDEX
    if not file.is_file():
        near = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        absent = f"does not exist{did_you_mean(folder.name, near)}"
        what = f"holds no probe set (no {INDEX})" if folder.exists() else absent
        raise ImageError(f"{str(folder)!r} {what}; `interpret probe PATH -o FOLDER` makes one")
    try:
        content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        version, digest = content["schema_version"], content.pop("sha256", None)
        found = _sha256(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageError(f"{str(file)!r} cannot be read as the index of a probe set: {error}") from error
    if not isinstance(version, int) or not 0 < version <= SCHEMA_VERSION:
        raise ImageError(
            f"{str(folder)!r} is a probe set of version {version!r}, but this release reads up to {SCHEMA_VERSION}; "
            "upgrade mlflow-interpret"
        )
    if digest != found:
        raise _changed(file)
    return content


def _verify(file: Path, digest: str) -> None:
    if not file.is_file():
        raise ImageError(f"{str(file)!r} is missing; copy the whole probe set again, or freeze it again")
    if _file_sha256(file) != digest:
        raise _changed(file)


def _changed(file: Path) -> ImageError:
    return ImageError(
        f"{str(file)!r} was changed after it was frozen: its sha256 does not match; "
        "copy the probe set again, or freeze it again"
    )


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """A folder to write into; after an error what was written is removed."""
    existed = folder.exists()
    if existed and (not folder.is_dir() or any(folder.iterdir())):
        raise ImageError(f"{str(folder)!r} is not empty; give a new or empty folder for the probe set")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ImageError(f"folder {str(folder)!r} cannot be made: {error}") from error
    try:
        yield
    except BaseException:
        for name in (ARRAYS, f"{INDEX}.part", INDEX):
            (folder / name).unlink(missing_ok=True)
        if not existed:
            folder.rmdir()
        raise


def _write_arrays(file: Path, probe: ProbeImages) -> None:
    """images.npz: uncompressed, image by image, so that thousands do not fill the memory; without time stamps."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def write(key: str, array: Array) -> None:
            with archive.open(zipfile.ZipInfo(f"{key}.npy", EPOCH), "w", force_zip64=array.nbytes > 2**31) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)

        write("pictures", probe.pictures)
        for index, image in enumerate(probe.images):
            write(_key(index), image.numpy())


def _key(index: int) -> str:
    return f"{index:06d}"


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_bytes(content)).hexdigest()


def _file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stored_target(target: Any, probe: ProbeImages) -> str | int | list[list[int]]:
    """A target as the index stores it: a word, a class, or a row of classes for each image."""
    if target is None or (isinstance(target, str) and target == "predicted"):
        return "predicted"
    shown = len(probe.pictures)
    if isinstance(target, str):
        if target != "label":
            raise LayerError(f"unknown target {target!r}; give 'predicted', 'label', a class index or an array of them")
        if probe.labels is None or None in probe.labels[:shown]:
            raise LayerError("target 'label' needs a label for every displayed image; give labels, or use 'predicted'")
        return "label"
    if callable(target):
        raise LayerError("a callable target cannot be frozen; give it to each audit")
    try:
        classes = targets_of(target, probe) if isinstance(target, Evidence) else np.asarray(target)
    except ValueError as error:  # rows of different lengths
        raise LayerError(f"targets {target!r} are no array of class indices: {error}") from error
    if classes.dtype.kind not in "iu":
        raise LayerError(f"targets of type {classes.dtype} are no class indices; give integers")
    if classes.ndim == 0:
        return int(classes)
    if classes.ndim > 2 or len(classes) not in (shown, len(probe)) or 0 in classes.shape[1:]:
        raise LayerError(
            f"targets of shape {classes.shape} do not fit {len(probe)} images; "
            "give one class per image, or an (N, R) array"
        )
    rows: list[list[int]] = (classes[:, None] if classes.ndim == 1 else classes).tolist()
    return rows


def _targets(parts: Sequence[str | int | list[list[int]]]) -> Targets:
    targets = [np.array(part, np.int64) if isinstance(part, list) else part for part in parts]
    return targets[0] if len(targets) == 1 else targets


def _refuse_other_classes(
    probe: ProbeImages, targets: Sequence[str | int | list[list[int]]], class_names: Sequence[str] | None
) -> None:
    """Refuse what no audit can explain now, rather than in months."""
    classes = [entry for part in targets if not isinstance(part, str) for entry in np.ravel(part).tolist()]
    if min(classes, default=0) < 0:
        raise LayerError(
            f"target class {min(classes)} is out of range: classes count from 0 (callable targets have none)"
        )
    if class_names is None:
        return
    known = f"{len(class_names)} class names were given (0 to {len(class_names) - 1})"
    if max(classes, default=0) >= len(class_names):
        raise LayerError(f"target class {max(classes)} is out of range: {known}")
    for name, label in zip(probe.names, probe.labels or (), strict=False):
        if label is not None and not 0 <= label < len(class_names):
            raise LayerError(f"label {label} of {name!r} is out of range: {known}")
