"""Probe images: found, decoded safely, preprocessed as the network was trained, and identified by digests."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from interpret.errors import ImageError, did_you_mean
from interpret.specs import failure, imported

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".pbm")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no others: some run programs to decode
PIXEL_BUDGET = 100_000_000  # what one picture may unpack to: 300 MB
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

logger = logging.getLogger("interpret")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a decoded picture becomes the network's input: resize, centre crop, scale to [0, 1], normalise.

    Equal to torchvision's Resize, CenterCrop, ToTensor and Normalize on PIL images, to the bit. One entry in ``mean``
    makes the picture grey and the input (1, H, W). With ``transform`` the user's own code does all of it.

    Attributes:
        resize: length of the shorter side in pixels; None leaves the size.
        crop: side of the centre square, padded with black where the picture is smaller; None leaves the picture whole.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos", antialiased as Pillow does it.
        source: who chose it: "default", "options", "weights" or "callable".
        name: the spec of the callable, or the name of the weights.
        transform: RGB picture -> float tensor (C, H, W).

    Raises:
        ImageError: a value is out of range.
    """

    resize: int | None = 256
    crop: int | None = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    source: str = "default"
    name: str | None = None
    transform: Callable[[Image.Image], Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ImageError(f"mean {self.mean} and std {self.std} must both have 3 values (RGB) or 1 (grey)")
        if not (np.isfinite([*self.mean, *self.std]).all() and min(self.std) > 0):
            raise ImageError(f"mean {self.mean} must be finite and std {self.std} positive")
        if max(*self.mean, *self.std) > 2:
            raise ImageError(f"mean {self.mean} and std {self.std} are of values in [0, 1]; divide yours by 255")
        for name, value in (("resize", self.resize), ("crop", self.crop)):
            if value is not None and value < 1:
                raise ImageError(f"{name} must be at least 1 pixel, not {value}")
        if self.interpolation not in INTERPOLATIONS:
            raise ImageError(
                f"unknown interpolation {self.interpolation!r}{did_you_mean(self.interpolation, INTERPOLATIONS)}; "
                f"choose among {', '.join(INTERPOLATIONS)}"
            )

    @classmethod
    def from_weights(cls, transform: Callable[..., Any], name: str | None = None) -> Self:
        """The preprocessing of torchvision's weights: their ``transforms()``, taken apart where it is a preset."""
        known = all(hasattr(transform, key) for key in ("resize_size", "mean", "std", "interpolation"))
        sizes = {key: getattr(transform, key, None) or [None] for key in ("resize_size", "crop_size")}
        interpolation = getattr(getattr(transform, "interpolation", None), "value", None)
        if not known or interpolation not in INTERPOLATIONS or any(len(size) != 1 for size in sizes.values()):
            return cls(source="weights", name=name or type(transform).__name__, transform=transform)
        return cls(
            resize=sizes["resize_size"][0],
            crop=sizes["crop_size"][0],
            mean=tuple(transform.mean),  # type: ignore[attr-defined]
            std=tuple(transform.std),  # type: ignore[attr-defined]
            interpolation=interpolation,
            source="weights",
            name=name,
        )

    @classmethod
    def from_callable(cls, spec: str) -> Self:
        """The user's own ``package.module:callable`` or ``path/to/file.py:callable``: RGB picture -> tensor (C, H, W).

        Raises:
            ImageError: the spec names nothing that can be called, or importing it fails.
        """
        with imported(spec, ImageError) as target:
            if not callable(target):
                raise ImageError(f"{spec!r} is a {type(target).__name__}; name a function that takes a picture")
            return cls(source="callable", name=spec, transform=target)

    def __call__(self, image: Image.Image) -> Tensor:
        """The network's input, shape (C, H, W), float32.

        Raises:
            ImageError: the callable fails or returns something else.
        """
        if self.transform is not None:
            return self._transformed(image)
        pixels = np.array(self._framed(image))
        tensor = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return tensor.to(torch.float32).div(255).sub(mean).div(std)

    def picture(self, image: Image.Image) -> NDArray[np.uint8]:
        """What the network sees, uint8 (H, W, 3): before normalisation, or a callable's tensor made visible."""
        if self.transform is not None:
            return picture_of(self(image))
        return np.array(self._framed(image).convert("RGB"))

    def to_dict(self) -> dict[str, Any]:
        """The preprocessing as the manifest records it; ``picture`` says how the displayed pictures were made."""
        if self.transform is not None:
            return {"source": self.source, "name": self.name, "picture": "minimum to maximum of the tensor"}
        return {
            "source": self.source,
            "name": self.name,
            "resize": self.resize,
            "crop": self.crop,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "picture": "before normalisation",
        }

    def _framed(self, image: Image.Image) -> Image.Image:
        image = image.convert("L") if len(self.mean) == 1 else image
        width, height = image.size
        if self.resize is not None and self.resize != min(width, height):
            longer = int(self.resize * max(width, height) / min(width, height))
            if self.resize * longer > PIXEL_BUDGET:
                raise ImageError(f"a picture of {width} x {height} pixels is too narrow to resize to {self.resize}")
            width, height = (self.resize, longer) if width <= height else (longer, self.resize)
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if self.crop is None:
            return image
        left, top = _crop_start(width, self.crop), _crop_start(height, self.crop)
        return image.crop((left, top, left + self.crop, top + self.crop))

    def _transformed(self, image: Image.Image) -> Tensor:
        assert self.transform is not None
        name = self.name or repr(self.transform)
        try:
            tensor = self.transform(image)
        except Exception as error:
            raise ImageError(failure(name, "failed", error)) from error
        if not isinstance(tensor, Tensor) or tensor.ndim != 3 or not tensor.is_floating_point():
            what = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ImageError(f"{name!r} returned {what}; it must return a float tensor (C, H, W)")
        return tensor.detach().to("cpu", torch.float32)


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


# -------------------------------------------------------------------------------------------------------------- finding


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


def picture_of(tensor: Tensor) -> NDArray[np.uint8]:
    """A picture of a preprocessed image (C, H, W): its minimum black, its maximum white; uint8 (H, W, 3).

    Three channels are taken as RGB; of any other number the mean is drawn in grey.
    """
    values = tensor if len(tensor) == 3 else tensor.mean(0, keepdim=True).expand(3, -1, -1)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else torch.zeros_like(values)
    return scaled.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


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


def _crop_start(size: int, crop: int) -> int:
    """Where a centre crop begins, negative where padding comes first; rounds as torchvision does."""
    return -((crop - size) // 2) if size < crop else round((size - crop) / 2)


def _source_sha256(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.width} {image.height}\n".encode() + image.tobytes()).hexdigest()


def _tensor_sha256(image: Tensor) -> str:
    values = np.ascontiguousarray(image.numpy(), dtype="<f4")
    return hashlib.sha256(f"{values.shape}\n".encode() + values.tobytes()).hexdigest()


# --------------------------------------------------------------------------------------------- labels and class names


def labels_from_folders(
    paths: Sequence[str | Path], root: str | Path, class_names: Sequence[str] | None = None
) -> tuple[int, ...]:
    """The class of each image by the first folder below the root that it lies in.

    Folders are matched to the class names where these are given (case, spaces and underscores do not matter) or are the
    classes' numbers. Without class names, the sorted folders are numbered from 0, as torchvision's ImageFolder does:
    right only where every class has a folder.

    Raises:
        ImageError: an image lies in no folder, or a folder matches no class.
    """
    folders = [name.split("/") for name in image_names(paths, root)]
    for path, parts in zip(paths, folders, strict=True):
        if len(parts) < 2 or parts[0] == "..":
            raise ImageError(
                f"{str(path)!r} lies in no class folder below {str(root)!r}; expected {root}/CLASS/image.jpg"
            )
    names = sorted({parts[0] for parts in folders})
    index = {name: i for i, name in enumerate(names)}
    if class_names is not None:
        index = {name: _class_index(name, class_names, f"folder {name!r}") for name in names}
    return tuple(index[parts[0]] for parts in folders)


def read_labels(
    file: str | Path, names: Sequence[str], class_names: Sequence[str] | None = None
) -> tuple[int | None, ...]:
    """The class of each named image from a CSV file with the columns ``file`` and ``label``.

    ``file`` is the image's name as recorded, or its last part where that is unique; ``label`` a number, a class name,
    or nothing where unknown. Rows for other images are ignored with a warning in the log.

    Args:
        file: the CSV file, UTF-8.
        names: the images' names, as :func:`image_names` gives them.
        class_names: needed where the labels are names.

    Raises:
        ImageError: the file cannot be read, an image has no row, or a label is no class.
    """
    rows = csv.DictReader(_read_text(file).splitlines())
    if not {"file", "label"} <= set(rows.fieldnames or ()):
        raise ImageError(
            f"{str(file)!r} must begin with the line 'file,label', not {','.join(rows.fieldnames or ())!r}"
        )
    given = {str(row["file"]).strip().removeprefix("./").replace("\\", "/"): row["label"] for row in rows}
    last = [name.rpartition("/")[2] for name in names]
    keys = [
        short if name not in given and last.count(short) == 1 else name for name, short in zip(names, last, strict=True)
    ]
    missing = [name for name, key in zip(names, keys, strict=True) if key not in given]
    if missing:
        raise ImageError(
            f"{str(file)!r} has no row for {len(missing)} of {len(names)} images: {', '.join(missing[:3])}"
            f"{did_you_mean(missing[0], given)}; leave the label empty where it is unknown"
        )
    if unknown := sorted(set(given) - set(keys)):
        logger.warning(
            "%s names %d files that are not among the images: %s", file, len(unknown), ", ".join(unknown[:3])
        )
    return tuple(
        _class_index(label, class_names, f"label of {key!r} in {str(file)!r}")
        if (label := (given[key] or "").strip())
        else None
        for key in keys
    )


def read_class_names(file: str | Path) -> tuple[str, ...]:
    """Class names in order: one per line; or JSON: a list, index -> name, name -> index, or index -> [id, name].

    Raises:
        ImageError: the file cannot be read, or its indices are not 0, 1, 2, ...
    """
    text = _read_text(file)
    if not text.lstrip().startswith(("[", "{")):
        lines = [line.strip() for line in text.rstrip().splitlines()]
        if not lines:
            raise ImageError(f"{str(file)!r} is empty; it must hold one class name per line")
        if not all(lines):
            raise ImageError(f"{str(file)!r} must hold one class name per line; line {lines.index('') + 1} is empty")
        return tuple(lines)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ImageError(f"{str(file)!r} is not valid JSON: {error}") from error
    if isinstance(content, list):
        content = dict(enumerate(content))
    elif all(isinstance(value, int) for value in content.values()):
        content = {index: name for name, index in content.items()}
    try:
        by_index = {int(key): value[-1] if isinstance(value, list) else value for key, value in content.items()}
        names = tuple(by_index[index] for index in range(len(content)))
    except (ValueError, KeyError, IndexError) as error:
        raise ImageError(f"the classes in {str(file)!r} must be numbered 0, 1, 2, ... without a gap") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise ImageError(f'{str(file)!r} must hold class names as text, such as ["cat", "dog"]')
    return names


def _class_index(label: str, class_names: Sequence[str] | None, where: str) -> int:
    """The number of a class given by name or number. An exact name wins over a number."""
    known = class_names or ()
    plain = [name.casefold().replace("_", " ") for name in known]
    wanted = label.casefold().replace("_", " ")
    matches = [i for i, name in enumerate(known) if name == label] or [
        i for i, name in enumerate(plain) if name == wanted
    ]
    if len(matches) > 1:
        raise ImageError(f"{where}: {label!r} names classes {matches}; give the number instead")
    if matches:
        return matches[0]
    if label.isdecimal() and (not known or int(label) < len(known)):
        return int(label)
    if not known:
        raise ImageError(f"{where}: {label!r} is no class number; give --class-names to use names")
    raise ImageError(f"{where}: {label!r} is none of the {len(known)} classes{did_you_mean(label, known)}")


def _read_text(file: str | Path) -> str:
    try:
        return Path(file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{str(file)!r} cannot be read as UTF-8 text: {error}") from error
