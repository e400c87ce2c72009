"""Measures -> verdict, ranking and sentences that a reviewer can check.

A rule is one function that looks at the measures and yields (severity, call key or None, sentence); its name in the
report is the function's name. `RUN_RULES` look at one run, `RULES` at a run and its reference. Add a rule: write the
function, put it in its tuple.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from interpret.evidence import Evidence
from interpret.measures import CallPair, Health, MapAgreement, Measures, Run, TensorPair

SEVERITIES = ("critical", "warning", "notice", "info")  # most severe first
VERDICTS = ("identical", "same-function", "localized", "widespread", "different-architecture", "not-comparable")

STANDS_OUT = 10.0  # times the median of its kind: int8 everywhere stays below 5, a damaged layer reaches 50
BATCHNORM_DRIFT = 1.0  # |ln variance ratio| or |z| at the first BatchNorm; the right preprocessing stays below 0.4
INT8_VALUES = 256
FEW_IMAGES = 16
DOMINANT_IMAGE = 0.25
SAME_MAPS = 0.98  # Pearson correlation; int8 everywhere stays above
CHURN = 0.1
MANY_UNITS = 0.05
SHOWN = 3  # layers that one rule names before it sums up the rest

Draft = tuple[str, str | None, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence of the report.

    Attributes:
        severity: "info", "notice", "warning" or "critical".
        run: label of the run that it is about.
        layer: key of the call that it is about, or None.
        rule: name of the rule that found it.
        message: the sentence, with its numbers.
    """

    severity: str
    run: str
    layer: str | None
    rule: str
    message: str


# Verdict and ranking --------------------------------------------------------------------------------------------------


def verdict(measures: Measures) -> str:
    """One word for how a run differs from its reference.

    `different-architecture`: a call has no counterpart of its type and shapes. `not-comparable`: no weights in one run.
    `identical`: the weights are equal, and outputs on the same images are too. `same-function`: weights differ, outputs
    and representations do not beyond rounding. `localized`: the changed calls lie in one unit (a convolution or linear
    with its normalization), or one of them exceeds ten times the median change of the changed tensors of its kind.
    `widespread`: everything else.
    """
    if not measures.same_architecture:
        return "different-architecture"
    if not measures.weights:
        return "not-comparable"
    changed = changed_calls(measures)
    if not changed and not _changed(measures.unused):
        return "widespread" if diverging_calls(measures) else "identical"
    if same_function(measures):
        return "same-function"
    if len({pair.call.unit for pair in changed}) == 1 and not _changed(measures.unused):
        return "localized"
    return "localized" if standing_out(measures) else "widespread"


def ranking(measures: Measures) -> tuple[str, ...]:
    """Keys of the suspicious calls, most suspicious first; empty where nothing differs.

    Calls whose shapes differ come first, in order of execution. Then calls with changed weights, by how far each
    stands out: its change over the typical change of all that changed plus the typical change of the other tensors of
    its kind. So one damaged kernel comes before kernels that all were rounded, and before the running statistics that
    moved because of it. A call whose output moves although its own
    weights are equal is a consequence and left out, unless no weights differ at all: then the calls come in order of
    execution.
    """
    reshaped = [pair.key for pair in measures.calls if pair.weights == "reshaped" and pair.presence == "paired"]
    changed = changed_calls(measures)
    if not reshaped and not changed:
        return tuple(pair.key for pair in diverging_calls(measures))
    suspicion = _suspicion(measures)
    order = sorted(changed, key=lambda pair: (-suspicion[pair.key], -(pair.weight_change or 0.0), pair.call.position))
    return (*reshaped, *(pair.key for pair in order))


def first_divergence(measures: Measures) -> str | None:
    """Key of the first call in order of execution whose output moved by more than rounding explains."""
    return next((pair.key for pair in diverging_calls(measures)), None)


def changed_calls(measures: Measures) -> list[CallPair]:
    """The calls whose weights changed, in order of execution."""
    return [pair for pair in measures.calls if pair.weights == "changed"]


def diverging_calls(measures: Measures) -> list[CallPair]:
    """The calls whose outputs moved, in order of execution; none where the runs saw differently prepared images."""
    if measures.activations not in ("exact", "subset"):
        return []
    return [pair for pair in measures.calls if pair.diverges]


