import dataclasses
import json
import re

import numpy as np
import pytest

from bundles import (
    bundle,
    changed_call,
    forward,
    int8,
    network,
    noisy,
    permuted,
    pooled,
    probe,
    redrawn,
    scaled,
    shifted,
    zeroed_filters,
)
from interpret.functional import agreement, similarity
from interpret.measures import measure
from interpret.measures.alignment import align, common_images
from interpret.measures.predictions import _leaves_at, quantile_of_others
from interpret.measures.representations import compare_representations, mean_cka
from interpret.measures.runs import Run

WEIGHTS = network()
IMAGES = probe()


@pytest.fixture(scope="module")
def reference():
    return Run(bundle(WEIGHTS))


def against(reference, weights=WEIGHTS, **options):
    return measure(reference, Run(bundle(weights, **options)))


def calls(measures):
    return {pair.key: pair for pair in measures.calls}


def features(weights, key, images=IMAGES):
    return pooled(next(record for record in forward(weights, images) if record.key == key).output)[0]


# Weights


def reordered_stem(weights, seed=0):
    """The first convolution's filters in another order, here and in the next layer's kernels: the same function."""
    order = np.random.default_rng(seed).permutation(len(weights["conv1.weight"]))
    parts = ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var")
    moved = {name: weights[name][order] for name in parts}
    return {**weights, **moved, "layer1.conv.weight": weights["layer1.conv.weight"][:, order]}, order


def test_kernels_in_another_order_are_found_again(reference):
    weights, order = reordered_stem(WEIGHTS)
    weights["conv1.weight"] = noisy(weights, 0.02)["conv1.weight"]
    pair = calls(against(reference, weights))["conv1"]
    assert pair.kernels.by == "cosine"
    assert np.array_equal(order[pair.kernels.order], np.arange(8))
    assert pair.kernels.matched > 0.999 - 0.02 > pair.kernels.null
    assert calls(against(reference))["conv1"].kernels is None, "equal kernels need no matching"
    assert calls(against(reference, int8(WEIGHTS)))["conv1"].kernels.by == "index"
    assert calls(against(reference, network(seed=5)))["conv1"].kernels.by is None

    def cut(content):
        content["kernels"]["conv1.weight"] = content["kernels"]["conv1.weight"][:4]

    assert calls(against(reference, int8(WEIGHTS), edit=cut))["conv1"].kernels is None, "kept in part only"


def test_filters_that_only_moved_are_counted(reference):
    weights, order = reordered_stem(WEIGHTS)
    (tensor,) = calls(against(reference, weights))["conv1"].tensors
    assert tensor.moved_filters == tuple(np.flatnonzero(order != np.arange(8)))
    zeroed = calls(against(reference, zeroed_filters(WEIGHTS, "conv1.weight", share=0.5)))["conv1"].tensors[0]
    assert (len(zeroed.zeroed_filters), zeroed.moved_filters) == (4, ())


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_the_cosine_is_that_of_the_tensors(reference, share):
    changed = noisy(WEIGHTS, share)
    (tensor,) = calls(against(reference, changed))["layer2.conv"].tensors
    w, v = WEIGHTS["layer2.conv.weight"].ravel(), changed["layer2.conv.weight"].ravel()
    assert tensor.cosine == pytest.approx(w @ v / np.linalg.norm(w) / np.linalg.norm(v), abs=0.06 * share**2 + 1e-6)
    assert calls(against(reference))["layer2.conv"].tensors[0].cosine == 1.0


def test_equal_values_change_by_exactly_zero(reference):
    measures = against(reference)
    for pair in measures.calls:
        assert pair.weights == ("identical" if pair.call.tensors else "none")
        assert pair.weight_change == (0 if pair.call.tensors else None)
        assert {tensor.change for tensor in pair.tensors} <= {0.0}


