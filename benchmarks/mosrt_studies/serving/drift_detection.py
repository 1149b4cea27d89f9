"""How often does a monitor warn of nothing, and how soon of a drop?

    python -m mosrt_studies.serving.drift_detection -o benchmarks/results/drift_detection.json

Simulates the tests of `mosrt.Monitor` with its default settings on many independent streams of
scores at once, each with a baseline of its own. NumPy only; no model runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

import mosrt
from mosrt._arrays import FloatArray
from mosrt.cli.command import COUNT, exit_on_error, output_option
from mosrt.serving.monitoring.drift import drop_tests
from mosrt_studies.publish import publish

__all__ = ["Traffic", "delays", "false_alarms"]

Traffic = Callable[[np.random.Generator, tuple[int, ...]], FloatArray]
"""Draws scores of a shape."""
Change = Callable[[np.random.Generator, FloatArray], FloatArray]
"""Makes scores of bad speech from scores of good speech."""


def _varied(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    """Standard deviation 0.34, skewed to the left."""
    found: FloatArray = 1 + 4 * rng.beta(20.0, 8.0, shape)
    return found


TRAFFIC: Final[Mapping[str, Traffic]] = {
    "one voice (standard deviation 0.08)": lambda rng, shape: rng.normal(3.4, 0.08, shape),
    "many voices (0.34, skewed)": _varied,
}
CHANGES: Final[Mapping[str, Change]] = {
    **{
        f"all clips by {drop}": lambda _, scores, drop=drop: scores - drop  # type: ignore[misc]
        for drop in (0.05, 0.1, 0.2)
    },
    "one clip in 10 by 1": lambda rng, scores: scores - (rng.random(scores.shape) < 0.1),
}
_SCORED_PER_DAY: Final = (100, 1_000, 10_000)
_BASELINES: Final = (100, 500, 5_000)
_DAYS: Final = 30
_BEFORE: Final = 500  # scores between the baseline and the change
_DEFAULTS: Final = {
    name: parameter.default
    for name, parameter in inspect.signature(mosrt.Monitor).parameters.items()
}
_RATE: Final[float] = _DEFAULTS["false_alarms_per_month"]
_TOLERANCE_MOS: Final[float] = _DEFAULTS["tolerance_mos"]


class _Streams:
    """Streams of scores, with the two tests of each.

    Args:
        traffic: What their baselines are drawn from.
        n_streams: Number of streams.
        n_baseline: Scores of each baseline.
        scored_per_day: Scores of each stream in a day.
        rng: Source of randomness.
    """

    def __init__(
        self,
        traffic: Traffic,
        n_streams: int,
        n_baseline: int,
        scored_per_day: int,
        rng: np.random.Generator,
    ) -> None:
        self.tests = drop_tests(traffic(rng, (n_streams, n_baseline)))
        # Each of the two tests gets half of the time.
        self._months = np.full(n_streams, 1 / (scored_per_day * _DAYS * len(self.tests)))

    def update(self, scores: FloatArray) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
        """Gives each test a score of each stream; yields its name and where it raises an alarm."""
        for name, (quantile, _, test) in self.tests.items():
            shifted = scores + _TOLERANCE_MOS
            values = shifted if quantile is None else (shifted >= quantile).astype(np.float64)
            alarmed = test.update(values, self._months) >= 1 / _RATE
            test.reset(alarmed)
            yield name, alarmed


def false_alarms(
    traffic: Traffic,
    *,
    n_streams: int,
    n_scores: int,
    n_baseline: int,
    scored_per_day: int,
    drop_mos: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Counts alarms of streams that have dropped by no more than is tolerated.

    Args:
        traffic: Distribution of the scores.
        n_streams: Number of streams.
        n_scores: Scores of each stream.
        n_baseline: Scores of each baseline.
        scored_per_day: Scores of each stream in a day.
        drop_mos: How far scores are below those of the baseline.
        rng: Source of randomness.
    """
    streams = _Streams(traffic, n_streams, n_baseline, scored_per_day, rng)
    alarms = 0
    for _ in range(n_scores):
        found = streams.update(traffic(rng, (n_streams,)) - drop_mos)
        alarms += sum(int(alarmed.sum()) for _, alarmed in found)
    months = n_streams * n_scores / (scored_per_day * _DAYS)
    return {
        "n_baseline": n_baseline,
        "scored_per_day": scored_per_day,
        "drop_mos": drop_mos,
        "months": months,
        "alarms": alarms,
        "alarms_per_month": alarms / months,
    }


