"""Statistics of activations, updated batch by batch without keeping the values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from mosrt._arrays import Array, Float32Array, FloatArray, IntArray
from mosrt.errors import MosrtError

__all__ = ["BINS", "Channels", "Histogram", "NonFiniteError", "Statistics"]

BINS: Final = 8192
"""Bins of every histogram. The largest value is always in the outer half of them."""

_MOST_VALUES: Final = 1 << 18
# Smaller values count as zero.
_TINY: Final = 1e-30


class NonFiniteError(MosrtError, ValueError):
    """An activation of the FP32 model is infinite or not a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """Statistics of the input channels of a weighted node.

    Attributes:
        largest: Largest absolute value per channel.
        total: Sum per channel.
        count: Number of values per channel.
    """

    largest: FloatArray
    total: FloatArray
    count: int

    @property
    def mean(self) -> FloatArray:
        """Mean per channel."""
        return self.total / max(1, self.count)

    @classmethod
    def of(cls, values: Float32Array, axis: int) -> Channels:
        """Statistics of a tensor whose channels are along `axis`."""
        others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        # np.abs would copy the values.
        largest = np.maximum(values.max(axis=others), -values.min(axis=others))
        return cls(
            largest=largest.astype(np.float64),
            total=values.sum(axis=others, dtype=np.float64),
            count=values.size // values.shape[axis],
        )

    def __add__(self, other: Channels) -> Channels:
        return Channels(
            largest=np.maximum(self.largest, other.largest),
            total=self.total + other.total,
            count=self.count + other.count,
        )


@dataclass(frozen=True, slots=True)
class Histogram:
    """Histogram of the values of a tensor whose range is not known in advance.

    Attributes:
        counts: Number of values per bin, (BINS,) int64.
        limit: The bins divide [-limit, limit] evenly; a power of two, or 0 before the first value.
    """

    counts: IntArray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    limit: float = 0.0

    def with_values(self, values: Float32Array) -> Histogram:
        """The histogram with the values of a tensor (batch, ...) added.

        When a larger value comes, the limit doubles and pairs of bins are merged, so that one run
        over the clips is enough. Of large tensors, a quarter of a million evenly spaced values are
        counted.
        """
        flat = values.ravel()
        # An odd stride, so that it does not select the same columns of every row.
        flat = flat[:: -(-flat.size // _MOST_VALUES) | 1]
        largest = float(max(flat.max(), -flat.min()))
        counts, limit = self.counts, self.limit
        wanted = 2.0 ** math.frexp(largest)[1] if largest > _TINY else limit
        if limit == 0.0:
            # Only zeros so far, which are in the middle whatever the limit.
            limit = wanted
        while wanted > limit:
            merged = np.zeros_like(counts)
            merged[BINS // 4 : 3 * BINS // 4] = counts.reshape(-1, 2).sum(axis=1)
            counts, limit = merged, 2.0 * limit
        # Four times as fast as np.histogram, which searches for bins.
        scale = BINS / (2.0 * (limit or 1.0))
        bins = (flat * np.float32(scale) + np.float32(BINS // 2)).astype(np.int32)
        added = np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
        return Histogram(counts + added, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Statistics of the activations of a network.

    Attributes:
        low: Smallest value by tensor.
        high: Largest value by tensor.
        channels: Statistics per channel of the tensors that weighted nodes read.
        histograms: Histogram by tensor; empty if histograms were not collected.
    """

    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    channels: dict[str, Channels] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def observe(
        self, name: str, values: Float32Array, *, axis: int | None = None, histogram: bool = True
    ) -> None:
        """Adds the values of a tensor.

        Args:
            name: Name of the tensor.
            values: Its values, (batch, ...) float32.
            axis: Channel axis if a weighted node reads the tensor.
            histogram: Whether the values are added to a histogram.

        Raises:
            NonFiniteError: A value is infinite or not a number.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise NonFiniteError(
                f"tensor {name!r} of the FP32 model has values that are not finite; export the "
                "model again, or leave out the clip"
            )
        self.low[name] = min(self.low.get(name, np.inf), low)
        self.high[name] = max(self.high.get(name, -np.inf), high)
        if axis is not None:
            found, before = Channels.of(values, axis), self.channels.get(name)
            self.channels[name] = found if before is None else before + found
        if histogram:
            self.histograms[name] = self.histograms.get(name, Histogram()).with_values(values)

    def updated(self, other: Statistics) -> Statistics:
        """These statistics, replaced by `other` for the tensors that it has."""
        return Statistics(
            low=self.low | other.low,
            high=self.high | other.high,
            channels=self.channels | other.channels,
            histograms=self.histograms | other.histograms,
        )

    def arrays(self) -> dict[str, Array]:
        """The statistics as arrays, for a file."""
        found: dict[str, Array] = {
            "names": np.array(list(self.low)),
            "extrema": np.array([[low, self.high[name]] for name, low in self.low.items()]),
            "counts": np.array([seen.counts for seen in self.histograms.values()]),
            "limits": np.array([seen.limit for seen in self.histograms.values()]),
        }
        for name, seen in self.channels.items():
            found[f"channels {name}"] = np.stack([seen.largest, seen.total])
            found[f"count {name}"] = np.array(seen.count)
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Statistics:
        """The statistics that `arrays` gave. Raises KeyError or ValueError for other arrays."""
        names, (low, high) = arrays["names"].tolist(), arrays["extrema"].T.tolist()
        channels = {}
        for name in names:
            if f"count {name}" in arrays:
                largest, total = arrays[f"channels {name}"]
                count = int(arrays[f"count {name}"])
                channels[name] = Channels(largest=largest, total=total, count=count)
        rows = map(Histogram, arrays["counts"], arrays["limits"].tolist())
        return cls(
            low=dict(zip(names, low, strict=True)),
            high=dict(zip(names, high, strict=True)),
            channels=channels,
            histograms=dict(zip(names, rows, strict=False)),
        )
