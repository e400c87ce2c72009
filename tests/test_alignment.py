import numpy as np
import pytest

from bundles import bundle, int8, network, noisy, probe, scaled
from interpret.measures import measure
from interpret.measures.alignment import align, common_images
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


def test_calls_pair_by_name():
    first, second = Run(bundle(WEIGHTS)), Run(bundle(int8(WEIGHTS)))
    aligned = align(first, second, common_images(first, second))
    assert all(a.key == b.key and how == "name" for a, b, how in aligned)


def test_the_same_architecture_under_other_names_pairs_by_order(reference):
    measures = against(reference, rename=lambda key: "fc" if key == "fc" else f"model.{key}")
    assert measures.calls[0].other.key == "model.conv1"
    assert [pair.aligned_by for pair in measures.calls] == ["order"] * 19 + ["name"]
    assert {pair.weights for pair in measures.calls} == {"identical", "none"}
    assert max(pair.divergence for pair in measures.calls) == 0
    assert all(pair.maps["grad-cam"].pearson == pytest.approx(1) for pair in measures.calls if pair.maps)
    assert measures.same_architecture


def test_added_and_removed_calls_keep_their_place():
    small, large = (
        Run(bundle(WEIGHTS, drop_calls=("layer1.bn", "layer1.relu"))),
        Run(bundle(WEIGHTS, drop_calls=("bn1",))),
    )
    measures = measure(small, large)
    keys = [(pair.key, pair.presence) for pair in measures.calls][:6]
    assert keys == [
        ("conv1", "paired"),
        ("bn1", "removed"),
        ("relu", "paired"),
        ("layer1.conv", "paired"),
        ("layer1.bn", "added"),
        ("layer1.relu", "added"),
    ]
    added = calls(measures)["layer1.bn"]
    assert (added.reference, added.weights, added.weight_change, added.divergence) == (None, "reshaped", None, None)
    assert not measures.same_architecture


DEEPER = network(widths=(8, 12, 14, 16, 24))


@pytest.mark.parametrize("rename", [lambda key: key, lambda key: f"net.{key}"], ids=["names mislead", "other names"])
def test_networks_without_names_in_common_pair_by_similarity(reference, rename):
    """Of the pairs of a kind, in order on both sides, no better ones: checked against all by dynamic programming."""
    other = Run(bundle(DEEPER, rename=rename))
    measures = measure(reference, other)
    pairs = [pair for pair in measures.calls if pair.presence == "paired"]
    assert {pair.aligned_by for pair in pairs} == {"similarity"}
    assert all(pair.reference.kind == pair.other.kind for pair in pairs)
    assert all(pair.cka > pair.cka_p95 for pair in pairs)
    places = [(pair.reference.position, pair.other.position) for pair in pairs]
    assert places == sorted(places)
    assert len({there for _, there in places}) == len(places)
    assert (pairs[0].key, pairs[0].other.key) == ("conv1", rename("conv1"))
    assert len(measures.calls) == len(reference.calls) + len(other.calls) - len(pairs)
    added = [pair.other.position for pair in measures.calls if pair.presence == "added"]
    assert added == sorted(added)
    assert not measures.same_architecture


def test_a_layer_more_or_another_head_still_pairs_by_name(reference):
    for weights in (network(widths=(8, 12, 16, 24, 24)), network(classes=7)):
        measures = against(reference, weights)
        assert {pair.aligned_by for pair in measures.calls if pair.presence == "paired"} == {"name"}
        assert all(pair.key == pair.other.key for pair in measures.calls if pair.presence == "paired")


def test_calls_that_only_chance_would_pair_have_no_counterpart(reference):
    rng = np.random.default_rng(1)

    def unrelated(content):
        features = rng.normal(size=(len(content["layers"]["gram"]), 16, 400))
        features -= features.mean(1, keepdims=True)
        grams = features @ features.swapaxes(1, 2)
        content["layers"]["gram"] = grams[:, *np.triu_indices(16)].astype(np.float32)

    measures = measure(reference, Run(bundle(DEEPER, rename=lambda key: f"net.{key}", edit=unrelated)))
    pairs = [pair for pair in measures.calls if pair.presence == "paired"]
    assert len(pairs) <= 4, "of 20 calls, at chance"


def test_with_so_few_images_that_chance_reaches_everything_names_are_all_there_is():
    images = probe(4)
    measures = measure(Run(bundle(WEIGHTS, images=images)), Run(bundle(DEEPER, images=images)))
    assert {pair.aligned_by for pair in measures.calls if pair.presence == "paired"} == {"name"}


