"""Merged moments, histograms and sketches against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interpret.functional.statistics import SKETCH_BUCKETS, Moments, count_sketch, histogram, histogram_edges


def moments(values: np.ndarray) -> Moments:
    return Moments(len(values), values.mean(0), ((values - values.mean(0)) ** 2).sum(0))


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 999), shift=st.sampled_from([0.0, 1e3, 1e6]))
def test_merged_moments_equal_the_whole(cut: int, shift: float) -> None:
    values = np.random.default_rng(0).normal(3, 2, (1000, 1)) + shift
    merged = moments(values[:cut]).merge(moments(values[cut:]))
    assert merged.count == 1000
    np.testing.assert_allclose(merged.mean, values.mean(0), rtol=1e-13)
    assert merged.variance[0] == pytest.approx(3.816185397894, rel=1e-6 if shift else 1e-12)


def test_merging_nothing() -> None:
    empty = Moments(0, np.zeros(1), np.zeros(1))
    assert empty.merge(empty).count == 0
    assert empty.variance.tolist() == [0.0]


def test_histogram_counts_what_its_edges_say() -> None:
    edges = histogram_edges()
    assert len(edges) == 197
    assert np.all(np.diff(edges) > 0)
    assert np.all(edges == -edges[::-1])
    values = np.random.default_rng(1).normal(0, 0.1, 50_000).astype(np.float32)
    values[:6] = [1e9, -1e9, np.inf, -np.inf, 2.0**4, -(2.0**-30)]
    expected = np.histogram(values, edges)[0]
    # numpy's bins are closed on the left also below zero, ours are mirrored: compare where no value lies on an edge
    assert histogram(values)[98:].tolist() == expected[98:].tolist()
    assert histogram(-values)[::-1].tolist() == histogram(values).tolist()
    assert histogram(values).sum() == 50_000


def test_histogram_of_special_values() -> None:
    counts = histogram(np.array([0.0, -0.0, np.nan, -np.nan, np.inf], np.float32))
    assert counts.sum() == 3
    assert counts[98] == 1
    assert counts[97] == 1
    assert counts[-1] == 1


@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (5,), (1000, 512), (1, 1)])
def test_sketch_is_linear_and_keeps_norms(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(2)
    a, b = (generator.normal(size=shape).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(count_sketch(a) - count_sketch(b), count_sketch(a - b), atol=2e-4)
    assert np.linalg.norm(count_sketch(a)) == pytest.approx(np.linalg.norm(a), rel=0.1)
    assert count_sketch(a).shape == (SKETCH_BUCKETS,)
    assert not np.any(count_sketch(a) - count_sketch(a.copy()))


def test_sketch_error_is_as_documented() -> None:
    """Sparse, structured and dense changes alike: no relative error far beyond 2.2 %."""
    generator = np.random.default_rng(3)
    changes = []
    for trial in range(24):
        change = np.zeros((512, 1024), np.float32)
        if trial % 3 == 0:
            change[:, trial] = generator.normal(size=512)  # one input column: one index in every row of the sketch
        elif trial % 3 == 1:
            change[trial] = generator.normal(size=1024)
        else:
            change[:] = generator.normal(size=change.shape)
        changes.append(np.linalg.norm(count_sketch(change)) / np.linalg.norm(change) - 1)
    assert np.std(changes) < 0.035
    assert np.abs(changes).max() < 0.1


def test_sketch_does_not_depend_on_the_process() -> None:
    """The seed is part of the format: these numbers may never change within a schema version."""
    sketch = count_sketch(np.arange(3000, dtype=np.float32))
    assert sketch[:3].tolist() == pytest.approx(EXPECTED)


EXPECTED = [-406.0, 3565.0, 4328.0]
