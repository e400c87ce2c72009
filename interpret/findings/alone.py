"""Rules for one run: what it says of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from interpret.evidence import TensorRecord
from interpret.findings.wording import FEW_IMAGES, MANY_UNITS, SHOWN, Draft, few, number_of, percent
from interpret.measures.explanations import (
    INPUT,
    INSENSITIVE,
    trust_calls,
    trust_methods,
    unmoved,
    wins,
)
from interpret.measures.runs import Run

BATCHNORM_DRIFT = 1.0  # |ln variance ratio| or |z| at the first BatchNorm; the right preprocessing stays below 0.4
DOMINANT_IMAGE = 0.25
LARGE_KERNEL = 1000  # entries from which mean and standard deviation tell an initialisation from chance
FRESH_SHARE = 0.8
TRUNCATED = 0.8796  # standard deviation of a normal distribution cut off at two of its own
DECISIVE_IMAGES = 5  # fewer wins out of as many images are possible by chance: 1 / 2^4 > 0.05


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


def untrained_weights(run: Run) -> Iterator[Draft]:
    """Weights as an initialisation leaves them: kernels drawn anew, normalizations at 1 and 0."""
    kernels = [tensor for tensor in run.evidence.tensors if tensor.filters and tensor.entries >= LARGE_KERNEL]
    fresh = [tensor for tensor in kernels if _looks_drawn(tensor)]
    norms = _normalization_tensors(run)
    untouched = [tensor for tensor, value in norms if tensor.minimum == tensor.maximum == value]
    if len(kernels) < 2 or len(fresh) < FRESH_SHARE * len(kernels) or len(untouched) < FRESH_SHARE * len(norms):
        return
    beside = f", and {len(untouched)} of {len(norms)} tensors of normalizations are still all 1 or 0" if norms else ""
    yield (
        "warning",
        None,
        f"The weights look untrained: {len(fresh)} of {number_of(len(kernels), 'large kernel')} have mean and standard "
        f"deviation of a usual initialisation of their shape{beside}.",
    )


def _looks_drawn(tensor: TensorRecord) -> bool:
    """Whether mean and standard deviation are those of a usual initialisation, within four standard errors."""
    if not tensor.standard_deviation or tensor.mean is None:
        return False
    receptive = math.prod(tensor.shape[2:])
    fan_in, fan_out = tensor.shape[1] * receptive, tensor.shape[0] * receptive
    # uniform in +-1/sqrt(fan in), torch's own; He by fan in and fan out; Glorot; the 0.02 and 0.01 of transformers, VGG
    expected = [(3 * fan_in) ** -0.5, (2 / fan_in) ** 0.5, (2 / fan_out) ** 0.5, (2 / (fan_in + fan_out)) ** 0.5]
    error = (2 * tensor.entries) ** -0.5
    centred = abs(tensor.mean) < 4 * tensor.standard_deviation / tensor.entries**0.5
    return centred and any(
        abs(tensor.standard_deviation / value - 1) < 4 * error for value in (*expected, 0.02, 0.01, 0.02 * TRUNCATED)
    )


def _normalization_tensors(run: Run) -> list[tuple[TensorRecord, float]]:
    """The learned scales and shifts of normalizations, with the value that an initialisation gives them."""
    kinds = {call.key: call.kind for call in run.calls}
    values = {"weight": 1.0, "bias": 0.0}
    return [
        (tensor, values[name])
        for tensor in run.evidence.tensors
        if tensor.call is not None
        and kinds[tensor.call] == "normalization"
        and (name := tensor.name.rpartition(".")[2]) in values
    ]


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
        poor = [f"{name} ({won} of {total})" for name, (won, total, _) in beaten.items() if total and 2 * won <= total]
        if not poor:
            continue
        where = "the input" if place == INPUT else place
        images = max(total for _, total, _ in beaten.values())
        yield (
            "warning" if images >= DECISIVE_IMAGES else "notice",
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


def _counted(run: Run, state: int) -> str:
    """How many maps of which methods are in a state, most first; empty where none is."""
    rows = []
    for method, by_call in run.map_states.items():
        total = sum(found.size for found in by_call.values())
        number = sum(int((found == state).sum()) for found in by_call.values())
        if number:
            rows.append((number, f"{number} of {number_of(total, 'map')} of {method}"))
    return ", ".join(text for _, text in sorted(rows, key=lambda row: -row[0]))


RUN_RULES: tuple[Callable[[Run], Iterator[Draft]], ...] = (
    non_finite_values,
    preprocessing_mismatch,
    untrained_weights,
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
