"""Numbers, shares and shapes as the report writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from interpret.language import say

ROUNDING = 1e-12  # of a similarity computed in float64
LONGEST_LIST = 16  # of a setting; longer ones are told by their ends
MISSING = "\N{EN DASH}"


def number(value: float | None) -> str:
    """Three significant digits; scientific below 0.001 and from a million on.

    >>> number(0.0012345), number(1234.5), number(-3.2e-7), number(0.0), number(None)
    ('0.00123', '1,230', '−3.20·10⁻⁷', '0', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING if value is None or math.isnan(value) else f"{value:+}".replace("-", "\N{MINUS SIGN}")
    if value == 0:
        return "0"
    rounded = float(f"{value:.2e}")
    if not 1e-3 <= abs(rounded) < 1e6:
        return scientific(value)
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:,.{decimals}f}"
    if float(rounded).is_integer() and isinstance(value, int):
        text = f"{value:,}"
    return text.replace("-", "\N{MINUS SIGN}")


def scientific(value: float | None) -> str:
    """Three significant digits and a power of ten.

    >>> scientific(0.00001234), scientific(0.0), scientific(None)
    ('1.23·10⁻⁵', '0', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return (mantissa if power == "⁰" else f"{mantissa}·10{power}").replace("-", "\N{MINUS SIGN}")


def dissimilarity(cka: float | None) -> float | None:
    """1 - CKA; what rounding leaves of equal representations counts as 0."""
    if cka is None:
        return None
    distance = 1 - cka
    return 0.0 if abs(distance) < ROUNDING else distance


def percent(share: float | None) -> str:
    r"""A share as a percentage with three significant digits at most.

    >>> percent(0.98765), percent(1.0), percent(0.00012), percent(None)
    ('98.8\xa0%', '100\xa0%', '0.012\xa0%', '–')
    """
    if share is None or not math.isfinite(share):
        return MISSING
    value = 100 * share
    text = "0" if value == 0 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
    if "e" in text:
        return f"{scientific(value)}\N{NO-BREAK SPACE}%"
    return f"{text.removesuffix('.0')}\N{NO-BREAK SPACE}%"


def count(value: float) -> str:
    """A whole number with thousands separators.

    >>> count(4652008)
    '4,652,008'
    """
    return f"{int(value):,}"


def quantity(value: float) -> str:
    r"""A large number with a metric prefix.

    >>> quantity(4652008), quantity(384_000_000), quantity(950)
    ('4.65\xa0M', '384\xa0M', '950')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= factor:
            unit = 1e3 if prefix == "k" else factor
            return f"{value / unit:.3g}\N{NO-BREAK SPACE}{prefix}"
    return count(value)


def interval(low: float | None, high: float | None) -> str:
    """Two ends of a range."""
    return MISSING if low is None or high is None else f"{number(low)} \N{HORIZONTAL ELLIPSIS} {number(high)}"


def shape(sizes: Iterable[float]) -> str:
    """A shape in the field's way.

    >>> shape((32, 112, 112))
    '32×112×112'
    """
    return "\N{MULTIPLICATION SIGN}".join(str(size) for size in sizes) or say("scalar")


def flat(value: Any) -> str:
    """A setting as one line of text.

    >>> flat({"resize": 256, "mean": [0.5, 0.25]}), flat(list(range(99))), flat(None)
    ('resize 256, mean 0.5, 0.25', '99: 0 … 98', '–')
    """
    if value is None or value in ([], (), {}):
        return MISSING
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {flat(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)) and len(value) > LONGEST_LIST:
        return f"{len(value)}: {flat(value[0])} \N{HORIZONTAL ELLIPSIS} {flat(value[-1])}"
    if isinstance(value, (list, tuple)):
        return ", ".join(flat(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def sentence(text: str) -> str:
    """The text with a full stop at its end."""
    return text if text.endswith(".") else say("{text}.", text=text)