def test_without_common_images_names_are_all_there_is(reference):
    measures = measure(reference, Run(bundle(DEEPER, images=probe(16, seed=4))))
    assert {pair.aligned_by for pair in measures.calls if pair.presence == "paired"} == {"name"}


def test_a_call_added_before_the_first_comes_first():
    measures = measure(Run(bundle(WEIGHTS, drop_calls=("conv1",))), Run(bundle(WEIGHTS)))
    assert (measures.calls[0].key, measures.calls[0].presence) == ("conv1", "added")


def test_the_same_images_in_another_order(reference):
    order = np.random.default_rng(0).permutation(16)
    measures = against(reference, images=IMAGES[order], displayed=16)
    assert (measures.activations, measures.images, measures.maps) == ("exact", 16, "subset")
    assert max(pair.divergence for pair in measures.calls) < 1e-6
    assert min(pair.cka for pair in measures.calls) == pytest.approx(1, abs=1e-9)
    assert measures.predictions.flips == ()
    assert measures.predictions.logit_change == 0
    assert not measures.reasons


def test_a_subset_gives_what_an_audit_of_the_subset_gives(reference):
    tampered, chosen = noisy(WEIGHTS, 0.2), [11, 3, 5, 14, 9, 2]
    measures = against(reference, tampered, images=np.concatenate([IMAGES[chosen], probe(3, seed=7)]))
    direct = measure(Run(bundle(WEIGHTS, images=IMAGES[chosen])), Run(bundle(tampered, images=IMAGES[chosen])))
    assert (measures.activations, measures.images) == ("subset", 6)
    assert measures.common == ((2, 3, 5, 9, 11, 14), (5, 1, 2, 4, 0, 3))
    assert "only 6 images" in measures.reasons[0]
    for pair, expected in zip(measures.calls, direct.calls, strict=True):
        assert pair.cka == pytest.approx(expected.cka, abs=1e-5)
        assert pair.gram_change == pytest.approx(expected.gram_change, rel=1e-3, abs=1e-5)
        assert pair.mean_change is None
        assert pair.divergence == pair.gram_change
    assert measures.predictions.kl_mean == pytest.approx(direct.predictions.kl_mean, rel=1e-9)


def test_images_that_occur_twice_are_matched_twice():
    twice = np.concatenate([IMAGES[:5], IMAGES[:1]])
    measures = measure(Run(bundle(WEIGHTS, images=twice)), Run(bundle(WEIGHTS, images=twice[::-1])))
    assert (measures.activations, measures.common[1]) == ("exact", (0, 4, 3, 2, 1, 5))


def test_pictures_prepared_in_another_way(reference):
    sources = reference.evidence.manifest.inputs["source_sha256"]
    measures = against(reference, images=IMAGES * np.float32(1.5), sources=sources)
    assert measures.activations == "own-preprocessing"
    assert "own way" in measures.reasons[0]
    assert measures.calls[0].cka == pytest.approx(1, abs=1e-6)
    assert measures.calls[0].gram_change == pytest.approx(1.25, rel=1e-5)  # 1.5^2 - 1
    assert measures.calls[0].mean_change is not None
    assert measures.maps == "no"


def test_without_common_images_only_weights_compare(reference):
    measures = against(reference, scaled(WEIGHTS, "fc.bias", 2), images=probe(16, seed=5))
    assert (measures.activations, measures.maps, measures.predicted, measures.images) == ("no", "no", "no", 0)
    assert measures.weights
    assert measures.predictions is None
    fc = calls(measures)["fc"]
    assert (fc.divergence, fc.cka, fc.weights) == (None, None, "changed")


def test_images_without_a_source_digest_never_match_by_source(reference):
    def forget(content):
        content["manifest"]["inputs"]["source_sha256"] = [None] * 16

    assert against(reference, images=probe(16, seed=5), edit=forget).activations == "no"


@pytest.mark.parametrize(("count", "computable"), [(2, False), (3, False), (4, True)])
def test_cka_needs_four_images(count, computable):
    images = IMAGES[:count]
    measures = measure(Run(bundle(WEIGHTS, images=images)), Run(bundle(int8(WEIGHTS), images=images)))
    assert all((pair.cka is not None) == computable for pair in measures.calls)
    assert all(pair.divergence is not None for pair in measures.calls)
    assert computable or f"not {count}" in measures.calls[0].reasons[0]
