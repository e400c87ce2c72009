import itertools

import numpy as np
import pytest

from interpret.functional.matching import match_filters

RNG = np.random.default_rng(0)
KERNELS = RNG.normal(size=(48, 3, 3, 3))


def test_a_hidden_order_is_found_again():
    order = RNG.permutation(48)
    noisy = (KERNELS + 0.1 * RNG.normal(size=KERNELS.shape))[order]
    found = match_filters(KERNELS, noisy)
    assert found.by == "cosine"
    assert np.array_equal(order[found.order], np.arange(48))
    assert found.by_index < 0.3 < found.null < found.matched - 0.1
    exact = [
        np.dot(a.ravel(), b.ravel()) / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(KERNELS, noisy[found.order], strict=True)
    ]
    assert found.cosines == pytest.approx(np.array(exact), abs=1e-12)


def test_the_matching_is_the_best_of_all():
    a, b = RNG.normal(size=(2, 6, 40))
    a, b = (kernels / np.linalg.norm(kernels, axis=1)[:, None] for kernels in (a, b))
    cosine = a @ b.T
    best = max(sum(cosine[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
    assert match_filters(a, b).matched * 6 == pytest.approx(best, abs=1e-12)


def test_kernels_in_the_same_order_stay_in_it():
    found = match_filters(KERNELS, 3 * KERNELS + 0.2 * RNG.normal(size=KERNELS.shape))
    assert found.by == "index"
    assert np.array_equal(found.order, np.arange(48))
    assert np.isnan(found.null)


def test_filters_near_zero_do_not_count():
    """A quarter of the kernels is next to nothing; noise turns them, and no other."""
    kernels = KERNELS.copy()
    kernels[:12] *= 1e-4
    found = match_filters(kernels, kernels + 0.01 * RNG.normal(size=kernels.shape))
    assert found.by == "index"
    assert found.by_index > 0.999
    assert found.cosines[:12].max() < 0.9


@pytest.mark.parametrize("entries", [9, 27, 160])
def test_unrelated_kernels_have_no_counterparts(entries):
    """Their best matching is far above 0, the more so the smaller they are; the null is as far."""
    a, b = RNG.normal(size=(2, 96, entries))
    found = match_filters(a, b)
    assert found.by is None
    assert found.matched == pytest.approx(found.null, abs=0.04)
    assert found.matched > {9: 0.6, 27: 0.35, 160: 0.14}[entries]


def test_zero_filters_and_values_that_are_not_finite_have_cosine_zero():
    broken = KERNELS[::-1].copy()
    broken[3], broken[5] = 0.0, np.inf
    found = match_filters(KERNELS, broken)
    assert np.isfinite(found.cosines).all()
    assert sorted(found.cosines)[:2] == [0.0, 0.0]
    assert found.by == "cosine"


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="no filters to match one to one"):
        match_filters(KERNELS, KERNELS[:40])
