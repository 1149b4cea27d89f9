"""Correct p values for multiple comparisons by Holm's step-down method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mosrt._arrays import FloatArray

__all__ = ["holm"]


def holm(p_values: Sequence[float]) -> FloatArray:
    """Holm's adjusted p values (S. Holm, Scand. J. Statist. 6, 1979).

    Rejecting where the adjusted value is below alpha keeps the probability of even one false
    rejection at or below alpha, however the tests depend on each other.

    Args:
        p_values: (n,) in [0, 1].

    Returns:
        (n,): the k-th smallest times n - k + 1, made non-decreasing and capped at 1.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
