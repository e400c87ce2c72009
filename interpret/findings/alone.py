"""Rules for one run: what it says of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from interpret.evidence import TensorRecord
from interpret.findings.wording import FEW_IMAGES, MANY_UNITS, SHOWN, Draft, few, percent
from interpret.language import Message, listed, plural, say
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
                say(
                    "{count} of {total} entries of {tensor} are not finite.",
                    count=tensor.nonfinite,
                    total=tensor.entries,
                    tensor=tensor.name,
                ),
            )
    broken = [health for health in run.health if health.nonfinite]
    if broken:
        key, count, later = broken[0].call.key, broken[0].nonfinite, len(broken) - 1
        said = say(
            "{call} is the first call with values that are not finite ({count} of them); nothing that is computed from "
            "them can be trusted.",
            call=key,
            count=count,
        )
        if later:
            said = say(
                "{call} is the first call with values that are not finite ({count} of them), and {later}; nothing that "
                "is computed from them can be trusted.",
                call=key,
                count=count,
                later=plural(later, "{n} later call", "{n} later calls"),
            )
        yield "critical", key, said


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
            say(
                "The images do not look like those of training: at {call}, the first BatchNorm, the median over the "
                "channels of ln(variance / running variance) is {ratio}, that of |z| of the means is {distance} (both "
                "should be under 1). Check mean, standard deviation and value range of the preprocessing; the order of "
                "the colours is not seen here.",
                call=first.call.key,
                ratio=f"{ratio:+.2f}",
                distance=f"{z:.2f}",
            ),
        )


def untrained_weights(run: Run) -> Iterator[Draft]:
    """Weights as an initialisation leaves them: kernels drawn anew, normalizations at 1 and 0."""
    kernels = [tensor for tensor in run.evidence.tensors if tensor.filters and tensor.entries >= LARGE_KERNEL]
    fresh = [tensor for tensor in kernels if _looks_drawn(tensor)]
    norms = _normalization_tensors(run)
    untouched = [tensor for tensor, value in norms if tensor.minimum == tensor.maximum == value]
    if len(kernels) < 2 or len(fresh) < FRESH_SHARE * len(kernels) or len(untouched) < FRESH_SHARE * len(norms):
        return
    drawn = say(
        "{count} of {kernels} have mean and standard deviation of a usual initialisation of their shape",
        count=len(fresh),
        kernels=plural(len(kernels), "{n} large kernel", "{n} large kernels"),
    )
    if not norms:
        yield "warning", None, say("The weights look untrained: {kernels}.", kernels=drawn)
        return
    yield (
        "warning",
        None,
        say(
            "The weights look untrained: {kernels}, and {count} of {total} tensors of normalizations are still all 1 "
            "or 0.",
            kernels=drawn,
            count=len(untouched),
            total=len(norms),
        ),
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
        yield severity, None, say("{worth}; with 32 or more the numbers become steady.", worth=few(run.count))


def dead_units(run: Run) -> Iterator[Draft]:
    """Units of activation calls that are never positive on the probe."""
    silent = [health for health in run.health if health.dead_units]
    if silent:
        total = sum(health.dead_units or 0 for health in silent)
        most = max(silent, key=lambda health: health.dead_units or 0)
        yield (
            "info",
            most.call.key,
            say(
                "Never above 0 on the {images} images: {units} in {calls}, most in {call} ({count} of {total}).",
                images=run.count,
                units=plural(total, "{n} unit", "{n} units"),
                calls=plural(len(silent), "{n} activation call", "{n} activation calls"),
                call=most.call.key,
                count=most.dead_units,
                total=most.call.channels,
            ),
        )


def zero_filters(run: Run) -> Iterator[Draft]:
    """Filters that are exactly zero: pruned where they are many, dead after training where they are few."""
    zero = [tensor for tensor in run.evidence.tensors if tensor.zero_filters]
    pruned = [tensor for tensor in zero if tensor.zero_filters > MANY_UNITS * tensor.filters]
    for tensor in pruned[:SHOWN]:
        yield (
            "notice",
            tensor.call,
            say(
                "Exactly zero: {count} of {total} filters of {tensor}.",
                count=tensor.zero_filters,
                total=tensor.filters,
                tensor=tensor.name,
            ),
        )
    rest = [tensor for tensor in zero if tensor not in pruned[:SHOWN]]
    if rest:
        filters = plural(sum(tensor.zero_filters for tensor in rest), "{n} filter", "{n} filters")
        tensors = plural(len(rest), "{n} tensor", "{n} tensors")
        yield "info", None, say("Exactly zero: {filters} in {tensors}.", filters=filters, tensors=tensors)


def near_zero_filters(run: Run) -> Iterator[Draft]:
    """Filters with next to no weight; healthy networks have them too."""
    near = sum(tensor.near_zero_filters - tensor.zero_filters for tensor in run.evidence.tensors)
    if near:
        filters = sum(tensor.filters for tensor in run.evidence.tensors)
        yield (
            "info",
            None,
            say(
                "{count} of {total} filters have a norm under 0.1 % of their layer's median. Healthy networks have "
                "such filters.",
                count=near,
                total=filters,
            ),
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
            say(
                "In {count} of {calls} one image carries more than a quarter of all variance (most in {call}, "
                "{share}): similarities there rest on that image.",
                count=len(ruled),
                calls=plural(len(run.calls), "{n} call", "{n} calls"),
                call=most.call.key,
                share=percent(most.leverage or 0.0),
            ),
        )


def maps_not_finite(run: Run) -> Iterator[Draft]:
    """Maps with NaN or infinity."""
    if worst := _counted(run, 3):
        yield "warning", None, say("NaN or infinite: {maps}.", maps=worst)


def maps_without_content(run: Run) -> Iterator[Draft]:
    """Maps that show nothing, because no value is positive or all are equal."""
    if blank := _counted(run, 1):
        yield "notice", None, say("Blank, with no positive value: {maps}.", maps=blank)
    if constant := _counted(run, 2):
        yield "notice", None, say("Constant, so nothing to see once scaled: {maps}.", maps=constant)


def maps_decided_by_a_constant(run: Run) -> Iterator[Draft]:
    """Maps of grad-cam++ where its epsilon outweighs the squared gradients."""
    if decided := _counted(run, 4):
        yield (
            "notice",
            None,
            say(
                "Decided by the constant 1e-6 of the formula, because twice the mean squared gradient lies below it: "
                "{maps}. Another scale of the logits would give other maps.",
                maps=decided,
            ),
        )


def maps_no_better_than_controls(run: Run) -> Iterator[Draft]:
    """Methods that a random map or a centred Gaussian equals, at the last call that was put to the test."""
    for place in (*trust_calls(run.evidence)[-1:], INPUT):
        beaten = {method: wins(run.evidence, method, place) for method in trust_methods(run.evidence)}
        poor = [
            say("{method} ({won} of {total})", method=method, won=won, total=total)
            for method, (won, total, _) in beaten.items()
            if total and 2 * won <= total
        ]
        if not poor:
            continue
        images = max(total for _, total, _ in beaten.values())
        yield (
            "warning" if images >= DECISIVE_IMAGES else "notice",
            None,
            say(
                "At {place} insertion less deletion does not beat both a random map and a centred Gaussian on more "
                "than half of the images: {methods}.",
                place=say("the input") if place == INPUT else place,
                methods=listed(poor),
            ),
        )


def maps_insensitive_to_weights(run: Run) -> Iterator[Draft]:
    """Methods whose maps stay the same when all weights are random."""
    same = {method: unmoved(run.evidence, method) for method in trust_methods(run.evidence)}
    found = [f"{method} ({value:.2f})" for method, value in same.items() if value is not None and value > INSENSITIVE]
    if found:
        yield (
            "warning",
            None,
            say(
                "Maps hardly depend on the weights, by their rank correlation with maps of the network with random "
                "ones (mean over the images, above {limit}): {methods}.",
                limit=f"{INSENSITIVE:g}",
                methods=listed(found),
            ),
        )


def _counted(run: Run, state: int) -> Message:
    """How many maps of which methods are in a state, most first; empty where none is."""
    rows = []
    for method, by_call in run.map_states.items():
        total = sum(found.size for found in by_call.values())
        number = sum(int((found == state).sum()) for found in by_call.values())
        if number:
            maps = plural(total, "{n} map", "{n} maps")
            rows.append((number, say("{count} of {maps} of {method}", count=number, maps=maps, method=method)))
    return listed(text for _, text in sorted(rows, key=lambda row: -row[0]))


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
