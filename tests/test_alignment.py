import numpy as np
import pytest

from bundles import bundle, int8, network, noisy, probe, scaled
from interpret.measures import measure
from interpret.measures.alignment import align
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
    first, second = bundle(WEIGHTS), bundle(int8(WEIGHTS))
    assert all(a.key == b.key and how == "name" for a, b, how in align(first, second))


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
