"""Which kernel of the reference is which of the other run, where their order does not agree."""

from __future__ import annotations

import numpy as np

from interpret.evidence import Call
from interpret.functional.matching import Matching, match_filters
from interpret.measures.alignment import Aligned
from interpret.measures.runs import Run


def match_kernels(reference: Run, other: Run, aligned: Aligned) -> dict[int, Matching]:
    """Matched filters of the calls whose kernels both runs hold whole, by row in `aligned`; equal kernels need none.

    Whole are those of the first convolution, and those that an audit was asked for.
    """
    found = {}
    for row, (first, second, _) in enumerate(aligned):
        if first is None or second is None:
            continue
        name, other_name = _whole(reference, first), _whole(other, second)
        if name is None or other_name is None:
            continue
        kernels, others = reference.array("kernels", name), other.array("kernels", other_name)
        if kernels.shape == others.shape and not np.array_equal(kernels, others):
            found[row] = match_filters(kernels, others)
    return found


def _whole(run: Run, call: Call) -> str | None:
    """The name of a call's kernels where all filters and input channels were kept."""
    name = f"{call.name}.weight".removeprefix(".")
    if call.kind != "convolution" or call.occurrence or not run.evidence.has("kernels", name):
        return None
    return name if run.array("kernels", name).shape == call.weight_shape else None
