"""Arrays to charts: SVG made of paths and a few labels, small enough for a hundred of them in one report.

Every element that WeasyPrint draws costs time, so the markers of a run are one path, not a circle each. Colours are
presentation
attributes (they hold in print and under a strict content security policy), which the screen style sheet overrides by
class.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from interpret import drawing

# Okabe and Ito's colours, in an order that keeps neighbours apart, each with a marker of its own: shape carries what
# colour may not.
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f6770", "#b8a800")
MARKERS = (
    "M{l} {y}A{r} {r} 0 1 1 {R} {y}A{r} {r} 0 1 1 {l} {y}Z",  # circle
    "M{l} {t}H{R}V{b}H{l}Z",  # square
    "M{x} {t}L{R} {b}H{l}Z",  # triangle
    "M{x} {T}L{Q} {y}L{x} {B}L{L} {y}Z",  # diamond
    "M{x} {b}L{R} {t}H{l}Z",  # triangle, point down
    "M{l} {t}L{R} {y}L{l} {b}Z",  # triangle, point right
    "M{R} {t}L{l} {y}L{R} {b}Z",  # triangle, point left
    "M{l} {y}L{x} {t}L{R} {y}V{b}H{l}Z",  # house
)
# What became of a map: fine, blank, constant, not finite, decided by a constant of its formula.
STATE_COLOURS = ("#b9d3e6", "#5f6770", "#e69f00", "#b3261e", "#cc79a7")
# The ten shades of `sections.wording.level`, as in the style sheet: 0 for nothing, 1 ... 9 from pale to dark.
LEVEL_COLOURS = (
    *("#eceff1", "#fdf1cf", "#fce5a8", "#fad37c", "#f6bb55", "#ee9d3a", "#e07c2a", "#c75a22", "#a53d20", "#7c261c"),
)
# From the first step to the last: viridis without its palest end, which white paper swallows.
STEP_COLOURS = tuple(f"#{bytes(drawing.VIRIDIS[round(step * 0.87 * 254 / 8)]).hex()}" for step in range(9))
AXIS, MUTED, ALARM = "#c9ced3", "#5f6770", "#b3261e"
FONT = "Inter, Noto Sans CJK SC, sans-serif"

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG drawing, and the only object whose markup a template prints unescaped.

    It is made in this module alone, from numbers and escaped text.

    Attributes:
        width, height: size in CSS pixels.
        body: the elements inside ``<svg>``.
        label: what the drawing shows, for readers who do not see it; "" for decoration.
        kind: class of the ``<svg>`` element.
    """

    width: int
    height: int
    body: str
    label: str
    kind: str = "chart"

    def __html__(self) -> str:
        """Return the ``<svg>`` element; Jinja takes it as markup."""
        accessible = f'role="img" aria-label="{html.escape(self.label)}"' if self.label else 'aria-hidden="true"'
        return (
            f'<svg class="{self.kind}" xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" {accessible}>{self.body}</svg>'
        )


def run_marker(run: int) -> Chart:
    """The coloured marker of the run with this number, as it stands beside the run's name."""
    body = f'<path class="run-fill-{run % len(RUN_COLOURS)}" fill="{_colour(run)}" d="{_marker(run, 5, 5, 3.6)}"/>'
    return Chart(10, 10, body, "", kind="marker")


