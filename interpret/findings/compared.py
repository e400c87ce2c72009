"""Rules for a run and its reference: what sets it apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from statistics import median

from interpret.findings.wording import FEW_IMAGES, KINDS, MANY_UNITS, SHOWN, Draft, few, percent, small
from interpret.language import Message, listed, plural, say
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
    calls = plural(len(measures.calls), "{n} call", "{n} calls")
    largest = max((pair.divergence for pair in measures.calls if pair.divergence is not None), default=None)
    if measures.activations not in ("exact", "subset") or largest is None:
        yield (
            "info",
            None,
            say(
                "Every tensor holds the same values ({count} in {calls}); outputs were not compared.",
                count=tensors,
                calls=calls,
            ),
        )
    else:
        yield (
            "info",
            None,
            say(
                "Every tensor holds the same values ({count} in {calls}), and on the {images} no output moves by more "
                "than rounding explains (largest relative change {change}).",
                count=tensors,
                calls=calls,
                images=_common_images(measures.images),
                change=small(largest),
            ),
        )


def equal_weights_other_outputs(measures: Measures) -> Iterator[Draft]:
    """The weights are equal, the outputs are not: something that no checkpoint holds is different."""
    if measures.same_architecture and measures.weights and not changed_calls(measures) and diverging_calls(measures):
        first = diverging_calls(measures)[0]
        yield (
            "critical",
            first.key,
            say(
                "All weights are equal, yet outputs differ from {call} on: relative change {change}, where rounding "
                "explains {rounding}. {cause}",
                call=first.key,
                change=small(first.divergence),
                rounding=small(first.threshold),
                cause=_cause(measures),
            ),
        )


def same_function_other_weights(measures: Measures) -> Iterator[Draft]:
    """Weights differ, the function does not."""
    if verdict(measures) != "same-function":
        return
    changed = changed_calls(measures)
    largest = max((pair.gram_change for pair in measures.calls if pair.gram_change is not None), default=0.0)
    if changed:
        most = max(changed, key=lambda pair: pair.weight_change or 0.0)
        what = say(
            "The weights of {calls} differ (most in {call}, by {change})",
            calls=plural(len(changed), "{n} call", "{n} calls"),
            call=most.key,
            change=percent(most.weight_change or 0.0),
        )
    else:
        unused = len(changed_tensors(measures.unused))
        what = say("Tensors that belong to no call differ ({count})", count=unused)
    outputs = say("the largest relative change of a Gram matrix is {change}", change=small(largest))
    if measures.predictions is not None:
        logits = small(measures.predictions.logit_change)
        outputs = say("{grams}, of the logits {change}", grams=outputs, change=logits)
    reordered = [tensor for pair in changed for tensor in changed_tensors(pair.tensors) if tensor.moved_filters]
    moved = any(pair.mean_change is not None and pair.mean_change > pair.threshold for pair in measures.calls)
    if reordered:
        most_moved = max(reordered, key=lambda tensor: len(tensor.moved_filters))
        why = say(
            "The channels of a layer were reordered: {count} filters of {tensor} are other filters of the reference, "
            "bit for bit.",
            count=len(most_moved.moved_filters),
            tensor=most_moved.name,
        )
    elif moved:
        why = say("The channels of a layer were reordered.")
    else:
        why = say("The change stays below what rounding does.")
    yield (
        "notice",
        None,
        say(
            "{weights}, but the function does not: on the {images} {outputs}. {why}",
            weights=what,
            images=_common_images(measures.images),
            outputs=outputs,
            why=why,
        ),
    )


def head_changed_only(measures: Measures) -> Iterator[Draft]:
    """Only the classifier differs: the features are the reference's."""
    head = _head(measures)
    if head is None or verdict(measures) != "localized" or not _one_unit(measures) or changed_calls(measures) != [head]:
        return
    found, change = measures.predictions, percent(head.weight_change or 0.0)
    said = say(
        "Only the head {call} changed, by about {change}; all layers before it are equal.", call=head.key, change=change
    )
    if found is not None:
        said = say(
            "Only the head {call} changed, by about {change}; all layers before it are equal; top-1 agreement with the "
            "reference is {agreement}.",
            call=head.key,
            change=change,
            agreement=f"{found.top1_agreement:.2f}",
        )
    yield "warning", head.key, said