@pytest.mark.parametrize("name", ["conv1.weight", "layer2.conv.weight", "layer1.bn.running_var", "fc.bias"])
def test_the_change_is_that_of_the_tensors(reference, name):
    tampered = {**WEIGHTS, name: noisy(WEIGHTS, 0.05)[name]}
    key, _, local = name.rpartition(".")
    pair = calls(against(reference, tampered))[key]
    expected = np.linalg.norm(tampered[name] - WEIGHTS[name]) / np.linalg.norm(WEIGHTS[name])
    exact = WEIGHTS[name].size <= 1024  # the sketch of a small tensor is the tensor
    assert pair.weight_change == pytest.approx(expected, rel=1e-5 if exact else 0.1)
    assert {tensor.local_name for tensor in pair.tensors if tensor.change} == {local}
    assert [other.key for other in against(reference, tampered).calls if other.weights == "changed"] == [key]


def test_the_largest_tensor_speaks_for_the_call(reference):
    tampered = scaled(scaled(WEIGHTS, "bn1.weight", 1.01), "bn1.running_var", 4)
    assert calls(against(reference, tampered))["bn1"].weight_change == pytest.approx(3, rel=1e-5)


def test_counters_do_not_count(reference):
    tampered = {**WEIGHTS, "bn1.num_batches_tracked": np.array(7)}
    pair = calls(against(reference, tampered))["bn1"]
    counter = next(tensor for tensor in pair.tensors if tensor.local_name == "num_batches_tracked")
    assert (pair.weights, pair.weight_change) == ("identical", 0)
    assert (counter.status, counter.counted) == ("changed", False)


def test_a_copy_in_another_type_with_the_same_values_is_identical(reference):
    def as_half(content):
        for tensor in content["tensors"]:
            tensor |= {"dtype": "float16", "sha256": "0" * 64}

    assert {pair.weights for pair in against(reference, edit=as_half).calls} == {"identical", "none"}


def test_changed_and_zeroed_filters_are_named(reference):
    changed = WEIGHTS["layer2.conv.weight"].copy()
    changed[3, 0, 0, 0] += 1e-6
    changed[7] = 0
    tensor = calls(against(reference, {**WEIGHTS, "layer2.conv.weight": changed}))["layer2.conv"].tensors[0]
    assert tensor.changed_filters == (3, 7)
    assert tensor.zeroed_filters == (7,)


def test_a_tensor_that_was_zero_changed_completely(reference):
    zero = Run(bundle({**WEIGHTS, "fc.bias": np.zeros(10, np.float32)}))
    assert calls(measure(zero, reference))["fc"].weight_change == 1


def test_other_shapes_have_no_number(reference):
    measures = against(reference, network(classes=7))
    fc = calls(measures)["fc"]
    assert (fc.weights, fc.weight_change) == ("reshaped", None)
    assert fc.divergence is None
    assert "no divergence: the outputs differ in shape" in fc.reasons
    assert not measures.same_architecture
    assert any("10 classes, the other run 7" in reason for reason in measures.reasons)


def test_tensors_of_no_call_are_compared_too(reference):
    def orphan(weights):
        return Run(bundle({**weights, "aux.weight": np.full((2, 2), weights["fc.bias"][0])}))

    same = measure(orphan(WEIGHTS), orphan(WEIGHTS))
    other = measure(orphan(WEIGHTS), orphan(shifted(WEIGHTS, "fc.bias", 1, 0)))
    assert [tensor.status for tensor in same.unused] == ["identical"]
    assert [(tensor.name, tensor.status) for tensor in other.unused] == [("aux.weight", "changed")]


def test_without_recorded_weights_nothing_is_said_of_them(reference):
    measures = against(reference, int8(WEIGHTS), edit=lambda content: content.pop("weights"))
    assert not measures.weights
    assert {pair.weights for pair in measures.calls} == {"none"}
    assert measures.reasons == ("weights were not recorded in the other run",)
    assert measures.calls[0].divergence > 0


# Representations