def curves(
    series: Sequence[Values],
    label: str,
    *,
    runs: Sequence[int],
    logarithmic: bool = False,
    joined: bool = True,
    stages: Sequence[int] = (),
    width: int = 680,
    height: int = 150,
) -> Chart:
    """Values over the depth of the network, a line (or stems) per run.

    On a logarithmic axis zeros and negative values lie on the base line, which is marked 0.

    Args:
        series: a sequence of the same length per run; None where there is no value.
        label: what is drawn.
        runs: the number of each series' run, which decides its colour and marker.
        logarithmic: whether the vertical axis is logarithmic.
        joined: False draws a stem for each value that is not 0: for what calls have each for itself.
        stages: positions after which a thin line separates the stages of the network.
        width: in CSS pixels.
        height: in CSS pixels.
    """
    left, right, top, bottom = 46, 8, 8, 20
    count = max((len(values) for values in series), default=0)
    known = [value for values in series for value in values if _known(value)]
    scale = _Logarithmic(known) if logarithmic else _Linear(known)
    across = (width - left - right) / max(1, count - 1)

    def x(position: float) -> float:
        return left + position * across

    def y(value: float) -> float:
        return top + (1 - scale(value)) * (height - top - bottom)

    body = []
    for tick, text in scale.ticks():
        body.append(_line("grid", AXIS, f"M{left} {_n(y(tick))}H{width - right}", 0.5))
        body.append(_text(left - 6, y(tick) + 3.2, text, "end"))
    if stages:
        ends = "".join(f"M{_n(x(end + 0.5))} {top}V{height - bottom}" for end in stages if end < count - 1)
        body.append(_line("grid", AXIS, ends, 0.5, dashes="2 2"))
    body.extend(_text(x(position), height - 6, str(position), "middle") for position in _round_positions(count))
    for run, values in zip(runs, series, strict=True):
        path: list[str] = []
        marks: list[str] = []
        pen = "M"
        for position, value in enumerate(values):
            if not _known(value) or (value == 0 and not joined):
                pen = "M"
                continue
            place = f"{_n(x(position))} {_n(y(value))}"
            path.append(f"{pen}{place}" if joined else f"M{_n(x(position))} {height - bottom}L{place}")
            pen = "L"
            if not joined or across >= 9 or _is_marked(values, position):
                marks.append(_marker(run, x(position), y(value), 2.2))
        pen_width = 1.25 if joined else 0.6
        body.append(_line(f"run-line-{run % len(RUN_COLOURS)}", _colour(run), "".join(path), pen_width))
        body.append(f'<path class="run-fill-{run % len(RUN_COLOURS)}" fill="{_colour(run)}" d="{"".join(marks)}"/>')
    return Chart(width, height, "".join(body), label)


def filter_norms(
    norms: Sequence[float], maximum: float, label: str, *, run: int, width: int = 680, height: int = 46
) -> Chart:
    """The norm of each filter as a bar; filters that are exactly zero carry a mark below the base line.

    Args:
        norms: one norm per filter, in the order of the filters.
        maximum: top of the axis, shared by the runs.
        label: what is drawn.
        run: number of the run, for its colour.
        width: in CSS pixels.
        height: in CSS pixels.
    """
    left, right, top, bottom = 46, 8, 6, 10
    base, count = height - bottom, max(1, len(norms))
    step = (width - left - right) / count
    bars, zeros = [], []
    for number, norm in enumerate(norms):
        x = left + (number + 0.5) * step
        if norm == 0:
            zeros.append(f"M{_n(x)} {base + 2}v5")
        elif math.isfinite(norm):
            bars.append(f"M{_n(x)} {base}V{_n(base - (base - top) * min(1.0, norm / (maximum or 1)))}")
    body = [
        _text(left - 6, top + 5, _tick(maximum), "end"),
        _text(left - 6, base + 3, "0", "end"),
        _line("grid", AXIS, f"M{left} {base}H{width - right}", 0.5),
        _line(f"run-line-{run % len(RUN_COLOURS)}", _colour(run), "".join(bars), max(0.4, min(6.0, step * 0.7))),
        _line("alarm-line", ALARM, "".join(zeros), max(0.8, min(6.0, step * 0.7))),
    ]
    return Chart(width, height, "".join(body), label)


def share_bar(share: float, label: str = "", width: int = 64) -> Chart:
    """A horizontal bar that fills the given share (0 ... 1) of its width."""
    length = _n(max(0.0, min(1.0, share)) * width)
    body = f'<path class="bar-back" fill="#e9ecef" d="M0 3H{width}V7H0Z"/>'
    body += f'<path class="bar" fill="{MUTED}" d="M0 3H{length}V7H0Z"/>'
    return Chart(width, 10, body, label, kind="bar")


def state_grid(states: Sequence[Sequence[int | None]], label: str, width: int = 420, row: int = 4) -> Chart:
    """What became of each of many maps: a cell per map, coloured by state, a column per call.

    Args:
        states: rows of equal length with an index into :data:`STATE_COLOURS`; None where there is no map.
        label: what is drawn.
        width: in CSS pixels.
        row: height of a row, in CSS pixels.
    """
    step = width / max(1, max((len(line) for line in states), default=0))
    cells: list[list[str]] = [[] for _ in STATE_COLOURS]
    for number, line in enumerate(states):
        start = 0
        for state, same in itertools.groupby(line):  # neighbours alike are one bar: every mark costs time on paper
            end = start + len(list(same))
            if state is not None:
                cells[state].append(
                    f"M{_n(start * step)} {number * row}H{_n(end * step)}v{row - 0.5}H{_n(start * step)}Z"
                )
            start = end
    body = [
        f'<path class="state-{state}" fill="{colour}" d="{"".join(bars)}"/>'
        for state, (colour, bars) in enumerate(zip(STATE_COLOURS, cells, strict=True))
        if bars
    ]
    return Chart(width, max(1, len(states)) * row, "".join(body), label)