def one_unit_changed(measures: Measures) -> Iterator[Draft]:
    """The changed calls lie in one unit: all else is equal, bit for bit."""
    changed = changed_calls(measures)
    if verdict(measures) != "localized" or not _one_unit(measures) or changed == [_head(measures)]:
        return
    first = ranking(measures)[0]
    changes = listed(
        say("{call} by about {change}", call=pair.key, change=percent(pair.weight_change or 0.0)) for pair in changed
    )
    filters = [text for pair in changed for text in _filters_changed(pair)]
    flipped = measures.predictions is not None and bool(measures.predictions.flips)
    severity = "critical" if flipped else "warning"
    yield (
        severity,
        first,
        say(
            "Only one unit changed: {changes}. The weights of all other calls are equal.",
            changes=listed([changes, *filters], " "),
        ),
    )


def batchnorm_statistics_changed(measures: Measures) -> Iterator[Draft]:
    """Running statistics moved while everything that is learned stayed equal."""
    changed = [pair for pair in changed_calls(measures) if pair.presence == "paired"]
    names = sorted({tensor.local_name for pair in changed for tensor in changed_tensors(pair.tensors)})
    if not measures.same_architecture or not changed or not set(names) <= set(RUNNING_STATISTICS):
        return
    most = max(changed, key=lambda pair: pair.weight_change or 0.0)
    flipped = measures.predictions is not None and bool(measures.predictions.flips)
    yield (
        "warning" if flipped else "notice",
        most.key,
        say(
            "Only running statistics changed ({tensors}), in {calls}, most in {call}, by {change}; every learned "
            "weight is equal.",
            tensors=names[0] if len(names) == 1 else say("{first} and {second}", first=names[0], second=names[1]),
            calls=plural(len(changed), "{n} call", "{n} calls"),
            call=most.key,
            change=percent(most.weight_change or 0.0),
        ),
    )


def layers_stand_out(measures: Measures) -> Iterator[Draft]:
    """Calls that changed far more than the rest of their kind."""
    if verdict(measures) not in ("localized", "different-architecture") or measures.other_network:
        return
    ratios = weight_ratios(measures)
    found = standing_out(measures)
    for pair in found[:SHOWN]:
        change = say(
            "{call} stands out: its weights changed by about {change}, {ratio} times the median of the changed "
            "{tensor} tensors of {kind} calls",
            call=pair.key,
            change=percent(pair.weight_change or 0.0),
            ratio=f"{ratios[pair.key]:.0f}",
            tensor=max(changed_tensors(pair.tensors), key=lambda tensor: tensor.change or 0.0).local_name,
            kind=KINDS.get(pair.call.kind, pair.call.kind),
        )
        yield "critical", pair.key, say("{change}.", change=listed([change, *_filters_changed(pair)], " "))
    if len(found) > SHOWN:
        rest = [pair.key for pair in found[SHOWN : 2 * SHOWN]] + ["..."] * (len(found) > 2 * SHOWN)
        yield (
            "warning",
            None,
            say(
                "More than {ratio} times the median of their kind, too: {calls}.",
                ratio=f"{STANDS_OUT:.0f}",
                calls=listed(rest),
            ),
        )


def changed_everywhere(measures: Measures) -> Iterator[Draft]:
    """Many calls changed by similar amounts: noise, training, or quantisation."""
    changed = changed_calls(measures)
    if len({pair.call.unit for pair in changed}) < 2 or verdict(measures) not in ("localized", "widespread"):
        return
    owners = sum(pair.weights in ("identical", "changed") for pair in measures.calls)
    changes = [pair.weight_change or 0.0 for pair in changed]
    most = max(changed, key=lambda pair: pair.weight_change or 0.0)
    said = say(
        "The weights of {count} of {calls} changed, by {median} at the median and {largest} at most ({call})",
        count=len(changed),
        calls=plural(owners, "{n} call", "{n} calls"),
        median=percent(median(changes)),
        largest=percent(max(changes)),
        call=most.key,
    )
    if standing_out(measures):
        yield "notice", None, say("{change}.", change=said)
    else:
        yield "notice", None, say("{change}; no call stands out from its kind.", change=said)


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
            say(
                "In {count} of the {total} changed kernels whose filters held more than {limit} values, no filter now "
                "holds more than {values}: the mark of {bits}-bit quantisation.",
                count=quantised,
                total=large,
                limit=INT8_VALUES,
                values=values,
                bits=8 if values > 16 else 4,
            ),
        )


