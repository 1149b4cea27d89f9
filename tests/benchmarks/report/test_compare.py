"""Reports compared by how well scores follow listeners: on ratings whose answer is known."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import scipy.stats

from mosrt_bench.report.compare import Delta, listener_deltas
from mosrt_bench.stats.metrics import intervals

N_SYSTEMS, PER_SYSTEM = 10, 6
RNG = np.random.default_rng(0)
SYSTEM = np.repeat(np.arange(N_SYSTEMS), PER_SYSTEM)
MOS = 1.5 + 0.3 * SYSTEM + RNG.normal(0, 0.3, SYSTEM.size)
NOISE, MORE_NOISE = RNG.normal(0, 0.4, (2, SYSTEM.size))
BEFORE = MOS + NOISE


def report(scores: Any, *, mse: float | None = 0.2) -> dict[str, Any]:
    """What a report has about listeners: a contestant, and whether its scores are MOS."""
    return {
        "labels": [{"contestant": "nano fp32 cpu", "mse": mse}],
        "ratings": [
            {
                "path": f"{i}.wav",
                "clip": f"{i}.wav",
                "mos": mos,
                "system": f"s{system}",
                "dataset": "",
                "predicted": {"nano fp32 cpu": score},
            }
            for i, (mos, system, score) in enumerate(
                zip(MOS.tolist(), SYSTEM.tolist(), np.asarray(scores).tolist(), strict=True)
            )
        ],
    }


def deltas(before: Any, after: Any, tolerance: float = 0.05) -> dict[str, Delta]:
    found = listener_deltas(before, after, tolerance)
    return {change.what.removeprefix("nano fp32 cpu "): change for change in found}


def test_nothing_changed() -> None:
    found = deltas(report(BEFORE), report(BEFORE))
    assert {change.verdict for change in found.values()} == {"same"}
    # four metrics of clips and of systems, at five zooms
    assert len(found) == 40


def test_scores_that_follow_listeners_less() -> None:
    after = BEFORE + MORE_NOISE
    found = deltas(report(BEFORE), report(after))
    lcc = found["LCC, all, utterance, best 100 %"]
    wanted = [scipy.stats.pearsonr(scores, MOS)[0] for scores in (BEFORE, after)]
    assert [lcc.before, lcc.after] == pytest.approx(wanted)
    assert lcc.difference is not None
    assert lcc.difference == pytest.approx(wanted[1] - wanted[0])
    assert lcc.difference < -0.05
    assert lcc.verdict == "regression"
    assert lcc.interval_95 is not None
    assert lcc.interval_95[0] < lcc.difference < lcc.interval_95[1] < 0
    mse = found["MSE, all, utterance, best 100 %"]
    assert mse.ratio == pytest.approx(np.mean((after - MOS) ** 2) / np.mean((BEFORE - MOS) ** 2))
    assert (mse.verdict, mse.difference) == ("regression", None)
    # the other way round it is none
    assert {c.verdict for c in deltas(report(after), report(BEFORE)).values()} == {
        "same", "improvement"
    }  # fmt: skip
    # and what the tolerance covers is none either
    assert "regression" not in {
        c.verdict for c in deltas(report(BEFORE), report(after), 9.0).values()
    }


def test_clips_in_common_make_a_change_certain() -> None:
    """A drop that the two reports' own intervals, which overlap, could not tell from chance."""
    after = BEFORE + 0.6 * MORE_NOISE
    both = [intervals(scores, MOS, ["lcc"])["lcc"] for scores in (BEFORE, after)]
    assert both[0] is not None
    assert both[1] is not None
    assert both[0][0] < both[1][1]
    lcc = deltas(report(BEFORE), report(after), 0.01)["LCC, all, utterance, best 100 %"]
    assert lcc.verdict == "regression"


def test_scores_that_moved_all_alike() -> None:
    """Errors grow, and correlations do not change by more than rounding."""
    found = deltas(report(BEFORE), report(BEFORE + 0.5))
    assert found["MSE, all, system, best 100 %"].verdict == "regression"
    assert {c.verdict for name, c in found.items() if not name.startswith("MSE")} == {"same"}


def test_systems_are_compared_by_their_means() -> None:
    """Clips of a system that change places leave its mean where it was."""
    after = BEFORE.reshape(N_SYSTEMS, PER_SYSTEM)[:, ::-1].ravel()
    found = deltas(report(BEFORE), report(after))
    assert found["SRCC, all, system, best 100 %"].verdict == "same"
    assert found["SRCC, all, utterance, best 100 %"].difference != 0


def test_too_few_systems_decide_nothing() -> None:
    """Of the best 25 % of ten systems there are two, and no interval."""
    found = deltas(report(BEFORE), report(BEFORE + 0.5))
    few = found["MSE, all, system, best 25 %"]
    assert (few.interval_95, few.verdict) == (None, "same")


def test_what_does_not_compare_is_said() -> None:
    other = copy.deepcopy(report(BEFORE))
    other["ratings"][0]["mos"] += 1
    (change,) = deltas(report(BEFORE), other).values()
    assert change.verdict == "note"
    assert "the ratings differ" in change.what
    assert deltas(report(BEFORE), {}) == {}
    renamed = copy.deepcopy(report(BEFORE))
    for row in renamed["ratings"]:
        row["predicted"] = {"nano fp16 cpu": 3.0}
    assert [c.verdict for c in listener_deltas(report(BEFORE), renamed, 0.05)] == ["gone", "new"]


def test_a_score_that_was_lost_is_a_regression() -> None:
    after = report(BEFORE)
    after["ratings"][0]["predicted"]["nano fp32 cpu"] = None
    found = deltas(report(BEFORE), after)
    lost = found.pop("nano fp32 cpu, rated clips with a score")
    assert (lost.before, lost.after, lost.verdict) == (60, 59, "regression")
    assert {change.verdict for change in found.values()} == {"same"}


def test_uncertainties_have_no_error_in_mos() -> None:
    found = deltas(report(-BEFORE, mse=None), report(-BEFORE, mse=None))
    assert {name.split(",")[0] for name in found} == {"LCC", "SRCC", "KTAU"}
