"""Rules for a run and its reference: what sets it apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from statistics import median

from interpret.findings.wording import FEW_IMAGES, MANY_UNITS, SHOWN, Draft, few, number_of, percent, small
from interpret.measures import CallPair, Measures
from interpret.measures.maps import MapAgreement
from interpret.measures.runs import Health
from interpret.verdicts import (
    STANDS_OUT,
    changed_calls,
    changed_tensors,
    diverging_calls,
    first_divergence,
    ranking,
    same_function,
    standing_out,
    verdict,
    weight_ratios,
)

INT8_VALUES = 256
SAME_MAPS = 0.98  # Pearson correlation; int8 everywhere stays above
CHURN = 0.1
ALIKE = 0.99  # debiased CKA from which two representations count as alike
RUNNING_STATISTICS = ("running_mean", "running_var")


def identical(measures: Measures) -> Iterator[Draft]:
    """Nothing differs."""
    if verdict(measures) != "identical":
        return
    tensors = sum(tensor.status == "identical" for pair in measures.calls for tensor in pair.tensors)
    said = f"Every tensor holds the same values ({tensors} in {number_of(len(measures.calls), 'call')})"
    largest = max((pair.divergence for pair in measures.calls if pair.divergence is not None), default=None)
    if measures.activations not in ("exact", "subset") or largest is None:
        yield "info", None, f"{said}; outputs were not compared."
    else:
        yield (
            "info",
            None,
            f"{said}, and on the {number_of(measures.images, 'common image')} no output moves by more than rounding "
            f"explains (largest relative change {small(largest)}).",
        )


def equal_weights_other_outputs(measures: Measures) -> Iterator[Draft]:
    """The weights are equal, the outputs are not: something that no checkpoint holds is different."""
    if measures.same_architecture and measures.weights and not changed_calls(measures) and diverging_calls(measures):
        first = diverging_calls(measures)[0]
        yield (
            "critical",
            first.key,
            f"All weights are equal, yet outputs differ from {first.key} on: relative change "
            f"{small(first.divergence)}, where rounding explains {small(first.threshold)}. "
            f"Something that no checkpoint holds must differ{_environment(measures)}.",
        )


def same_function_other_weights(measures: Measures) -> Iterator[Draft]:
    """Weights differ, the function does not."""
    if verdict(measures) != "same-function":
        return
    changed = changed_calls(measures)
    largest = max((pair.gram_change for pair in measures.calls if pair.gram_change is not None), default=0.0)
    if changed:
        most = max(changed, key=lambda pair: pair.weight_change or 0.0)
        by = percent(most.weight_change or 0.0)
        what = f"The weights of {number_of(len(changed), 'call')} differ (most in {most.key}, by {by})"
    else:
        what = f"Tensors that belong to no call differ ({len(changed_tensors(measures.unused))})"
    outputs = "" if measures.predictions is None else f", of the logits {small(measures.predictions.logit_change)}"
    reordered = [tensor for pair in changed for tensor in changed_tensors(pair.tensors) if tensor.moved_filters]
    moved = any(pair.mean_change is not None and pair.mean_change > pair.threshold for pair in measures.calls)
    if reordered:
        most_moved = max(reordered, key=lambda tensor: len(tensor.moved_filters))
        why = (
            f"The channels of a layer were reordered: {len(most_moved.moved_filters)} filters of {most_moved.name} "
            "are other filters of the reference, bit for bit"
        )
    else:
        why = "The channels of a layer were reordered" if moved else "The change stays below what rounding does"
    yield (
        "notice",
        None,
        f"{what}, but the function does not: on the {number_of(measures.images, 'common image')} the largest relative "
        f"change of a Gram matrix is {small(largest)}{outputs}. {why}.",
    )


def head_changed_only(measures: Measures) -> Iterator[Draft]:
    """Only the classifier differs: the features are the reference's."""
    head = _head(measures)
    if head is None or verdict(measures) != "localized" or not _one_unit(measures) or changed_calls(measures) != [head]:
        return
    found = measures.predictions
    effect = "" if found is None else f"; top-1 agreement with the reference is {found.top1_agreement:.2f}"
    yield (
        "warning",
        head.key,
        f"Only the head {head.key} changed, by about {percent(head.weight_change or 0.0)}; "
        f"all layers before it are equal{effect}.",
    )


