import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interpret.functional.similarity import (
    centre,
    chance_p95,
    cka_matrix,
    cka_vectors,
    effective_rank,
    gram,
    gram_change,
    hsic_u,
    leverage,
    linear_cka,
    mean_change,
    monotone_alignment,
    mutual_neighbours,
    permutation_p95,
    relative,
    row_changes,
    sketch_change,
    sketch_cosine,
    u_centre,
    unpack_gram,
)

ROW = np.arange(10.0)[:, None]
X = np.sin(ROW * np.arange(1, 5))
Y = np.cos(0.7 * ROW * np.arange(1, 4)) + 0.5 * X[:, :3]
seeds = st.integers(0, 2**32 - 1)


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def song(first, second):
    """The unbiased HSIC term by term as Song et al. print it."""
    n = len(first)
    k, m = first - np.diag(np.diag(first)), second - np.diag(np.diag(second))
    one = np.ones(n)
    trace, sums, cross = np.trace(k @ m), (one @ k @ one) * (one @ m @ one), one @ k @ m @ one
    return (trace + sums / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


# Gram matrices


def test_gram_oracle():
    k = gram(X)
    assert k[0, 0] == pytest.approx(0.047369302, abs=1e-9)
    assert k[0, 1] == pytest.approx(-0.157386272, abs=1e-9)
    assert np.linalg.norm(k) == pytest.approx(9.022915263, abs=1e-9)


def test_gram_keeps_digits_where_the_mean_is_large():
    assert gram(X + 1e6) == pytest.approx(gram(X), abs=1e-8)


def test_centring_a_raw_gram_equals_centring_the_features():
    assert centre(X @ X.T) == pytest.approx(gram(X), abs=1e-12)


def test_unpack_restores_the_matrix_and_picks_images():
    k = gram(X)
    packed = np.stack([k[np.triu_indices(10)], 2 * k[np.triu_indices(10)]])
    assert np.array_equal(unpack_gram(packed, 10), np.stack([k, 2 * k]))
    chosen = np.array([7, 2, 2, 5])
    assert np.array_equal(unpack_gram(packed[0], 10, chosen), k[np.ix_(chosen, chosen)])


def test_a_centred_sub_matrix_is_the_gram_of_the_subset():
    chosen = np.array([1, 4, 5, 8, 9])
    packed = gram(X)[np.triu_indices(10)]
    assert centre(unpack_gram(packed, 10, chosen)) == pytest.approx(gram(X[chosen]), abs=1e-12)


def test_u_centring_gives_zero_rows_and_diagonal():
    u = u_centre(gram(X))
    assert u.sum(1) == pytest.approx(np.zeros(10), abs=1e-12)
    assert np.array_equal(np.diag(u), np.zeros(10))
    assert u_centre(X @ X.T) == pytest.approx(u, abs=1e-12)


@pytest.mark.parametrize(("function", "count"), [(lambda k: u_centre(k), 2), (lambda k: hsic_u(k, k), 3)])
def test_too_few_images_are_refused(function, count):
    with pytest.raises(ValueError, match=f"not {count}"):
        function(np.eye(count))


# CKA


def test_debiased_cka_oracle():
    assert float(linear_cka(gram(X), gram(Y))) == pytest.approx(0.278943493365, abs=1e-12)
    assert float(linear_cka(X @ X.T, Y @ Y.T)) == pytest.approx(0.278943493365, abs=1e-12)


def test_hsic_equals_the_printed_formula():
    k, m = gram(X), gram(Y)
    assert float(hsic_u(k, m)) == pytest.approx(song(k, m), rel=1e-12)
    assert float(hsic_u(k, m) / np.sqrt(hsic_u(k, k) * hsic_u(m, m))) == pytest.approx(0.278943493365, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_cka_ignores_rotation_scale_shift_and_order_of_channels(seed):
    rng = np.random.default_rng(seed)
    features, others = rng.normal(size=(12, 5)), rng.normal(size=(12, 7))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    moved = 3 * (features @ rotation)[:, rng.permutation(5)] + rng.normal(size=5)
    assert float(linear_cka(gram(features), gram(features))) == pytest.approx(1, abs=1e-12)
    assert float(linear_cka(gram(features), gram(moved))) == pytest.approx(1, abs=1e-10)
    one, other = linear_cka(gram(features), gram(others)), linear_cka(gram(others), gram(features))
    assert one == pytest.approx(other, abs=1e-12)
    assert abs(float(one)) <= 1 + 1e-12


def test_cka_of_independent_noise_is_near_zero_however_many_features():
    values = [float(linear_cka(gram(noise(seed, 64, 4096)), gram(noise(seed + 50, 64, 4096)))) for seed in range(5)]
    assert np.abs(values).max() < 0.1


def test_shuffled_images_have_no_similarity():
    features = noise(0, 64, 20)
    assert abs(float(linear_cka(gram(features), gram(features[np.random.default_rng(1).permutation(64)])))) < 0.1


def test_a_shared_outlier_does_not_fake_similarity():
    first, second = noise(0, 64, 512), noise(1, 64, 512)
    first[3] *= 30
    second[3] *= 30
    assert abs(float(linear_cka(gram(first), gram(second)))) < 0.2


@pytest.mark.parametrize(
    "bad",
    [np.zeros((10, 10)), np.full((10, 10), np.nan), np.eye(10)],
    ids=["constant", "not finite", "no structure off the diagonal"],
)
def test_not_computable_is_nan(bad):
    assert np.isnan(linear_cka(bad, gram(X)))
    assert np.isnan(linear_cka(gram(X), bad))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_than_four_images_are_not_computable(count):
    assert np.isnan(linear_cka(gram(X[:count]), gram(Y[:count])))


def test_the_matrix_is_every_pair():
    first = np.stack([gram(noise(seed, 9, 4)) for seed in range(3)])
    second = np.stack([*first[:1], np.zeros((9, 9)), gram(noise(8, 9, 3))])
    matrix = cka_matrix(first, second)
    assert matrix.shape == (3, 3)
    assert np.isnan(matrix[:, 1]).all()
    assert matrix[0, 0] == pytest.approx(1, abs=1e-12)
    assert matrix[2, 2] == pytest.approx(float(linear_cka(first[2], second[2])), abs=1e-12)
    assert cka_vectors(first).shape == (3, 81)


def test_chance_has_the_closed_form_variance():
    k, m = gram(noise(0, 20, 6)), gram(noise(1, 20, 8))
    rng = np.random.default_rng(0)
    chance = []
    for _ in range(4000):
        order = rng.permutation(20)
        chance.append(float(linear_cka(k, m[np.ix_(order, order)])))
    assert np.mean(chance) == pytest.approx(0, abs=0.005)
    assert np.std(chance) == pytest.approx(np.sqrt(2 / (20 * 17)), rel=0.05)
    p95 = permutation_p95(np.stack([k, k]), np.stack([m, np.zeros((20, 20))]), permutations=2000)
    assert p95[0] == pytest.approx(np.quantile(chance, 0.95), abs=0.01)
    assert np.isnan(p95[1])


def test_chance_is_the_same_every_time():
    k, m = gram(X), gram(Y)
    assert permutation_p95(k, m, 20, seed=3) == permutation_p95(k, m, 20, seed=3)
    assert permutation_p95(k, m, 20, seed=3) != permutation_p95(k, m, 20, seed=4)


# Changes with their scale


def test_gram_change_sees_scale():
    k = gram(X)
    assert float(gram_change(k, k)) == 0
    assert float(gram_change(k, 1.02 * k)) == pytest.approx(0.02)
    assert float(gram_change(k, gram(X + 5))) == pytest.approx(0, abs=1e-12)


def test_gram_change_of_constant_calls():
    k, zero = gram(X), np.zeros((10, 10))
    assert float(gram_change(zero, zero)) == 0
    assert float(gram_change(zero, k)) == 1
    assert float(gram_change(k, zero)) == 1
    assert np.isnan(gram_change(k, np.full((10, 10), np.nan)))


def test_mean_change_by_hand_and_behind_a_normalization():
    # call 1: channels 1 and 2, second moved by 2; rms^2 = 1 + 4 + 4 + 0 = 9. Call 2: means 0, variances 1 and 3.
    mean, variance = np.array([1.0, 2.0, 0.0, 0.0]), np.array([4.0, 0.0, 1.0, 3.0])
    moved = np.array([1.0, 4.0, 0.2, 0.0])
    change = mean_change(mean, moved, variance, variance, np.array([2, 2]))
    assert change == pytest.approx([2 / 3, 0.1])


def test_mean_change_of_silent_and_broken_calls():
    mean, moved = np.array([0.0, 0.0, np.inf]), np.array([0.0, 3.0, np.inf])
    change = mean_change(mean, moved, np.zeros(3), np.array([0.0, 16.0, 0.0]), np.array([1, 1, 1]))
    assert change[:2] == pytest.approx([0, 0.6])
    assert np.isnan(change[2])


def test_sketch_change_by_hand():
    reference, other = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]), np.array([[3.0, 4.5], [6.0, 8.0], [0.0, 0.0]])
    norms = np.linalg.norm(reference, axis=1), np.linalg.norm(other, axis=1)
    assert sketch_change(reference, other, *norms) == pytest.approx([0.1, 1, 0])


