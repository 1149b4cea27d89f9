"""Measures how uncertain a row of logits is, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mosrt._arrays import FloatArray

__all__ = ["row_measures"]


def row_measures(logits: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """The four measures of arXiv 2312.15616 of each row, in the order of `MEASURES`.

    A logit of minus infinity counts as the smallest finite one of the matrix.

    Args:
        logits: (rows, columns), at least two columns, each row with a finite value.

    Returns:
        (4, rows) float64.
    """
    values = logits.astype(np.float64)
    lowest = np.isneginf(values)
    if lowest.any():
        values[lowest] = values[~lowest].min()
    mean = values.mean(axis=1)
    centred = values - mean[:, np.newaxis]
    std = np.sqrt(np.square(centred).sum(axis=1) / (values.shape[1] - 1))
    largest = values.max(axis=1)
    np.subtract(values, largest[:, np.newaxis], out=values)
    weights = np.exp(values, out=centred)
    total = weights.sum(axis=1)
    # With x = logits - max and w = exp(x): entropy = log Σw - Σwx / Σw.
    entropy = np.log(total) - np.einsum("rk,rk->r", weights, values) / total
    return np.stack([mean, std, largest, entropy])
