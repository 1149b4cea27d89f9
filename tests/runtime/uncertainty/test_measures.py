"""Measures of rows of logits, against scipy."""

from __future__ import annotations

import numpy as np
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mosrt.uncertainty.family import row_measures


@given(st.integers(1, 30), st.integers(2, 40), st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_measures_equal_scipy(rows: int, columns: int, seed: int, scale: float) -> None:
    matrix = np.random.default_rng(seed).normal(0, scale, (rows, columns)).astype(np.float32)
    mean, std, largest, entropy = row_measures(matrix)
    wide = matrix.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=1), atol=1e-12 * scale)
    np.testing.assert_allclose(std, wide.std(axis=1, ddof=1), rtol=1e-9, atol=1e-12 * scale)
    np.testing.assert_array_equal(largest, wide.max(axis=1))
    expected = scipy.stats.entropy(scipy.special.softmax(wide, axis=1), axis=1)
    np.testing.assert_allclose(entropy, expected, rtol=1e-9, atol=1e-9)


def test_minus_infinity_counts_as_the_smallest_finite_logit() -> None:
    matrix = np.array([[0.0, -np.inf, 1.0], [2.0, -3.0, 5.0]])
    replaced = np.array([[0.0, -3.0, 1.0], [2.0, -3.0, 5.0]])
    np.testing.assert_array_equal(row_measures(matrix), row_measures(replaced))
