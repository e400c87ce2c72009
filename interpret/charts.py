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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from markupsafe import Markup

from interpret import drawing
from interpret.language import Message, listed, say
from interpret.shades import LEVEL_COLOURS

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
# Strokes of lines that may lie on each other: a dashed one leaves the one below it visible. "" is solid.
DASHES = ("", "6 3", "2 2", "9 3 2 3", "4 4", "1 3", "12 4", "6 2 1 2 1 2")
# What became of a map: fine, blank, constant, not finite, decided by a constant of its formula.
STATE_COLOURS = ("#b9d3e6", "#5f6770", "#e69f00", "#b3261e", "#cc79a7")
# From the first step to the last: viridis without its palest end, which white paper swallows.
STEP_COLOURS = tuple(f"#{bytes(drawing.VIRIDIS[round(step * 0.87 * 254 / 8)]).hex()}" for step in range(9))
AXIS_DEPTH = (30, 74)  # of an axis of calls below a picture, and left of it
AXIS_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # calls from tick to tick
MOST_POINTS = 160  # of one ranked curve: more are closer than a pixel or two
AXIS, MUTED, ALARM = "#c9ced3", "#5f6770", "#b3261e"
FONT = "Inter Report, Inter, Noto Sans CJK SC, sans-serif"

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """An SVG drawing, and the only object whose markup a template prints unescaped.

    It is made in this module alone, from numbers and escaped text.

    Attributes:
        width, height: size in CSS pixels.
        body: the elements inside ``<svg>``; a message where words are among them.
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
    mark: int | None = None,
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
        mark: a position that a line from top to bottom points out.
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
    if mark is not None:
        body.append(_line("mark-line", "#1b1f23", f"M{_n(x(mark))} {top}V{height - bottom}", 1.2))
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
    titles: tuple[str, str] = (say("call"), say("step")),
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
    return Chart(width, round(base) + bottom, listed(body, ""), label)


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
    body.append(_text(width - right, height - 6, say("call"), "end"))
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
    return Chart(width, height, listed(body, ""), label)


def step_colour(step: int, count: int) -> int:
    """Which of :data:`STEP_COLOURS` a step has among ``count``: the first and the last take both ends.

    >>> [step_colour(step, 5) for step in range(5)]
    [0, 2, 4, 6, 8]
    """
    return round(step * (len(STEP_COLOURS) - 1) / max(1, count - 1))


def call_axis(
    calls: int, stages: Sequence[tuple[int, int, str]], label: str, length: int, *, vertical: bool = False
) -> Chart:
    """The axis beside a picture with a row or a column per call: positions of calls, and the names of stages.

    Args:
        calls: how many rows or columns the picture has.
        stages: first and last call of each stage, and its name; one that has no room for its name goes without.
        label: what is drawn.
        length: of the axis, in CSS pixels.
        vertical: whether it stands left of the picture, from the top down; else it lies below it.
    """
    across = AXIS_DEPTH[vertical]
    unit = length / max(1, calls)
    every = next((step for step in AXIS_STEPS if step * unit >= 22), AXIS_STEPS[-1])
    ticks, edges, body = [], [], []
    for call in range(0, calls, every):
        place = (call + 0.5) * unit
        ticks.append(f"M{across - 4} {_n(place)}H{across}" if vertical else f"M{_n(place)} 0V4")
        at = (across - 6, place + 3.2, str(call), "end") if vertical else (place, 13, str(call), "middle")
        if vertical or (place >= 8 and place <= length - 10):
            body.append(_text(*at))
    for first, last, name in stages:
        start, end = first * unit, (last + 1) * unit
        if first:
            edges.append(f"M0 {_n(start)}H{across - 26}" if vertical else f"M{_n(start)} 16V{across}")
        room = end - start
        if name and room >= (11 if vertical else 6 + 5.4 * len(name)):
            middle = (start + end) / 2
            body.append(_text(2, middle + 3.2, name, "start") if vertical else _text(middle, 26, name, "middle"))
    body += [_line("tick-line", MUTED, "".join(ticks), 0.7), _line("grid", AXIS, "".join(edges), 0.7)]
    return Chart(across if vertical else length, length if vertical else across, listed(body, ""), label)


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


def run_stroke(run: int) -> Chart:
    """The stroke of a run in :func:`histogram_lines` and :func:`ranked_curves`, as it stands beside the run's name."""
    return Chart(26, 10, _run_line(run, "M1 5H25"), "", kind="stroke")


