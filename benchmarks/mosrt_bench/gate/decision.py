"""Decide whether a set of clips is worse than its baseline, beyond the model's own noise.

Clips: the drop of each clip is tested against the standard errors of both scores over views
(Welch's t test, one-sided). P values are adjusted by Holm's method, so that the probability that
even one unchanged clip fails is at most alpha. That error rate is controlled, and not the share of
false alarms among alarms (Benjamini and Hochberg), because a gate that stops a release must not do
so by chance.

Set: the mean, median, 5th and 95th percentile each have a bootstrap interval over clips; every
resampled score also gets the noise of its views. These four tests are adjusted in the same way.

A clip or the set fails only if it is also worse by more than its tolerance, since a difference that
nobody can hear is no regression. The noise of views is not that of synthesising a sentence twice,
which only the maker of the speech can know, so a clip has a wider tolerance than the set.

Uncertainty models have no noise over views. Their scores are minus the uncertainty, and tolerances
are relative to its mean over the recorded clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import scipy.stats

from mosrt._arrays import FloatArray
from mosrt_bench.stats.bootstrap import SEED, percentile_interval, resample_indices
from mosrt_bench.stats.multiple_comparisons import holm

from .baseline import Baseline, ClipScore

__all__ = ["ClipDelta", "SetDelta", "Verdict", "gate"]

_RESAMPLES: Final = 4000
# Default tolerances of the set and of a clip, in MOS, or relative to the mean uncertainty. On the
# sample clips, white noise 30 dB below the speech raises the uncertainty of `nano-uncertainty` by 1
# to 3 %, and noise 20 dB below it by 7 to 11 %.
_MOS_TOLERANCES: Final = (0.05, 0.2)
_UNCERTAINTY_TOLERANCES: Final = (0.02, 0.05)
_FEW_CLIPS: Final = 10

STATISTICS: Final[Mapping[str, Callable[[FloatArray], FloatArray]]] = {
    "mean": lambda scores: scores.mean(axis=-1),
    "median": lambda scores: np.median(scores, axis=-1),
    "p5": lambda scores: np.percentile(scores, 5, axis=-1),
    "p95": lambda scores: np.percentile(scores, 95, axis=-1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipDelta:
    """One clip against its baseline.

    Attributes:
        clip: Name of the clip.
        before: Recorded score.
        after: New score.
        delta: After minus before.
        error: Standard error of the delta; 0 for a model without views.
        p: P value of the drop, adjusted for the number of clips.
        same_file: Whether the file is identical to the recorded one.
        failed: Whether the clip became worse.
    """

    clip: str
    before: float
    after: float
    delta: float
    error: float
    p: float
    same_file: bool
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDelta:
    """One statistic of the whole set against its baseline.

    Attributes:
        name: "mean", "median", "p5" or "p95".
        before: Value over the recorded scores.
        after: Value over the new scores.
        delta: After minus before.
        low: Lower bound of the 95 % interval of the delta.
        high: Upper bound of that interval.
        p: P value of the drop, adjusted for the number of statistics.
        failed: Whether the statistic became worse.
    """

    name: str
    before: float
    after: float
    delta: float
    low: float
    high: float
    p: float
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision of a gate.

    Attributes:
        tolerance: Largest drop of a statistic of the set that passes, in MOS, or relative to the
            mean uncertainty of the baseline.
        clip_tolerance: Largest drop of a clip that passes, in the same unit.
        alpha: False-alarm rate: of all clips together, and of all statistics together.
        scale: The unit of tolerances, in units of the scores.
        summary: The statistics of the set.
        clips: All clips, the largest drop first.
        notes: Remarks for the reader.
    """

    tolerance: float
    clip_tolerance: float
    alpha: float
    scale: float
    summary: tuple[SetDelta, ...]
    clips: tuple[ClipDelta, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not (any(c.failed for c in self.summary) or any(c.failed for c in self.clips))

    def to_dict(self) -> dict[str, Any]:
        """The decision, JSON-ready."""
        found = {"kind": "mosrt gate", "passed": self.passed, **asdict(self)}
        notes = found.pop("notes")
        listen_to = [delta.clip for delta in self.clips if delta.failed]
        return {**found, "listen_to": listen_to, "notes": notes}


def gate(
    before: Baseline,
    after: Baseline,
    *,
    tolerance: float | None = None,
    clip_tolerance: float | None = None,
    alpha: float = 0.05,
) -> Verdict:
    """Compares a set of clips with its baseline.

    Args:
        before: The baseline.
        after: The new scores, of clips with the same names.
        tolerance: As in the verdict; None for the default of the baseline's kind of scores.
        clip_tolerance: Likewise.
        alpha: As in the verdict.
    """
    defaults = _UNCERTAINTY_TOLERANCES if before.of_uncertainty else _MOS_TOLERANCES
    tolerance = defaults[0] if tolerance is None else tolerance
    clip_tolerance = defaults[1] if clip_tolerance is None else clip_tolerance
    scale = before.scale
    pairs = [(name, was, after.clips[name]) for name, was in before.clips.items()]
    changed = [i for i, (_, was, now) in enumerate(pairs) if was.sha256 != now.sha256]
    adjusted = np.ones(len(pairs))
    adjusted[changed] = holm([_p_of_drop(*pairs[i][1:]) for i in changed])
    clips = [
        ClipDelta(
            clip=name,
            before=was.score,
            after=now.score,
            delta=now.score - was.score,
            error=_error(was, now) if was.sha256 != now.sha256 else 0.0,
            p=float(p),
            same_file=was.sha256 == now.sha256,
            failed=bool(p < alpha and was.score - now.score > clip_tolerance * scale),
        )
        for (name, was, now), p in zip(pairs, adjusted, strict=True)
    ]
    return Verdict(
        tolerance=tolerance,
        clip_tolerance=clip_tolerance,
        alpha=alpha,
        scale=scale,
        summary=tuple(_summary(clips, tolerance * scale, alpha)),
        clips=tuple(sorted(clips, key=lambda clip: clip.delta)),
        notes=tuple(_notes(clips, before)),
    )


def _error(was: ClipScore, now: ClipScore) -> float:
    """Standard error of the delta, as if the views of both scores were independent.

    The views of two renderings of a sentence are at the same places, so their noise partly cancels
    and the true error is smaller: the test is conservative.
    """
    return math.hypot(was.error, now.error)


def _p_of_drop(was: ClipScore, now: ClipScore) -> float:
    """One-sided p value of Welch's t test for a drop."""
    delta = now.score - was.score
    error = _error(was, now)
    if error == 0:
        return 0.0 if delta < 0 else 1.0
    # Welch and Satterthwaite's degrees of freedom
    parts = [
        (clip.error**4 / (clip.n_views - 1))
        for clip in (was, now)
        if clip.error and clip.n_views > 1
    ]
    return float(scipy.stats.t.cdf(delta / error, error**4 / sum(parts)))


def _summary(clips: Sequence[ClipDelta], tolerance: float, alpha: float) -> list[SetDelta]:
    rng = np.random.default_rng(SEED)
    before = np.array([clip.before for clip in clips])
    after = np.array([clip.after for clip in clips])
    errors = np.array([clip.error for clip in clips])
    indices = resample_indices(len(clips), _RESAMPLES, rng=rng)
    noisy = after[indices] + errors[indices] * rng.standard_normal(indices.shape)
    drawn = [statistic(noisy) - statistic(before[indices]) for statistic in STATISTICS.values()]
    p_values = holm([float((1 + (each >= 0).sum()) / (1 + _RESAMPLES)) for each in drawn])
    found = []
    for (name, statistic), each, p in zip(STATISTICS.items(), drawn, p_values, strict=True):
        was, now = float(statistic(before)), float(statistic(after))
        low, high = percentile_interval(each) or (math.nan, math.nan)
        failed = bool(p < alpha and was - now > tolerance)
        found.append(
            SetDelta(
                name=name, before=was, after=now, delta=now - was, low=low, high=high, p=float(p),
                failed=failed,
            )
        )  # fmt: skip
    return found


def _notes(clips: Sequence[ClipDelta], before: Baseline) -> list[str]:
    notes = []
    if before.of_uncertainty:
        notes.append(
            "scores are minus the uncertainty; tolerances are relative to its mean over the "
            f"recorded clips, {before.scale:.4g}"
        )
    same = sum(clip.same_file for clip in clips)
    if same:
        notes.append(f"{same} of {len(clips)} clips are identical to the recorded files")
    if same < len(clips) and all(clip.error == 0 for clip in clips):
        notes.append("the model has no noise over views: the tolerance alone decides about clips")
    if len(clips) < _FEW_CLIPS:
        notes.append(f"{len(clips)} clips are few: the intervals are too narrow")
    return notes