def state_key(state: int) -> Chart:
    """The coloured square of a state, as it stands beside its name."""
    body = f'<path class="state-{state}" fill="{STATE_COLOURS[state]}" d="M1 1H9V9H1Z"/>'
    return Chart(10, 10, body, "", kind="marker")


def panel(lines: Sequence[tuple[Sequence[float], int, str]], label: str, width: int = 160, height: int = 100) -> Chart:
    """A small chart of lines over a share of the pixels, 0 to 1, on an axis from 0 to 1: one of several alike.

    Args:
        lines: values, the number of the colour, and how the line is drawn: "" for solid, or lengths of its dashes.
        label: what is drawn.
        width: in CSS pixels.
        height: in CSS pixels.
    """
    left, right, top, bottom = 20, 4, 5, 14
    across, down = width - left - right, height - top - bottom
    body = [
        _line("grid", AXIS, "".join(f"M{left} {_n(top + down * part)}H{width - right}" for part in (0, 0.5, 1)), 0.5)
    ]
    body += [_text(left - 4, top + down * (1 - part) + 3.2, f"{part:g}", "end") for part in (0, 0.5, 1)]
    body += [_text(left, height - 3, "0 %", "start"), _text(width - right, height - 3, "100 %", "end")]
    for values, colour, dashes in lines:
        points, pen = [], "M"
        for number, value in enumerate(values):
            if not _known(value):
                pen = "M"
                continue
            x, y = left + across * number / max(1, len(values) - 1), top + down * (1 - max(0.0, min(1.0, value)))
            points.append(f"{pen}{_n(x)} {_n(y)}")
            pen = "L"
        pen_width = 0.8 if dashes else 1.4
        body.append(_line(f"run-line-{colour}", _colour(colour), "".join(points), pen_width, dashes))
    return Chart(width, height, "".join(body), label, kind="panel")


def level_grid(
    levels: Sequence[Sequence[int | None]],
    label: str,
    *,
    rows: Sequence[str],
    marks: Sequence[int | None] = (),
    stages: Sequence[int] = (),
    titles: tuple[str, str] = ("call", "step"),
    width: int = 680,
) -> Chart:
    """Shades over calls (across) and steps (down): a cell per call and step, blank where there is no value.

    Args:
        levels: a sequence per step with an index into :data:`LEVEL_COLOURS` per call, or None.
        label: what is drawn.
        rows: the name of each step.
        marks: per call the number of the step above which a line is drawn, or None.
        stages: positions after which a thin line separates the stages of the network.
        titles: of the horizontal axis and of the vertical one.
        width: in CSS pixels.
    """
    left, right, top, bottom = max(46, 12 + 5 * max(map(len, rows), default=0)), 8, 16, 20
    count = max((len(line) for line in levels), default=0)
    row = max(2.0, min(15.0, 240 / max(1, len(levels))))
    across, base = (width - left - right) / max(1, count), top + row * len(levels)
    every = math.ceil(10 / row)
    body = [_text(left - 6, top - 6, titles[1], "end"), _text(width - right, base + 14, titles[0], "end")]
    body += [
        _text(left - 6, top + (number + 0.5) * row + 3.2, name, "end")
        for number, name in enumerate(rows)
        if number % every == 0
    ]
    body += [
        _text(left + (position + 0.5) * across, base + 14, str(position), "middle")
        for position in _round_positions(count)
        if (count - position) * across > 26  # where the axis' title stands
    ]
    body += _cells(levels, left, top, across, row)
    ends = "".join(f"M{_n(left + (end + 1) * across)} {top}V{_n(base)}" for end in stages if end < count - 1)
    body.append(_line("stage-line", MUTED, ends, 0.5, dashes="2 2"))
    lines = [
        f"M{_n(left + place * across)} {_n(top + mark * row)}h{_n(across)}"
        for place, mark in enumerate(marks)
        if mark is not None
    ]
    body += [_line("mark-edge", "#ffffff", "".join(lines), 3.6), _line("mark-line", "#1b1f23", "".join(lines), 2.0)]
    return Chart(width, round(base) + bottom, "".join(body), label)


