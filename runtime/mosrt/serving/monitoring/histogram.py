"""Counts scores in bins, so that those of several windows, processes or machines can be added."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

__all__ = ["MosHistogram"]

_LOWEST, _STEP, _BINS = 1.0, 0.05, 80
_KIND: Final = "mosrt MOS histogram"


class MosHistogram:
    """A histogram of MOS in bins of 0.05 from 1 to 5; scores beyond are in the outermost bins.

    Attributes:
        counts: Scores per bin, (80,) int64.
        total: Sum of the scores.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.total = 0.0

    @property
    def n(self) -> int:
        """Number of scores."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean of the scores; nan without any."""
        return self.total / self.n if self.n else math.nan

    def add(self, mos: float) -> None:
        """Counts a score, a finite number."""
        self.counts[min(max(int((mos - _LOWEST) / _STEP), 0), _BINS - 1)] += 1
        self.total += mos

    def percentile(self, q: float) -> float:
        """The `q`-th percentile, 0 to 100, exact to the width of a bin; nan without scores."""
        if not self.n:
            return math.nan
        below = np.concatenate(([0], np.cumsum(self.counts)))
        edges = _LOWEST + _STEP * np.arange(_BINS + 1)
        rank = min(max(q / 100 * self.n, 1e-9), self.n)  # in a bin that is not empty
        place = int(np.searchsorted(below[1:], rank))
        return float(edges[place] + _STEP * (rank - below[place]) / self.counts[place])

    def __add__(self, other: MosHistogram) -> MosHistogram:
        found = MosHistogram()
        found.counts = self.counts + other.counts
        found.total = self.total + other.total
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, from which `from_dict` makes the histogram again."""
        return {
            "kind": _KIND,
            "lowest_mos": _LOWEST,
            "bin_mos": _STEP,
            "counts": self.counts.tolist(),
            "total": self.total,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MosHistogram:
        """The histogram of `to_dict`.

        Raises:
            ValueError: The values are not those of a histogram with these bins.
        """
        counts = values.get("counts")
        bins = (values.get("kind"), values.get("lowest_mos"), values.get("bin_mos"))
        if bins != (_KIND, _LOWEST, _STEP) or not isinstance(counts, list) or len(counts) != _BINS:
            raise ValueError("not a MOS histogram of this version of mosrt")
        found = cls()
        found.counts = np.array(counts, np.int64)
        found.total = float(values["total"])
        return found