def test_relative_is_nan_where_nothing_is_finite():
    assert np.isnan(relative(np.array([np.nan, np.inf]), np.array([1.0, 1.0]), np.array([1.0, 1.0]))).all()


# One run


def test_effective_rank_oracle_and_bound():
    assert float(effective_rank(gram(X))) == pytest.approx(3.949904284, abs=1e-8)
    assert float(effective_rank(np.eye(6) - 1 / 6)) == pytest.approx(5)
    assert np.isnan(effective_rank(np.stack([np.zeros((4, 4)), np.full((4, 4), np.nan)]))).all()


def test_leverage_by_hand():
    assert float(leverage(np.diag([1.0, 3.0, 1.0]))) == pytest.approx(0.6)
    assert np.isnan(leverage(np.zeros((3, 3))))


# Neighbours


def neighbours_by_hand(x, y, k):
    """From the features, image by image."""
    shared = []
    for i in range(len(x)):
        sets = []
        for features in (x, y):
            distance = [np.linalg.norm(features[i] - features[j]) for j in range(len(x))]
            sets.append({j for _, j in sorted((d, j) for j, d in enumerate(distance) if j != i)[:k]})
        shared.append(len(sets[0] & sets[1]) / k)
    return np.mean(shared)


def test_mutual_neighbours_oracle():
    assert mutual_neighbours(gram(X), gram(Y), 3) == pytest.approx(1 / 3, abs=1e-12)
    x, y = noise(1, 24, 6), noise(2, 24, 5)
    y[:, :3] += x[:, :3]
    assert mutual_neighbours(gram(x), gram(y)) == pytest.approx(neighbours_by_hand(x, y, 5), abs=1e-12)
    assert mutual_neighbours(gram(x), gram(x)) == 1.0


