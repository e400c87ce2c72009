"""Rules for one run: what it says of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from interpret.evidence import Evidence
from interpret.findings.wording import FEW_IMAGES, MANY_UNITS, SHOWN, Draft, few, number_of, percent
from interpret.measures.runs import Array, Run

BATCHNORM_DRIFT = 1.0  # |ln variance ratio| or |z| at the first BatchNorm; the right preprocessing stays below 0.4
DOMINANT_IMAGE = 0.25
STATES = ("fine", "blank", "constant", "not finite", "decided by the constant")  # of a map; the first is no complaint
GRAD_CAM_PLUS_PLUS_CONSTANT = 1e-6  # epsilon of its weights, as in functional.cam
INPUT = "input"  # stands for a call where attributions were put to the test
CONTROLS = ("random", "gaussian")
INSENSITIVE = 0.5  # rank correlation with the map of random weights, above which a map hardly depends on the weights


def non_finite_values(run: Run) -> Iterator[Draft]:
    """NaN or infinity in the weights or in an output; the first call is the culprit."""
    for tensor in run.evidence.tensors:
        if tensor.nonfinite:
            yield (
                "critical",
                tensor.call,
                f"{tensor.nonfinite} of {tensor.entries} entries of {tensor.name} are not finite.",
            )
    broken = [health for health in run.health if health.nonfinite]
    if broken:
        first, behind = broken[0], f", and {number_of(len(broken) - 1, 'later call')}" if len(broken) > 1 else ""
        yield (
            "critical",
            first.call.key,
            f"{first.call.key} is the first call with values that are not finite ({first.nonfinite} of them){behind}; "
            "nothing that is computed from them can be trusted.",
        )


def preprocessing_mismatch(run: Run) -> Iterator[Draft]:
    """The first BatchNorm's input does not fit its running statistics: the images were not prepared as in training."""
    first = next((health for health in run.health if health.batchnorm_log_variance is not None), None)
    if first is None or first.batchnorm_log_variance is None:
        return
    ratio, z = first.batchnorm_log_variance, first.batchnorm_z_median or 0.0
    if abs(ratio) > BATCHNORM_DRIFT or z > BATCHNORM_DRIFT:
        yield (
            "warning",
            first.call.key,
            f"The images do not look like those of training: at {first.call.key}, the first BatchNorm, the median "
            f"over the channels of ln(variance / running variance) is {ratio:+.2f}, that of |z| of the means is "
            f"{z:.2f} (both should be under 1). Check mean, standard deviation and value range of the preprocessing; "
            "the order of the colours is not seen here.",
        )


def few_images(run: Run) -> Iterator[Draft]:
    """Too few probe images for statistics."""
    if run.count < FEW_IMAGES:
        severity = "warning" if run.count < 4 else "notice"
        yield severity, None, f"{few(run.count)} with 32 or more the numbers become steady."


def dead_units(run: Run) -> Iterator[Draft]:
    """Units of activation calls that are never positive on the probe."""
    silent = [health for health in run.health if health.dead_units]
    if silent:
        total = sum(health.dead_units or 0 for health in silent)
        most = max(silent, key=lambda health: health.dead_units or 0)
        yield (
            "info",
            most.call.key,
            f"Never above 0 on the {run.count} images: {number_of(total, 'unit')} in "
            f"{number_of(len(silent), 'activation call')}, most in {most.call.key} "
            f"({most.dead_units} of {most.call.channels}).",
        )


def zero_filters(run: Run) -> Iterator[Draft]:
    """Filters that are exactly zero: pruned where they are many, dead after training where they are few."""
    zero = [tensor for tensor in run.evidence.tensors if tensor.zero_filters]
    pruned = [tensor for tensor in zero if tensor.zero_filters > MANY_UNITS * tensor.filters]
    for tensor in pruned[:SHOWN]:
        yield (
            "notice",
            tensor.call,
            f"Exactly zero: {tensor.zero_filters} of {tensor.filters} filters of {tensor.name}.",
        )
    rest = [tensor for tensor in zero if tensor not in pruned[:SHOWN]]
    if rest:
        count = sum(tensor.zero_filters for tensor in rest)
        yield "info", None, f"Exactly zero: {number_of(count, 'filter')} in {number_of(len(rest), 'tensor')}."


