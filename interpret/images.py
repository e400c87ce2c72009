"""Probe images: found, decoded safely, prepared as the network was trained, and identified by digests."""

from __future__ import annotations

import glob
import hashlib
import logging
import math
import os
import shutil
import tempfile
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from interpret.decoding import whole_files_only
from interpret.errors import ImageError, did_you_mean
from interpret.preprocessing import PIXEL_BUDGET, PictureError, Preprocessing, picture_of

logger = logging.getLogger("interpret")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".pbm")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no others: some run programs to decode
MEMORY_BUDGET = 256 * 1024**2  # bytes of prepared images above which they lie in a file
NAMED_SKIPS = 5  # broken images that the log names one by one
PHOTOMETRIC = 262  # TIFF's tag: 0 where white is 0
# Pillow leaves the transparent colour of a PNG in the units of the file: grey levels of 2 and 4 bits, 16 bits of RGB
# (Pillow 13.0; where it scales them itself, this goes)
COLOUR_KEYS: Mapping[str, Callable[[int], int]] = {
    "L;2": lambda level: level * 85,
    "L;4": lambda level: level * 17,
    "RGB;16B": lambda level: level >> 8,
}


@dataclass(frozen=True, slots=True, eq=False)
class ProbeImages:
    """The images that an audit runs on.

    Attributes:
        names: relative POSIX paths, or names given in Python.
        images: preprocessed, shape (N, C, H, W), float32, on the CPU.
        pictures: the first D images before normalisation, uint8 (D, H, W, 3).
        source_sha256: of each image's decoded RGB pixels and size; of the tensor where there was no picture.
        tensor_sha256: of each preprocessed image's shape and bytes.
        probe_sha256: of these digests in order.
        preprocessing: how pictures became tensors.
        labels: true class of each image, None where unknown; None where no labels were given.
        skipped: (name, reason) of each broken image that was left out.
    """

    names: tuple[str, ...]
    images: Tensor = field(repr=False)
    pictures: NDArray[np.uint8] = field(repr=False)
    source_sha256: tuple[str, ...] = field(repr=False)
    tensor_sha256: tuple[str, ...] = field(repr=False)
    probe_sha256: str
    preprocessing: Mapping[str, Any]
    labels: tuple[int | None, ...] | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def find_images(path: str | Path) -> tuple[Path, ...]:
    """The image files in a folder (recursive, sorted by name), of a glob, or the one file itself.

    Hidden files and folders are skipped, and so are folders reached through a link.

    Raises:
        ImageError: nothing is there, or no file has an image's suffix.
    """
    given = Path(path)
    if given.is_file():
        return (given,)
    if given.is_dir():
        files = [file for file in given.rglob("*") if file.is_file()]
        files.sort(key=lambda file: file.relative_to(given).as_posix())
        visible = [file for file in files if not any(p.startswith(".") for p in file.relative_to(given).parts)]
    elif glob.has_magic(str(path)):
        visible = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]  # noqa: PTH207
    else:
        near = [entry.name for entry in given.parent.iterdir()] if given.parent.is_dir() else []
        raise ImageError(f"{str(path)!r} does not exist{did_you_mean(given.name, near)}")
    found = tuple(file for file in visible if file.suffix.lower() in SUFFIXES)
    if not found:
        if (given / "probe.json").is_file():
            raise ImageError(f"{str(path)!r} is a frozen probe set; give it as --probe, or to interpret.read_probe()")
        others = sorted({file.suffix.lower() or "none" for file in visible})
        holds = f"only files with the suffix {', '.join(others[:6])}" if others else "no files"
        raise ImageError(f"no images in {str(path)!r}: there are {holds}; expected {', '.join(SUFFIXES[:8])}")
    return found


def image_names(paths: Sequence[str | Path], root: str | Path | None = None) -> tuple[str, ...]:
    """The names under which images are recorded: POSIX paths relative to the root, else to their common folder.

    Bytes in a file name that are not UTF-8 are shown as the replacement character.
    """
    files = [Path(path).absolute() for path in paths]
    base = Path(root).absolute() if root is not None else Path(os.path.commonpath([file.parent for file in files]))
    relative = [Path(os.path.relpath(file, base)).as_posix() for file in files]
    return tuple(os.fsencode(name).decode("utf-8", "replace") for name in relative)