@pytest.mark.parametrize("key", ["conv1", "layer2", "pool#1", "fc"])
def test_cka_and_divergence_equal_those_of_the_features(reference, key):
    tampered = noisy(WEIGHTS, 0.1)
    first, second = similarity.gram(features(WEIGHTS, key)), similarity.gram(features(tampered, key))
    pair = calls(against(reference, tampered))[key]
    assert pair.cka == pytest.approx(float(similarity.linear_cka(first, second)), abs=1e-6)
    assert pair.gram_change == pytest.approx(np.linalg.norm(first - second) / np.linalg.norm(first), rel=1e-4)
    outputs = [next(r for r in forward(w, IMAGES) if r.key == key).output for w in (WEIGHTS, tampered)]
    u, v = (np.moveaxis(output, 1, 0).reshape(output.shape[1], -1).mean(1) for output in outputs)
    rms = np.sqrt((np.moveaxis(outputs[0], 1, 0).reshape(len(u), -1) ** 2).mean(1).sum())
    assert pair.mean_change == pytest.approx(np.linalg.norm(u - v) / rms, rel=1e-3)
    assert pair.divergence == max(pair.gram_change, pair.mean_change)


TAMPERED = {
    "bn running_var x4": ("layer2.bn", scaled(WEIGHTS, "layer2.bn.running_var", 4)),
    "bn bias +0.5": ("layer2.bn", shifted(WEIGHTS, "layer2.bn.bias", 0.5)),
    "bn bias +1 in one channel": ("layer1.bn", shifted(WEIGHTS, "layer1.bn.bias", 1, 4)),
    "bn gamma x1.01": ("bn1", scaled(WEIGHTS, "bn1.weight", 1.01)),
    "one conv entry +1 %": (
        "layer3.conv",
        shifted(WEIGHTS, "layer3.conv.weight", 0.01 * WEIGHTS["layer3.conv.weight"][2, 1, 1, 1], (2, 1, 1, 1)),
    ),
    "one filter zeroed": ("layer1.conv", zeroed_filters(WEIGHTS, "layer1.conv.weight", share=1 / 12)),
    "kernel shuffled": ("layer2.conv", redrawn(WEIGHTS, "layer2.conv.weight")),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_the_first_divergence_is_the_tampered_call_and_nothing_before_moves(reference, case):
    key, tampered = TAMPERED[case]
    measures = against(reference, tampered)
    place = [pair.key for pair in measures.calls].index(key)
    assert all(pair.divergence == 0 for pair in measures.calls[:place])
    assert measures.calls[place].diverges


def test_the_second_opinion_and_the_amplification(reference):
    measures = against(reference, redrawn(WEIGHTS, "layer2.conv.weight"))
    before = 0.0
    for pair in measures.calls:
        grams = [similarity.gram(features(w, pair.key)) for w in (WEIGHTS, redrawn(WEIGHTS, "layer2.conv.weight"))]
        assert pair.neighbours == pytest.approx(float(similarity.mutual_neighbours(*grams)))
        distance = 1 - pair.cka
        assert pair.log_amplification == pytest.approx(np.log((distance + 1e-5) / (before + 1e-5)), abs=1e-9)
        before = distance
    most = max(measures.calls, key=lambda pair: pair.log_amplification)
    assert most.key == "layer2.conv"
    assert calls(measures)["layer1.conv"].neighbours == 1.0 > calls(measures)["layer2.conv"].neighbours


def test_reordered_channels_move_means_but_no_gram(reference):
    measures = against(reference, permuted(WEIGHTS, block=2))
    assert max(pair.gram_change for pair in measures.calls) < 1e-9
    assert calls(measures)["layer2.conv"].mean_change > 0.1
    assert measures.predictions.logit_change < 1e-7
    assert measures.predictions.kl_max < 1e-12


def test_the_larger_noise_floor_sets_the_threshold():
    pair = measure(Run(bundle(WEIGHTS, noise=1e-9)), Run(bundle(WEIGHTS, noise=3e-6))).calls[0]
    assert pair.noise_floor == 3e-6
    assert pair.threshold == pytest.approx(3e-5)
    assert measure(Run(bundle(WEIGHTS, noise=np.nan)), Run(bundle(WEIGHTS, noise=np.nan))).calls[0].threshold == 1e-6
    assert measure(Run(bundle(WEIGHTS, noise=np.nan)), Run(bundle(WEIGHTS, noise=1e-5))).calls[0].noise_floor == 1e-5


def test_a_call_that_is_not_finite_is_null_with_a_reason(reference):
    def break_call(content):
        content["layers"]["gram_scale"][3] = np.nan
        content["layers"]["nonfinite"][3] = 7
        content["layers"]["channel_mean"][8 * 3] = np.inf  # the first channel of that call

    pair = against(reference, edit=break_call).calls[3]
    assert (pair.gram_change, pair.mean_change, pair.divergence, pair.cka, pair.cka_p95) == (None,) * 5
    assert pair.reasons == ("no Gram matrix in the run: values that are not finite",)
    assert not pair.diverges


def test_constant_calls():
    silent = {**WEIGHTS, "layer1.bn.weight": np.zeros(12, np.float32), "layer1.bn.bias": np.full(12, 2, np.float32)}
    both = calls(measure(Run(bundle(silent)), Run(bundle(silent))))["layer1.bn"]
    assert (both.gram_change, both.mean_change, both.cka) == (0, 0, None)
    assert both.reasons == ("no CKA: the output hardly differs from image to image",)
    one = calls(measure(Run(bundle(silent)), Run(bundle(WEIGHTS))))["layer1.bn"]
    assert one.gram_change == 1
    assert one.diverges


def test_other_pooling_is_not_compared_with_its_scale(reference):
    def pool(content):
        content["layers"]["pooling"][0] = 4

    pair = against(reference, edit=pool).calls[0]
    assert (pair.gram_change, pair.mean_change) == (None, None)
    assert pair.cka == pytest.approx(1)
    assert "no divergence: the outputs differ in shape" in pair.reasons


def test_without_grams_the_means_remain(reference):
    def forget(content):
        for name in ("gram", "gram_scale", "pooling", "noise_gram", "noise_mean"):
            del content["layers"][name]

    pair = against(reference, edit=forget).calls[0]
    assert (pair.cka, pair.gram_change) == (None, None)
    assert pair.reasons == ("no Gram matrix in the run: not recorded",)
    assert pair.mean_change == 0


def test_without_statistics_the_grams_remain(reference):
    def forget(content):
        content["layers"] = {name: content["layers"][name] for name in ("gram", "gram_scale", "pooling")}

    pair = against(reference, scaled(WEIGHTS, "conv1.weight", 1.01), edit=forget).calls[0]
    assert pair.gram_change == pytest.approx(0.0201, rel=1e-3)
    assert (pair.mean_change, pair.reasons) == (None, ())


def test_without_layers_nothing_fails(reference):
    measures = against(reference, edit=lambda content: content.pop("layers"))
    assert {(pair.divergence, pair.cka, pair.other_health.dead_units) for pair in measures.calls} == {
        (None, None, None)
    }


def test_chunks_change_nothing(reference, monkeypatch):
    tampered = Run(bundle(noisy(WEIGHTS, 0.1)))
    whole = measure(reference, tampered)
    monkeypatch.setattr("interpret.measures.representations.CHUNK_ENTRIES", 3 * 16 * 16)
    parts = measure(reference, tampered)
    assert [pair.cka for pair in parts.calls] == [pair.cka for pair in whole.calls]
    assert [pair.gram_change for pair in parts.calls] == [pair.gram_change for pair in whole.calls]


# Maps


def test_maps_of_the_same_targets_and_their_controls(reference):
    tampered = noisy(WEIGHTS, 0.1)
    targets = reference.array("maps", "targets")
    other = Run(bundle(tampered, targets=targets))
    measures = measure(reference, other)
    assert measures.maps == "exact"
    found = calls(measures)["layer2.conv"].maps["layer-cam"]
    first, second = (run.array("maps", "layer-cam/layer2.conv")[:, 0] for run in (reference, other))
    n = range(len(first))
    assert found.images == 4
    assert found.pearson == pytest.approx(np.mean([np.corrcoef(first[i].ravel(), second[i].ravel())[0, 1] for i in n]))
    assert found.iou20 == pytest.approx(np.mean([float(agreement.iou(first[i], second[i])) for i in n]))
    assert found.centre_shift == pytest.approx(np.mean([float(agreement.centre_shift(first[i], second[i])) for i in n]))
    pairs = [(i, j) for i in n for j in n if i < j]
    correlations = [np.corrcoef(first[i].ravel(), first[j].ravel())[0, 1] for i, j in pairs]
    assert found.null_other_image == pytest.approx(np.mean(correlations))
    gaussian = agreement.centred_gaussian(8, 8).ravel()
    assert found.null_gaussian == pytest.approx(np.mean([np.corrcoef(first[i].ravel(), gaussian)[0, 1] for i in n]))


def test_maps_compare_only_for_the_same_target(reference):
    targets = reference.array("maps", "targets").copy()
    targets[1:] = (targets[1:] + 1) % 10
    measures = against(reference, targets=targets)
    found = calls(measures)["conv1"].maps["grad-cam"]
    assert (measures.maps, found.images, found.null_other_image) == ("subset", 1, None)
    assert found.pearson == pytest.approx(1)


def test_a_target_is_found_wherever_it_stands(reference):
    targets = reference.array("maps", "targets")
    measures = against(reference, targets=np.concatenate([(targets + 3) % 10, targets], 1))
    found = calls(measures)["conv1"].maps["grad-cam"]
    assert (measures.maps, found.images) == ("subset", 4)
    assert found.pearson == pytest.approx(1)


@pytest.mark.parametrize("offset", [1, None], ids=["other classes", "callable targets"])
def test_other_targets_give_null_with_the_reason(reference, offset):
    targets = reference.array("maps", "targets")
    targets = np.full_like(targets, -1) if offset is None else (targets + offset) % 10
    measures = against(reference, targets=targets)
    found = calls(measures)["conv1"].maps["grad-cam"]
    assert measures.maps == "no"
    assert (found.pearson, found.iou20, found.null_gaussian) == (None, None, None)
    assert found.reason == "no displayed image is explained for the same class in both runs"
    assert any("targets of the reference" in reason for reason in measures.reasons)


def test_empty_maps_are_counted(reference):
    def blank(content):
        content["maps"]["grad-cam/conv1"][0] = 0
        content["maps"]["layer-cam/conv1"][:] = 0

    found = calls(against(reference, edit=blank))["conv1"].maps
    assert (found["grad-cam"].images, found["grad-cam"].empty) == (4, 1)
    assert found["grad-cam"].pearson == pytest.approx(1)
    assert (found["layer-cam"].pearson, found["layer-cam"].empty) == (None, 4)
    assert found["layer-cam"].reason == "the maps are empty or constant"


def test_maps_of_other_sizes(reference):
    def shrink(content):
        content["maps"]["grad-cam/conv1"] = content["maps"]["grad-cam/conv1"][..., ::2, ::2]

    found = calls(against(reference, edit=shrink))["conv1"].maps["grad-cam"]
    assert (found.pearson, found.reason) == (None, "the maps differ in size")


def test_methods_that_only_one_run_has(reference):
    measures = against(reference, methods=("grad-cam", "eigen-cam"))
    assert list(calls(measures)["conv1"].maps) == ["grad-cam"]
    nothing = against(reference, methods=())
    assert nothing.maps == "no"
    assert any("no call has maps" in reason for reason in nothing.reasons)


# Predictions


def test_predictions_by_hand():
    logits = np.zeros((2, 4, 3), np.float32)
    logits[0, range(4), [0, 1, 2, 0]] = 2
    logits[1, range(4), [0, 1, 1, 1]] = 2
    images, labels = IMAGES[:4], [0, 1, 2, 1]

    def run(index):
        def put(content):
            content["predictions"]["logits"] = logits[index]
            content["manifest"]["model"]["class_names"] = None

        return Run(bundle(WEIGHTS, images=images, labels=labels, edit=put))

    found = measure(run(0), run(1)).predictions
    assert (found.images, found.top1_agreement, found.churn, found.labelled) == (4, 0.5, 0.5, 4)
    assert (found.reference_accuracy, found.accuracy) == (0.75, 0.75)
    assert (found.negative_flips, found.positive_flips) == (1, 1)
    p = np.exp(2) / (np.exp(2) + 2)
    kl = 2 * (p - (1 - p) / 2)  # the log-ratio is 2 for the one class and -2 for the other
    assert found.kl_mean == pytest.approx(kl / 2)
    assert found.kl_max == pytest.approx(kl)
    assert found.top5_overlap == 1
    assert found.logit_change == pytest.approx(1)  # 16 / 16 under the root
    assert found.churn_interval == agreement.wilson_interval(2, 4)
    assert [(flip.name, flip.label, flip.reference_class, flip.other_class) for flip in found.flips] == [
        ("image_02.png", 2, 2, 1),
        ("image_03.png", 1, 0, 1),
    ]


def test_a_flipped_image_leaves_the_others_where_it_moved():
    """From layer2.conv on one image's row of the Gram moved by half; all images moved by 1 % from conv1 on."""
    image, start = 6, "layer2.conv"
    images = probe(32)
    reference = Run(bundle(WEIGHTS, images=images))

    def put(content):
        keys = [call.key for call in content["manifest"]["calls"]]
        place = np.zeros((32, 32), int)
        place[np.triu_indices(32)] = np.arange(528)
        place = np.maximum(place, place.T)
        content["layers"]["gram"] = content["layers"]["gram"] * np.float32(1.01)
        for position in range(keys.index(start), len(keys)):
            content["layers"]["gram"][position, place[image]] *= np.float32(1.5)
        content["predictions"]["logits"][image] = np.roll(content["predictions"]["logits"][image], 1)

    found = against(reference, images=images, edit=put).predictions
    assert [(flip.name, flip.leaves_at) for flip in found.flips] == [("image_06.png", start)]

    def flip_alone(content):
        content["predictions"]["logits"][image] = np.roll(content["predictions"]["logits"][image], 1)

    assert [flip.leaves_at for flip in against(reference, images=images, edit=flip_alone).predictions.flips] == [None]


@pytest.mark.parametrize("stayed", [20, 28, 48])
def test_images_that_flip_by_chance_seldom_leave(stayed):
    """Noise everywhere; which of the images flipped is drawn at random, many times: about one in twenty leaves."""
    images = probe(64)
    before, after = (Run(bundle(weights, images=images)) for weights in (WEIGHTS, noisy(WEIGHTS, 0.05)))
    common = common_images(before, after)
    aligned = align(before, after, common)
    representations = compare_representations(before, after, aligned, common)
    rng, share = np.random.default_rng(0), []
    for _ in range(60):
        chosen = rng.permutation(64)[: stayed + 10]
        cut = dataclasses.replace(representations, row_changes=representations.row_changes[:, chosen])
        flipped = np.arange(len(chosen)) >= stayed
        share.append(np.mean([key is not None for key in _leaves_at(flipped, common, aligned, cut)]))
    assert 0.01 < np.mean(share) < 0.12


def test_quantile_of_others_by_hand():
    values = np.random.default_rng(0).normal(size=(3, 21))
    expected = [[np.quantile(np.delete(row, place), 0.95) for place in range(21)] for row in values]
    assert quantile_of_others(values, 0.95) == pytest.approx(np.array(expected), abs=1e-12)


def test_too_few_images_stayed_to_say_what_is_usual(reference):
    def flip(content):
        content["predictions"]["logits"][:2] = np.roll(content["predictions"]["logits"][:2], 1, axis=1)

    assert [flip.leaves_at for flip in against(reference, edit=flip).predictions.flips] == [None, None]


def test_without_labels_there_are_no_flips(reference):
    found = against(reference, noisy(WEIGHTS, 0.3)).predictions
    assert (found.labelled, found.negative_flips, found.positive_flips, found.accuracy) == (0, None, None, None)
    assert {flip.label for flip in found.flips} == {None}


def test_labels_of_either_run_count(reference):
    assert against(reference, labels=[1] * 16).predictions.labelled == 16


def spoil(content):
    content["predictions"]["logits"][2, 1] = np.nan


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"class_names": [f"other {i}" for i in range(10)]}, "the class names differ"),
        ({"edit": spoil}, "1 of 16 images are not finite"),
        ({"edit": lambda content: content.pop("predictions")}, "not recorded in the other run"),
        (
            {"edit": lambda content: content["predictions"].update(logits=np.zeros((16, 2, 2), np.float32))},
            r"no vector of classes: shape \(16, 2, 2\)",
        ),
    ],
)
def test_predictions_that_do_not_compare(reference, options, reason):
    measures = against(reference, **options)
    assert (measures.predictions, measures.predicted) == (None, "no")
    assert re.search(reason, " ".join(measures.reasons))


