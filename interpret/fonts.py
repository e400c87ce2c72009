"""The report's fonts, which ship with it: a machine's own fonts change nothing."""

from __future__ import annotations

import functools
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

# Names that no installed font has: of two fonts with the same name WeasyPrint takes the machine's.
TEXT_FAMILY, CODE_FAMILY = "Inter Report", "DejaVu Sans Mono Report"
TEXT_WEIGHTS = (400, 500, 600, 700)


@dataclass(frozen=True, slots=True)
class Font:
    """A font file with its CSS family and weight."""

    family: str
    weight: int
    path: Path


def templates_folder() -> Path:
    """Where templates and fonts lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return next(path for path in (package / "templates", package.parent / "templates") if path.is_dir())


def report_fonts() -> tuple[Font, ...]:
    """Inter for text, and matplotlib's DejaVu Sans Mono for digests and commands.

    Inter's weights are made by ``scripts/refresh_fonts``, static ones: into those that WeasyPrint takes from a variable
    font it writes the time of day, and two renders would differ.
    """
    folder = templates_folder() / "fonts"
    fonts = [Font(TEXT_FAMILY, weight, folder / f"Inter-{weight}.ttf") for weight in TEXT_WEIGHTS]
    matplotlib = importlib.util.find_spec("matplotlib")  # looks for the package without importing it
    if matplotlib is not None and matplotlib.origin is not None:
        path = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSansMono.ttf"
        fonts += [Font(CODE_FAMILY, 400, path)] if path.is_file() else []
    return tuple(fonts)


@functools.cache
def web_font(path: Path, characters: str) -> bytes:
    """A font as WOFF2 that holds only the characters: about 10 kB instead of 100.

    Args:
        path: a TrueType font.
        characters: those that the page uses, sorted, so that equal pages share the font.
    """
    from fontTools import subset
    from fontTools.ttLib import TTFont

    options = subset.Options(recalc_timestamp=False)
    options.layout_features = ["*"]
    cutter = subset.Subsetter(options)
    cutter.populate(text=characters)
    face = TTFont(path, recalcTimestamp=False)
    cutter.subset(face)
    face.flavor = "woff2"
    buffer = io.BytesIO()
    face.save(buffer)
    return buffer.getvalue()
