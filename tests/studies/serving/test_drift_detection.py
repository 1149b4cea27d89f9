from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from mosrt_studies.figures.plots import PLOTS, draw
from mosrt_studies.figures.render import section
from mosrt_studies.serving.drift_detection import CHANGES, TRAFFIC, delays, false_alarms, main

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
ONE_VOICE = next(iter(TRAFFIC.values()))


def test_command(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    options = ["--streams", "3", "--scores", "5", "--most", "5", "-o", str(out)]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    run = json.loads(out.read_text())
    assert len(run["false_alarms"]) == 2 * 5 * 2
    assert len(run["delays"]) == 2 * 5 * 4
    assert run["delays"][0]["either"] == {"median": None, "p90": None, "median_hours": None}
    assert section("drift_detection", run).count("| - |") > 10


def test_large_drops_are_found_sooner() -> None:
    common = {"n_streams": 20, "most": 150, "n_baseline": 200, "scored_per_day": 100}
    found = {
        name: delays(ONE_VOICE, CHANGES[name], rng=np.random.default_rng(0), **common)
        for name in ("all clips by 0.05", "all clips by 0.1", "all clips by 0.2")
    }
    small, middle, large = (found[name]["either"]["median"] for name in found)
    assert 1 < large < middle <= small
    hours = found["all clips by 0.2"]["mean"]
    assert hours["median_hours"] == 24 * hours["median"] / 100
    assert math.isfinite(hours["p90"])


def test_alarms_of_a_real_drop_are_counted() -> None:
    """What `false_alarms` counts, where it must find some."""
    counted = false_alarms(
        ONE_VOICE, n_streams=10, n_scores=100, n_baseline=200, scored_per_day=100, drop_mos=0.5,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert counted["alarms"] > 50
    assert counted["months"] == 10 * 100 / 3000


def test_the_committed_run() -> None:
    """False alarms are within the promise, and drops of 0.1 MOS of one voice are found."""
    run = json.loads((RESULTS / "drift_detection.json").read_text())
    for row in run["false_alarms"]:
        promised = run["false_alarms_per_month"] * row["months"]
        assert row["alarms"] <= promised + 3 * math.sqrt(promised)
    for row in run["delays"]:
        if row["change"] == "all clips by 0.1" and row["traffic"].startswith("one voice"):
            assert row["either"]["median"] < run["most"]


def test_the_plot(tmp_path: Path) -> None:
    """A panel for each kind of traffic, a curve for each drop that was found."""
    run = json.loads((RESULTS / "drift_detection.json").read_text())
    one, many = PLOTS["drift_detection"](run)
    assert [curve.name for curve in one.curves] == [f"drop of {d} MOS" for d in (0.05, 0.1, 0.2)]
    assert len(one.curves[0].y) == len(one.ticks) == 3
    assert len(many.curves) >= 2
    draw([one, many], tmp_path / "plot.svg")
    assert "hours until an alarm" in (tmp_path / "plot.svg").read_text()
