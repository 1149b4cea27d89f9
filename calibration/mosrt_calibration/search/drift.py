"""Measures drift: how far the scores of a variant are from those of the FP32 model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mosrt._arrays import FloatArray

__all__ = ["HEADINGS", "Budget", "Drift"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Differences and correlations between the scores of a variant and of the FP32 model.

    Attributes:
        unit: "mos", or "uncertainty" for differences relative to the FP32 model's mean absolute
            value.
        mean_abs: Mean absolute difference.
        max_abs: Largest absolute difference.
        p95_abs: 95th percentile of absolute differences.
        srcc: Spearman's rank correlation with the FP32 model; nan if that is constant.
        lcc: Pearson's correlation with the FP32 model; nan if that is constant.
        n_clips: Number of clips.
    """

    unit: str
    mean_abs: float
    max_abs: float
    p95_abs: float
    srcc: float
    lcc: float
    n_clips: int

    @classmethod
    def between(cls, reference: FloatArray, found: FloatArray, *, relative: bool) -> Drift:
        """Compares the scores of a variant with those of the FP32 model.

        Args:
            reference: Scores of the FP32 model, (clips,).
            found: Scores of the variant, (clips,). A nan makes the drift infinite.
            relative: Whether scores are uncertainties, so that differences are relative.
        """
        differences = np.abs(found - reference)
        if relative:
            differences /= float(np.mean(np.abs(reference))) or 1.0
        differences = np.where(np.isfinite(differences), differences, np.inf)
        finite = bool(np.isfinite(found).all())
        return cls(
            unit="uncertainty" if relative else "mos",
            mean_abs=float(differences.mean()),
            max_abs=float(differences.max()),
            p95_abs=float(np.quantile(differences, 0.95, method="higher")),
            srcc=_correlation(_ranks(reference), _ranks(found)) if finite else np.nan,
            lcc=_correlation(reference, found) if finite else np.nan,
            n_clips=len(reference),
        )

    def to_dict(self) -> dict[str, Any]:
        """The values for the manifest, rounded to significant digits."""
        name = self.unit
        suffix = "abs" if name == "mos" else "rel"
        return {
            f"{name}_max_{suffix}": _rounded(self.max_abs),
            f"{name}_mean_{suffix}": _rounded(self.mean_abs),
            f"{name}_p95_{suffix}": _rounded(self.p95_abs),
            "srcc": _rounded(self.srcc, 5),
            "lcc": _rounded(self.lcc, 5),
            "n_clips": self.n_clips,
            "against": "fp32",
        }

    def line(self) -> str:
        """The values in one line of fixed width, under `HEADINGS`."""
        return (
            f"{self.mean_abs:9.4f} {self.p95_abs:9.4f} {self.max_abs:9.4f} "
            f"{self.srcc:8.4f} {self.lcc:8.4f}"
        )


HEADINGS = f"{'mean':>9} {'p95':>9} {'max':>9} {'srcc':>8} {'lcc':>8}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits on the drift.

    Attributes:
        max_drift: Largest mean absolute difference, in the drift's unit.
        min_srcc: Smallest rank correlation with the FP32 model.
    """

    max_drift: float = 0.02
    min_srcc: float = 0.99

    def holds(self, drift: Drift) -> bool:
        """Whether a drift is within the limits. One that is not finite never is."""
        return drift.mean_abs <= self.max_drift and drift.srcc >= self.min_srcc


def _ranks(values: FloatArray) -> FloatArray:
    """Ranks from 0; ties have their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: FloatArray = last - (counts + 1) / 2.0
    return means[inverse]


def _correlation(one: FloatArray, other: FloatArray) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt(np.sum(one**2) * np.sum(other**2)))
    return float(np.sum(one * other)) / scale if scale > 0 else np.nan


def _rounded(value: float, digits: int = 2) -> float | None:
    """A value rounded to significant digits, or None if it is not finite."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None