def delays(
    traffic: Traffic,
    change: Change,
    *,
    n_streams: int,
    most: int,
    n_baseline: int,
    scored_per_day: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """How many scores after a change the first alarm comes.

    Args:
        traffic: Distribution of the scores before the change.
        change: The change.
        n_streams: Number of streams.
        most: Scores after the change at which the simulation ends.
        n_baseline: Scores of each baseline.
        scored_per_day: Scores of each stream in a day.
        rng: Source of randomness.

    Returns:
        The median and the 90th percentile in scores and, of the median, in hours; nan where fewer
        streams raised an alarm. By statistic, and for "either", whichever comes first.
    """
    streams = _Streams(traffic, n_streams, n_baseline, scored_per_day, rng)
    for _ in range(_BEFORE):
        for _ in streams.update(traffic(rng, (n_streams,))):
            pass
    first: dict[str, FloatArray] = {name: np.full(n_streams, np.inf) for name in streams.tests}
    for count in range(1, most + 1):
        for name, alarmed in streams.update(change(rng, traffic(rng, (n_streams,)))):
            first[name][alarmed & np.isinf(first[name])] = count
        if all(np.isfinite(found).all() for found in first.values()):
            break
    first["either"] = np.minimum(*first.values())
    found: dict[str, Any] = {"n_baseline": n_baseline, "scored_per_day": scored_per_day}
    for name, counts in first.items():
        # of order statistics, so that infinite ones need no interpolation
        median, p90 = (float(np.sort(counts)[int(q * n_streams)]) for q in (0.5, 0.9))
        found[name] = {"median": median, "p90": p90, "median_hours": 24 * median / scored_per_day}
    return found


@click.command()
@click.option("--streams", default=100, show_default=True, type=COUNT, help="Streams at once.")
@click.option("--scores", default=12_000, show_default=True, type=COUNT,
              help="Scores of each stream without a change.")  # fmt: skip
@click.option("--most", default=4_000, show_default=True, type=COUNT,
              help="Scores after a change.")  # fmt: skip
@click.option("--seed", default=20, show_default=True, help="Seed of all scores.")
@output_option("JSON file to write.", required=True)
@exit_on_error()
def main(streams: int, scores: int, most: int, seed: int, output: Any) -> None:
    """Simulate false alarms and delays of the monitor's tests."""
    rng = np.random.default_rng(seed)
    n_warm_up = _DEFAULTS["warm_up_clips"]
    settings = [(n_warm_up, rate) for rate in _SCORED_PER_DAY]
    settings += [(n, _SCORED_PER_DAY[1]) for n in _BASELINES if n != n_warm_up]
    alarms, found = [], []
    for name, traffic in TRAFFIC.items():
        for n_baseline, rate in settings:
            common: dict[str, Any] = {
                "n_streams": streams,
                "n_baseline": n_baseline,
                "scored_per_day": rate,
                "rng": rng,
            }
            for drop_mos in (0.0, _TOLERANCE_MOS):
                counted = false_alarms(traffic, n_scores=scores, drop_mos=drop_mos, **common)
                alarms.append({"traffic": name, **counted})
                click.echo(alarms[-1], err=True)
            for what, change in CHANGES.items():
                delay = delays(traffic, change, most=most, **common)
                found.append({"traffic": name, "change": what, **delay})
                click.echo(found[-1], err=True)
    publish(
        "serving.drift_detection",
        output,
        question="false alarms of the monitor's tests, and how soon they find a drop",
        streams=streams,
        most=most,
        seed=seed,
        false_alarms_per_month=_RATE,
        tolerance_mos=_TOLERANCE_MOS,
        false_alarms=alarms,
        delays=found,
    )


if __name__ == "__main__":
    main()
