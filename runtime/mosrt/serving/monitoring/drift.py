"""Watches series of scores for drops of their mean and of their 5th percentile.

There is a series of all traffic and one for each value of a label. Each is compared with scores of
its own from before: those of a file, or the first ones that come, the warm-up. `DropTest` tests

- the mean, of scores clipped to a range of three standard deviations around the median, both
  estimated from the first quarter of the baseline; the other three quarters are the evidence;
- the 5th percentile: whether more scores than in the baseline are below q, the score that 5 % of
  the baseline do not exceed. For independent scores the share of all scores below it, F(q), has a
  beta distribution. The evidence counts q itself as below. For k of n scores up to q and a bet b,
  at a share p it is (p'/p)^k ((1 - p')/(1 - p))^(n - k) with p' = (1 - b) p. Its expectation
  under the density of F(q), proportional to p^(k - 1) (1 - p)^(n - k), is that density's integral
  from 0 to 1 - b, which is at most 1.

One rate of false alarms holds for all tests of a monitor together: while there are K tests, each
gets the K-th part of the time that passes. So the sum of what they may raise, by the proof in
`drop_test`, is at most the time divided by the threshold.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mosrt._arrays import FloatArray

from .baseline import ALL
from .drop_test import DropTest
from .histogram import MosHistogram

__all__ = ["Drift", "DriftWatch", "MonitoredClip", "Series", "Statistic", "drop_tests"]

Statistic = Literal["mean", "p5"]
MONTH_S: Final = 30 * 86_400.0
_RECENT: Final = 100
_SDS: Final = 3.0
_LEAST_SD: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MonitoredClip:
    """A clip that was scored.

    Attributes:
        mos: Its score.
        flags: Names of the guards that it tripped.
        request_id: Identifier of its request; None if it had none.
        labels: Its labels, those with a value.
        time_s: When it was offered, in seconds since 1970.
        sample_rate_hz: Its sampling rate.
        waveform: The audio as it was offered; None unless the monitor keeps audio.
    """

    mos: float
    flags: tuple[str, ...] = ()
    request_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    time_s: float = 0.0
    sample_rate_hz: float = math.nan
    waveform: npt.NDArray[np.generic] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """An alarm: scores have dropped.

    Attributes:
        series: "all", or "LABEL=VALUE".
        statistic: What dropped: "mean", or "p5", the 5th percentile.
        baseline_mos: Its value in the baseline.
        mos: Its value in the last scores of the series, at most 100.
        n_scores: Scores of the series since its baseline, in this process.
        clips: Clips to listen to: the last ones below the mean of the baseline, the worst first.
    """

    series: str
    statistic: Statistic
    baseline_mos: float
    mos: float
    n_scores: int
    clips: tuple[MonitoredClip, ...]

    def __str__(self) -> str:
        name = {"mean": "mean", "p5": "5th percentile"}[self.statistic]
        return (
            f"{self.series}: the {name} dropped from {self.baseline_mos:.2f} to {self.mos:.2f} MOS"
        )


class _Test:
    """One of the two tests of a series."""

    def __init__(self, scores: FloatArray, statistic: Statistic, spent: float) -> None:
        self.statistic = statistic
        self._quantile, value, self._test = drop_tests(scores)[statistic]
        self.baseline_mos = float(value)
        self._spent = spent
        self.evidence = 0.0

    def update(self, mos: float, spent: float) -> None:
        score = mos if self._quantile is None else float(mos >= self._quantile)
        self.evidence = float(self._test.update(score, spent - self._spent))
        self._spent = spent

    def reset(self, spent: float) -> None:
        self._test.reset()
        self._spent, self.evidence = spent, 0.0


def drop_tests(
    scores: FloatArray,
) -> dict[Statistic, tuple[FloatArray | None, FloatArray, DropTest]]:
    """The tests against baselines `scores`, (..., n): for each a quantile, its value, and the test.

    Where there is a quantile, the test takes 1 for a score of at least that, and 0 for others.
    """
    n = scores.shape[-1]
    first, rest = scores[..., : n // 4], scores[..., n // 4 :]
    low, middle, high = np.percentile(first, (16, 50, 84), axis=-1)
    half = _SDS * np.maximum((high - low) / 2, _LEAST_SD)
    quantile = np.sort(scores, axis=-1)[..., max(1, math.ceil(0.05 * n)) - 1]
    above = (scores > quantile[..., np.newaxis]).astype(np.float64)
    return {
        "mean": (None, scores.mean(axis=-1), DropTest(rest, middle - half, middle + half)),
        "p5": (quantile, quantile, DropTest(above, np.zeros_like(low), np.ones_like(low))),
    }


class Series:
    """Scores of all traffic, or of one value of a label.

    Attributes:
        name: "all", or "LABEL=VALUE".
        baseline: The scores that it is compared with; fewer than it needs while it warms up.
        windows: Histograms of the last windows by their beginning, in seconds since 1970.
        n_scores: Scores since the baseline.
    """

    def __init__(self, name: str, baseline: Sequence[float], keep_clips: int) -> None:
        self.name = name
        self.baseline = list(baseline)
        self.windows: dict[float, MosHistogram] = {}
        self.n_scores = 0
        self.tests: tuple[_Test, ...] = ()
        self.armed_at_s = -math.inf
        self.clips: deque[MonitoredClip] = deque(maxlen=keep_clips)
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def arm(self, spent: float) -> None:
        """Ends the warm-up."""
        scores = np.asarray(self.baseline, np.float64)
        self.tests = (_Test(scores, "mean", spent), _Test(scores, "p5", spent))

    def count(self, clip: MonitoredClip, window_s: float, keep_windows: int) -> None:
        """Adds a clip to the window of its time, and keeps it if it is to be listened to."""
        self._recent.append(clip.mos)
        if self.tests:
            self.n_scores += 1
            if clip.mos < self.tests[0].baseline_mos:
                self.clips.append(clip)
        start = clip.time_s // window_s * window_s
        if start not in self.windows:
            self.windows[start] = MosHistogram()
            for old in sorted(self.windows)[:-keep_windows]:
                del self.windows[old]
        if start in self.windows:
            self.windows[start].add(clip.mos)

    def test(self, clip: MonitoredClip, tolerance_mos: float, spent: float) -> None:
        """Adds a clip to the tests."""
        for test in self.tests:
            test.update(clip.mos + tolerance_mos, spent)

    def drift(self, test: _Test) -> Drift:
        """The alarm of a test."""
        recent = np.array(self._recent)
        return Drift(
            series=self.name,
            statistic=test.statistic,
            baseline_mos=test.baseline_mos,
            mos=float(recent.mean() if test.statistic == "mean" else np.percentile(recent, 5)),
            n_scores=self.n_scores,
            clips=tuple(sorted(self.clips, key=lambda clip: clip.mos)),
        )


class DriftWatch:
    """All series of a monitor. Not safe for several threads.

    Args:
        baselines: Scores by series; each other series warms up.
        warm_up_clips: Scores that become the baseline of a series that has none.
        tolerance_mos: Drops up to this are none.
        false_alarms_per_month: Largest expected number of false alarms of all series together in
            30 days.
        rearm_s: Time after an alarm in which a series raises no other.
        window_s: Length of a window.
        keep_windows: Windows of each series that are kept.
        keep_clips: Clips of each series that are kept.
    """

    def __init__(
        self,
        baselines: Mapping[str, Sequence[float]],
        *,
        warm_up_clips: int,
        tolerance_mos: float,
        false_alarms_per_month: float,
        rearm_s: float = 3600.0,
        window_s: float = 3600.0,
        keep_windows: int = 48,
        keep_clips: int = 8,
    ) -> None:
        self._baselines = baselines
        self._warm_up_clips = warm_up_clips
        self._tolerance_mos = tolerance_mos
        self._threshold_months = 1.0 / false_alarms_per_month
        self._rearm_s = rearm_s
        self._window_s = window_s
        self._keep_windows = keep_windows
        self._keep_clips = keep_clips
        self._n_tests = 0
        self._spent = 0.0  # months that each test has had so far
        self._now_s: float | None = None
        self.series: dict[str, Series] = {}
        self._named(ALL)

    def add(self, clip: MonitoredClip, now_s: float) -> list[Drift]:
        """Adds a scored clip, and gives the alarms that it raises.

        Args:
            clip: The clip.
            now_s: The time in seconds, of any clock.
        """
        if self._now_s is not None:
            now_s = max(now_s, self._now_s)
            self._spent += (now_s - self._now_s) / MONTH_S / max(1, self._n_tests)
        self._now_s = now_s
        drifts: list[Drift] = []
        for series in self._of(clip.labels):
            series.count(clip, self._window_s, self._keep_windows)
            if not series.tests:
                series.baseline.append(clip.mos)
                if len(series.baseline) >= self._warm_up_clips:
                    self._arm(series)
            elif now_s >= series.armed_at_s:
                series.test(clip, self._tolerance_mos, self._spent)
                drifts += self._alarms(series, now_s)
        return drifts

    def evidence(self, test: _Test) -> float:
        """Evidence for a drop, as a share of what raises an alarm."""
        return test.evidence / self._threshold_months

    def _alarms(self, series: Series, now_s: float) -> Iterator[Drift]:
        if alarms := [test for test in series.tests if self.evidence(test) >= 1.0]:
            yield from [series.drift(test) for test in alarms]
            series.armed_at_s = now_s + self._rearm_s
            for test in alarms:
                test.reset(self._spent)

    def _of(self, labels: Mapping[str, str]) -> Iterable[Series]:
        names = (ALL, *(f"{name}={value}" for name, value in labels.items()))
        return [self._named(name) for name in names]

    def _named(self, name: str) -> Series:
        if (found := self.series.get(name)) is None:
            found = Series(name, self._baselines.get(name, ()), self._keep_clips)
            self.series[name] = found
            if found.baseline:
                self._arm(found)
        return found

    def _arm(self, series: Series) -> None:
        series.arm(self._spent)
        self._n_tests += len(series.tests)