def one_unit_changed(measures: Measures) -> Iterator[Draft]:
    """The changed calls lie in one unit: all else is equal, bit for bit."""
    changed = changed_calls(measures)
    if verdict(measures) != "localized" or not _one_unit(measures) or changed == [_head(measures)]:
        return
    first = ranking(measures)[0]
    parts = ", ".join(f"{pair.key} by about {percent(pair.weight_change or 0.0)}" for pair in changed)
    filters = "".join(_filters_changed(pair) for pair in changed)
    flipped = measures.predictions is not None and bool(measures.predictions.flips)
    severity = "critical" if flipped else "warning"
    yield severity, first, f"Only one unit changed: {parts}{filters}. The weights of all other calls are equal."


def batchnorm_statistics_changed(measures: Measures) -> Iterator[Draft]:
    """Running statistics moved while everything that is learned stayed equal."""
    changed = [pair for pair in changed_calls(measures) if pair.presence == "paired"]
    names = {tensor.local_name for pair in changed for tensor in changed_tensors(pair.tensors)}
    if not measures.same_architecture or not changed or not names <= set(RUNNING_STATISTICS):
        return
    most = max(changed, key=lambda pair: pair.weight_change or 0.0)
    flipped = measures.predictions is not None and bool(measures.predictions.flips)
    yield (
        "warning" if flipped else "notice",
        most.key,
        f"Only running statistics changed ({' and '.join(sorted(names))}), in {number_of(len(changed), 'call')}, most "
        f"in {most.key}, by {percent(most.weight_change or 0.0)}; every learned weight is equal.",
    )


def layers_stand_out(measures: Measures) -> Iterator[Draft]:
    """Calls that changed far more than the rest of their kind."""
    if verdict(measures) not in ("localized", "different-architecture") or measures.other_network:
        return
    ratios = weight_ratios(measures)
    found = standing_out(measures)
    for pair in found[:SHOWN]:
        yield (
            "critical",
            pair.key,
            f"{pair.key} stands out: its weights changed by about {percent(pair.weight_change or 0.0)}, "
            f"{ratios[pair.key]:.0f} times the median of the changed {_tensors_of(pair)}{_filters_changed(pair)}.",
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
        f"The weights of {len(changed)} of {number_of(owners, 'call')} changed, by {percent(median(changes))} at the "
        f"median and {percent(max(changes))} at most ({most.key}){alone}.",
    )


def quantised_weights(measures: Measures) -> Iterator[Draft]:
    """Kernels that hold no more values per filter than 8 bits can tell apart, where the reference's hold more."""
    large, quantised, values = 0, 0, 0
    for pair in measures.calls:
        for tensor in changed_tensors(pair.tensors):
            before, after = tensor.reference, tensor.other
            if before is None or after is None or before.distinct <= INT8_VALUES:
                continue
            large += 1
            if after.distinct <= INT8_VALUES:
                quantised += 1
                values = max(values, after.distinct)
    if quantised and quantised >= 0.9 * large:
        yield (
            "notice",
            None,
            f"In {quantised} of the {large} changed kernels whose filters held more than {INT8_VALUES} values, no "
            f"filter now holds more than {values}: the mark of {8 if values > 16 else 4}-bit quantisation.",
        )


def zeroed_filters(measures: Measures) -> Iterator[Draft]:
    """Filters that became exactly zero."""
    pruned: list[tuple[float, CallPair, str]] = []
    for pair in () if measures.other_network else measures.calls:
        for tensor in changed_tensors(pair.tensors):
            if tensor.reference is None or tensor.other is None:
                continue
            before, after, filters = tensor.reference.zero_filters, tensor.other.zero_filters, tensor.other.filters
            if after > before:
                share = (after - before) / filters
                where = f"{after} of {filters} filters of {tensor.name} ({percent(after / filters)})"
                pruned.append((share, pair, f"Exactly zero: {where}, in the reference {before or 'none'}."))
    pruned.sort(key=lambda item: (-item[0], item[1].call.position))
    for share, pair, message in pruned[:SHOWN]:
        yield "critical" if share > MANY_UNITS else "warning", pair.key, message
    if len(pruned) > SHOWN:
        yield (
            "warning",
            None,
            f"Filters became exactly zero in {number_of(len(pruned) - SHOWN, 'further tensor')}, too.",
        )