def histogram_lines(
    series: Sequence[Sequence[float]],
    ends: tuple[float, float],
    label: str,
    *,
    runs: Sequence[int],
    width: int = 680,
    height: int = 100,
) -> Chart:
    """Histograms of several runs over each other, a stepped line per run; shares on a logarithmic axis.

    Args:
        series: a sequence per run with the share of the values in each of the even intervals between the ends.
        ends: the lowest and the highest value of the horizontal axis.
        label: what is drawn.
        runs: the number of each series' run, which decides its colour and stroke.
        width: in CSS pixels.
        height: in CSS pixels.
    """
    left, right, top, bottom = 46, 8, 8, 20
    low, high = ends
    scale = _Logarithmic([share for shares in series for share in shares if _known(share)])
    base, down, wide = height - bottom, height - top - bottom, width - left - right
    body = []
    for tick, text in scale.ticks():
        y = _n(top + (1 - scale(tick)) * down)
        body.append(_line("grid", AXIS, f"M{left} {y}H{width - right}", 0.5))
        body.append(_text(left - 6, float(y) + 3.2, text, "end"))
    for value in _few_ticks(low, high):
        x = left + wide * (value - low) / ((high - low) or 1.0)
        body += [
            _line("grid", AXIS, f"M{_n(x)} {base}v3", 0.5),
            _text(x, height - 6, _tick(0.0 if abs(value) < 1e-9 * (high - low) else value), "middle"),
        ]
    for run, shares in zip(runs, series, strict=True):
        step, path = wide / max(1, len(shares)), f"M{left} {base}"
        for place, share in enumerate(shares):
            path += f"V{_n(top + (1 - scale(share)) * down)}H{_n(left + (place + 1) * step)}"
        body.append(_run_line(run, f"{path}V{base}"))
    return Chart(width, height, "".join(body), label)


def ranked_curves(
    series: Sequence[Sequence[float]], label: str, *, runs: Sequence[int], width: int = 260, height: int = 100
) -> Chart:
    """Values of each run from the largest to the smallest, over the share of the values; on a logarithmic axis.

    Args:
        series: finite values of 0 or more per run, in any order.
        label: what is drawn.
        runs: the number of each series' run, which decides its colour and stroke.
        width: in CSS pixels.
        height: in CSS pixels.
    """
    left, right, top, bottom = 46, 8, 8, 20
    scale = _Logarithmic([value for values in series for value in values])
    base, down, wide = height - bottom, height - top - bottom, width - left - right
    body = []
    for tick, text in scale.ticks():
        y = _n(top + (1 - scale(tick)) * down)
        body.append(_line("grid", AXIS, f"M{left} {y}H{width - right}", 0.5))
        body.append(_text(left - 6, float(y) + 3.2, text, "end"))
    for part, anchor in ((0.0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1.0, "end")):
        x = left + part * wide
        body += [_line("grid", AXIS, f"M{_n(x)} {base}v3", 0.5), _text(x, height - 6, f"{100 * part:g} %", anchor)]
    for run, values in zip(runs, series, strict=True):
        ranked = sorted(values, reverse=True)
        every = max(1, math.ceil(len(ranked) / MOST_POINTS))
        places = sorted({*range(0, len(ranked), every), len(ranked) - 1}) if ranked else []
        points = [
            f"{_n(left + wide * place / max(1, len(ranked) - 1))} {_n(top + (1 - scale(ranked[place])) * down)}"
            for place in places
        ]
        body.append(_run_line(run, f"M{'L'.join(points)}" if points else ""))
    return Chart(width, height, "".join(body), label)


def _run_line(run: int, path: str) -> str:
    """A run's line where lines may lie on each other: the reference's is thick and solid, those above it are thin."""
    return _line(
        f"run-line-{run % len(RUN_COLOURS)}", _colour(run), path, 1.1 if run else 2.4, DASHES[run % len(DASHES)]
    )