def test_one_outlier_moves_no_neighbours_and_unrelated_images_share_few():
    x, y = noise(3, 64, 512), noise(4, 64, 512)
    x[0] += 1000
    y[0] += 1000
    many = [mutual_neighbours(gram(noise(seed, 64, 16)), gram(noise(seed + 100, 64, 16))) for seed in range(20)]
    assert mutual_neighbours(gram(x), gram(y)) < 0.2
    assert np.mean(many) == pytest.approx(5 / 63, abs=0.015)


def test_neighbours_that_cannot_be_computed():
    stack = np.stack([gram(X), np.zeros((10, 10)), np.full((10, 10), np.nan)])
    assert np.isnan(mutual_neighbours(stack, np.stack([gram(X)] * 3))).tolist() == [False, True, True]
    assert np.isnan(mutual_neighbours(gram(X[:3]), gram(X[:3])))


# Alignment


@given(st.integers(1, 6), st.integers(1, 6), seeds)
@settings(max_examples=60, deadline=None)
def test_the_alignment_is_the_best_of_all(rows, columns, seed):
    scores = noise(seed, rows, columns)
    found = monotone_alignment(scores)

    def best(row, column):
        """Every choice, recursively."""
        if row == rows or column == columns:
            return 0.0
        return max(
            best(row + 1, column), best(row, column + 1), best(row + 1, column + 1) + max(scores[row, column], 0.0)
        )

    assert sum(scores[pair] for pair in found) == pytest.approx(best(0, 0), abs=1e-12)
    assert all(scores[pair] > 0 for pair in found)
    for (row, column), (next_row, next_column) in itertools.pairwise(found):
        assert row < next_row
        assert column < next_column


def test_what_is_not_a_number_is_never_paired():
    assert monotone_alignment(np.array([[np.nan, 0.5], [0.2, np.nan]])) == [(0, 1)]


@pytest.mark.parametrize("count", [16, 64])
def test_chance_in_closed_form_is_that_of_shuffles(count):
    first, second = gram(noise(5, count, 40)), gram(noise(6, count, 40))
    shuffled = permutation_p95(first, second, permutations=3000)
    assert chance_p95(count) == pytest.approx(float(shuffled), rel=0.12)
    assert np.isnan(chance_p95(3))


# Cosine and rows


def test_the_cosine_follows_from_change_and_norms():
    w = noise(7, 5, 300)
    v = w + noise(8, 5, 300) * np.array([[0.0], [0.01], [0.3], [2.0], [10.0]])
    norms = np.linalg.norm(w, axis=1), np.linalg.norm(v, axis=1)
    change = np.linalg.norm(v - w, axis=1) / norms[0]
    exact = (w * v).sum(1) / norms[0] / norms[1]
    assert sketch_cosine(change, *norms) == pytest.approx(exact, abs=1e-12)
    assert np.isnan(sketch_cosine(np.array([1.0]), np.array([0.0]), np.array([1.0])))
    # an error of 2.2 % in the change of unrelated tensors is one of 0.044 / 2 x (1 + 1) in the cosine
    assert abs(sketch_cosine(np.sqrt([2.0]) * 1.022, np.ones(1), np.ones(1))[0]) < 0.05


def test_row_changes_are_those_of_the_rows():
    k, other = gram(X), gram(Y)
    expected = [np.linalg.norm(k[i] - other[i]) / np.linalg.norm(k[i]) for i in range(10)]
    assert row_changes(k, other) == pytest.approx(np.array(expected), abs=1e-12)
    assert np.isnan(row_changes(k, np.full_like(k, np.nan))).all()
