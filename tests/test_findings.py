import dataclasses

import numpy as np
import pytest
from bundles import (
    bundle,
    changed_call,
    int8,
    network,
    noisy,
    permuted,
    probe,
    redrawn,
    scaled,
    shifted,
    zeroed_filters,
)

from interpret.findings import (
    SEVERITIES,
    VERDICTS,
    Finding,
    findings_between,
    findings_of,
    first_divergence,
    ranking,
    standing_out,
    verdict,
    weight_ratios,
)
from interpret.measures import Run, measure

WEIGHTS = network()
PRUNED = zeroed_filters(int8(WEIGHTS), "layer2.conv.weight", share=0.3)


@pytest.fixture(scope="module")
def reference():
    return Run(bundle(WEIGHTS))


def against(reference, weights=WEIGHTS, **options):
    return measure(reference, Run(bundle(weights, **options)))


def said(findings, rule):
    return [finding for finding in findings if finding.rule == rule]


# Verdict, ranking, first divergence

CASES = {
    "the same again": (WEIGHTS, "identical", None),
    "another counter": ({**WEIGHTS, "bn1.num_batches_tracked": np.array(3)}, "identical", None),
    "int8 everywhere": (int8(WEIGHTS), "widespread", None),
    "1 % noise everywhere": (noisy(WEIGHTS, 0.01), "widespread", None),
    "int8 and 30 % of one kernel's filters zeroed": (PRUNED, "localized", "layer2.conv"),
    "noise and one kernel shuffled": (redrawn(noisy(WEIGHTS, 0.01), "layer1.conv.weight"), "localized", "layer1.conv"),
    "noise and one running variance x4": (scaled(noisy(WEIGHTS, 0.01), "bn1.running_var", 4), "localized", "bn1"),
    "one gamma x1.01": (scaled(WEIGHTS, "layer1.bn.weight", 1.01), "localized", "layer1.bn"),
    "one kernel +1 %": (scaled(WEIGHTS, "layer3.conv.weight", 1.01), "localized", "layer3.conv"),
    "one entry of one kernel +1 %": (
        shifted(WEIGHTS, "conv1.weight", 0.01 * WEIGHTS["conv1.weight"][0, 1, 1, 1], (0, 1, 1, 1)),
        "localized",
        "conv1",
    ),
    "one bias entry": (shifted(WEIGHTS, "layer2.bn.bias", 0.5, 3), "localized", "layer2.bn"),
    "the head": ({**WEIGHTS, "fc.weight": noisy(WEIGHTS, 0.3)["fc.weight"]}, "localized", "fc"),
    "channels of a block reordered": (permuted(WEIGHTS, block=2), "same-function", None),
    "other classes": (network(classes=7), "different-architecture", "fc"),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict_and_ranking(reference, case):
    weights, expected, first = CASES[case]
    measures = against(reference, weights)
    assert verdict(measures) == expected
    order = ranking(measures)
    assert (not order) == (expected == "identical")
    if first is not None:
        assert order[0] == first


def test_a_convolution_and_its_normalization_are_one_unit(reference):
    both = scaled(redrawn(WEIGHTS, "layer2.conv.weight"), "layer2.bn.running_var", 1.3)
    measures = against(reference, both)
    assert verdict(measures) == "localized"
    assert ranking(measures)[0] == "layer2.conv"
    two = scaled(scaled(WEIGHTS, "layer2.bn.weight", 1.01), "layer1.bn.weight", 1.01)
    assert verdict(against(reference, two)) == "widespread"


def test_running_statistics_that_moved_with_a_kernel_do_not_come_before_it(reference):
    moved = redrawn(WEIGHTS, "layer2.conv.weight")
    rng = np.random.default_rng(0)
    for block, share in (("bn1", 0.001), ("layer1.bn", 0.002), ("layer2.bn", 0.3), ("layer3.bn", 0.02)):
        for part in ("running_mean", "running_var"):
            name = f"{block}.{part}"
            moved[name] = (moved[name] * (1 + share * rng.uniform(-1, 1, len(moved[name])))).astype(np.float32)
    assert ranking(against(reference, moved))[0] == "layer2.conv"


def test_calls_that_only_suffer_are_not_suspicious(reference):
    kernels = {"conv1", "layer1.conv", "layer2.conv", "layer3.conv", "fc"}
    assert set(ranking(against(reference, PRUNED))) == kernels
    assert ranking(against(reference, scaled(WEIGHTS, "bn1.weight", 1.01))) == ("bn1",)


def test_equal_weights_with_other_outputs_rank_in_order_of_execution(reference):
    def disturb(content):
        content["layers"]["gram"][9:] *= np.float32(1.1)

        content["manifest"]["device"] = "cuda:0"

    measures = against(reference, edit=disturb)
    assert verdict(measures) == "widespread"
    assert ranking(measures) == tuple(pair.key for pair in measures.calls[9:])
    assert first_divergence(measures) == "layer2.bn"
    (finding,) = said(findings_between(measures, "run"), "equal-weights-other-outputs")
    assert (finding.severity, finding.layer) == ("critical", "layer2.bn")
    assert finding.message.endswith("Something that no checkpoint holds must differ; device: cpu and cuda:0.")


def test_pictures_prepared_in_another_way_do_not_accuse_equal_weights(reference):
    sources = reference.evidence.manifest.inputs["source_sha256"]
    measures = against(reference, images=probe() * np.float32(1.5), sources=sources)
    assert (verdict(measures), ranking(measures)) == ("identical", ())
    assert first_divergence(measures) is None


def test_without_common_images_the_verdict_rests_on_weights(reference):
    images = probe(16, seed=4)
    assert verdict(against(reference, images=images)) == "identical"
    assert verdict(against(reference, PRUNED, images=images)) == "localized"
    assert verdict(against(reference, permuted(WEIGHTS), images=images)) == "widespread"
    assert first_divergence(against(reference, PRUNED, images=images)) is None


def test_without_weights_runs_do_not_compare(reference):
    assert verdict(against(reference, edit=lambda content: content.pop("weights"))) == "not-comparable"


def test_a_change_that_no_call_owns_is_not_localized(reference):
    def orphan(value):
        return Run(bundle({**WEIGHTS, "aux.weight": np.full((2, 2), value, np.float32)}))

    assert verdict(measure(orphan(1), orphan(2))) == "same-function"
    images = probe(16, seed=4)
    other = Run(bundle({**WEIGHTS, "aux.weight": np.full((2, 2), 2, np.float32)}, images=images))
    assert verdict(measure(orphan(1), other)) == "widespread"


def test_equal_grams_with_other_logits_are_another_function(reference):
    measures = against(reference, shifted(WEIGHTS, "fc.bias", 1, 0))  # a centred Gram cannot see it
    assert max(pair.gram_change for pair in measures.calls) == 0
    assert verdict(measures) == "localized"


def test_without_predictions_the_last_call_speaks_for_the_outputs(reference):
    def forget(content):
        del content["predictions"]

    assert verdict(against(reference, permuted(WEIGHTS), edit=forget)) == "same-function"
    assert verdict(against(reference, shifted(WEIGHTS, "fc.bias", 1, 0), edit=forget)) == "localized"


# The statistic that singles out a layer


def with_changes(measures, changes):
    """The measures of many convolutions whose kernels changed by the given amounts."""
    template = next(pair for pair in measures.calls if pair.key == "conv1")
    tensor = template.tensors[0]
    calls = []
    for index, change in enumerate(changes):
        call = dataclasses.replace(template.reference, key=f"c{index}", unit=f"c{index}", position=index)
        status = "changed" if change else "identical"
        changed = dataclasses.replace(tensor, status=status, change=change)
        calls.append(
            dataclasses.replace(
                template, reference=call, other=call, tensors=(changed,), weights=status, weight_change=change
            )
        )
    return dataclasses.replace(measures, calls=tuple(calls))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([0.003] * 40 + [0.0147], "widespread"),  # int8 per tensor reaches 4.9 times the median
        ([0.003] * 40 + [0.0299], "widespread"),
        ([0.003] * 40 + [0.0301], "localized"),
        ([0.01] * 40 + [0.53], "localized"),
        ([0.0] * 40 + [0.0001], "localized"),  # one unit
        ([0.0] * 39 + [0.5, 0.5], "widespread"),
    ],
)
def test_ten_times_the_median_singles_out(reference, changes, expected):
    measures = with_changes(against(reference, int8(WEIGHTS)), changes)
    assert verdict(measures) == expected
    assert [pair.key for pair in standing_out(measures)] == (
        ["c40"] if max(changes) > 0.03 and expected == "localized" else []
    )