def read_image(path: str | Path) -> Image.Image:
    """A decoded picture in RGB, upright, the first frame where there are several.

    The EXIF orientation is applied. Transparent parts show white, as viewers draw them. CMYK, in JPEG always as Adobe
    stores it, is converted by R = 255 (1 - C) (1 - K). 16 bits become 8: of grey they are scaled and rounded, of RGB
    the high byte is taken, as Pillow and OpenCV do it, so that the network sees what it saw in training (the two ways
    differ by 1 of 255 at most). An embedded colour profile (ICC) is ignored for the same reason: training pipelines
    ignore it. The size is read from the header and held against ``PIXEL_BUDGET`` before anything is unpacked.

    Raises:
        PictureError: the file is missing, broken, too large, or of a kind that is not read here.
    """
    picture = repr(str(path))
    with warnings.catch_warnings(), whole_files_only():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what cannot be decoded raises
        try:
            with Image.open(path, formats=FORMATS) as file:
                width, height = file.size
                if width * height > PIXEL_BUDGET:
                    reason = f"has {width} x {height} pixels, over the limit of {PIXEL_BUDGET:,}"
                    raise PictureError(picture, reason, "make it smaller")
                return _rgb(file, picture)
        except PictureError:
            raise
        except FileNotFoundError as error:
            raise PictureError(picture, "does not exist", "check the path") from error
        except Image.DecompressionBombError as error:
            raise PictureError(picture, f"is too large ({error})", "make it smaller") from error
        except UnidentifiedImageError as error:
            reason = f"is no image that can be read ({', '.join(FORMATS)})"
            raise PictureError(picture, reason, "convert it or take it out") from error
        except Exception as error:  # decoders fail in many ways on broken files
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise PictureError(picture, f"is broken ({reason})", "replace it or take it out") from error