def near_zero_filters(run: Run) -> Iterator[Draft]:
    """Filters with next to no weight; healthy networks have them too."""
    near = sum(tensor.near_zero_filters - tensor.zero_filters for tensor in run.evidence.tensors)
    if near:
        filters = sum(tensor.filters for tensor in run.evidence.tensors)
        yield (
            "info",
            None,
            f"{near} of {filters} filters have a norm under 0.1 % of their layer's median. "
            "Healthy networks have such filters.",
        )


def dominant_image(run: Run) -> Iterator[Draft]:
    """One image carries so much of the variance that similarities rest on it."""
    if run.count < FEW_IMAGES:
        return
    ruled = [health for health in run.health if (health.leverage or 0.0) > DOMINANT_IMAGE]
    if ruled:
        most = max(ruled, key=lambda health: health.leverage or 0.0)
        yield (
            "info",
            most.call.key,
            f"In {len(ruled)} of {number_of(len(run.calls), 'call')} one image carries more than a quarter of all "
            f"variance (most in {most.call.key}, {percent(most.leverage or 0.0)}): similarities there rest on that "
            "image.",
        )


def maps_not_finite(run: Run) -> Iterator[Draft]:
    """Maps with NaN or infinity."""
    if worst := _counted(run, 3):
        yield "warning", None, f"NaN or infinite: {worst}."


def maps_without_content(run: Run) -> Iterator[Draft]:
    """Maps that show nothing, because no value is positive or all are equal."""
    if blank := _counted(run, 1):
        yield "notice", None, f"Blank, with no positive value: {blank}."
    if constant := _counted(run, 2):
        yield "notice", None, f"Constant, so nothing to see once scaled: {constant}."


def maps_decided_by_a_constant(run: Run) -> Iterator[Draft]:
    """Maps of grad-cam++ where its epsilon outweighs the squared gradients."""
    if decided := _counted(run, 4):
        yield (
            "notice",
            None,
            f"Decided by the constant 1e-6 of the formula, because twice the mean squared gradient lies below it: "
            f"{decided}. Another scale of the logits would give other maps.",
        )


def maps_no_better_than_controls(run: Run) -> Iterator[Draft]:
    """Methods that a random map or a centred Gaussian equals, at the last call that was put to the test."""
    for place in (*trust_calls(run.evidence)[-1:], INPUT):
        beaten = {method: wins(run.evidence, method, place) for method in trust_methods(run.evidence)}
        poor = [f"{method} ({won} of {total})" for method, (won, total) in beaten.items() if total and 2 * won <= total]
        if not poor:
            continue
        where = "the input" if place == INPUT else place
        yield (
            "warning",
            None,
            f"At {where} insertion less deletion does not beat both a random map and a centred Gaussian on more than "
            f"half of the images: {', '.join(poor)}.",
        )


def maps_insensitive_to_weights(run: Run) -> Iterator[Draft]:
    """Methods whose maps stay the same when all weights are random."""
    same = {method: unmoved(run.evidence, method) for method in trust_methods(run.evidence)}
    listed = [f"{method} ({value:.2f})" for method, value in same.items() if value is not None and value > INSENSITIVE]
    if listed:
        yield (
            "warning",
            None,
            f"Maps hardly depend on the weights, by their rank correlation with maps of the network with random ones "
            f"(mean over the images, above {INSENSITIVE:g}): {', '.join(listed)}.",
        )


# What evidence says of its own maps -----------------------------------------------------------------------------------