def same_function(measures: Measures) -> bool:
    """Whether outputs and Gram matrices agree up to rounding on images that both runs saw.

    Channel means are left out: they move where channels are reordered.
    """
    paired = [pair for pair in measures.calls if pair.presence == "paired"]
    if measures.activations not in ("exact", "subset") or not paired:
        return False
    changes = [pair.gram_change / pair.threshold for pair in paired if pair.gram_change is not None]
    if not changes or max(changes) > 1:
        return False
    if measures.predictions is not None:
        return measures.predictions.logit_change <= max(pair.threshold for pair in paired)
    return paired[-1].divergence is not None and not paired[-1].diverges


def weight_ratios(measures: Measures) -> Mapping[str, float]:
    """Change of each changed call over the median of the changed tensors of its kind; the largest over its tensors.

    Of its kind means: the same tensor ("weight", "running_var", ...) of calls of the same kind. Biases and running
    statistics change by other amounts than kernels.
    """
    groups = _changes_by_kind(measures)
    typical = {kind: median(positive) for kind, values in groups.items() if (positive := [v for v in values if v > 0])}
    return {
        pair.key: max(
            ((t.change or 0.0) / typical.get(_kind(pair, t), 1.0) for t in _changed(pair.tensors)), default=0.0
        )
        for pair in changed_calls(measures)
    }


def standing_out(measures: Measures) -> list[CallPair]:
    """The calls that exceed ten times the median of their kind, most extreme first."""
    ratios = weight_ratios(measures)
    found = [pair for pair in changed_calls(measures) if ratios[pair.key] > STANDS_OUT]
    return sorted(found, key=lambda pair: (-ratios[pair.key], pair.call.position))


def _suspicion(measures: Measures) -> Mapping[str, float]:
    groups = _changes_by_kind(measures)
    everything = [value for values in groups.values() for value in values if value > 0]
    typical = median(everything) if everything else 0.0

    def stands_out(pair: CallPair, tensor: TensorPair) -> float:
        others = list(groups[_kind(pair, tensor)])
        others.remove(tensor.change or 0.0)
        scale = typical + (median(others) if others else typical)
        return (tensor.change or 0.0) / scale if scale else 0.0

    return {
        pair.key: max((stands_out(pair, tensor) for tensor in _changed(pair.tensors)), default=0.0)
        for pair in changed_calls(measures)
    }