def step_curves(
    series: Sequence[Values],
    label: str,
    *,
    logarithmic: bool = False,
    stages: Sequence[int] = (),
    width: int = 330,
    height: int = 130,
) -> Chart:
    """Values over the depth of the network, a line per step in the colours of :data:`STEP_COLOURS`.

    A line joins the calls that have a value; where there is room, each of them is marked.

    Args:
        series: a sequence of the same length per step; None where a call has no value.
        label: what is drawn.
        logarithmic: whether the vertical axis is logarithmic.
        stages: positions after which a thin line separates the stages of the network.
        width: in CSS pixels.
        height: in CSS pixels.
    """
    left, right, top, bottom = 46, 8, 8, 20
    count = max((len(values) for values in series), default=0)
    known = [value for values in series for value in values if _known(value)]
    scale = _Logarithmic(known) if logarithmic else _Linear(known)
    across, base = (width - left - right) / max(1, count - 1), height - bottom
    body = []
    for tick, text in scale.ticks():
        y = top + (1 - scale(tick)) * (base - top)
        body.append(_line("grid", AXIS, f"M{left} {_n(y)}H{width - right}", 0.5))
        body.append(_text(left - 6, y + 3.2, text, "end"))
    ends = "".join(f"M{_n(left + (end + 0.5) * across)} {top}V{base}" for end in stages if end < count - 1)
    body.append(_line("grid", AXIS, ends, 0.5, dashes="2 2"))
    body += [
        _text(left + position * across, height - 6, str(position), "middle")
        for position in _round_positions(2 * count)
        if (count - 1 - position) * across > 26
    ]
    body.append(_text(width - right, height - 6, "call", "end"))
    for number, values in enumerate(series):
        points = [
            f"{_n(left + position * across)} {_n(top + (1 - scale(value)) * (base - top))}"
            for position, value in enumerate(values)
            if _known(value)
        ]
        line = f"M{'L'.join(points)}" if points else ""
        if (width - left - right) / max(1, len(points)) >= 9:
            line += "".join(f"M{point}m-1.5 0h3m-1.5 -1.5v3" for point in points)
        colour = step_colour(number, len(series))
        body.append(_line(f"step-line-{colour}", STEP_COLOURS[colour], line, 1.1))
    return Chart(width, height, "".join(body), label)


def step_colour(step: int, count: int) -> int:
    """Which of :data:`STEP_COLOURS` a step has among ``count``: the first and the last take both ends.

    >>> [step_colour(step, 5) for step in range(5)]
    [0, 2, 4, 6, 8]
    """
    return round(step * (len(STEP_COLOURS) - 1) / max(1, count - 1))


def step_key(step: int, count: int) -> Chart:
    """The stroke of a step, as it stands beside its number."""
    colour = step_colour(step, count)
    return Chart(14, 10, _line(f"step-line-{colour}", STEP_COLOURS[colour], "M1 5H13", 2.5), "", kind="marker")


def histogram_panel(
    levels: Sequence[Sequence[int | None]],
    quantiles: Sequence[Values],
    ends: tuple[float, float],
    label: str,
    *,
    columns: Sequence[str],
    width: int = 160,
    height: int = 112,
) -> Chart:
    """Histograms over steps: a column per step, a row per interval of values, and lines of quantiles.

    Args:
        levels: a sequence per row, from the highest values to the lowest, with an index into :data:`LEVEL_COLOURS`
            per step, or None.
        quantiles: a sequence per quantile with a value per step; the one in the middle is drawn thicker.
        ends: the lowest and the highest value of the axis.
        label: what is drawn.
        columns: the name of each step; the first and the last are printed.
        width: in CSS pixels.
        height: in CSS pixels.
    """
    left, right, top, bottom = 40, 4, 5, 14
    low, high = ends
    across, down = (width - left - right) / max(1, len(columns)), (height - top - bottom) / max(1, len(levels))
    base = height - bottom
    body = _cells(levels, left, top, across, down)

    def y(value: float) -> float:
        return top + (base - top) * min(1.0, max(0.0, (high - value) / ((high - low) or 1.0)))

    body += [_text(left - 4, y(value) + 3.2, _tick(value), "end") for value in _few_ticks(low, high)]
    for number, values in enumerate(quantiles):
        points, pen = [], "M"
        for step, value in enumerate(values):
            if not _known(value):
                pen = "M"
                continue
            points.append(f"{pen}{_n(left + (step + 0.5) * across)} {_n(y(value))}")
            pen = "L"
        middle = 2 * number + 1 == len(quantiles)
        body.append(_line("run-line-0", RUN_COLOURS[0], "".join(points), 1.3 if middle else 0.6))
    body.append(_line("grid", AXIS, f"M{left} {top}V{base}H{width - right}", 0.5))
    if columns:
        body.append(_text(left, height - 3, columns[0], "start"))
        body.append(_text(width - right, height - 3, columns[-1], "end"))
    return Chart(width, height, "".join(body), label, kind="panel")


