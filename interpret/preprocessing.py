"""Preprocessing: how a decoded picture becomes the network's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from interpret.errors import ImageError, did_you_mean
from interpret.specs import failure, imported

PIXEL_BUDGET = 100_000_000  # what one picture may unpack to: 300 MB
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PictureError(ImageError):
    """One picture cannot be used, whatever becomes of the others.

    Attributes:
        reason: what is wrong with it, without its name: "is broken (...)".
        advice: what to do.
    """

    def __init__(self, picture: str, reason: str, advice: str) -> None:
        super().__init__(f"{picture} {reason}; {advice}")
        self.reason, self.advice = reason, advice


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
            if value is not None and value * value > PIXEL_BUDGET:
                raise ImageError(f"{name} {value} makes pictures of more than {PIXEL_BUDGET:,} pixels; make it smaller")
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
            PictureError: this picture is too narrow to resize.
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
                reason = f"has {width} x {height} pixels, too narrow to resize to {self.resize}"
                raise PictureError("a picture", reason, "take it out")
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


def picture_of(tensor: Tensor) -> NDArray[np.uint8]:
    """A picture of a preprocessed image (C, H, W): its minimum black, its maximum white; uint8 (H, W, 3).

    Three channels are taken as RGB; of any other number the mean is drawn in grey.
    """
    values = tensor if len(tensor) == 3 else tensor.mean(0, keepdim=True).expand(3, -1, -1)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else torch.zeros_like(values)
    return scaled.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _crop_start(size: int, crop: int) -> int:
    """Where a centre crop begins, negative where padding comes first; rounds as torchvision does."""
    return -((crop - size) // 2) if size < crop else round((size - crop) / 2)