def test_the_ratio_counts_changed_tensors_of_the_same_kind_only(reference):
    measures = with_changes(against(reference, int8(WEIGHTS)), [0.0, 0.0, 0.0, 0.01, 0.02, 0.03])
    assert weight_ratios(measures) == pytest.approx({"c3": 0.5, "c4": 1, "c5": 1.5})
    noise = against(reference, noisy(WEIGHTS, 0.01))
    assert max(weight_ratios(noise).values()) < 1.2


# Sentences


def test_every_finding_is_a_sentence_with_a_known_severity(reference):
    for weights, *_ in CASES.values():
        for finding in findings_between(against(reference, weights), "run"):
            assert finding.severity in SEVERITIES
            assert finding.run == "run"
            assert finding.message.endswith(".")
            assert "nan" not in finding.message.lower()
    assert {expected for _, expected, _ in CASES.values()} < set(VERDICTS)


def test_findings_come_most_severe_first(reference):
    found = findings_between(against(reference, PRUNED), "run")
    ranks = [SEVERITIES.index(finding.severity) for finding in found]
    assert ranks == sorted(ranks)
    assert found[0].rule == "layers-stand-out"


def test_identical(reference):
    (finding,) = said(findings_between(against(reference), "again"), "identical")
    assert finding == Finding(
        "info",
        "again",
        None,
        "identical",
        "Every tensor holds the same values (26 in 20 calls), and on the 16 common images no output moves by more than "
        "rounding explains (largest relative change 0).",
    )
    images = probe(16, seed=4)
    (finding,) = said(findings_between(against(reference, images=images), "again"), "identical")
    assert "outputs were not compared" in finding.message