def map_states(evidence: Evidence | Run) -> Mapping[str, Mapping[str, Array]]:
    """What became of every map: method to call to indices of :data:`STATES`, shape (D, R).

    Not finite: NaN or infinity anywhere. Blank: no positive value. Constant: all values equal and positive. Decided by
    the constant: of grad-cam++, where 2 G^2 < 1e-6 for the mean square G^2 of the gradients at the call.
    """
    holder = evidence.evidence if isinstance(evidence, Run) else evidence
    mapped = list(holder.manifest.settings["maps"])
    states: dict[str, dict[str, Array]] = {}
    for name in holder.keys("maps"):
        method, _, key = name.partition("/")
        if not key:
            continue
        maps = evidence.array("maps", name)
        peak, floor = maps.max((-2, -1)), maps.min((-2, -1))
        finite = (abs(peak) < math.inf) & (abs(floor) < math.inf)  # False for NaN
        blank, constant = finite & ~(peak > 0), finite & (peak > 0) & (peak == floor)
        found = blank * 1 + constant * 2 + ~finite * 3
        if method == "grad-cam++" and key in mapped and holder.has("maps", "gradient_square"):
            squares = evidence.array("maps", "gradient_square")[..., mapped.index(key)]
            found = found + 4 * ((2 * squares < GRAD_CAM_PLUS_PLUS_CONSTANT) & (found == 0))
        states.setdefault(method, {})[key] = found
    return states


def _counted(run: Run, state: int) -> str:
    """How many maps of which methods are in a state, most first; empty where none is."""
    rows = []
    for method, by_call in map_states(run).items():
        total = sum(found.size for found in by_call.values())
        number = sum(int((found == state).sum()) for found in by_call.values())
        if number:
            rows.append((number, f"{number} of {number_of(total, 'map')} of {method}"))
    return ", ".join(text for _, text in sorted(rows, key=lambda row: -row[0]))


def trust_calls(evidence: Evidence) -> tuple[str, ...]:
    """The calls whose maps were put to the test, in order."""
    keys = {name.split("/", 2)[2] for name in evidence.keys("trust") if name.startswith("insertion/")}
    return tuple(call.key for call in evidence.calls if call.key in keys)


def trust_methods(evidence: Evidence) -> tuple[str, ...]:
    """The methods that were put to the test, without the controls."""
    names = (name.split("/", 2)[1] for name in evidence.keys("trust") if "/" in name)
    return tuple(name for name in dict.fromkeys(names) if name not in CONTROLS)


def area(curves: Array) -> Array:
    """Area under curves of shape (D, S+1) over [0, 1] by the trapezoidal rule, shape (D,)."""
    areas: Array = (curves[:, :-1] + curves[:, 1:]).sum(1) / (2 * (curves.shape[1] - 1))
    return areas


def faithfulness(evidence: Evidence, name: str, key: str) -> Array | None:
    """Insertion AUC less deletion AUC of a method's or a control's maps at a call, shape (D,); None where untested."""
    kinds = [f"{kind}/{name}/{key}" for kind in ("insertion", "deletion")]
    if not all(evidence.has("trust", kind) for kind in kinds):
        return None
    insertion, deletion = (area(evidence.array("trust", kind)) for kind in kinds)
    return insertion - deletion


def wins(evidence: Evidence, method: str, key: str) -> tuple[int, int]:
    """On how many images a method beats every control at a call, and on how many it was compared."""
    own = faithfulness(evidence, method, key)
    controls = [faithfulness(evidence, control, key) for control in CONTROLS]
    if own is None or any(control is None for control in controls):
        return 0, 0
    beaten = own == own  # NaN beats nothing
    for control in controls:
        beaten = beaten & (own > control)
    return int(beaten.sum()), len(own)


def sign_test(won: int, total: int) -> float:
    """How likely at least so many wins are where each is an even bet: sum over k >= won of C(n, k) / 2^n.

    >>> sign_test(4, 4), sign_test(0, 4)
    (0.0625, 1.0)
    """
    return float(sum(math.comb(total, k) for k in range(won, total + 1)) / 2**total)


def unmoved(evidence: Evidence, method: str) -> float | None:
    """Mean rank correlation of a method's maps with those of wholly random weights; None where that is unknown."""
    if not evidence.has("trust", f"randomization/{method}"):
        return None
    last = evidence.array("trust", f"randomization/{method}")[-1]
    known = last[last == last]
    return float(known.mean()) if known.size else None


RUN_RULES: tuple[Callable[[Run], Iterator[Draft]], ...] = (
    non_finite_values,
    preprocessing_mismatch,
    few_images,
    zero_filters,
    dead_units,
    near_zero_filters,
    dominant_image,
    maps_not_finite,
    maps_no_better_than_controls,
    maps_insensitive_to_weights,
    maps_without_content,
    maps_decided_by_a_constant,
)
