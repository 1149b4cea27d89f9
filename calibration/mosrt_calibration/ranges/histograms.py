"""Extrema and histograms of activations, updated batch by batch without keeping the values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mosrt._arrays import Array, Float32Array, FloatArray, IntArray
from mosrt.errors import MosrtError

__all__ = ["BINS", "Channels", "Extrema", "Histogram", "Histograms", "NonFiniteError"]

BINS: Final = 8192
"""Bins of every histogram. The largest value is always in the outer half of them."""

_MOST_VALUES: Final = 1 << 18
# Smaller values count as zero.
_TINY: Final = 1e-30


class NonFiniteError(MosrtError, ValueError):
    """An activation of the FP32 model is infinite or not a number."""


@dataclass(slots=True)
class Channels:
    """Statistics of the input channels of a weighted node.

    Attributes:
        axis: Channel axis of the tensor.
        largest: Largest absolute value per channel.
        total: Sum per channel.
        count: Number of values per channel.
    """

    axis: int
    largest: FloatArray
    total: FloatArray
    count: int

    @property
    def mean(self) -> FloatArray:
        """Mean per channel."""
        return self.total / max(1, self.count)


class Extrema:
    """The smallest and largest value of each tensor, and statistics per input channel.

    Args:
        names: Names of the tensors.
        axes: Channel axis of the tensors that weighted nodes read.

    Attributes:
        low: Smallest value by tensor.
        high: Largest value by tensor.
        channels: Statistics per channel of the tensors in `axes`.
    """

    def __init__(self, names: Sequence[str], axes: Mapping[str, int]) -> None:
        self.low = dict.fromkeys(names, np.inf)
        self.high = dict.fromkeys(names, -np.inf)
        self.channels: dict[str, Channels] = {}
        self._axes = {name: axes[name] for name in names if name in axes}

    def observe(self, name: str, values: Float32Array) -> None:
        """Adds the values of a tensor (batch, ...).

        Raises:
            NonFiniteError: A value is infinite or not a number.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise NonFiniteError(
                f"tensor {name!r} of the FP32 model has values that are not finite; export the "
                "model again, or leave out the clip"
            )
        self.low[name] = min(self.low[name], low)
        self.high[name] = max(self.high[name], high)
        if name in self._axes:
            self._observe_channels(name, values)

    def _observe_channels(self, name: str, values: Float32Array) -> None:
        axis = self._axes[name] % values.ndim
        others = tuple(i for i in range(values.ndim) if i != axis)
        # np.abs would copy the values.
        high, low = values.max(axis=others), values.min(axis=others)
        largest = np.maximum(high, -low).astype(np.float64)
        total = values.sum(axis=others, dtype=np.float64)
        count = values.size // values.shape[axis]
        before = self.channels.get(name)
        if before is not None:
            largest, total = np.maximum(largest, before.largest), total + before.total
            count += before.count
        self.channels[name] = Channels(axis=axis, largest=largest, total=total, count=count)

    def arrays(self) -> dict[str, Array]:
        """The state, for a file."""
        found: dict[str, Array] = {
            "low": np.array(list(self.low.values())),
            "high": np.array(list(self.high.values())),
        }
        for i, name in enumerate(self.low):
            if name in self.channels:
                seen = self.channels[name]
                found[f"largest.{i}"], found[f"total.{i}"] = seen.largest, seen.total
                found[f"count.{i}"] = np.array([seen.axis, seen.count])
        return found

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Restores a state that `arrays` gave."""
        names = list(self.low)
        self.low = dict(zip(names, arrays["low"].tolist(), strict=True))
        self.high = dict(zip(names, arrays["high"].tolist(), strict=True))
        for i, name in enumerate(names):
            if f"count.{i}" in arrays:
                axis, count = arrays[f"count.{i}"].tolist()
                self.channels[name] = Channels(
                    axis=axis,
                    largest=arrays[f"largest.{i}"],
                    total=arrays[f"total.{i}"],
                    count=count,
                )


@dataclass(frozen=True, slots=True)
class Histogram:
    """Histogram of the values of a tensor.

    Attributes:
        counts: Number of values per bin, (BINS,) int64.
        limit: The bins divide [-limit, limit] evenly.
    """

    counts: IntArray
    limit: float


class Histograms:
    """Histograms of tensors whose range is not known in advance.

    The limit of each histogram is a power of two. When a larger value comes, the limit doubles and
    pairs of bins are merged, so that one run over the clips is enough. Of large tensors, a quarter
    of a million evenly spaced values are counted on each run.

    Args:
        names: Names of the tensors.

    Attributes:
        found: Histogram by tensor.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.found = {name: Histogram(np.zeros(BINS, np.int64), 0.0) for name in names}

    def observe(self, name: str, values: Float32Array) -> None:
        """Adds the values of a tensor (batch, ...)."""
        flat = values.ravel()
        # An odd stride, so that it does not select the same columns of every row.
        flat = flat[:: -(-flat.size // _MOST_VALUES) | 1]
        largest = float(max(flat.max(), -flat.min()))
        counts, limit = self.found[name].counts, self.found[name].limit
        wanted = 2.0 ** math.frexp(largest)[1] if largest > _TINY else limit
        if limit == 0.0 and wanted > 0.0:
            # Only zeros so far, which are in the middle whatever the limit.
            limit = wanted
        while wanted > limit:
            counts = _widened(counts)
            limit *= 2.0
        # Four times as fast as np.histogram, which searches for bins.
        scale = BINS / (2.0 * (limit or 1.0))
        bins = (flat * np.float32(scale) + np.float32(BINS // 2)).astype(np.int32)
        counts = counts + np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
        self.found[name] = Histogram(counts, limit)

    def arrays(self) -> dict[str, Array]:
        """The state, for a file."""
        return {
            "counts": np.array([one.counts for one in self.found.values()]),
            "limits": np.array([one.limit for one in self.found.values()]),
        }

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Restores a state that `arrays` gave."""
        rows = zip(arrays["counts"].astype(np.int64), arrays["limits"].tolist(), strict=True)
        self.found = {name: Histogram(*row) for name, row in zip(self.found, rows, strict=True)}


def _widened(counts: IntArray) -> IntArray:
    """The same counts over an interval twice as wide."""
    found = np.zeros_like(counts)
    found[BINS // 4 : 3 * BINS // 4] = counts.reshape(-1, 2).sum(axis=1)
    return found
