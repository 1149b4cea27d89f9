"""Series of scores: warm-up, alarms, clips to listen to, and one rate for all tests."""

import numpy as np
import pytest

from mosrt import Drift, MonitoredClip
from mosrt.serving.monitoring.drift import MONTH_S, DriftWatch

RNG = np.random.default_rng(0)
BASELINE = [float(x) for x in RNG.normal(3.5, 0.1, 300)]


def watch(**options: object) -> DriftWatch:
    defaults = {"warm_up_clips": 100, "tolerance_mos": 0.02, "false_alarms_per_month": 0.1}
    return DriftWatch({"all": BASELINE}, **{**defaults, **options})  # type: ignore[arg-type]


def feed(
    watch: DriftWatch,
    scores: np.ndarray,
    start_s: float = 0.0,
    **labels: str,
) -> list[Drift]:
    """One score a minute; the clock of clips and that of tests are apart."""
    found = []
    for i, mos in enumerate(scores):
        now_s = start_s + 60.0 * i
        clip = MonitoredClip(mos=float(mos), labels=labels, time_s=now_s, request_id=str(i))
        found += watch.add(clip, now_s - 5_000.0)
    return found


def test_a_drop_raises_an_alarm_once() -> None:
    found = watch(rearm_s=1e9)
    assert feed(found, RNG.normal(3.5, 0.1, 200)) == []
    drifts = feed(found, RNG.normal(3.2, 0.1, 100), start_s=12_000)
    assert {drift.statistic for drift in drifts} <= {"mean", "p5"}
    assert len(drifts) == len({drift.statistic for drift in drifts})
    assert all(drift.series == "all" for drift in drifts)
    assert drifts[0].n_scores < 250


def test_what_an_alarm_tells() -> None:
    found = watch(keep_clips=5)
    feed(found, RNG.normal(3.5, 0.1, 100))
    drift = feed(found, RNG.normal(3.1, 0.05, 100), start_s=6_000)[0]
    scores = [clip.mos for clip in drift.clips]
    assert len(scores) == 5
    assert scores == sorted(scores)
    assert scores[-1] < drift.baseline_mos
    assert {"mean": 3.5, "p5": 3.34}[drift.statistic] == pytest.approx(drift.baseline_mos, abs=0.03)
    assert drift.mos < drift.baseline_mos
    assert str(drift).startswith(f"all: the {'mean' if drift.statistic == 'mean' else '5th'}")


def test_after_an_alarm_a_series_rests_and_then_warns_again() -> None:
    found = watch(rearm_s=3600.0)
    drifts = feed(found, RNG.normal(2.9, 0.1, 400))
    assert len(drifts) > 2
    assert len(drifts) <= 2 * 400 / 60 + 2


def test_drops_within_the_tolerance_are_none() -> None:
    scores = RNG.normal(3.42, 0.05, 1_500)
    assert feed(watch(tolerance_mos=0.2), scores) == []
    assert feed(watch(tolerance_mos=0.0), scores)


def test_the_fifth_percentile_finds_what_the_mean_does_not() -> None:
    """One clip in six is bad, and the others are better: the mean stays."""
    scores = np.where(np.arange(2_000) % 6 == 0, 2.9, 3.65)
    drifts = feed(watch(), scores)
    assert {drift.statistic for drift in drifts} == {"p5"}


def test_a_series_without_baseline_warms_up() -> None:
    found = watch()
    feed(found, RNG.normal(3.0, 0.1, 99), voice="amy")
    assert not found.series["voice=amy"].tests
    feed(found, RNG.normal(3.0, 0.1, 2), start_s=6_000, voice="amy")
    series = found.series["voice=amy"]
    assert len(series.baseline) == 100
    assert series.n_scores == 1
    drifts = feed(found, RNG.normal(2.7, 0.1, 100), start_s=8_000, voice="amy")
    assert "voice=amy" in {drift.series for drift in drifts}


def test_all_tests_share_the_time() -> None:
    """Each gets the K-th part while there are K; the evidence of a score is proportional to it."""
    labels = {f"label{i}": "x" for i in range(9)}
    baselines = dict.fromkeys(("all", *(f"{label}=x" for label in labels)), BASELINE)
    evidence = []
    for clip in (MonitoredClip(mos=3.5), MonitoredClip(mos=3.5, labels=labels)):
        found = DriftWatch(
            baselines, warm_up_clips=100, tolerance_mos=0.02, false_alarms_per_month=0.1
        )
        found.add(clip, 0.0)
        found.add(clip, MONTH_S)
        evidence.append(found.evidence(found.series["all"].tests[0]))
    assert evidence[0] == pytest.approx(10 * evidence[1])


def test_windows() -> None:
    found = watch(window_s=600.0, keep_windows=3)
    feed(found, np.full(100, 3.5), start_s=60.0)
    windows = found.series["all"].windows
    assert sorted(windows) == [4_800.0, 5_400.0, 6_000.0]
    assert [windows[start].n for start in sorted(windows)] == [10, 10, 1]
    feed(found, np.full(1, 3.5), start_s=0.0)  # a clock that was set back
    assert sorted(windows) == [4_800.0, 5_400.0, 6_000.0]


def test_a_clock_that_stands_still_or_goes_back() -> None:
    found = watch()
    clip = MonitoredClip(mos=3.0)
    for now_s in (10.0, 10.0, 5.0, float("-inf")):
        found.add(clip, now_s)
    assert all(np.isfinite(test.evidence) for test in found.series["all"].tests)
