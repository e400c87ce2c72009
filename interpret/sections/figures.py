"""Pictures as the report holds them: encoded once, with their size, their scale and their words."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from interpret import drawing
from interpret.evidence import Array
from interpret.language import say
from interpret.sections.wording import number


@dataclass(frozen=True, slots=True)
class Figure:
    """An encoded picture of the report.

    Attributes:
        content: the file's bytes, PNG or JPEG.
        media_type: its media type.
        width, height: in pixels.
        alt: what it shows, in words.
    """

    content: bytes
    media_type: str
    width: int
    height: int
    alt: str

    @property
    def sha256(self) -> str:
        """Return the digest of the content, by which the PDF writer serves it."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class Scale:
    """A colour bar with the values at its ends and in its middle."""

    bar: Figure
    low: str
    middle: str
    high: str
    clipped: str


def png(picture: drawing.Picture, alt: str) -> Figure:
    """The picture as a PNG of the report."""
    return Figure(picture.png(), "image/png", *picture.size, alt)


def jpeg(picture: drawing.Picture, alt: str) -> Figure:
    """The picture as a JPEG of the report."""
    return Figure(picture.jpeg(), "image/jpeg", *picture.size, alt)


def scale(
    low: float, high: float, palette: Array, largest: float | None = None, labels: tuple[str, str, str] | None = None
) -> Scale:
    """A colour bar; ``largest`` is the greatest magnitude that was drawn, where the ends of the scale clip it."""
    ramp = np.repeat(np.linspace(0, drawing.LEVELS - 1, 160).round().astype(np.uint8)[None], 8, axis=0)
    texts = labels or (number(low), number((low + high) / 2 if low >= 0 else 0.0), number(high))
    bar = png(drawing.Picture(ramp, palette), say("Colour scale from {low} to {high}", low=texts[0], high=texts[2]))
    clipped = (
        say("values beyond the ends are clipped; the largest magnitude is {largest}", largest=number(largest))
        if largest and largest > high * 1.001
        else ""
    )
    return Scale(bar, *texts, clipped)