def _cells(levels: Sequence[Sequence[int | None]], left: float, top: float, across: float, down: float) -> list[str]:
    """A path per shade. Neighbours of a row that are alike are one bar: every mark costs time on paper."""
    paths: list[list[str]] = [[] for _ in LEVEL_COLOURS]
    for number, line in enumerate(levels):
        start = 0
        y, height = top + number * down, _n(top + (number + 1) * down)
        for level, same in itertools.groupby(line):
            end = start + len(list(same))
            if level is not None:
                x = _n(left + start * across)
                paths[level].append(f"M{x} {_n(y)}H{_n(left + end * across)}V{height}H{x}Z")
            start = end
    return [
        f'<path class="level-fill-{level}" fill="{colour}" d="{"".join(bars)}"/>'
        for level, (colour, bars) in enumerate(zip(LEVEL_COLOURS, paths, strict=True))
        if bars
    ]


def _few_ticks(low: float, high: float) -> list[float]:
    """Two to five round values between the ends."""
    span = (high - low) or 1.0
    unit = 10 ** math.floor(math.log10(span / 2))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


class _Linear:
    """A linear axis from 0 (or the minimum) to the maximum."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low = min(0.0, *values) if values else 0.0
        self.high = max(values, default=1.0)
        if self.high <= self.low:
            self.high = self.low + 1.0

    def __call__(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        step = next(step * factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= 4)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(number * step, _tick(number * step)) for number in range(first, last + 1)]


class _Logarithmic:
    """A logarithmic axis over whole decades (at most 8), with 0 one step below its smallest decade."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [value for value in values if value > 0]
        self.top = math.ceil(math.log10(max(positive)) - 1e-9) if positive else 0
        lowest = math.floor(math.log10(min(positive)) + 1e-9) if positive else -1
        self.bottom = max(min(lowest, self.top - 1), self.top - 8)
        self.has_zero = any(value < 10.0**self.bottom for value in values)
        self.base = self.bottom - (0.6 if self.has_zero else 0.0)

    def __call__(self, value: float) -> float:
        exponent = self.base if value < 10.0**self.bottom else math.log10(value)
        return (exponent - self.base) / (self.top - self.base)

    def ticks(self) -> list[tuple[float, str]]:
        step = max(1, math.ceil((self.top - self.bottom) / 4))
        decades = range(self.top, self.bottom - 1, -step)
        marks = [(10.0**decade, "1" if decade == 0 else f"10{_superscript(decade)}") for decade in decades]
        return [*marks, (0.0, "0")] if self.has_zero else marks


def power_of_ten(exponent: int) -> str:
    """A power of ten as the axes print it.

    >>> [power_of_ten(exponent) for exponent in (-4, 0, 1)]
    ['10⁻⁴', '1', '10']
    """
    return {0: "1", 1: "10"}.get(exponent, f"10{_superscript(exponent)}")


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _tick(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        exponent = math.floor(math.log10(abs(value)))
        return f"{value / 10.0**exponent:.2g}·10{_superscript(exponent)}"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _round_positions(count: int) -> range:
    """At most about eleven round positions on an axis of ``count`` calls."""
    step = next((step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if count / step <= 11), 5000)
    return range(0, count, step)


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _is_marked(values: Values, position: int) -> bool:
    """Whether a crowded line carries a marker here: at every twelfth call and at its largest value."""
    return position % 12 == 0 or values[position] == max(value for value in values if _known(value))


def _n(value: float) -> str:
    """A coordinate with at most one decimal: half a device pixel, and bytes that no rounding mode changes."""
    return f"{value:.1f}".removesuffix(".0")


def _colour(run: int) -> str:
    return RUN_COLOURS[run % len(RUN_COLOURS)]


def _marker(run: int, x: float, y: float, r: float) -> str:
    wide = r * 1.25
    return MARKERS[run % len(MARKERS)].format(
        x=_n(x), y=_n(y), r=_n(r), l=_n(x - r), R=_n(x + r), t=_n(y - r), b=_n(y + r),
        L=_n(x - wide), Q=_n(x + wide), T=_n(y - wide), B=_n(y + wide),
    )  # fmt: skip


def _line(kind: str, colour: str, path: str, width: float, dashes: str = "") -> str:
    if not path:
        return ""
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    pen = f'fill="none" stroke="{colour}" stroke-width="{width:.2f}" stroke-linejoin="round"{dash}'
    return f'<path class="{kind}" {pen} d="{path}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text class="tick" x="{_n(x)}" y="{_n(y)}" font-family="{FONT}" font-size="9" fill="{MUTED}" '
        f'text-anchor="{anchor}">{html.escape(text)}</text>'
    )
