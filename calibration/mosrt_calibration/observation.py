"""Observations: what is kept of activations that stream by; never the activations themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mosrt.errors import MosrtError

__all__ = ["BINS", "Channels", "Extrema", "Histograms", "NonFiniteError"]

BINS: Final = 4096
"""Bins of every histogram, evenly over [-largest, largest] of its tensor."""

FloatArray = NDArray[np.float64]


class NonFiniteError(MosrtError, ValueError):
    """An activation of the float model is infinite or no number."""


@dataclass(slots=True)
class Channels:
    """The input channels of a weighted node.

    Attributes:
        axis: Of the tensor.
        largest: Largest absolute value per channel.
        total: Sum per channel.
        count: Values summed per channel.
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
    """First pass: smallest and largest value of each tensor, and figures per input channel.

    Args:
        names: Tensors to look at.
        axes: Channel axis of those tensors that weighted nodes read.

    Attributes:
        low: Smallest value by tensor, as float32 gave it.
        high: Largest value by tensor.
        channels: Figures per channel of the tensors in `axes`.
    """

    def __init__(self, names: Sequence[str], axes: Mapping[str, int]) -> None:
        self.low = dict.fromkeys(names, np.inf)
        self.high = dict.fromkeys(names, -np.inf)
        self.channels: dict[str, Channels] = {}
        self._axes = {name: axes[name] for name in names if name in axes}

    def see(self, name: str, values: NDArray[np.float32]) -> None:
        """Takes in a tensor (batch, ...).

        Raises:
            NonFiniteError: A value is infinite or no number.
        """
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise NonFiniteError(
                f"tensor {name!r} has values that are not finite in the float32 model; export the "
                "model again, or leave out the clip"
            )
        self.low[name] = min(self.low[name], low)
        self.high[name] = max(self.high[name], high)
        if name in self._axes:
            self._see_channels(name, values)

    def _see_channels(self, name: str, values: NDArray[np.float32]) -> None:
        axis = self._axes[name] % values.ndim
        others = tuple(i for i in range(values.ndim) if i != axis)
        largest = np.abs(values).max(axis=others).astype(np.float64)
        total = values.sum(axis=others, dtype=np.float64)
        count = values.size // values.shape[axis]
        before = self.channels.get(name)
        if before is not None:
            largest, total = np.maximum(largest, before.largest), total + before.total
            count += before.count
        self.channels[name] = Channels(axis=axis, largest=largest, total=total, count=count)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything seen so far, for a file."""
        found: dict[str, NDArray[Any]] = {
            "low": np.array(list(self.low.values())),
            "high": np.array(list(self.high.values())),
        }
        for i, name in enumerate(self.low):
            if name in self.channels:
                seen = self.channels[name]
                found[f"largest.{i}"], found[f"total.{i}"] = seen.largest, seen.total
                found[f"count.{i}"] = np.array([seen.axis, seen.count])
        return found

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Goes on from what `arrays` gave."""
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


class Histograms:
    """Second pass: how often each tensor takes which values.

    Args:
        limits: Largest absolute value by tensor, from the first pass.

    Attributes:
        counts: (BINS,) int64 by tensor.
    """

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._limits = limits
        self.counts = {name: np.zeros(BINS, np.int64) for name in limits}

    def see(self, name: str, values: NDArray[np.float32]) -> None:
        """Takes in a tensor (batch, ...)."""
        limit = self._limits[name] or 1.0
        # Four times as fast as np.histogram, which looks for bins that it could compute.
        bins = ((values.ravel() + limit) * (BINS / (2.0 * limit))).astype(np.int32)
        self.counts[name] += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything seen so far, for a file."""
        return {"counts": np.array(list(self.counts.values()))}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Goes on from what `arrays` gave."""
        self.counts = dict(zip(self._limits, arrays["counts"].astype(np.int64), strict=True))
