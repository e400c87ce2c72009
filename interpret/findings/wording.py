"""The words that rules share."""

from __future__ import annotations

from interpret.language import Message, plural, say

Draft = tuple[str, str | None, Message]  # severity, key of the call or None, sentence
FEW_IMAGES = 16
MANY_UNITS = 0.05
SHOWN = 3  # layers that one rule names before it sums up the rest
KINDS = {
    "convolution": say("convolution"),
    "linear": say("linear"),
    "normalization": say("normalization"),
    "activation": say("activation"),
    "pooling": say("pooling"),
    "attention": say("attention"),
    "container": say("container"),
    "other": say("other"),
}


def percent(share: float) -> str:
    """Two digits that count.

    >>> percent(0.0057), percent(1.42), percent(40.4)
    ('0.57 %', '142 %', '40-fold')
    """
    if share >= 10:
        return say("{factor}-fold", factor=f"{share:.0f}")
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def small(value: float | None) -> str:
    """Two digits that count, whatever the size: 0.5, 1.2e-07."""
    return say("unknown") if value is None else f"{value:.2g}"


def few(images: int) -> Message:
    """What similarities of so few images are worth."""
    if images < 4:
        counted = plural(images, "{n} image", "{n} images")
        return say("Similarities were not computed for {images}, they need at least 4", images=counted)
    return say("{count} images give rough similarities", count=images)
