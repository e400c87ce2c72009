"""Pillow as it is by itself, whatever another package of the process told it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import ImageFile


@contextmanager
def whole_files_only() -> Iterator[None]:
    """Pillow refuses truncated files, then does what it did before; WeasyPrint's import has them filled with grey."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