def test_the_same_function(reference):
    found = findings_between(against(reference, permuted(WEIGHTS, block=2)), "run")
    (finding,) = said(found, "same-function-other-weights")
    assert finding.message.startswith("The weights of 3 calls differ (most in layer2.")
    assert "but the function does not: on the 16 common images" in finding.message
    assert finding.message.endswith("The channels of a layer were reordered.")
    measures = against(reference, scaled(WEIGHTS, "layer3.bn.weight", 1 + 2e-7), noise=1e-6)
    (finding,) = said(findings_between(measures, "run"), "same-function-other-weights")
    assert finding.message.endswith("The change stays below what rounding does.")


def test_one_unit(reference):
    (finding,) = said(
        findings_between(against(reference, scaled(WEIGHTS, "bn1.weight", 1.01)), "run"), "one-unit-changed"
    )
    assert (finding.severity, finding.layer) == ("warning", "bn1")
    assert finding.message == "Only one unit changed: bn1 by about 1 %. The weights of all other calls are equal."
    filters = zeroed_filters(WEIGHTS, "layer1.conv.weight", share=3 / 12)
    (finding,) = said(findings_between(against(reference, filters), "run"), "one-unit-changed")
    assert "(3 of 12 filters of layer1.conv.weight)" in finding.message


def test_the_head(reference):
    changed = {**WEIGHTS, "fc.weight": redrawn(WEIGHTS, "fc.weight")["fc.weight"]}
    measures = against(reference, changed)
    (finding,) = said(findings_between(measures, "run"), "one-unit-changed")
    assert finding.message.startswith("Only the head fc changed, by about 1")
    assert f"top-1 agreement with the reference is {measures.predictions.top1_agreement:.2f}" in finding.message


