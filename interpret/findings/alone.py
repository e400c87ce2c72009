"""Rules for one run: what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from interpret.findings.wording import FEW_IMAGES, MANY_UNITS, SHOWN, Draft, few, number_of, percent
from interpret.measures.explanations import (
    INPUT,
    INSENSITIVE,
    map_states,
    trust_calls,
    trust_methods,
    unmoved,
    wins,
)
from interpret.measures.runs import Run

BATCHNORM_DRIFT = 1.0  # |ln variance ratio| or |z| at the first BatchNorm; the right preprocessing stays below 0.4
DOMINANT_IMAGE = 0.25
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
    for method, by_call in map_states(run.evidence).items():
        total = sum(found.size for found in by_call.values())
        number = sum(int((found == state).sum()) for found in by_call.values())
        if number:
            rows.append((number, f"{number} of {number_of(total, 'map')} of {method}"))
    return ", ".join(text for _, text in sorted(rows, key=lambda row: -row[0]))


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
