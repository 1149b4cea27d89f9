"""Tests continuously whether the mean of a stream of scores has dropped below a baseline's.

The test bounds false alarms without assuming a distribution, and however often it is looked at. It
joins three results:

- **Betting** (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
  JRSS B, 2024). For scores y <= high, a mean of at least m, and a fixed 0 <= bet < 1 / (high - m),
  the expectation of 1 + bet (m - y) is at most 1. A product of such factors grows only if the mean
  is below m. Several bets are mixed, since the size of the drop is unknown.
- **E-detectors** (Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential
  change detection", NEJSDS, 2024). The change may begin at any score, so the products that begin
  at each score are added up, as Shiryaev and Roberts did: M <- (M + w) (1 + bet (m - y)).
- **Time as the weight.** Their w is 1, which bounds false alarms per score. Here w is the time
  since the last score. Without a drop, M minus the time passed is then a supermartingale. An alarm
  at M >= c sets M to 0. So M + c (alarms so far) - (time passed) is a supermartingale as well, and
  the expected number of alarms in a time T is at most T / c, whatever the rate of scores.

The baseline's mean is itself known from some scores only. For every mean m that it may have, E(m)
is the evidence of the baseline's scores, again by betting, that the mean is larger than m: a number
whose expectation is at most 1 if the mean is m. The evidence for a drop is the smallest product
E(m) M(m) over all m. At the true mean, E(m) is independent of the stream, so the bound T / c holds,
averaged over baselines. Means with E(m) > 10 000 are left out: the true mean is one of them with a
probability below 1 / 10 000.

The expectation of each score, given those before it, must not be below the baseline's mean. Scores
need not be independent of each other, nor have one distribution.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from mosrt._arrays import FloatArray

__all__ = ["DropTest"]

# Bets as fractions of the largest, at which a single score could cost all evidence.
_BETS: Final = 0.9 * 2.0 ** -np.arange(6)
# The baseline's: half of the weight is on not betting, so that E(m) is never below a half.
_BASELINE_BETS: Final = np.append(0.9 * 2.0 ** -np.arange(6), 0.0)
_BASELINE_WEIGHTS: Final = np.append(np.full(6, 0.5 / 6), 0.5)
_N_MEANS: Final = 32
_EXCLUDED: Final = 1e4
_LARGEST: Final = 1e200  # a bound on M, where it would overflow


class DropTest:
    """Tests streams of scores, each against a baseline of its own.

    Args:
        baseline: Scores before the streams, (..., n): independent of each other, of one mean. The
            leading axes are those of independent streams.
        low: Lower bound of all scores, (...). Choose both bounds before looking at `baseline`;
            scores outside are clipped, so that the test is about the mean of clipped scores.
        high: Upper bound, (...).
    """

    def __init__(self, baseline: FloatArray, low: npt.ArrayLike, high: npt.ArrayLike) -> None:
        self._low = np.asarray(low, np.float64)[..., np.newaxis]
        self._high = np.asarray(high, np.float64)[..., np.newaxis]
        scores = np.clip(baseline, self._low, self._high)
        # Rounding must not make a bet the largest possible one.
        margin = 1e-6 * (self._high - self._low)
        ends = self._low + margin, self._high - margin
        mean = scores.mean(axis=-1, keepdims=True)
        error = scores.std(axis=-1, keepdims=True) / np.sqrt(scores.shape[-1])
        least = self._largest_excluded(scores, ends[0], np.clip(mean, *ends))
        most = np.clip(mean + 3 * error, least + margin, None)
        steps = np.linspace(0.0, 1.0, _N_MEANS)
        means = np.minimum(least + (most - least) * steps, ends[1])
        evidence = self._baseline_evidence(scores, means)
        # E(m) falls with m and M(m) rises, so that this bounds their product between two means,
        # and above the largest one.
        self._evidence = np.concatenate(
            (evidence[..., 1:], np.full_like(evidence[..., :1], 0.5)), axis=-1
        )
        self._bets = _BETS / (self._high - means)[..., np.newaxis]
        self._most = 1.0 + self._bets * means[..., np.newaxis]  # the factor of a score of 0
        self._sums = np.zeros(self._bets.shape)

    def update(self, scores: npt.ArrayLike, time: npt.ArrayLike) -> FloatArray:
        """Adds a score to each stream.

        Args:
            scores: The scores, (...).
            time: Time since the previous score of each stream, (...), in any unit.

        Returns:
            The evidence for a drop, (...), in that unit. If an alarm is raised, and `reset` called,
            whenever the evidence reaches c, then at most T / c false alarms are expected in a time
            T.
        """
        clipped = np.clip(np.asarray(scores, np.float64)[..., np.newaxis], self._low, self._high)
        factors = self._bets * clipped[..., np.newaxis]
        np.subtract(self._most, factors, out=factors)
        self._sums += np.asarray(time, np.float64)[..., np.newaxis, np.newaxis]
        self._sums *= factors
        np.minimum(self._sums, _LARGEST, out=self._sums)
        found: FloatArray = (self._evidence * self._sums.mean(axis=-1)).min(axis=-1)
        return found

    def reset(self, where: npt.ArrayLike = True) -> None:
        """Forgets the scores of the streams for which `where`, (...), is true."""
        self._sums[np.broadcast_to(np.asarray(where), self._sums.shape[:-2])] = 0.0

    def _baseline_evidence(self, scores: FloatArray, means: FloatArray) -> FloatArray:
        """E(m) for each of `means` (..., m): that the mean of the baseline is larger."""
        total = np.zeros(means.shape)
        below = means - self._low
        for bet, weight in zip(_BASELINE_BETS, _BASELINE_WEIGHTS, strict=True):
            # (..., m, n): small, since this runs once
            factors = np.log1p(
                (bet / below)[..., np.newaxis]
                * (scores[..., np.newaxis, :] - means[..., np.newaxis])
            )
            total += weight * np.exp(np.minimum(factors.sum(axis=-1), 600.0))
        return total

    def _largest_excluded(
        self, scores: FloatArray, low: FloatArray, high: FloatArray
    ) -> FloatArray:
        """The largest mean, (..., 1), from `low` to `high`, that the baseline excludes."""
        for _ in range(30):
            middle = (low + high) / 2
            excluded = self._baseline_evidence(scores, middle) > _EXCLUDED
            low, high = np.where(excluded, middle, low), np.where(excluded, high, middle)
        return low