def zeroed_filters(measures: Measures) -> Iterator[Draft]:
    """Filters that became exactly zero."""
    pruned: list[tuple[float, CallPair, Message]] = []
    for pair in () if measures.other_network else measures.calls:
        for tensor in changed_tensors(pair.tensors):
            if tensor.reference is None or tensor.other is None:
                continue
            before, after, filters = tensor.reference.zero_filters, tensor.other.zero_filters, tensor.other.filters
            if after > before:
                said = say(
                    "Exactly zero: {count} of {total} filters of {tensor} ({share}), in the reference {before}.",
                    count=after,
                    total=filters,
                    tensor=tensor.name,
                    share=percent(after / filters),
                    before=before or say("none"),
                )
                pruned.append(((after - before) / filters, pair, said))
    pruned.sort(key=lambda item: (-item[0], item[1].call.position))
    for share, pair, message in pruned[:SHOWN]:
        yield "critical" if share > MANY_UNITS else "warning", pair.key, message
    if len(pruned) > SHOWN:
        yield (
            "warning",
            None,
            plural(
                len(pruned) - SHOWN,
                "Filters became exactly zero in {n} further tensor, too.",
                "Filters became exactly zero in {n} further tensors, too.",
            ),
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
            say(
                "Single weights became exactly zero in {tensors}, most in {tensor}: {share} of its entries.",
                tensors=plural(len(thinned), "{n} tensor", "{n} tensors"),
                tensor=name,
                share=percent(share),
            ),
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
            say(
                "No prediction changed on the {images}; of all such images, at most {share} change (95 % interval). "
                "Mean KL divergence {divergence} nats.",
                images=_common_images(found.images),
                share=percent(high),
                divergence=small(found.kl_mean),
            ),
        )
        return
    said = say(
        "{count} of {predictions} changed ({share}; 95 % interval {low} to {high}); mean KL divergence {divergence} "
        "nats.",
        count=len(found.flips),
        predictions=plural(found.images, "{n} prediction", "{n} predictions"),
        share=percent(found.churn),
        low=percent(low),
        high=percent(high),
        divergence=small(found.kl_mean),
    )
    if found.negative_flips is not None:
        said = say(
            "{changed} Of the {images}, {worse} went from right to wrong and {better} from wrong to right.",
            changed=said,
            images=plural(found.labelled, "{n} labelled image", "{n} labelled images"),
            worse=found.negative_flips,
            better=found.positive_flips,
        )
    yield "critical" if found.churn >= CHURN else "warning", None, said


def flips_though_alike(measures: Measures) -> Iterator[Draft]:
    """Predictions flipped although every representation agrees."""
    found = measures.predictions
    known = [pair.cka for pair in measures.calls if pair.cka is not None]
    if found is None or not found.flips or not known or min(known) < ALIKE:
        return
    yield (
        "warning",
        None,
        say(
            "{predictions} changed although the representations agree at every call (debiased CKA at least {cka}).",
            predictions=plural(len(found.flips), "{n} prediction", "{n} predictions"),
            cka=f"{min(known):.3f}",
        ),
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
            plural(
                number,
                "Of {images} whose prediction changed {n} leaves the others first at {call}: there they moved further "
                "beyond the usual than 95 % of the images whose prediction stayed do anywhere.",
                "Of {images} whose prediction changed {n} leave the others first at {call}: there they moved further "
                "beyond the usual than 95 % of the images whose prediction stayed do anywhere.",
                images=plural(len(found.flips), "{n} image", "{n} images"),
                call=key,
            ),
        )


