"""The score of one recording, and the interval of a mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Z_95", "Score"]

# Two-sided 95 % quantiles of Student's t for 1 to 12 degrees of freedom (any statistics table);
# beyond, the series below is exact to 1e-4.
_T_95: Final = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622,
         2.2281, 2.2010, 2.1788)  # fmt: skip
Z_95: Final = 1.959963984540054
"""Standard deviations on either side of the mean of a normal distribution that hold 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A quality score with the estimator's own error. It can be pickled.

    `low` and `high` bound a 95 % interval. It is made from the differences between views and
    networks of the ensemble: how far the estimate depends on where in the recording the model
    looked. If the model predicts its own error against what it was trained on, such as its
    teacher's scores, that is a part of it, too. It says nothing about how much listeners would
    disagree.

    Attributes:
        mos: Mean opinion score, the mean over `views`; nan if the recording could not be scored.
            A model that scores by its uncertainty has a MOS only if its bundle has a map to MOS,
            and nan without one.
        low: Lower end of the 95 % interval; nan with fewer than two views, unless the model
            predicts its error in the domain.
        high: Upper end of that interval.
        n_views: Number of predictions behind `mos`, or of chunks that the recording was read in.
        views: Each prediction: the first network's views in time order, then the second's, ...
        windows: The part of the recording that each view of the plan was made of, (start, end) in
            seconds, from 0 to at most `duration_s`. With `remove_silence`, time after the removal.
        domain: Data domain that the score is for.
        domains: MOS for each data domain by name; empty for a model that gives no MOS.
        measures: Further results by name; empty for MOS models. "uncertainty" comes first: the
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

    mos: float
    low: float = math.nan
    high: float = math.nan
    n_views: int
    views: tuple[float, ...] = ()
    windows: tuple[tuple[float, float], ...] = ()
    domain: str
    domains: Mapping[str, float] = field(default_factory=dict)
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
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}


def interval_95(
    values: npt.NDArray[np.float64], deviation: float | None = None
) -> tuple[float, float]:
    """95 % interval of the mean of `values` (n,).

    Without a predicted deviation it is Student's t; nan for fewer than two values. With one, it is
    the root of the sum of squares of two half-widths: Student's t, and 1.96 deviations. That holds
    the truth in 95 % of cases or a few more, where a smaller quantile would fail for two values.

    Args:
        values: Predictions.
        deviation: Standard deviation of an error that all values have in common; None if unknown.
    """
    n = len(values)
    if n < 2 and deviation is None:
        return math.nan, math.nan
    half = t_95(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if deviation is not None:
        half = math.hypot(half, Z_95 * deviation)
    mean = float(np.mean(values))
    return mean - half, mean + half


def t_95(dof: int) -> float:
    """Two-sided 95 % quantile of Student's t with `dof` degrees of freedom.

    From the thirteenth on by the Cornish-Fisher series in 1/dof (Abramowitz and Stegun, 26.7.5).
    """
    if dof <= len(_T_95):
        return _T_95[dof - 1]
    z = Z_95
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / dof + g2 / dof**2 + g3 / dof**3


def _plain(value: Any) -> Any:
    """A field as JSON holds it."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