def _changes_by_kind(measures: Measures) -> Mapping[tuple[str, str], list[float]]:
    """The changes of all tensors that compare, 0 for equal ones."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for pair in measures.calls:
        for tensor in pair.tensors:
            if tensor.counted and tensor.status in ("identical", "changed"):
                groups[_kind(pair, tensor)].append(tensor.change or 0.0)
    return groups


def _kind(pair: CallPair, tensor: TensorPair) -> tuple[str, str]:
    return pair.call.kind, tensor.local_name


def _changed(tensors: Iterable[TensorPair]) -> list[TensorPair]:
    return [tensor for tensor in tensors if tensor.counted and tensor.status == "changed"]


# Findings -------------------------------------------------------------------------------------------------------------


def findings_of(evidence: Evidence | Run, label: str | None = None) -> tuple[Finding, ...]:
    """What one run says of itself, most severe first.

    Args:
        evidence: the run.
        label: its name in the findings; the model's name by default.
    """
    run = evidence if isinstance(evidence, Run) else Run(evidence)
    label = str(run.evidence.manifest.model["name"]) if label is None else label
    return _sorted(
        Finding(draft[0], label, draft[1], _name(rule), draft[2]) for rule in RUN_RULES for draft in rule(run)
    )


def findings_between(measures: Measures, label: str) -> tuple[Finding, ...]:
    """What sets a run apart from its reference, most severe first."""
    return _sorted(
        Finding(draft[0], label, draft[1], _name(rule), draft[2]) for rule in RULES for draft in rule(measures)
    )


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def _name(rule: Callable[..., Iterator[Draft]]) -> str:
    return rule.__name__.replace("_", "-")


# Rules for one run ----------------------------------------------------------------------------------------------------


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
        first, behind = broken[0], f", and {_count(len(broken) - 1, 'later call')}" if len(broken) > 1 else ""
        yield (
            "critical",
            first.call.key,
            f"{first.call.key} is the first call with values that are not finite ({first.nonfinite} of "
            f"them){behind}; "
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
            "over the channels of "
            f"ln(variance / running variance) is {ratio:+.2f}, that of |z| of the means is {z:.2f} (both should be "
            "under 1). "
            "Check mean, standard deviation and value range of the preprocessing; the order of the colours is not "
            "seen here.",
        )


def few_images(run: Run) -> Iterator[Draft]:
    """Too few probe images for statistics."""
    if run.count < FEW_IMAGES:
        severity = "warning" if run.count < 4 else "notice"
        yield severity, None, f"{_few(run.count)} with 32 or more the numbers become steady."


def dead_units(run: Run) -> Iterator[Draft]:
    """Units of activation calls that are never positive on the probe."""
    silent = [health for health in run.health if health.dead_units]
    if silent:
        total = sum(health.dead_units or 0 for health in silent)
        most = max(silent, key=lambda health: health.dead_units or 0)
        yield (
            "info",
            most.call.key,
            f"Never above 0 on the {run.count} images: {_count(total, 'unit')} in "
            f"{_count(len(silent), 'activation call')}, most in {most.call.key} "
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
        yield "info", None, f"Exactly zero: {_count(count, 'filter')} in {_count(len(rest), 'tensor')}."


def near_zero_filters(run: Run) -> Iterator[Draft]:
    """Filters with next to no weight; healthy networks have them too."""
    near = sum(tensor.near_zero_filters - tensor.zero_filters for tensor in run.evidence.tensors)
    if near:
        filters = sum(tensor.filters for tensor in run.evidence.tensors)
        yield (
            "info",
            None,
            f"{near} of {filters} filters have a norm under 0.1 % of their layer's median. Healthy networks have "
            "such filters.",
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
            f"In {len(ruled)} of {_count(len(run.calls), 'call')} one image carries more than a quarter of all "
            "variance (most in "
            f"{most.call.key}, {_percent(most.leverage or 0.0)}): similarities there rest on that image.",
        )


RUN_RULES: tuple[Callable[[Run], Iterator[Draft]], ...] = (
    non_finite_values,
    preprocessing_mismatch,
    few_images,
    zero_filters,
    dead_units,
    near_zero_filters,
    dominant_image,
)


# Rules for a run and its reference ------------------------------------------------------------------------------------


def identical(measures: Measures) -> Iterator[Draft]:
    """Nothing differs."""
    if verdict(measures) != "identical":
        return
    tensors = sum(tensor.status == "identical" for pair in measures.calls for tensor in pair.tensors)
    said = f"Every tensor holds the same values ({tensors} in {_count(len(measures.calls), 'call')})"
    largest = max((pair.divergence for pair in measures.calls if pair.divergence is not None), default=None)
    if measures.activations not in ("exact", "subset") or largest is None:
        yield "info", None, f"{said}; outputs were not compared."
    else:
        yield (
            "info",
            None,
            f"{said}, and on the {_count(measures.images, 'common image')} no output moves by more than rounding "
            "explains "
            f"(largest relative change {_small(largest)}).",
        )


def equal_weights_other_outputs(measures: Measures) -> Iterator[Draft]:
    """The weights are equal, the outputs are not: something that no checkpoint holds is different."""
    if measures.same_architecture and measures.weights and not changed_calls(measures) and diverging_calls(measures):
        first = diverging_calls(measures)[0]
        yield (
            "critical",
            first.key,
            f"All weights are equal, yet outputs differ from {first.key} on: relative change "
            f"{_small(first.divergence)}, "
            f"where rounding explains {_small(first.threshold)}. Something that no checkpoint holds must differ"
            f"{_environment(measures)}.",
        )


def same_function_other_weights(measures: Measures) -> Iterator[Draft]:
    """Weights differ, the function does not."""
    if verdict(measures) != "same-function":
        return
    changed = changed_calls(measures)
    largest = max((pair.gram_change for pair in measures.calls if pair.gram_change is not None), default=0.0)
    if changed:
        most = max(changed, key=lambda pair: pair.weight_change or 0.0)
        by = _percent(most.weight_change or 0.0)
        what = f"The weights of {_count(len(changed), 'call')} differ (most in {most.key}, by {by})"
    else:
        what = f"Tensors that belong to no call differ ({len(_changed(measures.unused))})"
    outputs = "" if measures.predictions is None else f", of the logits {_small(measures.predictions.logit_change)}"
    moved = any(pair.mean_change is not None and pair.mean_change > pair.threshold for pair in measures.calls)
    why = "The channels of a layer were reordered" if moved else "The change stays below what rounding does"
    yield (
        "notice",
        None,
        f"{what}, but the function does not: on the {_count(measures.images, 'common image')} the largest relative "
        f"change of a Gram matrix is {_small(largest)}{outputs}. {why}.",
    )


def one_unit_changed(measures: Measures) -> Iterator[Draft]:
    """The changed calls lie in one unit: all else is equal, bit for bit."""
    changed = changed_calls(measures)
    if verdict(measures) != "localized" or len({pair.call.unit for pair in changed}) != 1 or _changed(measures.unused):
        return
    head = [pair for pair in measures.calls if pair.tensors and pair.call.kind != "container"][-1]
    if changed == [head]:
        top1 = measures.predictions
        effect = "" if top1 is None else f"; top-1 agreement with the reference is {top1.top1_agreement:.2f}"
        yield (
            "warning",
            head.key,
            f"Only the head {head.key} changed, by about {_percent(head.weight_change or 0.0)}; "
            f"all layers before it are equal{effect}.",
        )
        return
    first = ranking(measures)[0]
    parts = ", ".join(f"{pair.key} by about {_percent(pair.weight_change or 0.0)}" for pair in changed)
    filters = "".join(_filters_changed(pair) for pair in changed)
    flipped = measures.predictions is not None and bool(measures.predictions.flips)
    severity = "critical" if flipped else "warning"
    yield severity, first, f"Only one unit changed: {parts}{filters}. The weights of all other calls are equal."


def layers_stand_out(measures: Measures) -> Iterator[Draft]:
    """Calls that changed far more than the rest of their kind."""
    if verdict(measures) not in ("localized", "different-architecture"):
        return
    ratios = weight_ratios(measures)
    found = standing_out(measures)
    for pair in found[:SHOWN]:
        yield (
            "critical",
            pair.key,
            f"{pair.key} stands out: its weights changed by about {_percent(pair.weight_change or 0.0)}, "
            f"{ratios[pair.key]:.0f} times the median of "
            f"the changed {_tensors_of(pair)}{_filters_changed(pair)}.",
        )
    if len(found) > SHOWN:
        rest = ", ".join(pair.key for pair in found[SHOWN : 2 * SHOWN]) + (", ..." if len(found) > 2 * SHOWN else "")
        yield "warning", None, f"More than {STANDS_OUT:.0f} times the median of their kind, too: {rest}."


def changed_everywhere(measures: Measures) -> Iterator[Draft]:
    """Many calls changed by similar amounts: noise, training, or quantisation."""
    changed = changed_calls(measures)
    if len({pair.call.unit for pair in changed}) < 2 or verdict(measures) not in ("localized", "widespread"):
        return
    owners = sum(pair.weights in ("identical", "changed") for pair in measures.calls)
    changes = [pair.weight_change or 0.0 for pair in changed]
    most = max(changed, key=lambda pair: pair.weight_change or 0.0)
    alone = "" if standing_out(measures) else "; no call stands out from its kind"
    yield (
        "notice",
        None,
        f"The weights of {len(changed)} of {_count(owners, 'call')} changed, by {_percent(median(changes))} at the "
        "median and "
        f"{_percent(max(changes))} at most ({most.key}){alone}.",
    )


def quantised_weights(measures: Measures) -> Iterator[Draft]:
    """Kernels that hold no more values per filter than 8 bits can tell apart, where the reference's hold more."""
    large, quantised, bits = 0, 0, 0
    for pair in measures.calls:
        for tensor in _changed(pair.tensors):
            before, after = tensor.reference, tensor.other
            if before is None or after is None or before.distinct <= INT8_VALUES:
                continue
            large += 1
            quantised += after.distinct <= INT8_VALUES
            bits = max(bits, after.distinct if after.distinct <= INT8_VALUES else 0)
    if quantised and quantised >= 0.9 * large:
        yield (
            "notice",
            None,
            f"In {quantised} of the {large} changed kernels whose filters held more than {INT8_VALUES} values, no "
            "filter now holds more than "
            f"{bits}: the mark of {8 if bits > 16 else 4}-bit quantisation.",
        )