# One run, several runs


def test_health_reads_every_statistic(reference):
    health = {row.call.key: row for row in reference.health}
    bn, relu = health["bn1"], health["relu"]
    assert bn.batchnorm_log_variance == pytest.approx(reference.array("layers", "batchnorm_log_variance")[1])
    assert relu.batchnorm_z_median is None
    assert relu.saturated_share is None
    assert isinstance(relu.dead_units, int)
    gram = similarity.gram(features(WEIGHTS, "bn1"))
    assert bn.leverage == pytest.approx(float(similarity.leverage(gram)), rel=1e-5)
    assert bn.noise_floor == 1e-8
    json.dumps([dataclasses.asdict(row) for row in reference.health], allow_nan=False)


def test_effective_rank_is_that_of_the_features(reference):
    for health in reference.health:
        x = features(WEIGHTS, health.call.key)
        values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
        share = values[values > 0] / values.sum()
        assert health.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
        assert health.effective_rank <= 15
    ends = [call.stage_end for call in reference.calls]
    assert [health.stage for health in reference.health] == [sum(ends[:place]) for place in range(len(ends))]


def test_mean_cka_of_several_runs(reference):
    runs = [reference, Run(bundle(noisy(WEIGHTS, 0.3))), Run(bundle(noisy(WEIGHTS, 0.3, seed=1), images=IMAGES[::-1]))]
    keys = [[call.key] * 3 for call in reference.calls]
    matrix = mean_cka(runs, keys)
    expected = np.mean([pair.cka for pair in measure(runs[0], runs[1]).calls])
    assert matrix[0][1] == pytest.approx(expected, abs=1e-6)
    assert matrix[1][2] == pytest.approx(np.mean([pair.cka for pair in measure(runs[1], runs[2]).calls]), abs=1e-6)
    assert matrix[2][1] == pytest.approx(matrix[1][2])
    assert [matrix[i][i] for i in range(3)] == pytest.approx([1, 1, 1])
    assert mean_cka([reference, Run(bundle(WEIGHTS, images=probe(5, seed=3)))], keys) == [[None, None], [None, None]]


def test_calls_of_another_kind_are_another_architecture(reference):
    def swap(content):
        calls = content["manifest"]["calls"]
        calls[2] = changed_call(calls[2], kind="other", type="Identity")

    assert not against(reference, edit=swap).same_architecture
