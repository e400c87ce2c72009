"""Probe images: found, decoded safely, prepared as the network was trained, and identified by digests."""

from __future__ import annotations

import glob
import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from interpret.errors import ImageError, did_you_mean
from interpret.preprocessing import PIXEL_BUDGET, Preprocessing, picture_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".pbm")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no others: some run programs to decode


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
    """

    names: tuple[str, ...]
    images: Tensor = field(repr=False)
    pictures: NDArray[np.uint8] = field(repr=False)
    source_sha256: tuple[str, ...] = field(repr=False)
    tensor_sha256: tuple[str, ...] = field(repr=False)
    probe_sha256: str
    preprocessing: Mapping[str, Any]
    labels: tuple[int | None, ...] | None = None

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

    The EXIF orientation is applied. Transparent parts show white, as viewers draw them; 16-bit grey is scaled to 8;
    CMYK is converted. The size is read from the header and held against ``PIXEL_BUDGET`` before anything is unpacked.

    Raises:
        ImageError: the file is missing, broken, too large, or of a kind that is not read here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what cannot be decoded raises
        try:
            with Image.open(path, formats=FORMATS) as file:
                width, height = file.size
                if width * height > PIXEL_BUDGET:
                    size = f"{width} x {height} pixels"
                    raise ImageError(f"{str(path)!r} has {size}, over the limit of {PIXEL_BUDGET:,}; make it smaller")
                return _rgb(ImageOps.exif_transpose(file), path)
        except ImageError:
            raise
        except FileNotFoundError as error:
            raise ImageError(f"image {str(path)!r} does not exist") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"{str(path)!r}: {error}; make it smaller") from error
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{str(path)!r} is no image that can be read ({', '.join(FORMATS)}); convert it or take it out"
            ) from error
        except Exception as error:  # decoders fail in many ways on broken files
            raise ImageError(f"{str(path)!r} is broken ({error}); replace it or take it out") from error


def load_images(
    paths: Sequence[str | Path],
    preprocessing: Preprocessing,
    *,
    labels: Sequence[int | None] | None = None,
    limit: int | None = 64,
    display_count: int = 4,
    root: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeImages:
    """Probe images from files.

    Args:
        paths: the files, as :func:`find_images` returns them.
        preprocessing: how pictures become tensors.
        labels: true class of each path, None where unknown.
        limit: at most so many images, evenly spaced over the paths, so that sorted class folders are all represented.
        display_count: for how many of the first images the picture is kept.
        root: the folder that names are relative to; by default the common folder of the paths.
        progress: called with (done, total).

    Raises:
        ImageError: a file cannot be decoded, the tensors differ in shape, or the preprocessing is random.
    """
    if not paths:
        raise ImageError("no images were given")
    if labels is not None and len(labels) != len(paths):
        raise ImageError(f"{len(labels)} labels were given for {len(paths)} images")
    if limit is not None and limit < 1:
        raise ImageError(f"at least one probe image is needed, not {limit}")
    count = len(paths) if limit is None else min(limit, len(paths))
    chosen = [index * len(paths) // count for index in range(count)]
    names = image_names(paths, root)
    tensors: list[Tensor] = []
    pictures: list[NDArray[np.uint8]] = []
    sources: list[str] = []
    for done, index in enumerate(chosen):
        image = read_image(paths[index])
        try:
            tensor = preprocessing(image)
        except ImageError as error:
            raise ImageError(f"{names[index]!r}: {error}") from error
        if not torch.isfinite(tensor).all():
            raise ImageError(f"{names[index]!r} has NaN or infinite values after preprocessing; check mean and std")
        if not tensors and not torch.equal(tensor, preprocessing(image)):
            raise ImageError(
                f"{preprocessing.name!r} gives another tensor each time; "
                "use the transform of the evaluation, without augmentation"
            )
        if tensors and tensor.shape != tensors[0].shape:
            first, other = tuple(tensors[0].shape), tuple(tensor.shape)
            raise ImageError(
                f"images must have one size after preprocessing, but {names[chosen[0]]!r} gives {first} and "
                f"{names[index]!r} gives {other}; set --crop"
            )
        tensors.append(tensor)
        sources.append(_source_sha256(image))
        if done < display_count:
            pictures.append(preprocessing.picture(image))
        if progress is not None:
            progress(done + 1, count)
    return _probe(
        names=[names[index] for index in chosen],
        images=torch.stack(tensors),
        pictures=pictures,
        sources=sources,
        preprocessing=preprocessing.to_dict(),
        labels=None if labels is None else [labels[index] for index in chosen],
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
    )


def _rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{str(path)!r} has 32-bit values; save it with 8 or 16 bits per channel")
        # 65535 / 255 = 257: Pillow itself would cut everything over 255 off
        return Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(f"{str(path)!r} has floating point values; save it with 8 or 16 bits per channel")
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