def zeroed_filters(measures: Measures) -> Iterator[Draft]:
    """Filters that became exactly zero."""
    pruned: list[tuple[float, CallPair, str]] = []
    for pair in measures.calls:
        for tensor in _changed(pair.tensors):
            if tensor.reference is None or tensor.other is None:
                continue
            before, after, filters = tensor.reference.zero_filters, tensor.other.zero_filters, tensor.other.filters
            if after > before:
                share = (after - before) / filters
                where = f"{after} of {filters} filters of {tensor.name} ({_percent(after / filters)})"
                pruned.append((share, pair, f"Exactly zero: {where}, in the reference {before or 'none'}."))
    pruned.sort(key=lambda item: (-item[0], item[1].call.position))
    for share, pair, message in pruned[:SHOWN]:
        yield "critical" if share > MANY_UNITS else "warning", pair.key, message
    if len(pruned) > SHOWN:
        yield "warning", None, f"Filters became exactly zero in {_count(len(pruned) - SHOWN, 'further tensor')}, too."


def predictions_changed(measures: Measures) -> Iterator[Draft]:
    """Predicted classes that flipped, with the interval that so few images allow."""
    found = measures.predictions
    if found is None:
        return
    low, high = found.churn_interval
    if not found.flips:
        yield (
            "info",
            None,
            f"No prediction changed on the {_count(found.images, 'common image')}; of all such images, at most "
            f"{_percent(high)} change (95 % interval). Mean KL divergence {_small(found.kl_mean)} nats.",
        )
        return
    labelled = ""
    if found.negative_flips is not None:
        labelled = (
            f" Of the {_count(found.labelled, 'labelled image')}, {found.negative_flips} went from right to wrong "
            "and "
            f"{found.positive_flips} from wrong to right."
        )
    yield (
        "critical" if found.churn >= CHURN else "warning",
        None,
        f"{len(found.flips)} of {_count(found.images, 'prediction')} changed ({_percent(found.churn)}; 95 % "
        f"interval {_percent(low)} to "
        f"{_percent(high)}); mean KL divergence {_small(found.kl_mean)} nats.{labelled}",
    )


