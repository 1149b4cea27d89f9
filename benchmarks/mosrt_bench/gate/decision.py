"""Gate: has a set of clips become worse than its baseline, beyond the model's own noise?

Clip by clip: the difference is held against the standard errors of both scores over views (Welch's
t test, one-sided). A set of hundreds of clips makes hundreds of tests, of which some come out by
chance, so their p values are adjusted by Holm's step-down method (1979): the chance that even one
sound clip fails is at most alpha, however the tests depend on each other. A gate that stops a
release should not stop it for nothing, which is why that is controlled, and not the share of false
alarms among alarms, as by Benjamini and Hochberg.

The set: mean, median, 5th and 95th percentile, each with a bootstrap interval over clips, in which
every resampled difference also gets the noise of its views; four tests, adjusted likewise.

Either fails only if it is also worse by more than its tolerance: what nobody hears is no
regression, however certain. The noise of views is not that of rendering a sentence twice, which
only whoever makes the speech can know, so a clip has a wider tolerance than the set.

Models that score by their uncertainty have no MOS and no noise over views. Their scores are minus
the uncertainty, and tolerances are shares of its mean over the recorded clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.stats

from mosrt_bench.stats.bootstrap import SEED, percentile_interval
from mosrt_bench.stats.multiple_comparisons import holm

from .baseline import Baseline, ClipScore

__all__ = ["ClipChange", "SetChange", "Tolerances", "Verdict", "gate"]

FloatArray = npt.NDArray[np.float64]

_RESAMPLES: Final = 4000
_FEW_CLIPS: Final = 10

STATISTICS: Final[Mapping[str, Callable[[FloatArray], FloatArray]]] = {
    "mean": lambda scores: scores.mean(axis=-1),
    "median": lambda scores: np.median(scores, axis=-1),
    "p5": lambda scores: np.percentile(scores, 5, axis=-1),
    "p95": lambda scores: np.percentile(scores, 95, axis=-1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """What may pass.

    Attributes:
        of_set: By how much a figure of the set may drop: in MOS, or as a share of the mean
            uncertainty of the baseline.
        of_clip: By how much a clip may drop, likewise.
        alpha: Chance of failing for nothing: of all clips together, and of all figures together.
    """

    of_set: float
    of_clip: float
    alpha: float

    @classmethod
    def of(
        cls, baseline: Baseline, of_set: float | None, of_clip: float | None, alpha: float
    ) -> Tolerances:
        """What is given, and for what is None the default for the baseline's kind of scores."""
        default_set, default_clip = (
            UNCERTAINTY_TOLERANCES if baseline.of_uncertainty else MOS_TOLERANCES
        )
        return cls(
            of_set=default_set if of_set is None else of_set,
            of_clip=default_clip if of_clip is None else of_clip,
            alpha=alpha,
        )


MOS_TOLERANCES: Final = (0.05, 0.2)
"""Of the set and of a clip, in MOS."""

