"""Fits and applies non-increasing maps from a model's uncertainty to MOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np

from mosrt._arrays import FloatArray
from mosrt.errors import CalibrationError

from .fields import Range, Section, manifest_error

__all__ = ["KINDS", "MosMap", "falling_fit"]

KINDS: Final = ("isotonic", "linear")
MIN_CLIPS: Final = 5
_Number = Annotated[float, Range(-1e300, 1e300)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MosMap(Section):
    """A non-increasing, piecewise linear map, constant beyond its ends.

    Attributes:
        kind: How the map was fitted: "isotonic" or "linear".
        uncertainty: Abscissae, increasing; at least two.
        mos: Ordinates, non-increasing, as many as abscissae.
        n_clips: Number of rated clips that the map was fitted to.
        loo_rmse: Leave-one-out root mean square error, in MOS.
        description: Description of the rated clips.
    """

    kind: str
    uncertainty: tuple[_Number, ...]
    mos: tuple[_Number, ...]
    n_clips: int
    loo_rmse: float
    description: str

    def __call__(self, uncertainty: float) -> float:
        """The MOS for an uncertainty."""
        return float(np.interp(uncertainty, self.uncertainty, self.mos))

    @classmethod
    def fit(
        cls, uncertainty: Sequence[float], mos: Sequence[float], *, kind: str, description: str
    ) -> MosMap:
        """Fits a map by least squares.

        Args:
            uncertainty: The uncertainty of each clip.
            mos: The MOS of each clip.
            kind: "isotonic" (pool adjacent violators) or "linear".
            description: Description of the clips.

        Raises:
            CalibrationError: There are too few different clips, or MOS rises with uncertainty.
        """
        x, y = np.asarray(uncertainty, np.float64), np.asarray(mos, np.float64)
        if len(x) < MIN_CLIPS or len(np.unique(x)) < MIN_CLIPS:
            raise CalibrationError(
                f"a map needs at least {MIN_CLIPS} rated clips of different uncertainty, not "
                f"{len(np.unique(x))}; add clips"
            )
        fit = falling_fit if kind == "isotonic" else _linear
        knots, values = fit(x, y)
        if not values[0] > values[-1]:
            raise CalibrationError(
                "the more uncertain clips are not rated lower, so no falling map fits; is the CSV "
                "right, and does the model suit these clips?"
            )
        errors = []
        for i in range(len(x)):
            others = np.arange(len(x)) != i
            errors.append(np.interp(x[i], *fit(x[others], y[others])) - y[i])
        return cls(
            kind=kind,
            uncertainty=tuple(knots.tolist()),
            mos=tuple(values.tolist()),
            n_clips=len(x),
            loo_rmse=float(np.sqrt(np.mean(np.square(errors)))),
            description=description,
        )

    def check(self, where: str) -> None:
        """Raises BundleError unless there are two points or more, and the map does not rise."""
        x, y = np.array(self.uncertainty), np.array(self.mos)
        if len(x) != len(y) or len(x) < 2 or np.any(np.diff(x) <= 0) or np.any(np.diff(y) > 0):
            raise manifest_error(
                f"{where} must be two points or more, uncertainty rising and mos not; fit it again "
                "with `mosrt fit-mos`"
            )


def _linear(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The least-squares line between the smallest and the largest x; constant beyond."""
    slope = np.sum((x - x.mean()) * (y - y.mean())) / np.sum(np.square(x - x.mean()))
    ends = np.array([x.min(), x.max()])
    return ends, y.mean() + slope * (ends - x.mean())


def falling_fit(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The least-squares non-increasing fit of y over x, by pooling adjacent violators.

    Returns:
        The ends of each pooled block, rising, and the block's value at both.
    """
    knots, inverse = np.unique(x, return_inverse=True)
    weights = np.bincount(inverse).astype(np.float64)
    means = np.bincount(inverse, weights=y) / weights
    blocks: list[tuple[float, float, int, int]] = []  # mean, weight, first, last
    for last, (mean, weight) in enumerate(zip(means.tolist(), weights.tolist(), strict=True)):
        pooled, total, first = mean, weight, last
        while blocks and blocks[-1][0] <= pooled:
            other, n_other, first, _ = blocks.pop()
            pooled = (other * n_other + pooled * total) / (n_other + total)
            total += n_other
        blocks.append((pooled, total, first, last))
    found = {end: mean for mean, _, *ends in blocks for end in ends}
    return knots[list(found)], np.array(list(found.values()))
