import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interpret.functional.agreement import (
    centre_shift,
    centred_gaussian,
    empty,
    flips,
    iou,
    kl_divergence,
    pearson,
    top_overlap,
    wilson_interval,
)

Y, X = np.mgrid[:8, :8]
C1 = np.exp(-((Y - 2) ** 2 + (X - 2) ** 2) / 6)
C2 = np.exp(-((Y - 4) ** 2 + (X - 3) ** 2) / 6)


# Maps


def test_oracle_of_two_gaussian_maps():
    assert float(pearson(C1, C2)) == pytest.approx(0.347179, abs=1e-6)
    assert float(iou(C1, C2)) == pytest.approx(0.181818, abs=1e-6)
    assert float(centre_shift(C1, C2)) == pytest.approx(0.164892, abs=1e-6)
    assert float(centre_shift(C1, C2)) * np.sqrt(128) == pytest.approx(1.865539, abs=1e-6)


def test_stacks_are_compared_map_by_map():
    first, second = np.stack([C1, C2]), np.stack([C2, C2])
    assert pearson(first, second) == pytest.approx([0.347179, 1], abs=1e-6)
    assert iou(first, second) == pytest.approx([0.181818, 1], abs=1e-6)
    assert centre_shift(first, second) == pytest.approx([0.164892, 0], abs=1e-6)
    assert pearson(first[:, None], first[None]).shape == (2, 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 100), st.floats(-10, 10))
def test_pearson_equals_numpy_and_ignores_scale(seed, scale, offset):
    first, second = np.random.default_rng(seed).normal(size=(2, 5, 7))
    expected = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert float(pearson(first, second)) == pytest.approx(expected, abs=1e-12)
    assert float(pearson(first * scale + offset, second)) == pytest.approx(expected, abs=1e-9)


def test_of_equal_pixels_the_first_is_brighter():
    ties = np.ones((5, 5))
    top = np.where(np.arange(25).reshape(5, 5) < 5, 2.0, 1.0)  # k = 5: exactly the first row
    assert float(iou(ties, top)) == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=24, max_size=24), st.lists(st.integers(0, 3), min_size=24, max_size=24))
def test_bright_sets_are_those_of_a_stable_sort(first, second):
    maps = np.array([first, second], float).reshape(2, 4, 6)
    top = [set(np.argsort(-values.ravel(), kind="stable")[:5].tolist()) for values in maps]
    value = float(iou(*maps))
    if (maps > 0).sum((1, 2)).min() < 5:
        assert np.isnan(value)
    else:
        assert value == pytest.approx(len(top[0] & top[1]) / len(top[0] | top[1]))


def test_k_is_not_pushed_up_by_rounding():
    # 0.2 * 15 = 3.0000000000000004; with k = 3 the two sets are {0, 1, 2} and {1, 2, 3}
    first, second = np.zeros((2, 3, 5))
    first.flat[[0, 1, 2]] = 1
    second.flat[[1, 2, 3]] = 1
    assert float(iou(first, second)) == pytest.approx(2 / 4)


def test_maps_without_enough_positive_pixels_have_no_bright_set():
    few = np.zeros((5, 5))
    few.flat[:4] = 1
    assert np.isnan(iou(few, np.ones((5, 5))))


def test_empty_and_constant_maps():
    zero, negative = np.zeros((4, 4)), -np.ones((4, 4))
    assert empty(np.stack([zero, negative, C1[:4, :4], np.full((4, 4), np.nan)])).tolist() == [True, True, False, True]
    assert np.isnan(pearson(zero, C1[:4, :4]))
    assert np.isnan(pearson(np.full((4, 4), 0.1, np.float32), C1[:4, :4]))
    assert np.isnan(centre_shift(zero, C1[:4, :4]))
    assert np.isnan(pearson(np.zeros((1, 1)), np.ones((1, 1))))


def test_maps_that_are_not_finite_have_no_agreement():
    broken = C1.copy()
    broken[0, 0] = np.nan
    for measure in (pearson, iou, centre_shift):
        assert np.isnan(measure(broken, C1))


def test_negative_values_have_no_mass():
    first, second = np.zeros((2, 3, 4))
    first[0, 0], second[2, 3], second[0, 3] = 1, 1, -5
    assert float(centre_shift(first, second)) == pytest.approx(np.hypot(2, 3) / 5)


def test_the_gaussian_lies_in_the_middle():
    null = centred_gaussian(5, 9)
    assert null.shape == (5, 9)
    assert np.unravel_index(null.argmax(), null.shape) == (2, 4)
    assert null == pytest.approx(null[::-1, ::-1])
    assert null[2, 4 + 2] == pytest.approx(np.exp(-0.5 * (2 / 2.25) ** 2))
    assert centred_gaussian(1, 1) == pytest.approx(np.ones((1, 1)))


# Predictions


def test_kl_by_hand():
    half, skew = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert kl_divergence([half, half], [skew, half]) == pytest.approx([expected, 0], abs=1e-15)


def test_kl_ignores_a_common_offset_and_survives_large_logits():
    logits = np.array([[1000.0, 0.0, -1000.0]], np.float32)
    assert kl_divergence(logits, logits + 7) == pytest.approx([0], abs=1e-12)
    assert np.isfinite(kl_divergence(logits, logits[:, ::-1])).all()


def test_top_overlap():
    first, second = np.array([[5.0, 4, 3, 2, 1, 0]]), np.array([[0.0, 4, 3, 2, 1, 5]])
    assert top_overlap(first, second, 5) == pytest.approx([4 / 6])
    assert top_overlap(first, second, 1) == pytest.approx([0])
    assert top_overlap(first[:, :2], second[:, :2], 5) == pytest.approx([1])


def test_flips():
    labels = np.array([1, 1, 1, 1, -1])
    reference, other = np.array([1, 1, 0, 0, 1]), np.array([1, 2, 1, 2, 3])
    negative, positive = flips(reference, other, labels)
    assert negative.tolist() == [False, True, False, False, False]
    assert positive.tolist() == [False, False, True, False, False]


def test_wilson_interval_against_printed_values():
    assert wilson_interval(0, 64) == pytest.approx((0, 0.0566), abs=1e-4)
    assert wilson_interval(64, 64) == pytest.approx((0.9434, 1), abs=1e-4)
    assert wilson_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # e.g. Newcombe 1998


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_is_refused(hits, total):
    with pytest.raises(ValueError, match=f"{hits} of {total}"):
        wilson_interval(hits, total)