def test_a_layer_that_stands_out(reference):
    found = findings_between(against(reference, PRUNED), "run")
    (finding,) = said(found, "layers-stand-out")
    assert (finding.severity, finding.layer) == ("critical", "layer2.conv")
    assert "times the median of the changed weight tensors of convolution calls" in finding.message
    (everywhere,) = said(found, "changed-everywhere")
    assert "The weights of 5 of 9 calls changed" in everywhere.message


def test_many_layers_that_stand_out_are_summed_up(reference):
    measures = with_changes(against(reference, int8(WEIGHTS)), [0.003] * 40 + [0.5] * 8)
    found = said(findings_between(measures, "run"), "layers-stand-out")
    assert [finding.layer for finding in found] == ["c40", "c41", "c42", None]
    assert found[-1].message == "More than 10 times the median of their kind, too: c43, c44, c45, ...."


def test_zeroed_filters(reference):
    found = said(findings_between(against(reference, PRUNED), "run"), "zeroed-filters")
    assert [finding.message for finding in found] == [
        "Exactly zero: 5 of 16 filters of layer2.conv.weight (31 %), in the reference none."
    ]
    everywhere = WEIGHTS
    for name in ("conv1", "layer1.conv", "layer2.conv", "layer3.conv", "fc"):
        everywhere = zeroed_filters(everywhere, f"{name}.weight", share=0.2)
    found = said(findings_between(against(reference, everywhere), "run"), "zeroed-filters")
    assert len(found) == 4
    assert found[-1].message == "Filters became exactly zero in 2 further tensors, too."
    assert not said(findings_between(measure(Run(bundle(PRUNED)), reference), "run"), "zeroed-filters")


def distinct(values):
    def put(content):
        for tensor in content["tensors"]:
            tensor["distinct"] = values if len(tensor["shape"]) == 4 else 1

    return put


@pytest.mark.parametrize(("after", "bits"), [(255, "8-bit"), (15, "4-bit"), (257, None)])
def test_quantised_weights(after, bits):
    measures = measure(Run(bundle(WEIGHTS, edit=distinct(900))), Run(bundle(int8(WEIGHTS), edit=distinct(after))))
    found = said(findings_between(measures, "run"), "quantised-weights")
    assert len(found) == (bits is not None)
    for finding in found:
        assert "In 4 of the 4 changed kernels whose filters held more than 256 values" in finding.message
        assert f"no filter now holds more than {after}: the mark of {bits} quantisation" in finding.message


def test_predictions(reference):
    (finding,) = said(findings_between(against(reference, int8(WEIGHTS)), "run"), "predictions-changed")
    assert finding.severity == "info"
    assert "No prediction changed on the 16 common images; of all such images, at most 19 %" in finding.message
    labelled = measure(reference, Run(bundle(PRUNED, labels=[2] * 16)))
    (finding,) = said(findings_between(labelled, "run"), "predictions-changed")
    assert finding.severity == "critical"
    assert "Of the 16 labelled images," in finding.message


def test_silent_units(reference):
    found = said(findings_between(against(reference, PRUNED), "run"), "silent-units-appeared")
    assert [finding.layer for finding in found] == ["layer2.relu", "layer2.conv"]
    assert "most in layer2.conv: 5 of 16 instead of 0" in found[1].message


def test_maps_that_moved(reference):
    targets = reference.array("maps", "targets")
    found = said(findings_between(against(reference, PRUNED, targets=targets), "run"), "maps-moved")
    assert [finding.layer for finding in found] == ["layer3.conv"]
    assert "over 4 maps of the same classes; maps of different images of the reference reach" in found[0].message
    assert not said(findings_between(against(reference, targets=targets), "run"), "maps-moved")


def test_where_outputs_begin_to_differ(reference):
    found = findings_between(against(reference, scaled(WEIGHTS, "layer2.bn.weight", 1.01)), "run")
    (first,) = said(found, "first-difference")
    assert first.layer == "layer2.bn"
    assert "relative change 0.02, where rounding explains 1e-06" in first.message
    (least,) = said(found, "least-similar")
    assert "debiased CKA 1 - " in least.message


