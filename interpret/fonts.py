"""The report's fonts, from installed packages: a machine's own fonts change nothing."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

TEXT_FAMILY, CODE_FAMILY = "Inter", "DejaVu Sans Mono"
TEXT_WEIGHTS = (400, 500, 600, 700)
TEXT_FEATURES = ("kern", "ccmp", "locl", "mark", "tnum", "cv05")


@dataclass(frozen=True, slots=True)
class Font:
    """A font file that an installed package carries."""

    family: str
    path: Path


def report_fonts() -> tuple[Font, ...]:
    """Inter for text and DejaVu Sans Mono for digests and commands; those that are installed."""
    known = (
        (TEXT_FAMILY, "fontpkg_inter", "files/Inter[opsz,wght].ttf"),
        (CODE_FAMILY, "matplotlib", "mpl-data/fonts/ttf/DejaVuSansMono.ttf"),
    )
    found = []
    for family, package, path in known:
        specification = importlib.util.find_spec(package)  # looks for the package without importing it
        if specification is not None and specification.origin is not None:
            file = Path(specification.origin).parent / path
            if file.is_file():
                found.append(Font(family, file))
    return tuple(found)


@functools.cache
def text_font(characters: str) -> bytes | None:
    """Inter cut down to the characters, to one optical size and to weights 400 ... 700: about 50 kB instead of 860.

    Args:
        characters: those that the text uses, sorted, so that equal texts share the font.

    Returns:
        A TrueType font, the same bytes for the same characters; None where Inter is not installed.
    """
    font = next((font for font in report_fonts() if font.family == TEXT_FAMILY), None)
    if font is None:
        return None
    from fontTools import subset
    from fontTools.ttLib import TTFont
    from fontTools.varLib import instancer

    options = subset.Options(recalc_timestamp=False)
    options.layout_features = list(TEXT_FEATURES)
    cutter = subset.Subsetter(options)
    cutter.populate(text=characters)
    face = TTFont(font.path, recalcTimestamp=False)
    cutter.subset(face)
    face = instancer.instantiateVariableFont(face, {"opsz": 14, "wght": (400, 700)}, inplace=True)
    return _saved(face)


@functools.cache
def static_fonts(font: bytes) -> Mapping[int, bytes]:
    """The font at each weight that the report uses, without axes.

    WeasyPrint would make them itself, with the time of day in them: two renders would differ.
    """
    from fontTools.ttLib import TTFont
    from fontTools.varLib import instancer

    faces = {weight: TTFont(io.BytesIO(font), recalcTimestamp=False) for weight in TEXT_WEIGHTS}
    return {weight: _saved(instancer.instantiateVariableFont(face, {"wght": weight})) for weight, face in faces.items()}


def compressed(font: bytes) -> bytes:
    """The font as WOFF2, for the web: less than half the size."""
    from fontTools.ttLib import TTFont

    face = TTFont(io.BytesIO(font), recalcTimestamp=False)
    face.flavor = "woff2"
    return _saved(face)


def _saved(face: TTFont) -> bytes:
    buffer = io.BytesIO()
    face.save(buffer)
    return buffer.getvalue()
