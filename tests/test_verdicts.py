import numpy as np
import pytest

from bundles import (
    bundle,
    int8,
    network,
    noisy,
    permuted,
    probe,
    redrawn,
    scaled,
    shifted,
    with_changes,
    zeroed_filters,
)
from interpret.findings import findings_between
from interpret.measures import measure
from interpret.measures.runs import Run
from interpret.verdicts import VERDICTS, first_divergence, ranking, standing_out, verdict, weight_ratios

WEIGHTS = network()
PRUNED = zeroed_filters(int8(WEIGHTS), "layer2.conv.weight", share=0.3)


@pytest.fixture(scope="module")
def reference():
    return Run(bundle(WEIGHTS))


def against(reference, weights=WEIGHTS, **options):
    return measure(reference, Run(bundle(weights, **options)))


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
    finding = findings_between(measures, "run")[0]
    assert finding.rule == "equal-weights-other-outputs"
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
    assert weight_ratios(measures) == pytest.approx({"c3": 0.4, "c4": 1, "c5": 2})
    noise = against(reference, noisy(WEIGHTS, 0.01))
    assert max(weight_ratios(noise).values()) < 1.2


def test_the_only_one_of_its_kind_is_held_against_the_others_of_its_name(reference):
    """The classifier of a convolutional network, and one of two convolutions, under noise everywhere."""
    noise = noisy(WEIGHTS, 0.01)
    for name in ("fc.weight", "layer2.conv.weight"):
        measures = against(reference, {**noise, **redrawn(noise, name)})
        assert verdict(measures) == "localized"
        assert ranking(measures)[0] == name.removesuffix(".weight")
        assert weight_ratios(measures)[name.removesuffix(".weight")] > 50
    assert verdict(against(reference, noise)) == "widespread"
    alone = weight_ratios(against(reference, redrawn(WEIGHTS, "fc.weight")))
    assert alone == {"fc": 1.0}, "nothing else changed to hold it against"


def test_one_damaged_kernel_comes_before_running_statistics_that_all_moved(reference):
    """As after forwards in training mode: statistics of all normalizations move by far more than the kernel."""
    rng = np.random.default_rng(4)
    weights = zeroed_filters(WEIGHTS, "layer2.conv.weight", share=1 / 16)
    for name, array in WEIGHTS.items():
        if "running_" in name:
            weights[name] = (array * rng.uniform(0.6, 1.5, array.shape)).astype(np.float32)
    found = against(reference, weights)
    assert ranking(found)[0] == "layer2.conv"
    assert max(pair.weight_change for pair in found.calls if pair.weight_change) > calls_of(found)["layer2.conv"]


def calls_of(measures):
    return {pair.key: pair.weight_change for pair in measures.calls}


def test_every_case_ends_in_a_verdict_that_is_known():
    assert {expected for _, expected, _ in CASES.values()} < set(VERDICTS)