def test_another_architecture(reference):
    (finding,) = said(findings_between(against(reference, network(classes=7)), "run"), "architecture-differs")
    assert finding.message == "The architectures differ: 1 call with other shapes (first: fc)."
    measures = measure(Run(bundle(WEIGHTS, drop_calls=("bn1",))), Run(bundle(WEIGHTS, drop_calls=("pool#1", "pool#2"))))
    (finding,) = said(findings_between(measures, "run"), "architecture-differs")
    assert finding.message == (
        "The architectures differ: 2 calls only in the reference (first: pool#1); 1 call only in this run (first: bn1)."
    )


def test_another_type_is_another_architecture(reference):
    def swap(content):
        content["manifest"]["calls"][2] = changed_call(content["manifest"]["calls"][2], type="GELU")

    measures = against(reference, edit=swap)
    assert verdict(measures) == "different-architecture"
    (finding,) = said(findings_between(measures, "run"), "architecture-differs")
    assert finding.message == "The architectures differ: 1 call of another type (first: relu)."


@pytest.mark.parametrize(("count", "severity"), [(3, "warning"), (6, "notice")])
def test_few_images(count, severity):
    images = probe(count)
    (finding,) = said(findings_of(bundle(WEIGHTS, images=images)), "few-images")
    assert finding.severity == severity
    measures = measure(Run(bundle(WEIGHTS, images=images)), Run(bundle(WEIGHTS, images=images)))
    (finding,) = said(findings_between(measures, "run"), "few-common-images")
    assert finding.severity == severity


def test_what_was_not_compared_is_said(reference):
    found = said(findings_between(against(reference, images=probe(16, seed=4)), "run"), "not-compared")
    assert found[0].message == "Activations and predictions need at least two images that both runs saw."


# One run


def test_one_healthy_run_has_little_to_say():
    found = findings_of(bundle(WEIGHTS))
    assert {finding.severity for finding in found} <= {"info"}
    assert {finding.run for finding in found} <= {"TinyNet"}


@pytest.mark.parametrize(
    ("factor", "offset", "warned"), [(1, 0, False), (2, 0, True), (0.4, 0, True), (1, 4, True)], ids=str
)
def test_images_prepared_otherwise_than_in_training(factor, offset, warned):
    images = probe() * np.float32(factor) + np.float32(offset)
    found = said(findings_of(bundle(WEIGHTS, images=images), "run"), "preprocessing-mismatch")
    assert len(found) == warned
    if warned:
        assert (found[0].severity, found[0].layer) == ("warning", "bn1")


def test_the_first_call_that_is_not_finite_is_named():
    def spoil(content):
        content["layers"]["nonfinite"][[4, 5, 9]] = 3
        content["tensors"][0]["nonfinite"] = 2

    found = said(findings_of(bundle(WEIGHTS, edit=spoil)), "non-finite-values")
    assert [finding.layer for finding in found] == ["conv1", "layer1.bn"]
    assert found[0].message == "2 of 216 entries of conv1.weight are not finite."
    assert (
        "layer1.bn is the first call with values that are not finite (3 of them), and 2 later calls" in found[1].message
    )


def test_filters_and_units_of_one_run():
    weights = zeroed_filters(WEIGHTS, "layer2.conv.weight", share=0.25)
    weights["conv1.weight"] = weights["conv1.weight"].copy()
    weights["conv1.weight"][2] *= 1e-5
    found = findings_of(bundle(weights))
    assert said(found, "zero-filters")[0].message == "Exactly zero: 4 of 16 filters of layer2.conv.weight."
    assert said(found, "near-zero-filters")[0].message.startswith("1 of 70 filters")

    def silence(content):
        content["layers"]["dead_units"][2] = 1
        content["layers"]["dead_units"][5] = 4

    (finding,) = said(findings_of(bundle(WEIGHTS, edit=silence)), "dead-units")
    assert finding.message == (
        "Never above 0 on the 16 images: 5 units in 2 activation calls, most in layer1.relu (4 of 12)."
    )


def test_one_image_that_dominates():
    images = probe(20)
    images[3] *= 20
    (finding,) = said(findings_of(bundle(WEIGHTS, images=images)), "dominant-image")
    assert "one image carries more than a quarter of all variance" in finding.message
