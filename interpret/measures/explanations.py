"""What evidence says of its own maps: which show nothing, and which say more than a map that knows nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from interpret.evidence import Array, Evidence
from interpret.functional.faithfulness import auc, beats, pixel_counts

STATES = ("fine", "blank", "constant", "not finite", "decided by the constant")  # of a map; the first is no complaint
GRAD_CAM_PLUS_PLUS_CONSTANT = 1e-6  # epsilon of its weights, as in functional.cam
INPUT = "input"  # stands for a call where attributions were put to the test
CONTROLS = ("random", "gaussian")
INSENSITIVE = 0.5  # rank correlation with the map of random weights, above which a map hardly depends on the weights


def map_states(evidence: Evidence) -> Mapping[str, Mapping[str, Array]]:
    """What became of every map: method to call to indices of :data:`STATES`, shape (D, R).

    Not finite: NaN or infinity anywhere. Blank: no positive value. Constant: all values equal and positive. Decided by
    the constant: of grad-cam++, where 2 G^2 < 1e-6 for the mean square G^2 of the gradients at the call.
    """
    mapped = list(evidence.manifest.settings["maps"])
    states: dict[str, dict[str, Array]] = {}
    for name in evidence.keys("maps"):
        method, _, key = name.partition("/")
        if not key:
            continue
        maps = evidence.array("maps", name)
        peak, floor = maps.max((-2, -1)), maps.min((-2, -1))
        finite = np.isfinite(peak) & np.isfinite(floor)
        found = np.select([~finite, ~(peak > 0), peak == floor], [3, 1, 2])
        if method == "grad-cam++" and key in mapped and evidence.has("maps", "gradient_square"):
            squares = evidence.array("maps", "gradient_square")[..., mapped.index(key)]
            found[(2 * squares < GRAD_CAM_PLUS_PLUS_CONSTANT) & (found == 0)] = 4
        states.setdefault(method, {})[key] = found
    return states


def trust_calls(evidence: Evidence) -> tuple[str, ...]:
    """The calls whose maps were put to the test, in order."""
    keys = {name.split("/", 2)[2] for name in evidence.keys("trust") if name.startswith("insertion/")}
    return tuple(call.key for call in evidence.calls if call.key in keys)


def trust_methods(evidence: Evidence) -> tuple[str, ...]:
    """The methods that were put to the test, without the controls."""
    names = (name.split("/", 2)[1] for name in evidence.keys("trust") if "/" in name)
    return tuple(name for name in dict.fromkeys(names) if name not in CONTROLS)


def area(evidence: Evidence, kind: str, name: str, key: str) -> Array | None:
    """Area under the curves of "insertion" or "deletion" at a call, shape (D,); None where untested."""
    if not evidence.has("trust", f"{kind}/{name}/{key}"):
        return None
    curves = evidence.array("trust", f"{kind}/{name}/{key}")
    pixels = math.prod(evidence.manifest.inputs["shape"][-2:])
    return auc(curves, pixel_counts(pixels, curves.shape[1] - 1) / pixels)


def faithfulness(evidence: Evidence, name: str, key: str) -> Array | None:
    """Insertion AUC less deletion AUC of a method's or a control's maps at a call, shape (D,); None where untested."""
    insertion, deletion = (area(evidence, kind, name, key) for kind in ("insertion", "deletion"))
    return None if insertion is None or deletion is None else insertion - deletion


def wins(evidence: Evidence, method: str, key: str) -> tuple[int, int, float]:
    """On how many images a method beats every control at a call, of how many, and the p-value of a sign test.

    The control of an image is the better of the two. NaN beats nothing.
    """
    own = faithfulness(evidence, method, key)
    controls = [found for control in CONTROLS if (found := faithfulness(evidence, control, key)) is not None]
    if own is None or len(controls) < len(CONTROLS) or not len(own):
        return 0, 0, 1.0
    share, probability = beats(own, np.max(controls, axis=0), higher_is_better=True)
    return round(float(share) * len(own)), len(own), float(probability)


def unmoved(evidence: Evidence, method: str) -> float | None:
    """Mean rank correlation of a method's maps with those of wholly random weights; None where that is unknown."""
    if not evidence.has("trust", f"randomization/{method}"):
        return None
    last = evidence.array("trust", f"randomization/{method}")[-1]
    known = last[np.isfinite(last)]
    return float(known.mean()) if known.size else None
