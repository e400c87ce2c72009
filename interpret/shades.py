"""Ten shades of a number, from pale to dark: how reports, drawings and notebooks colour what changed."""

from __future__ import annotations

import math

# The style sheets have the same colours as variables, with others for the dark.
LEVEL_COLOURS = (
    *("#eceff1", "#fdf1cf", "#fce5a8", "#fad37c", "#f6bb55", "#ee9d3a", "#e07c2a", "#c0551f", "#a53d20", "#7c261c"),
)


def level(value: float | None, low: int, high: int) -> int | None:
    """One of ten shades: 0 for nothing, 1 ... 9 evenly over the decades 10^low ... 10^high; None where unknown.

    >>> [level(value, -4, 0) for value in (None, 0.0, 1e-9, 1e-2, 1.0, 7.0)]
    [None, 0, 1, 5, 9, 9]
    """
    if value is None or math.isnan(value):
        return None
    if value <= 0:
        return 0
    share = (math.log10(value) - low) / (high - low)
    return 1 + max(0, min(8, int(share * 9)))