def load_images(
    paths: Sequence[str | Path],
    preprocessing: Preprocessing,
    *,
    labels: Sequence[int | None] | None = None,
    limit: int | None = 64,
    display_count: int = 4,
    root: str | Path | None = None,
    skip_broken: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeImages:
    """Probe images from files.

    Prepared images of more than ``MEMORY_BUDGET`` bytes together lie in a temporary file that is mapped into memory, so
    thousands of them do not fill it.

    Args:
        paths: the files, as :func:`find_images` returns them.
        preprocessing: how pictures become tensors.
        labels: true class of each path, None where unknown.
        limit: at most so many images, evenly spaced over the paths, so that sorted class folders are all represented.
        display_count: for how many of the first images the picture is kept.
        root: the folder that names are relative to; by default the common folder of the paths.
        skip_broken: leave out files that cannot be read, decoded or, too narrow, resized; the nearest path that was not
            chosen takes the place of each. They are named in the log and in ``skipped``. What would fail for every
            image, such as a callable that raises, is an error all the same.
        progress: called with (done, total).

    Raises:
        PictureError: a file cannot be read or decoded.
        ImageError: no file can, the tensors differ in shape, or the preprocessing is random.
    """
    if not paths:
        raise ImageError("no images were given")
    if labels is not None and len(labels) != len(paths):
        raise ImageError(f"{len(labels)} labels were given for {len(paths)} images")
    if limit is not None and limit < 1:
        raise ImageError(f"at least one probe image is needed, not {limit}")
    count = len(paths) if limit is None else min(limit, len(paths))
    names = image_names(paths, root)
    skipped: list[tuple[str, str]] = []
    used: list[int] = []
    pictures: list[NDArray[np.uint8]] = []
    sources: list[str] = []
    images = torch.empty(0)
    for candidates in _choices(len(paths), count):
        for index in candidates:
            try:
                image = read_image(paths[index])
                tensor = _prepared(image, preprocessing, names[index])
                break
            except PictureError as error:
                if not skip_broken:
                    advice = f"{error.advice}, or leave out what is broken with --skip-broken (skip_broken=True)"
                    raise PictureError(repr(str(paths[index])), error.reason, advice) from error
                skipped.append((names[index], error.reason))
        else:
            continue
        if not used:
            if not torch.equal(tensor, preprocessing(image)):
                raise ImageError(
                    f"{preprocessing.name!r} gives another tensor each time; "
                    "use the transform of the evaluation, without augmentation"
                )
            images = allocate_images((count, *tensor.shape))
        elif tensor.shape != images.shape[1:]:
            first, other = tuple(images.shape[1:]), tuple(tensor.shape)
            raise ImageError(
                f"images must have one size after preprocessing, but {names[used[0]]!r} gives {first} and "
                f"{names[index]!r} gives {other}; set --crop"
            )
        images[len(used)] = tensor
        used.append(index)
        sources.append(_source_sha256(image))
        if len(pictures) < display_count:
            pictures.append(preprocessing.picture(image))
        if progress is not None:
            progress(len(used), count)
    if not used:
        name, reason = skipped[0]
        raise ImageError(f"none of {len(skipped)} images can be read: {name!r} {reason}")
    for name, reason in skipped[:NAMED_SKIPS]:
        logger.warning("skipped %r: it %s", name, reason)
    if skipped:
        logger.warning("%d of %d images are broken and left out; %d are used", len(skipped), len(paths), len(used))
    return _probe(
        names=[names[index] for index in used],
        images=images[: len(used)],
        pictures=pictures,
        sources=sources,
        preprocessing=preprocessing.to_dict(),
        labels=None if labels is None else [labels[index] for index in used],
        skipped=skipped,
    )


def probe_from_tensor(
    tensor: Tensor,
    names: Sequence[str] | None = None,
    pictures: NDArray[np.uint8] | Tensor | None = None,
    labels: Sequence[int | None] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    display_count: int = 4,
) -> ProbeImages:
    """Probe images that were preprocessed in Python.

    Args:
        tensor: shape (N, C, H, W), floating point, finite.
        names: by default image-000, image-001, ...
        pictures: the first images for display, uint8 (D, H, W, 3); by default made from the tensors.
        labels: true class of each image, None where unknown.
        preprocessing: what to record of how the tensor was made.
        display_count: at most so many pictures are kept.

    Raises:
        ImageError: a shape, type, length or value does not fit.
    """
    if tensor.ndim != 4 or 0 in tensor.shape:
        raise ImageError(f"images must have shape (N, C, H, W) and none of it empty, not {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ImageError(f"images must be floats, not {tensor.dtype}; scale and normalise them first")
    images = tensor.detach().to("cpu", torch.float32)
    if not torch.isfinite(images).all():
        broken = int((~torch.isfinite(images)).flatten(1).any(1).nonzero()[0])
        raise ImageError(f"image {broken} holds NaN or infinite values")
    if pictures is None:
        shown = [picture_of(image) for image in images[:display_count]]
        made = "minimum to maximum of the tensor"
    else:
        given = np.asarray(pictures)
        if given.dtype != np.uint8 or given.ndim != 4 or given.shape[1:] != (*images.shape[2:], 3):
            expected = f"uint8 (D, {images.shape[2]}, {images.shape[3]}, 3)"
            raise ImageError(f"pictures must be {expected}, not {given.dtype} {given.shape}")
        shown, made = list(given[: min(display_count, len(images))]), "given"
    return _probe(
        names=[f"image-{index:03d}" for index in range(len(images))] if names is None else list(names),
        images=images,
        pictures=shown,
        sources=None,
        preprocessing={"source": "tensor", "picture": made, **(preprocessing or {})},
        labels=labels,
    )


def _probe(
    names: Sequence[str],
    images: Tensor,
    pictures: Sequence[NDArray[np.uint8]],
    sources: Sequence[str] | None,
    preprocessing: Mapping[str, Any],
    labels: Sequence[int | None] | None,
    skipped: Sequence[tuple[str, str]] = (),
) -> ProbeImages:
    for what, values in (("names", names), ("labels", labels)):
        if values is not None and len(values) != len(images):
            raise ImageError(f"{len(values)} {what} were given for {len(images)} images")
    digests = tuple(_tensor_sha256(image) for image in images)
    empty = np.zeros((0, *images.shape[2:], 3), np.uint8)
    return ProbeImages(
        names=tuple(names),
        images=images,
        pictures=np.stack(pictures) if pictures else empty,
        source_sha256=digests if sources is None else tuple(sources),
        tensor_sha256=digests,
        probe_sha256=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        preprocessing=preprocessing,
        labels=None if labels is None else tuple(None if label is None else int(label) for label in labels),
        skipped=tuple(skipped),
    )


def _choices(total: int, count: int) -> Iterator[Iterator[int]]:
    """For each of count places evenly spaced over the paths: its path, then those nearest to it that no place has."""
    chosen = [place * total // count for place in range(count)]
    spare = sorted(set(range(total)).difference(chosen))

    def candidates(index: int) -> Iterator[int]:
        yield index
        while spare:
            after = bisect_left(spare, index)
            near = range(max(after - 1, 0), min(after + 1, len(spare)))
            yield spare.pop(min(near, key=lambda place: (abs(spare[place] - index), -spare[place])))

    return map(candidates, chosen)


def _prepared(image: Image.Image, preprocessing: Preprocessing, name: str) -> Tensor:
    try:
        tensor = preprocessing(image)
    except PictureError:
        raise
    except ImageError as error:
        raise ImageError(f"{name!r}: {error}") from error
    if not torch.isfinite(tensor).all():
        raise ImageError(f"{name!r} has NaN or infinite values after preprocessing; check mean and std")
    return tensor


def allocate_images(shape: tuple[int, ...]) -> Tensor:
    """An uninitialised float32 tensor: in memory, or in a file that nobody else sees where it would take too much."""
    entries, folder = math.prod(shape), tempfile.gettempdir()
    size = entries * torch.float32.itemsize
    if size <= MEMORY_BUDGET or shutil.disk_usage(folder).free < size:  # a full disk would end the process at a write
        return torch.empty(shape)
    handle, name = tempfile.mkstemp(prefix="interpret-images-", dir=folder)
    os.close(handle)
    try:
        return torch.from_file(name, shared=True, size=entries, dtype=torch.float32).view(shape)
    finally:
        with suppress(OSError):  # Windows keeps a file that is mapped
            Path(name).unlink()


def _rgb(file: ImageFile.ImageFile, picture: str) -> Image.Image:
    key = file.info.get("transparency")
    if file.format == "PNG" and file.tile and file.tile[0][3] in COLOUR_KEYS and key is not None:
        scaled = COLOUR_KEYS[str(file.tile[0][3])]
        file.info["transparency"] = scaled(key) if isinstance(key, int) else tuple(map(scaled, key))
    white_is_zero = file.mode.startswith("I") and getattr(file, "tag_v2", {}).get(PHOTOMETRIC) == 0
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise PictureError(picture, "has 32-bit values", "save it with 8 or 16 bits per channel")
        if white_is_zero:  # Pillow 13.0 inverts 8 bits only
            values = 65535 - values
        if "transparency" in image.info:
            values[values == image.info["transparency"]] = 65535
        # 65535 / 255 = 257: Pillow itself would cut everything over 255 off
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PictureError(picture, "has floating point values", "save it with 8 or 16 bits per channel")
    if image.has_transparency_data:
        drawn = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
    image.load()
    return image.convert("RGB")


def _source_sha256(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.width} {image.height}\n".encode() + image.tobytes()).hexdigest()


def _tensor_sha256(image: Tensor) -> str:
    values = np.ascontiguousarray(image.numpy(), dtype="<f4")
    return hashlib.sha256(f"{values.shape}\n".encode() + values.tobytes()).hexdigest()