UNCERTAINTY_TOLERANCES: Final = (0.02, 0.05)
"""Of the set and of a clip, as shares. `nano-uncertainty` answers white noise 30 dB below the
speech with 1 to 3 %, and noise 20 dB below it with 7 to 11 %, on the sample clips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipChange:
    """One clip against its baseline.

    Attributes:
        clip: Its name.
        before: Recorded score.
        after: New score.
        delta: After minus before.
        error: Standard error of the difference; 0 where the model has no noise of its own.
        p: Chance of such a drop if nothing had changed, adjusted for the number of clips.
        same_file: Whether the audio is the recorded one, byte for byte.
        failed: Whether it became worse.
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
class SetChange:
    """One figure of the whole set against its baseline.

    Attributes:
        name: "mean", "median", "p5" or "p95".
        before: Of the recorded scores.
        after: Of the new ones.
        delta: After minus before.
        low: Lower end of the difference's 95 % interval.
        high: Its upper end.
        p: Adjusted for the number of figures.
        failed: Whether it became worse.
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
    """What a gate says.

    Attributes:
        summary: The set's figures.
        clips: All clips, the largest drop first.
        tolerances: What may pass.
        scale: What a tolerance of 1 means on these scores.
        notes: What a reader must know.
    """

    summary: tuple[SetChange, ...]
    clips: tuple[ClipChange, ...]
    tolerances: Tolerances
    scale: float
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not (any(c.failed for c in self.summary) or any(c.failed for c in self.clips))

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return {
            "kind": "mosrt gate",
            "passed": self.passed,
            "tolerance": self.tolerances.of_set,
            "clip_tolerance": self.tolerances.of_clip,
            "alpha": self.tolerances.alpha,
            "scale": self.scale,
            "summary": [asdict(change) for change in self.summary],
            "clips": [asdict(change) for change in self.clips],
            "listen_to": [change.clip for change in self.clips if change.failed],
            "notes": list(self.notes),
        }


def gate(before: Baseline, after: Baseline, tolerances: Tolerances) -> Verdict:
    """Compares a set with its baseline; both have the same clips.

    Args:
        before: The baseline.
        after: The same clips, made and scored again.
        tolerances: What may pass.
    """
    scale, alpha = before.scale, tolerances.alpha
    names = list(before.clips)
    old = [before.clips[name] for name in names]
    new = [after.clips[name] for name in names]
    changed = [i for i in range(len(names)) if old[i].sha256 != new[i].sha256]
    adjusted = np.ones(len(names))
    adjusted[changed] = holm([_p_of_drop(old[i], new[i]) for i in changed])
    clips = [
        ClipChange(
            clip=name,
            before=was.score,
            after=now.score,
            delta=now.score - was.score,
            error=_error(was, now) if was.sha256 != now.sha256 else 0.0,
            p=float(p),
            same_file=was.sha256 == now.sha256,
            failed=bool(p < alpha and was.score - now.score > tolerances.of_clip * scale),
        )
        for name, was, now, p in zip(names, old, new, adjusted, strict=True)
    ]
    return Verdict(
        summary=tuple(_summary(clips, tolerances.of_set * scale, alpha)),
        clips=tuple(sorted(clips, key=lambda change: change.delta)),
        tolerances=tolerances,
        scale=scale,
        notes=tuple(_notes(clips, before)),
    )


def _error(was: ClipScore, now: ClipScore) -> float:
    """Standard error of the difference, as if the two scores' views had nothing in common.

    Views of two renderings of one sentence look at the same places, so that their noise partly
    cancels: the true error is smaller, and a clip fails less easily than it might.
    """
    return math.hypot(was.error, now.error)


def _p_of_drop(was: ClipScore, now: ClipScore) -> float:
    """One-sided p value of Welch's t test that the clip became worse."""
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


def _summary(clips: Sequence[ClipChange], tolerance: float, alpha: float) -> list[SetChange]:
    rng = np.random.default_rng(SEED)
    before = np.array([clip.before for clip in clips])
    after = np.array([clip.after for clip in clips])
    errors = np.array([clip.error for clip in clips])
    picked = rng.integers(0, len(clips), (_RESAMPLES, len(clips)))
    noisy = after[picked] + errors[picked] * rng.standard_normal(picked.shape)
    found, p_values = [], []
    for name, statistic in STATISTICS.items():
        drawn = statistic(noisy) - statistic(before[picked])
        bounds = percentile_interval(drawn) or (math.nan, math.nan)
        p_values.append(float((1 + (drawn >= 0).sum()) / (1 + _RESAMPLES)))
        found.append((name, float(statistic(before)), float(statistic(after)), bounds))
    return [
        SetChange(
            name=name,
            before=was,
            after=now,
            delta=now - was,
            low=bounds[0],
            high=bounds[1],
            p=float(p),
            failed=bool(p < alpha and was - now > tolerance),
        )
        for (name, was, now, bounds), p in zip(found, holm(p_values), strict=True)
    ]


def _notes(clips: Sequence[ClipChange], before: Baseline) -> list[str]:
    notes = []
    if before.of_uncertainty:
        notes.append(
            "scores are minus the uncertainty; tolerances are shares of its mean over the recorded "
            f"clips, {before.scale:.4g}"
        )
    same = sum(clip.same_file for clip in clips)
    if same:
        notes.append(f"{same} of {len(clips)} clips are the recorded files themselves")
    if same < len(clips) and all(clip.error == 0 for clip in clips):
        notes.append("the model has no noise over views: the tolerance alone decides about clips")
    if len(clips) < _FEW_CLIPS:
        notes.append(f"{len(clips)} clips: intervals of so few are too narrow")
    return notes
