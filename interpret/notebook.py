"""What evidence and comparisons look like in a notebook: a small piece of HTML that needs no style sheet and no script.

Colours of text and lines are the notebook's own, so that dark themes work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from interpret.shades import LEVEL_COLOURS, level


def fragment(title: str, facts: Iterable[tuple[str, object]], *parts: str) -> str:
    """A heading, facts in a row, and parts made by the functions below."""
    shown = "".join(
        '<div style="margin-right:2em"><div style="opacity:.65;font-size:.85em">'
        f"{escape(name)}</div><div><b>{escape(str(value))}</b></div></div>"
        for name, value in facts
    )
    return (
        f'<div style="max-width:60em"><div style="font-size:1.25em;font-weight:600">{escape(title)}</div>'
        f'<div style="display:flex;flex-wrap:wrap;margin:.4em 0 .8em">{shown}</div>{"".join(parts)}</div>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a row of headings."""
    heads = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in head)
    lines = (
        "".join(f'<td style="text-align:left;vertical-align:top">{escape(str(cell))}</td>' for cell in row)
        for row in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody><tr>{'</tr><tr>'.join(lines)}</tr></tbody></table>"


def strip(name: str, values: Sequence[tuple[str, float | None]]) -> str:
    """One cell per call, coloured by its value on a logarithmic scale from 1e-4 to 1; the title of a cell names it.

    Args:
        name: what the cells show.
        values: name of the call and its value, or None where it is not known.
    """
    cells = "".join(
        f'<span title="{escape(f"{call}: {_written(value)}")}" style="flex:1 1 0;min-width:1px;'
        f'background:{"none" if shade is None else LEVEL_COLOURS[shade]}"></span>'
        for call, value in values
        for shade in [level(value, -4, 0)]
    )
    return (
        f'<div style="opacity:.65;font-size:.85em">{escape(name)}</div>'
        f'<div style="display:flex;height:16px;margin:.1em 0 .5em;border:1px solid rgba(128,128,128,.4)">{cells}</div>'
    )


def _written(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