def silent_units_appeared(measures: Measures) -> Iterator[Draft]:
    """Units that died or became constant."""
    if measures.activations != "exact":
        return  # other images wake other units
    kinds = {"never rise above 0": _dead, "give the same value everywhere": _constant}
    for what, count in kinds.items():
        grown = [
            pair
            for pair in measures.calls
            if pair.presence == "paired" and count(pair.other_health) > count(pair.health)
        ]
        if not grown:
            continue
        most = max(grown, key=lambda pair: count(pair.other_health) - count(pair.health))  # the first of equals
        before, after = count(most.health), count(most.other_health)
        yield (
            "warning" if after - before > MANY_UNITS * most.call.channels else "notice",
            most.key,
            f"In {_count(len(grown), 'call')} more units {what} on the {measures.images} images than in the reference, "
            f"most in {most.key}: {after} of {most.call.channels} instead of {before}.",
        )


def maps_moved(measures: Measures) -> Iterator[Draft]:
    """Maps of the last call that no longer look where they looked, beside what chance gives."""
    last = next((pair for pair in reversed(measures.calls) if _with_pearson(pair)), None)
    if last is None:
        return
    # the middle one of the methods: some, XGrad-CAM before a normalization above all, move by themselves
    order = sorted(_with_pearson(last), key=lambda item: item[2])
    method, found, pearson = order[(len(order) - 1) // 2]
    if pearson >= SAME_MAPS:
        return
    nulls = [null for null in (found.null_other_image, found.null_gaussian) if null is not None]
    unrelated = bool(nulls) and pearson < max(nulls) + 0.1
    beside = (
        f"maps of different images of the reference reach {found.null_other_image:.2f}, "
        if found.null_other_image is not None
        else ""
    )
    gaussian = (
        f"a centred Gaussian {found.null_gaussian:.2f}" if found.null_gaussian is not None else "no null was computed"
    )
    empty = f"; {_count(found.empty, 'map')} became empty" if found.empty else ""
    yield (
        "warning" if unrelated else "notice",
        last.key,
        f"{method} at {last.key}, the last call with maps, {'no longer agrees' if unrelated else 'has moved'}: "
        "mean Pearson correlation "
        f"{pearson:.2f} over {_count(found.images, 'map')} of the same classes; {beside}{gaussian}{empty}.",
    )


def first_difference(measures: Measures) -> Iterator[Draft]:
    """Where the outputs begin to differ."""
    key = first_divergence(measures)
    if key is None or not changed_calls(measures):
        return
    pair = next(pair for pair in measures.calls if pair.key == key)
    yield (
        "info",
        key,
        f"Outputs differ from {key} on: relative change {_small(pair.divergence)}, where rounding explains "
        f"{_small(pair.threshold)}.",
    )


def least_similar(measures: Measures) -> Iterator[Draft]:
    """The call whose representation differs most; a consequence, not a culprit."""
    known = [pair for pair in measures.calls if pair.cka is not None]
    if not known or same_function(measures):
        return
    lowest = min(known, key=lambda pair: pair.cka if pair.cka is not None else 1.0)
    if lowest.cka is None or lowest.cka > 1 - 1e-9:
        return
    similarity = f"{lowest.cka:.3f}" if lowest.cka < 0.999 else f"1 - {_small(1 - lowest.cka)}"
    chance = "" if lowest.cka_p95 is None else f" (chance reaches {lowest.cka_p95:.2f})"
    yield (
        "info",
        lowest.key,
        f"Representations are least alike at {lowest.key}: debiased CKA {similarity}{chance}. Low similarity shows "
        "where a change has its "
        "effect, not where it was made.",
    )


def architecture_differs(measures: Measures) -> Iterator[Draft]:
    """Calls without counterpart, or with other shapes."""
    if measures.same_architecture:
        return
    paired = [pair for pair in measures.calls if pair.presence == "paired"]
    groups = {
        "only in the reference": [pair for pair in measures.calls if pair.presence == "removed"],
        "only in this run": [pair for pair in measures.calls if pair.presence == "added"],
        "of another type": [p for p in paired if p.reference and p.other and p.reference.type != p.other.type],
        "with other shapes": [p for p in paired if p.weights == "reshaped"],
    }
    parts = [f"{_count(len(p), 'call')} {what} (first: {p[0].key})" for what, p in groups.items() if p]
    yield "warning", None, f"The architectures differ: {'; '.join(parts) or 'numbers of parameters'}."


def few_common_images(measures: Measures) -> Iterator[Draft]:
    """Too few common images for similarities."""
    if measures.activations != "no" and measures.images < FEW_IMAGES:
        severity = "warning" if measures.images < 4 else "notice"
        yield severity, None, f"{_few(measures.images)} both runs have no more in common."


def not_compared(measures: Measures) -> Iterator[Draft]:
    """What could not be compared, and why."""
    for reason in measures.reasons:
        yield "notice", None, f"{reason[0].upper()}{reason[1:]}."


RULES: tuple[Callable[[Measures], Iterator[Draft]], ...] = (
    identical,
    equal_weights_other_outputs,
    same_function_other_weights,
    one_unit_changed,
    layers_stand_out,
    zeroed_filters,
    changed_everywhere,
    quantised_weights,
    architecture_differs,
    predictions_changed,
    silent_units_appeared,
    maps_moved,
    first_difference,
    least_similar,
    few_common_images,
    not_compared,
)


# Words ----------------------------------------------------------------------------------------------------------------


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    """Two digits that count: 0.0057 -> "0.57 %", 1.42 -> "142 %", 40.4 -> "40-fold"."""
    if share >= 10:
        return f"{share:.0f}-fold"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _small(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}"


def _few(images: int) -> str:
    if images < 4:
        return f"Similarities were not computed for {_count(images, 'image')}, they need at least 4;"
    return f"{images} images give rough similarities;"


def _filters_changed(pair: CallPair) -> str:
    """How many filters changed, where not all did."""
    for tensor in _changed(pair.tensors):
        if tensor.other is not None and 0 < len(tensor.changed_filters) < tensor.other.filters:
            return f" ({len(tensor.changed_filters)} of {tensor.other.filters} filters of {tensor.name})"
    return ""


def _tensors_of(pair: CallPair) -> str:
    most = max(_changed(pair.tensors), key=lambda tensor: tensor.change or 0.0)
    return f"{most.local_name} tensors of {pair.call.kind} calls"


def _environment(measures: Measures) -> str:
    """What the manifests say of the environment, where it differs."""
    first, second = measures.reference.manifest, measures.other.manifest
    known = {"device": (first.device, second.device)}
    known |= {name: (version, second.libraries.get(name, "none")) for name, version in first.libraries.items()}
    return "".join(f"; {name}: {before} and {after}" for name, (before, after) in known.items() if before != after)


def _with_pearson(pair: CallPair) -> list[tuple[str, MapAgreement, float]]:
    return [(method, found, found.pearson) for method, found in pair.maps.items() if found.pearson is not None]


def _dead(health: Health | None) -> int:
    return 0 if health is None else health.dead_units or 0


def _constant(health: Health | None) -> int:
    return 0 if health is None else health.constant_units or 0
