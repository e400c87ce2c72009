"""Pictures and files of pictures that several tests share."""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image


def photo(width: int = 61, height: int = 43) -> Image.Image:
    """A part of a real photo, with an odd size."""
    return Image.fromarray(skimage.data.astronaut()[30 : 30 + height, 150 : 150 + width])


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def written(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for seed, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(8, 8, seed).save(path)
    return paths
