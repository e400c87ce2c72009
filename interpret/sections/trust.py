"""Whether maps say more than a random one: deletion, insertion, drop in confidence, randomised weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from interpret import charts
from interpret.evidence import Array, Evidence
from interpret.language import say
from interpret.measures.explanations import (
    CONTROLS,
    INPUT,
    INSENSITIVE,
    area,
    faithfulness,
    trust_calls,
    trust_methods,
    unmoved,
    wins,
)
from interpret.sections.subject import Run, Subject
from interpret.sections.wording import MISSING, count, number, percent

CONTROL_NAMES = {"random": say("random map"), "gaussian": say("centred Gaussian")}
INSERTION, DELETION = 0, 1  # numbers of the colours of the curves
DASHES = {"random": "1.5 2", "gaussian": "5 2"}


def build(subject: Subject) -> dict[str, Any] | None:
    """Rankings, curves and the cascade of every run that put its maps to the test; None where none did."""
    runs = [(run, tested) for run in subject.runs for tested in _places(subject.evidence[run.label])]
    return {"runs": runs, "threshold": f"{INSENSITIVE:g}"} if runs else None


def _places(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """What was tested at calls, and after it what was at the input: attributions have no other place."""
    if keys := trust_calls(evidence):
        yield {**_tested(evidence, keys), "cascade": _cascade(evidence, trust_methods(evidence))}
    if any(faithfulness(evidence, method, INPUT) is not None for method in trust_methods(evidence)):
        yield {**_tested(evidence, (INPUT,)), "cascade": None}


def _tested(evidence: Evidence, keys: Sequence[str]) -> dict[str, Any]:
    last = keys[-1]
    methods = [method for method in trust_methods(evidence) if faithfulness(evidence, method, last) is not None]
    names = [*methods, *(control for control in CONTROLS if faithfulness(evidence, control, last) is not None)]
    names.sort(key=lambda name: -_mean(faithfulness(evidence, name, last), -np.inf))
    return {
        "calls": [(evidence.call[key].position if key in evidence.call else _place(key), _place(key)) for key in keys],
        "at_calls": last != INPUT,
        "last": _place(last),
        "ranking": [_ranked(evidence, name, keys) for name in names],
        "panels": [panel for method in methods if (panel := _panel(evidence, method, last)) is not None],
        "images": count(len(evidence.array("trust", "probability"))) if evidence.has("trust", "probability") else "",
    }


def _place(key: str) -> str:
    """A call's key, or the word for the input."""
    return say("input") if key == INPUT else key


def _ranked(evidence: Evidence, name: str, keys: Sequence[str]) -> dict[str, Any]:
    """A row of the ranking: the score at every call, and at the last one what it is made of."""
    last, control = keys[-1], name in CONTROLS
    insertion, deletion = (area(evidence, kind, name, last) for kind in ("insertion", "deletion"))
    won, total, probability = wins(evidence, name, last)
    judged = not control and total > 0
    cells = []
    for key in keys:
        won_here, total_here, _ = wins(evidence, name, key)
        score = _signed(faithfulness(evidence, name, key))
        cells.append({"text": score, "weak": not control and total_here > 0 and 2 * won_here <= total_here})
    return {
        "name": CONTROL_NAMES.get(name, name),
        "control": control,
        "cells": cells,
        "insertion": MISSING if insertion is None else number(_mean(insertion)),
        "deletion": MISSING if deletion is None else number(_mean(deletion)),
        "beats": say("{count} of {total} images", count=won, total=total) if judged else "",
        "probability": number(probability) if judged else "",
        "drop": percent(_mean_of(evidence, f"drop/{name}/{last}")),
        "increase": _share_of(evidence, f"increase/{name}/{last}"),
    }


def _panel(evidence: Evidence, method: str, key: str) -> dict[str, Any] | None:
    """Insertion and deletion of a method, mean over the images, with those of the controls dashed."""
    lines = []
    for name, dashes in ((method, ""), *DASHES.items()):
        for kind, colour in (("insertion", INSERTION), ("deletion", DELETION)):
            curves = _curves(evidence, kind, name, key)
            if curves is not None:
                lines.append((curves.mean(0).tolist(), colour, dashes))
    if not lines or lines[0][2]:
        return None
    score = _signed(faithfulness(evidence, method, key))
    label = say(
        "Probability of the target while pixels come and go in the order of {method} at {place}",
        method=method,
        place=_place(key),
    )
    return {"method": method, "score": score, "chart": charts.panel(lines, label)}


def _cascade(evidence: Evidence, methods: Sequence[str]) -> dict[str, Any] | None:
    """Rank correlation with the maps of ever more randomised weights, a line per method."""
    found = {
        method: evidence.array("trust", f"randomization/{method}")
        for method in methods
        if evidence.has("trust", f"randomization/{method}")
    }
    if not found:
        return None
    means = {method: [_mean(stage, None) for stage in stages] for method, stages in found.items()}
    stages = [str(stage) for stage in evidence.document("trust.json").get("stages", [])]
    rows = []
    for place, method in enumerate(found):
        end = unmoved(evidence, method)
        weak = end is not None and end > INSENSITIVE
        verdict = say("unknown") if end is None else say("does not") if weak else say("depends on the weights")
        rows.append({"run": Run(place, method), "end": number(end), "verdict": verdict, "weak": weak})
    text = say("Rank correlation of maps with those of randomised weights, stage by stage")
    chart = charts.curves(list(means.values()), text, runs=range(len(means)), height=130)
    return {"chart": chart, "rows": rows, "stages": list(enumerate(stages))}


def _curves(evidence: Evidence, kind: str, name: str, key: str) -> Array | None:
    found = f"{kind}/{name}/{key}"
    return evidence.array("trust", found) if evidence.has("trust", found) else None


def _mean(values: Array | None, otherwise: Any = None) -> Any:
    """Mean of what is finite."""
    known = np.zeros(0) if values is None else values[np.isfinite(values)]
    return float(known.mean()) if known.size else otherwise


def _mean_of(evidence: Evidence, name: str) -> float | None:
    mean: float | None = _mean(evidence.array("trust", name)) if evidence.has("trust", name) else None
    return mean


def _share_of(evidence: Evidence, name: str) -> str:
    if not evidence.has("trust", name):
        return MISSING
    raised = evidence.array("trust", name)
    return say("{count} of {total}", count=int(raised.sum()), total=len(raised))


def _signed(values: Array | None) -> str:
    mean = _mean(values)
    return MISSING if mean is None else f"{mean:+.3f}".replace("-", "\N{MINUS SIGN}")