def sparse_weights(measures: Measures) -> Iterator[Draft]:
    """Single weights that became exactly zero while their filters did not: pruned one by one."""
    thinned: list[tuple[float, CallPair, str]] = []
    for pair in () if measures.other_network else measures.calls:
        for tensor in changed_tensors(pair.tensors):
            before, after = tensor.reference, tensor.other
            if before is None or after is None or not after.filters:
                continue
            size = after.entries / after.filters
            single = (after.zeros - size * after.zero_filters) - (before.zeros - size * before.zero_filters)
            if single > MANY_UNITS * after.entries:
                thinned.append((single / after.entries, pair, after.name))
    if thinned:
        share, pair, name = max(thinned, key=lambda item: item[0])  # the first of equals
        yield (
            "notice",
            pair.key,
            f"Single weights became exactly zero in {number_of(len(thinned), 'tensor')}, most in {name}: "
            f"{percent(share)} of its entries.",
        )


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
            f"No prediction changed on the {number_of(found.images, 'common image')}; of all such images, at most "
            f"{percent(high)} change (95 % interval). Mean KL divergence {small(found.kl_mean)} nats.",
        )
        return
    labelled = ""
    if found.negative_flips is not None:
        labelled = (
            f" Of the {number_of(found.labelled, 'labelled image')}, {found.negative_flips} went from right to wrong "
            f"and {found.positive_flips} from wrong to right."
        )
    yield (
        "critical" if found.churn >= CHURN else "warning",
        None,
        f"{len(found.flips)} of {number_of(found.images, 'prediction')} changed ({percent(found.churn)}; 95 % interval "
        f"{percent(low)} to {percent(high)}); mean KL divergence {small(found.kl_mean)} nats.{labelled}",
    )


def flips_though_alike(measures: Measures) -> Iterator[Draft]:
    """Predictions flipped although every representation agrees."""
    found = measures.predictions
    known = [pair.cka for pair in measures.calls if pair.cka is not None]
    if found is None or not found.flips or not known or min(known) < ALIKE:
        return
    yield (
        "warning",
        None,
        f"{number_of(len(found.flips), 'prediction')} changed although the representations agree at every call "
        f"(debiased CKA at least {min(known):.3f}).",
    )


def where_flips_begin(measures: Measures) -> Iterator[Draft]:
    """The call where most of the flipped images leave the others."""
    found = measures.predictions
    if found is None:
        return
    places = Counter(flip.leaves_at for flip in found.flips if flip.leaves_at)
    if places:
        key, number = places.most_common(1)[0]
        yield (
            "info",
            key,
            f"Of {number_of(len(found.flips), 'image')} whose prediction changed {number} "
            f"{'leaves' if number == 1 else 'leave'} the others first at {key}: there they moved further beyond the "
            "usual than 95 % of the images whose prediction stayed do anywhere.",
        )


