"""The errors that a caller can cause; each message says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InterpretError(Exception):
    """Base class of every error that a caller of this package can cause."""


class CheckpointError(InterpretError):
    """A checkpoint cannot be found, read safely, or loaded into the model."""


class ImageError(InterpretError):
    """A probe image, its label or its preprocessing cannot be used."""


class LayerError(InterpretError):
    """A layer, method or target does not fit the model."""


class EvidenceError(InterpretError):
    """An evidence bundle is missing, unfinished, changed or of an unknown version."""


class ReportError(InterpretError):
    """A report cannot be drawn from the evidence that was given."""


class TrackingError(InterpretError):
    """MLflow cannot be reached, or does not hold what was asked for."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that names the known words closest to ``word``, or an empty string.

    >>> did_you_mean("layer4.1.conv", ["layer4.1.conv2", "fc"])
    "; did you mean 'layer4.1.conv2'?"
    """
    close = difflib.get_close_matches(word, list(known), n=3)
    return f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