@dataclass(frozen=True, slots=True)
class Node:
    """A box of a flow chart.

    Attributes:
        label: its name; cut at the front where there is no room.
        note: what stands at the end of its row.
        title: what a pointer on it shows.
        link: the anchor that it leads to; "" for none.
        sources: numbers of the boxes whose outputs it uses, all before it.
        branched: whether it has an arc beside it.
        levels: a shade per cell, an index into :data:`LEVEL_COLOURS` or None; no cells make one plain box.
        marked: per cell whether it is underlined.
    """

    label: str
    note: str = ""
    title: str = ""
    link: str = ""
    sources: tuple[int, ...] = ()
    branched: bool = False
    levels: tuple[int | None, ...] = ()
    marked: tuple[bool, ...] = ()


def flow_chart(nodes: Sequence[Node], label: str, *, linked: bool = False, width: int = 680) -> Chart:
    """Boxes one below the other in order of execution, in columns, with a line for each use of an output.

    What the next box uses is a line down to it. What later boxes use runs down a lane on the left, one per output, and
    turns in above each box that uses it; lanes go on at the top of the next column. Shorter lanes lie further in.

    Args:
        nodes: the boxes.
        label: what is drawn.
        linked: whether boxes lead to their anchors and show their titles: on a screen.
        width: in CSS pixels.
    """
    row, top, half, turn, gap = 16, 8, 4, 2, 20
    columns = 1 if len(nodes) <= 16 else 2 if len(nodes) <= 40 else 3
    rows = math.ceil(len(nodes) / columns)
    bottom = top + rows * row
    uses: list[list[int]] = [[] for _ in nodes]
    for number, node in enumerate(nodes):
        for source in node.sources:
            uses[source].append(number)
    lanes = _lanes([(source, max(later)) for source, later in enumerate(uses) if later and later[-1] > source + 1])
    column = (width - gap * (columns - 1)) / columns
    spacing = min(6.0, column / 3 / max(1, max(lanes.values(), default=0) + 1))
    inset = 14 + spacing * (max(lanes.values()) + 1 if lanes else 0)
    cells = max(1, *(len(node.levels) for node in nodes))

    def x(number: int) -> float:
        return (number // rows) * (column + gap) + inset

    def y(number: int) -> float:
        return top + (number % rows + 0.5) * row

    links: list[str] = []
    for number, node in enumerate(nodes):
        if number - 1 in node.sources:
            start = f"M{_n(x(number - 1))} {_n(y(number - 1) + half)}"
            broken = f"V{bottom}M{_n(x(number))} {top}" if number % rows == 0 else ""
            links.append(f"{start}{broken}V{_n(y(number) - half)}")
        if node.branched:
            links.append(f"M{_n(x(number))} {_n(y(number) - half - turn)}h-5q-4 0 -4 4v4q0 4 4 4h5")
    skips = [_skip(source, uses[source], lane, x, y, rows, (top, bottom), spacing) for source, lane in lanes.items()]
    shades: list[list[str]] = [[] for _ in LEVEL_COLOURS]
    parts: list[list[str]] = [[] for _ in range(6)]
    plain, empty, edges, marks, texts, anchors = parts
    for number, node in enumerate(nodes):
        left, upper = x(number) - half, y(number) - half
        for cell, shade in enumerate(node.levels or (None,)):
            square = f"M{_n(left + 9 * cell)} {_n(upper)}h8v8h-8Z"
            if shade is not None:
                shades[shade].append(square)
                edges.append(square)
            else:
                (empty if node.levels or not node.link else plain).append(square)
        marks += [f"M{_n(left + 9 * cell)} {_n(upper + 9)}h8" for cell, marked in enumerate(node.marked) if marked]
        begin, end = left + 9 * cells + 5, x(number) - inset + column
        room = end - begin - (5.0 * len(node.note) + 6 if node.note else 0)
        texts.append(_text(begin, y(number) + 3.2, _cut(node.label, int(room / 5.0)), "start"))
        if node.note:
            texts.append(_text(end, y(number) + 3.2, node.note, "end"))
        if linked and node.link:
            place = f"M{_n(left - 2)} {_n(y(number) - row / 2)}H{_n(end)}v{row}H{_n(left - 2)}Z"
            link = (
                f'<a href="#{html.escape(node.link)}" tabindex="-1"><title>{{title}}</title>'
                f'<path class="flow-place" fill="#ffffff" fill-opacity="0" d="{place}"/></a>'
            )
            anchors.append(Message(Markup(link), {"title": node.title}))
    body = [_line("skip-line", RUN_COLOURS[0], "".join(skips), 1.0), _line("flow-line", MUTED, "".join(links), 1.0)]
    body += [
        f'<path class="level-fill-{shade}" fill="{colour}" d="{"".join(squares)}"/>'
        for shade, (colour, squares) in enumerate(zip(LEVEL_COLOURS, shades, strict=True))
        if squares
    ]
    if plain:
        body.append(f'<path class="bar" fill="{MUTED}" d="{"".join(plain)}"/>')
    if empty:
        body.append(f'<path class="flow-empty" fill="#ffffff" stroke="{MUTED}" d="{"".join(empty)}"/>')
    body.append(_line("grid", AXIS, "".join(edges), 0.5))
    body += [_line("mark-edge", "#ffffff", "".join(marks), 3.6), _line("mark-line", "#1b1f23", "".join(marks), 2.0)]
    return Chart(width, bottom + top, listed((*body, *texts, *anchors), ""), label)


def _lanes(spans: Sequence[tuple[int, int]]) -> dict[int, int]:
    """A lane for each span (first, last), so that no two in a lane overlap: first of a span to its lane.

    >>> _lanes([(0, 9), (1, 3), (3, 5), (2, 4)])
    {1: 0, 3: 0, 2: 1, 0: 2}
    """
    taken: list[list[tuple[int, int]]] = []
    lanes = {}
    for first, last in sorted(spans, key=lambda span: (span[1] - span[0], span[0])):
        free = (lane for lane, held in enumerate(taken) if all(last <= start or end <= first for start, end in held))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
        lanes[first] = lane
    return lanes


def _skip(
    source: int,
    uses: Sequence[int],
    lane: int,
    x: Callable[[int], float],
    y: Callable[[int], float],
    rows: int,
    ends: tuple[int, int],
    spacing: float,
) -> str:
    """The path of an output that later boxes use: out below its box, down the lane, in above each box."""
    aside, out = 14 + spacing * lane, 6
    path = [f"M{_n(x(source))} {_n(y(source) + 4)}q0 2 -2 2H{_n(x(source) - aside + 2)}q-2 0 -2 2"]
    last = max(uses)
    for column in range(source // rows, last // rows + 1):
        if column > source // rows:
            path.append(f"M{_n(x(column * rows) - aside)} {ends[0]}")
        path.append(f"V{_n(y(last) - out - 2) if column == last // rows else ends[1]}")
    path += [
        f"M{_n(x(use) - aside)} {_n(y(use) - out - 2)}q0 2 2 2H{_n(x(use) - 2)}q2 0 2 2"
        for use in uses
        if use > source + 1
    ]
    return "".join(path)


def _cut(text: str, characters: int) -> str:
    """The end of a dotted name that fits: from a dot on, where one leaves enough.

    >>> _cut("features.denseblock1.denselayer1", 24), _cut("self_attention", 9), _cut("fc", 9)
    ('…denselayer1', '…ttention', 'fc')
    """
    if len(text) <= characters:
        return text
    end = text[-max(1, characters - 1) :]
    _, _, parts = end.partition(".")
    return f"\N{HORIZONTAL ELLIPSIS}{parts if len(parts) > len(end) // 3 else end}"


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


def marker_of(run: int) -> int:
    """Which of eight shapes a run has: with its colour, 64 runs are told apart.

    >>> [marker_of(run) for run in (0, 1, 7, 8, 9, 15, 16)]
    [0, 1, 7, 1, 2, 0, 2]
    """
    return (run + run // len(RUN_COLOURS)) % len(MARKERS)


def _marker(run: int, x: float, y: float, r: float) -> str:
    wide = r * 1.25
    return MARKERS[marker_of(run)].format(
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
    element = (
        f'<text class="tick" x="{_n(x)}" y="{_n(y)}" font-family="{FONT}" font-size="9" fill="{MUTED}" '
        f'text-anchor="{anchor}">{{text}}</text>'
    )
    return Message(Markup(element), {"text": text})
