"""The flow between the calls, every call with its shape and cost, and how the runs differ in them."""

from __future__ import annotations

from typing import Any

from interpret import charts
from interpret.sections import module_graph, side_by_side
from interpret.sections.subject import Subject
from interpret.sections.wording import count, flat, quantity, shape


def build(subject: Subject) -> dict[str, Any]:
    """The graph, calls beside each other where runs differ in them, rows of calls with bars, and counts by type."""
    largest = max((layer.call.parameters for layer in subject.layers), default=0) or 1
    busiest = max((layer.call.multiply_adds for layer in subject.layers if layer.kind != "container"), default=0) or 1
    rows = []
    for layer in subject.layers:
        call = layer.call
        rows.append(
            {
                "layer": layer,
                "chapter": layer in subject.chapters,
                "shape": shape(call.output_shape[1:]),
                "field": "" if call.receptive_field is None else shape(call.receptive_field.size),
                "parameters": quantity(call.parameters) if call.parameters else "",
                "parameters_bar": charts.share_bar(call.parameters / largest) if call.parameters else None,
                "multiply_adds": quantity(call.multiply_adds) if call.multiply_adds else "",
                "multiply_adds_bar": charts.share_bar(call.multiply_adds / busiest)
                if call.multiply_adds and layer.kind != "container"
                else None,
                "differs": side_by_side.differs(subject, layer),
            }
        )
    kinds: dict[str, list[int]] = {}
    for call in subject.reference.calls:
        entry = kinds.setdefault(call.type, [0, 0])
        entry[0] += 1
        entry[1] += call.parameters
    types = sorted(kinds.items(), key=lambda item: (-item[1][0], item[0]))
    return {
        "graph": module_graph.graph(subject),
        "tables": side_by_side.tables(subject),
        "rows": rows,
        "changed": [row for row in rows if row["differs"]],
        "compared": subject.comparison is not None,
        "runs": subject.runs,
        "types": [(name, count(calls), quantity(parameters)) for name, (calls, parameters) in types],
        "unused": [
            (run, flat(subject.evidence[run.label].manifest.unused))
            for run in subject.runs
            if subject.evidence[run.label].manifest.unused
        ],
    }
