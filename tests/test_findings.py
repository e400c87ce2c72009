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
    with_changes,
    zeroed_filters,
)
from interpret.findings import RULES, RUN_RULES, SEVERITIES, Finding, findings_between, findings_of
from interpret.findings.advice import ADVICE
from interpret.measures import measure
from interpret.measures.runs import Run
from interpret.sections import SECTIONS
from interpret.verdicts import verdict

WEIGHTS = network()
PRUNED = zeroed_filters(int8(WEIGHTS), "layer2.conv.weight", share=0.3)


@pytest.fixture(scope="module")
def reference():
    return Run(bundle(WEIGHTS))


def against(reference, weights=WEIGHTS, **options):
    return measure(reference, Run(bundle(weights, **options)))


def said(findings, rule):
    return [finding for finding in findings if finding.rule == rule]


# A run and its reference


def test_every_finding_is_a_sentence_with_a_known_severity(reference):
    everywhere, head = int8(WEIGHTS), {**WEIGHTS, "fc.weight": noisy(WEIGHTS, 0.3)["fc.weight"]}
    one, reordered = scaled(WEIGHTS, "layer3.conv.weight", 1.01), permuted(WEIGHTS, block=2)
    for weights in (WEIGHTS, everywhere, PRUNED, head, one, reordered, network(classes=7)):
        for finding in findings_between(against(reference, weights), "run"):
            assert finding.severity in SEVERITIES
            assert finding.run == "run"
            assert finding.message.endswith(".")
            assert "nan" not in finding.message.lower()


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
    assert finding.message.endswith(
        "The channels of a layer were reordered: 15 filters of layer2.conv.weight are other filters of the reference, "
        "bit for bit."
    )
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


def test_every_rule_says_what_it_means(reference):
    rules = {rule.__name__.replace("_", "-") for rule in (*RUN_RULES, *RULES)}
    assert rules == set(ADVICE)
    places = {section.id for section in SECTIONS}
    for advice in ADVICE.values():
        assert advice.place in places
        assert advice.meaning.endswith(".")
        assert advice.next.endswith((".", "?"))
    found = findings_between(against(reference, PRUNED), "run")[0].to_dict()
    assert set(found) == {"severity", "run", "layer", "rule", "message", "meaning", "next", "place"}


def test_running_statistics_alone(reference):
    weights = {**WEIGHTS}
    for bn in ("bn1", "layer2.bn"):
        weights[f"{bn}.running_var"] = WEIGHTS[f"{bn}.running_var"] * 2
    found = said(findings_between(against(reference, weights), "run"), "batchnorm-statistics-changed")
    assert "Only running statistics changed (running_var), in 2 calls, most in" in found[0].message
    assert "by 100 %" in found[0].message
    weights["layer1.bn.bias"] = WEIGHTS["layer1.bn.bias"] + 1
    assert not said(findings_between(against(reference, weights), "run"), "batchnorm-statistics-changed")


def flipped(content):
    content["predictions"]["logits"] = np.roll(content["predictions"]["logits"], 1, axis=1)


def test_flips_though_everything_is_alike(reference):
    found = said(findings_between(against(reference, edit=flipped), "run"), "flips-though-alike")
    assert found[0].message == (
        "16 predictions changed although the representations agree at every call (debiased CKA at least 1.000)."
    )
    redrawn_stem = redrawn(WEIGHTS, "conv1.weight")
    assert not said(findings_between(against(reference, redrawn_stem), "run"), "flips-though-alike")


def test_where_flips_begin(reference):
    measures = against(reference, edit=flipped)
    flips = [dataclasses.replace(flip, leaves_at=key) for flip, key in zip(
        measures.predictions.flips, ["relu", "fc", "fc", None, "fc"] + [None] * 11, strict=True
    )]  # fmt: skip
    measures = dataclasses.replace(measures, predictions=dataclasses.replace(measures.predictions, flips=tuple(flips)))
    (finding,) = said(findings_between(measures, "run"), "where-flips-begin")
    assert finding.layer == "fc"
    assert finding.message.startswith("Of 16 images whose prediction changed 3 leave the others first at fc")


def test_untrained_weights():
    """What initialisations leave is recognised; one trained tensor of a normalization, or other kernels, are not."""
    rng = np.random.default_rng(3)
    weights = network()
    for name, array in weights.items():
        if name.endswith("conv.weight"):
            weights[name] = rng.normal(0, np.sqrt(2 / (9 * array.shape[0])), array.shape).astype(np.float32)
        if ".bn." in name or name.startswith("bn1"):
            weights[name] = np.full_like(array, float(name.endswith(("weight", "running_var"))))
    (finding,) = said(findings_of(bundle(weights)), "untrained-weights")
    assert finding.message.startswith(
        "The weights look untrained: 2 of 2 large kernels have mean and standard deviation"
    )
    assert "8 of 8 tensors of normalizations are still all 1 or 0" in finding.message
    trained = {**weights, **{name: WEIGHTS[name] for name in WEIGHTS if ".bn." in name}}
    assert not said(findings_of(bundle(trained)), "untrained-weights")
    wider = {**weights, **{f"layer{n}.conv.weight": weights[f"layer{n}.conv.weight"] * 3 for n in (1, 2, 3)}}
    assert not said(findings_of(bundle(wider)), "untrained-weights")


def test_the_head(reference):
    changed = {**WEIGHTS, "fc.weight": redrawn(WEIGHTS, "fc.weight")["fc.weight"]}
    measures = against(reference, changed)
    (finding,) = said(findings_between(measures, "run"), "head-changed-only")
    assert not said(findings_between(measures, "run"), "one-unit-changed")
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


def test_single_weights_pruned(reference):
    weights = dict(WEIGHTS)
    for name, share in (("conv1.weight", 0.3), ("layer2.conv.weight", 0.5), ("layer3.conv.weight", 0.02)):
        array = WEIGHTS[name].copy()
        array[np.abs(array) < np.quantile(np.abs(array), share)] = 0
        weights[name] = array
    (finding,) = said(findings_between(against(reference, weights), "run"), "sparse-weights")
    assert finding.layer == "layer2.conv"
    assert finding.message == (
        "Single weights became exactly zero in 2 tensors, most in layer2.conv.weight: 50 % of its entries."
    )
    assert not said(findings_between(against(reference, PRUNED), "run"), "sparse-weights")


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


@pytest.mark.parametrize("count", [3, 6])
def test_few_images(count):
    images = probe(count)
    (finding,) = said(findings_of(bundle(WEIGHTS, images=images)), "few-images")
    assert finding.severity == ("warning" if count < 4 else "notice")
    measures = measure(Run(bundle(WEIGHTS, images=images)), Run(bundle(WEIGHTS, images=images)))
    (finding,) = said(findings_between(measures, "run"), "few-common-images")
    assert finding.severity == "warning"


def test_what_was_not_compared_is_said(reference):
    found = said(findings_between(against(reference, images=probe(16, seed=4)), "run"), "probe-mismatch")
    assert found[0].message == (
        "The runs did not see the same images: activations and predictions need at least two images that both runs saw."
    )
    found = said(findings_between(against(reference, network(classes=7)), "run"), "not-compared")
    assert [finding.message for finding in found] == [
        "Not everything could be compared (predictions: the reference has 10 classes, the other run 7)."
    ]


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