def silent_units_appeared(measures: Measures) -> Iterator[Draft]:
    """Units that died or became constant."""
    if measures.activations != "exact" or measures.other_network:
        return  # other images wake other units
    for what, count in ((say("never rise above 0"), _dead), (say("give the same value everywhere"), _constant)):
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
            say(
                "In {calls} more units {fail} on the {images} images than in the reference, most in {call}: {after} of "
                "{total} instead of {before}.",
                calls=plural(len(grown), "{n} call", "{n} calls"),
                fail=what,
                images=measures.images,
                call=most.key,
                after=after,
                total=most.call.channels,
                before=before,
            ),
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
    beside = [_chance(found)]
    if found.empty:
        beside.append(plural(found.empty, "{n} map became empty", "{n} maps became empty"))
    yield (
        "warning" if unrelated else "notice",
        last.key,
        say(
            "{method} at {call}, the last call with maps, {moved}: mean Pearson correlation {correlation} over {maps} "
            "of the same classes; {beside}.",
            method=method,
            call=last.key,
            moved=say("no longer agrees") if unrelated else say("has moved"),
            correlation=f"{pearson:.2f}",
            maps=plural(found.images, "{n} map", "{n} maps"),
            beside=listed(beside, "; "),
        ),
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
        say(
            "Outputs differ from {call} on: relative change {change}, where rounding explains {rounding}.",
            call=key,
            change=small(pair.divergence),
            rounding=small(pair.threshold),
        ),
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
    if lowest.cka_p95 is not None:
        similarity = say("{cka} (chance reaches {chance})", cka=similarity, chance=f"{lowest.cka_p95:.2f}")
    yield (
        "info",
        lowest.key,
        say(
            "Representations are least alike at {call}: debiased CKA {cka}. Low similarity shows where a change has "
            "its effect, not where it was made.",
            call=lowest.key,
            cka=similarity,
        ),
    )


def architecture_differs(measures: Measures) -> Iterator[Draft]:
    """Calls without counterpart, or with other shapes."""
    if measures.same_architecture:
        return
    paired = [pair for pair in measures.calls if pair.presence == "paired"]
    groups = (
        (say("only in the reference"), [pair for pair in measures.calls if pair.presence == "removed"]),
        (say("only in this run"), [pair for pair in measures.calls if pair.presence == "added"]),
        (
            say("of another type"),
            [pair for pair in paired if pair.reference and pair.other and pair.reference.type != pair.other.type],
        ),
        (say("with other shapes"), [pair for pair in paired if pair.weights == "reshaped"]),
    )
    parts = [
        say(
            "{calls} {which} (first: {call})",
            calls=plural(len(pairs), "{n} call", "{n} calls"),
            which=which,
            call=pairs[0].key,
        )
        for which, pairs in groups
        if pairs
    ]
    differences = listed(parts or [say("numbers of parameters")], "; ")
    yield "warning", None, say("The architectures differ: {differences}.", differences=differences)


def few_common_images(measures: Measures) -> Iterator[Draft]:
    """Too few common images for similarities."""
    if measures.activations != "no" and measures.images < FEW_IMAGES:
        worth = few(measures.images)
        yield "warning", None, say("{worth}; both runs have no more in common.", worth=worth)


def probe_mismatch(measures: Measures) -> Iterator[Draft]:
    """The runs saw other images, or prepared them in other ways."""
    if measures.activations == "exact" or measures.images_reason is None:
        return
    severity = "notice" if measures.activations == "subset" else "warning"
    yield severity, None, say("The runs did not see the same images: {reason}.", reason=measures.images_reason)


def not_compared(measures: Measures) -> Iterator[Draft]:
    """What else could not be compared, and why."""
    for reason in measures.reasons:
        if reason != measures.images_reason:
            yield "notice", None, say("Not everything could be compared ({reason}).", reason=reason)


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


def _common_images(number: int) -> Message:
    return plural(number, "{n} common image", "{n} common images")


def _filters_changed(pair: CallPair) -> list[Message]:
    """How many filters changed, of the first tensor of which not all did."""
    return [
        say(
            "({count} of {total} filters of {tensor})",
            count=len(tensor.changed_filters),
            total=tensor.other.filters,
            tensor=tensor.name,
        )
        for tensor in changed_tensors(pair.tensors)
        if tensor.other is not None and 0 < len(tensor.changed_filters) < tensor.other.filters
    ][:1]


def _cause(measures: Measures) -> Message:
    """What the manifests say of the environment, where it differs."""
    first, second = measures.reference.manifest, measures.other.manifest
    known: list[tuple[str, str, str]] = [(say("device"), first.device, second.device)]
    known += [(name, version, second.libraries.get(name, say("none"))) for name, version in first.libraries.items()]
    differences = [
        say("{what}: {before} and {after}", what=what, before=before, after=after)
        for what, before, after in known
        if before != after
    ]
    if not differences:
        return say("Something that no checkpoint holds must differ.")
    return say("Something that no checkpoint holds must differ; {differences}.", differences=listed(differences, "; "))


def _chance(found: MapAgreement) -> Message:
    """What the controls of a method's maps reach."""
    other, gaussian = found.null_other_image, found.null_gaussian
    if other is None and gaussian is None:
        return say("no null was computed")
    if other is None:
        return say("a centred Gaussian reaches {gaussian}", gaussian=f"{gaussian:.2f}")
    if gaussian is None:
        return say("maps of different images of the reference reach {other}", other=f"{other:.2f}")
    return say(
        "maps of different images of the reference reach {other}, a centred Gaussian {gaussian}",
        other=f"{other:.2f}",
        gaussian=f"{gaussian:.2f}",
    )


def _with_pearson(pair: CallPair) -> list[tuple[str, MapAgreement, float]]:
    return [(method, found, found.pearson) for method, found in pair.maps.items() if found.pearson is not None]


def _dead(health: Health | None) -> int:
    return 0 if health is None else health.dead_units or 0


def _constant(health: Health | None) -> int:
    return 0 if health is None else health.constant_units or 0