def silent_units_appeared(measures: Measures) -> Iterator[Draft]:
    """Units that died or became constant."""
    if measures.activations != "exact" or measures.other_network:
        return  # other images wake other units
    kinds = {"never rise above 0": _dead, "give the same value everywhere": _constant}
    for what, count in kinds.items():
        grown = [
            pair
            for pair in measures.calls
            if pair.reference
            and pair.other
            and pair.reference.channels == pair.other.channels
            and count(pair.other_health) > count(pair.health)
        ]
        if not grown:
            continue
        most = max(grown, key=lambda pair: count(pair.other_health) - count(pair.health))  # the first of equals
        before, after = count(most.health), count(most.other_health)
        yield (
            "warning" if after - before > MANY_UNITS * most.call.channels else "notice",
            most.key,
            f"In {number_of(len(grown), 'call')} more units {what} on the {measures.images} images than in the "
            f"reference, most in {most.key}: {after} of {most.call.channels} instead of {before}.",
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
    other, gaussian = found.null_other_image, found.null_gaussian
    beside = "" if other is None else f"maps of different images of the reference reach {other:.2f}, "
    beside += "no null was computed" if gaussian is None else f"a centred Gaussian {gaussian:.2f}"
    empty = f"; {number_of(found.empty, 'map')} became empty" if found.empty else ""
    yield (
        "warning" if unrelated else "notice",
        last.key,
        f"{method} at {last.key}, the last call with maps, {'no longer agrees' if unrelated else 'has moved'}: "
        f"mean Pearson correlation {pearson:.2f} over {number_of(found.images, 'map')} of the same classes; "
        f"{beside}{empty}.",
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
        f"Outputs differ from {key} on: relative change {small(pair.divergence)}, where rounding explains "
        f"{small(pair.threshold)}.",
    )


def least_similar(measures: Measures) -> Iterator[Draft]:
    """The call whose representation differs most; a consequence, not a culprit."""
    known = [pair for pair in measures.calls if pair.cka is not None]
    if not known or same_function(measures):
        return
    lowest = min(known, key=lambda pair: pair.cka if pair.cka is not None else 1.0)
    if lowest.cka is None or lowest.cka > 1 - 1e-9:
        return
    similarity = f"{lowest.cka:.3f}" if lowest.cka < 0.999 else f"1 - {small(1 - lowest.cka)}"
    chance = "" if lowest.cka_p95 is None else f" (chance reaches {lowest.cka_p95:.2f})"
    yield (
        "info",
        lowest.key,
        f"Representations are least alike at {lowest.key}: debiased CKA {similarity}{chance}. "
        "Low similarity shows where a change has its effect, not where it was made.",
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
    parts = [f"{number_of(len(p), 'call')} {what} (first: {p[0].key})" for what, p in groups.items() if p]
    yield "warning", None, f"The architectures differ: {'; '.join(parts) or 'numbers of parameters'}."


def few_common_images(measures: Measures) -> Iterator[Draft]:
    """Too few common images for similarities."""
    if measures.activations != "no" and measures.images < FEW_IMAGES:
        yield "warning", None, f"{few(measures.images)} both runs have no more in common."


def probe_mismatch(measures: Measures) -> Iterator[Draft]:
    """The runs saw other images, or prepared them in other ways."""
    if measures.activations == "exact" or measures.images_reason is None:
        return
    severity = "notice" if measures.activations == "subset" else "warning"
    yield severity, None, f"{measures.images_reason[0].upper()}{measures.images_reason[1:]}."


def not_compared(measures: Measures) -> Iterator[Draft]:
    """What else could not be compared, and why."""
    for reason in measures.reasons:
        if reason != measures.images_reason:
            yield "notice", None, f"{reason[0].upper()}{reason[1:]}."


RULES: tuple[Callable[[Measures], Iterator[Draft]], ...] = (
    identical,
    equal_weights_other_outputs,
    same_function_other_weights,
    head_changed_only,
    one_unit_changed,
    batchnorm_statistics_changed,
    layers_stand_out,
    zeroed_filters,
    sparse_weights,
    changed_everywhere,
    quantised_weights,
    architecture_differs,
    predictions_changed,
    flips_though_alike,
    where_flips_begin,
    silent_units_appeared,
    maps_moved,
    first_difference,
    least_similar,
    few_common_images,
    probe_mismatch,
    not_compared,
)


def _one_unit(measures: Measures) -> bool:
    units = {pair.call.unit for pair in changed_calls(measures)}
    return len(units) == 1 and not changed_tensors(measures.unused)


def _head(measures: Measures) -> CallPair | None:
    return next((pair for pair in reversed(measures.calls) if pair.tensors and pair.call.kind != "container"), None)


def _filters_changed(pair: CallPair) -> str:
    """How many filters changed, where not all did."""
    for tensor in changed_tensors(pair.tensors):
        if tensor.other is not None and 0 < len(tensor.changed_filters) < tensor.other.filters:
            return f" ({len(tensor.changed_filters)} of {tensor.other.filters} filters of {tensor.name})"
    return ""


def _tensors_of(pair: CallPair) -> str:
    most = max(changed_tensors(pair.tensors), key=lambda tensor: tensor.change or 0.0)
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
