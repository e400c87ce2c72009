"""The words that rules share."""

from __future__ import annotations

Draft = tuple[str, str | None, str]  # severity, key of the call or None, sentence
FEW_IMAGES = 16
MANY_UNITS = 0.05
SHOWN = 3  # layers that one rule names before it sums up the rest


def number_of(number: int, noun: str) -> str:
    """A number and its noun.

    >>> number_of(1, "call"), number_of(2, "call")
    ('1 call', '2 calls')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Two digits that count.

    >>> percent(0.0057), percent(1.42), percent(40.4)
    ('0.57 %', '142 %', '40-fold')
    """
    if share >= 10:
        return f"{share:.0f}-fold"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def small(value: float | None) -> str:
    """Two digits that count, whatever the size: 0.5, 1.2e-07."""
    return "unknown" if value is None else f"{value:.2g}"


def few(images: int) -> str:
    """What similarities of so few images are worth; the sentence goes on behind it."""
    if images < 4:
        return f"Similarities were not computed for {number_of(images, 'image')}, they need at least 4;"
    return f"{images} images give rough similarities;"
