import json
import math
import pickle

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mosrt import Score
from mosrt.score import interval_95, t_95


@pytest.mark.parametrize("dof", [*range(1, 40), 100, 10_000])
def test_quantile_equals_scipy(dof: int) -> None:
    assert t_95(dof) == pytest.approx(scipy.stats.t.ppf(0.975, dof), abs=1e-4)


@given(st.lists(st.floats(1, 5), min_size=2, max_size=50))
def test_interval_equals_scipy(values: list[float]) -> None:
    array = np.array(values)
    low, high = interval_95(array)
    half = scipy.stats.t.ppf(0.975, len(array) - 1) * scipy.stats.sem(array)
    assert (low, high) == pytest.approx((array.mean() - half, array.mean() + half), abs=1e-3)


def test_one_view_has_no_interval() -> None:
    assert all(map(math.isnan, interval_95(np.array([3.0]))))


def test_a_predicted_deviation_gives_one_view_an_interval() -> None:
    low, high = interval_95(np.array([3.0]), 0.25)
    half = scipy.stats.norm.ppf(0.975) * 0.25
    assert (low, high) == pytest.approx((3.0 - half, 3.0 + half), abs=1e-9)


def test_a_deviation_of_zero_leaves_the_spread() -> None:
    values = np.array([3.0, 3.2, 3.7])
    assert interval_95(values, 0.0) == pytest.approx(interval_95(values), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("spread", [0.05, 0.2, 0.8])
def test_intervals_hold_the_truth(n: int, spread: float) -> None:
    """Views with an error in common, of known deviation, and errors of their own."""
    rng = np.random.default_rng(n)
    truth, deviation, trials = 3.0, 0.3, 4_000
    common = rng.normal(0, deviation, (trials, 1))
    held = 0
    for values in truth + common + rng.normal(0, spread, (trials, n)) * (n > 1):
        low, high = interval_95(values, deviation)
        held += low <= truth <= high
    # The more of both errors there is, and the fewer views, the more the interval holds.
    assert 0.94 <= held / trials <= (0.96 if n == 1 else 0.99)


def test_to_dict_is_json() -> None:
    score = Score(
        mos=3.5, low=math.nan, high=math.nan, n_views=1, views=(3.5,), windows=((0.0, 3.0),),
        domain="south", domains={"north": math.nan, "south": 3.5}, flags=("clipped",),
        duration_s=4.0, timings_ms={"model": 1.5}, model="tiny", variant="fp32", provider="cpu",
    )  # fmt: skip
    plain = json.loads(json.dumps(score.to_dict(), allow_nan=False))
    assert plain["mos"] == 3.5
    assert plain["low"] is None
    assert plain["domains"] == {"north": None, "south": 3.5}
    assert plain["windows"] == [[0.0, 3.0]]
    assert set(plain) == set(Score.__dataclass_fields__)
    assert repr(pickle.loads(pickle.dumps(score))) == repr(score)
