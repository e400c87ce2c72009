"""The calls of two runs beside each other: what was added, removed and reshaped, and what is the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from interpret.evidence import Call
from interpret.language import Message, plural
from interpret.sections.subject import Layer, Run, Subject
from interpret.sections.wording import quantity, shape

ADDED, REMOVED, RESHAPED, RENAMED, EQUAL = "added", "removed", "reshaped", "renamed", "equal"
SIGNS = {ADDED: "+", REMOVED: "\N{MINUS SIGN}", RESHAPED: "~", RENAMED: "", EQUAL: ""}
MOST_ROWS = 120  # of calls that differ; with more, stretches of them become one row too
SHORTEST_STRETCH = 3  # of calls that differ, to be one row then

Pair = tuple[Call | None, Call | None]


def tables(subject: Subject) -> list[dict[str, Any]]:
    """A table for each run whose calls are not the reference's: rows of pairs, unchanged stretches as one row."""
    found = ((run, _pairs(subject, run)) for run in subject.others)
    return [_table(run, pairs) for run, pairs in found if any(state != EQUAL for state, _ in pairs)]


def differs(subject: Subject, layer: Layer) -> bool:
    """Whether another run lacks a call, or has it under another name or in another shape."""
    return any(state_of(*_pair(subject, layer, run)) != EQUAL for run in subject.others)


def state_of(reference: Call | None, other: Call | None) -> str:
    """What became of a call: "added", "removed", "reshaped" (another type, shape or size), "renamed" or "equal".

    A call that neither run has, of a third one, is equal.
    """
    if reference is None or other is None:
        return EQUAL if reference is other else ADDED if reference is None else REMOVED
    if any(
        getattr(reference, field) != getattr(other, field)
        for field in ("type", "output_shape", "weight_shape", "parameters")
    ):
        return RESHAPED
    return EQUAL if reference.key == other.key else RENAMED


def _pairs(subject: Subject, run: Run) -> list[tuple[str, Pair]]:
    pairs = [_pair(subject, layer, run) for layer in subject.layers]
    return [(state_of(*pair), pair) for pair in pairs if any(pair)]


def _pair(subject: Subject, layer: Layer, run: Run) -> Pair:
    return layer.calls.get(subject.labels[0]), layer.calls.get(run.label)


def _table(run: Run, pairs: Sequence[tuple[str, Pair]]) -> dict[str, Any]:
    counts = {state: sum(one == state for one, _ in pairs) for state in SIGNS}
    crowded = counts[ADDED] + counts[REMOVED] + counts[RESHAPED] > MOST_ROWS
    rows = []
    for state, some in itertools.groupby(pairs, lambda item: item[0]):
        stretch = [pair for _, pair in some]
        shortest = 2 if state in (EQUAL, RENAMED) else SHORTEST_STRETCH if crowded else len(stretch) + 1
        folded = [stretch] if len(stretch) >= shortest else [[pair] for pair in stretch]
        rows += [_row(state, part) for part in folded]
    return {"run": run, "counts": counts, "rows": rows}


def _row(state: str, stretch: Sequence[Pair]) -> dict[str, Any]:
    first, second = ([pair[side] for pair in stretch] for side in (0, 1))
    sides = [_side(state, [call for call in side if call is not None]) for side in (first, second)]
    return {"state": state, "sign": SIGNS[state], "folded": len(stretch) > 1, "sides": sides}


def _side(state: str, calls: Sequence[Call]) -> dict[str, Any] | None:
    """A call of one run, or several in a row; None where this run has none."""
    if not calls:
        return None
    parameters = sum(call.parameters for call in calls)
    return {
        "key": calls[0].key if len(calls) == 1 else _stretch(state, calls),
        "type": calls[0].type if len(calls) == 1 else "",
        "shape": shape(calls[0].output_shape[1:]) if len(calls) == 1 else "",
        "parameters": quantity(parameters) if parameters else "",
    }


def _stretch(state: str, calls: Sequence[Call]) -> Message:
    ends = {"first": calls[0].key, "last": calls[-1].key}
    if state == EQUAL:
        return plural(len(calls), "{n} equal call: {first}", "{n} equal calls: {first} to {last}", **ends)
    return plural(len(calls), "{n} call: {first}", "{n} calls: {first} to {last}", **ends)
