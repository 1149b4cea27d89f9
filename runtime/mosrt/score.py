"""Score: what a scorer says of one recording."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Score"]

# Two-sided 95 % quantiles of Student's t for 1 to 12 degrees of freedom (any statistics table);
# beyond, the series below is exact to 1e-4.
_T_95: Final = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622,
         2.2281, 2.2010, 2.1788)  # fmt: skip
_Z_95: Final = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A quality score with the estimator's own spread.

    `low` and `high` bound a 95 % interval over views and networks of the ensemble: how far the
    estimate depends on where in the recording the model looked. They say nothing about how much
    listeners would disagree.

    Attributes:
        mos: Mean opinion score, the mean over `views`; nan if the recording could not be scored.
            None for a model that scores by its uncertainty, unless its bundle has a map to MOS.
        low: Lower end of the 95 % interval; nan with fewer than two views.
        high: Upper end of the 95 % interval; nan with fewer than two views.
        n_views: Number of predictions behind `mos`, or of pieces that the recording was heard in.
        views: Each prediction: the first network's views in time order, then the second's, ...
        windows: Span in seconds (start, end) that each view of the plan listened to; a clip
            shorter than a crop is heard repeated, and its span then ends after the clip does.
        domain: Data domain the score is for.
        measures: Further figures by name; empty for MOS models. "uncertainty" comes first: the
            larger, the worse the recording probably is.
        frames: Uncertainty over time, if asked for; nan where a frame has none.
        frame_rate_hz: Values of `frames` per second; nan without them.
        flags: Names of the guards the recording tripped, keys of `mosrt.audio.guards.FLAGS`.
        duration_s: Length of the recording in seconds; nan if it could not be read.
        timings_ms: Time in milliseconds spent in "decode", "resample", "front_end" and "model".
        model: Name of the model.
        variant: Precision variant, such as "fp32".
        provider: What ran the model, such as "cpu"; "openvino-bf16" also names the precision.
    """

    mos: float | None
    low: float
    high: float
    n_views: int
    views: tuple[float, ...]
    windows: tuple[tuple[float, float], ...]
    domain: str
    measures: Mapping[str, float] = field(default_factory=dict)
    frames: tuple[float, ...] = ()
    frame_rate_hz: float = math.nan
    flags: tuple[str, ...] = ()
    duration_s: float
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    model: str
    variant: str
    provider: str

    def to_dict(self) -> dict[str, Any]:
        """The score as JSON-ready values: its fields by name, with nan as None."""
        return {
            "mos": None if self.mos is None else _finite(self.mos),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "n_views": self.n_views,
            "views": [_finite(view) for view in self.views],
            "windows": [list(window) for window in self.windows],
            "domain": self.domain,
            "measures": {name: _finite(value) for name, value in self.measures.items()},
            "frames": [_finite(value) for value in self.frames],
            "frame_rate_hz": _finite(self.frame_rate_hz),
            "flags": list(self.flags),
            "duration_s": _finite(self.duration_s),
            "timings_ms": dict(self.timings_ms),
            "model": self.model,
            "variant": self.variant,
            "provider": self.provider,
        }


def interval_95(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of `values` (n,), by Student's t; nan for fewer than two."""
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = t_95(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return mean - half, mean + half


def t_95(dof: int) -> float:
    """Two-sided 95 % quantile of Student's t with `dof` degrees of freedom.

    From the thirteenth on by the Cornish-Fisher series in 1/dof (Abramowitz and Stegun, 26.7.5).
    """
    if dof <= len(_T_95):
        return _T_95[dof - 1]
    z = _Z_95
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / dof + g2 / dof**2 + g3 / dof**3


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
