from random import Random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from mosrt_bench.errors import BenchError
from mosrt_bench.stats.bootstrap import interval_95, resample_indices
from mosrt_bench.stats.metrics import (
    METRICS,
    agreement,
    intervals,
    rank_flips,
    resampled,
)


def test_a_case_computed_by_hand() -> None:
    found = agreement([1.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    assert [found[name] for name in ("n", "mae", "max_abs", "mse")] == [4, 0.5, 1.0, 0.5]
    # |d| sorted is 0 0 1 1, and 0.95 * 3 = 2.85 lies between two ones
    assert found["p95_abs"] == 1.0
    # sums of squares 5 and 5, of products 4
    assert found["lcc"] == pytest.approx(0.8)
    # 1 - 6 * 2 / (4 * 15)
    assert found["srcc"] == pytest.approx(0.8)
    # 5 pairs in order, 1 not, of 6
    assert found["ktau"] == pytest.approx(4 / 6)
    assert found["notes"] == []


def test_ties_by_hand() -> None:
    # Mean ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    found = agreement([1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    assert found["srcc"] == pytest.approx(4.5 / np.sqrt(22.5))
    # tau-b: 5 concordant of sqrt(5 * 6)
    assert found["ktau"] == pytest.approx(5 / np.sqrt(30))
    assert found["notes"] == ["1 of 4 predicted scores are ties"]


scores = st.lists(st.integers(10, 50).map(lambda tenths: tenths / 10), min_size=3, max_size=30)


@settings(max_examples=50)
@given(scores, st.randoms(use_true_random=False))
def test_equals_scipy(wanted: list[float], random: Random) -> None:
    found = [min(5.0, max(1.0, w + random.uniform(-0.5, 0.5))) for w in wanted]
    ours = agreement(found, wanted)
    if len(set(wanted)) == 1 or len(set(found)) == 1:
        assert ours["lcc"] is ours["srcc"] is ours["ktau"] is None
        assert any("undefined" in note for note in ours["notes"])
        return
    # the same formulas in double precision
    assert ours["lcc"] == pytest.approx(np.corrcoef(found, wanted)[0, 1], abs=1e-9)
    assert ours["srcc"] == pytest.approx(scipy.stats.spearmanr(found, wanted)[0], abs=1e-12)
    assert ours["ktau"] == pytest.approx(scipy.stats.kendalltau(found, wanted)[0], abs=1e-12)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [([], []), ([1.0], [1.0, 2.0]), ([float("nan")], [1.0]), ([[1.0]], [[1.0]])],
)
def test_lists_that_do_not_compare(found: list[float], wanted: list[float]) -> None:
    with pytest.raises(BenchError):
        agreement(found, wanted)


def test_two_pairs_have_no_correlation() -> None:
    found = agreement([1.0, 2.0], [2.0, 3.0])
    assert found["lcc"] is None
    assert found["notes"] == ["2 pairs: a correlation needs at least 3"]
    assert intervals([1.0, 2.0], [2.0, 3.0])["mse"] is None


def test_intervals_are_the_same_every_time_and_hold_the_figure() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(3, 1, 80)
    found = wanted + rng.normal(0, 0.5, 80)
    bounds = intervals(found, wanted, resamples=200)
    assert bounds == intervals(found, wanted, resamples=200)
    figures = agreement(found, wanted)
    for name, interval in bounds.items():
        assert interval is not None
        assert interval[0] < figures[name] < interval[1]


def test_mean_interval_is_students() -> None:
    values = np.random.default_rng(1).normal(10, 2, 400)
    found = interval_95(values, lambda drawn: drawn.mean(axis=1), block=1)
    assert found is not None
    low, high = scipy.stats.t.interval(0.95, 399, values.mean(), scipy.stats.sem(values))
    # 1000 resamples know an end of the interval to some 5 % of its width
    assert found == pytest.approx((low, high), abs=0.05 * (high - low))


def test_flips_of_close_pairs() -> None:
    wanted = [1.0, 1.05, 2.0, 2.0, 4.0]
    found = [1.1, 1.0, 2.0, 2.1, 1.5]
    flips = rank_flips(found, wanted)
    # close and ordered: only (1.0, 1.05), which is turned round; 4.0 falls below both of 2.0
    assert (flips["pairs"], flips["flipped"]) == (1, 1)
    assert (flips["all_pairs"], flips["all_flipped"]) == (9, 3)
    assert flips["widest"] == 2.0


@pytest.mark.parametrize("most", [0, 2000])
def test_every_resample_is_scipys(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Ties included, and lists that a resample leaves with one value; for few clips and many."""
    monkeypatch.setattr("mosrt_bench.stats.metrics.MAX_PAIRED", most)
    rng = np.random.default_rng(0)
    wanted, before = rng.integers(1, 4, (2, 7)).astype(float)
    after = before + rng.normal(0, 0.3, 7)
    picked = resample_indices(7, 60)
    for name, metric in METRICS.items():
        for scores in (before, after):
            found = resampled(scores, wanted, name, resamples=60)
            alone = [metric(scores[rows], wanted[rows]) for rows in picked]
            expected = np.array([np.nan if value is None else value for value in alone])
            assert found is not None
            np.testing.assert_allclose(found, expected, atol=1e-12, equal_nan=True)
    assert resampled([1, 2], [1, 2], "mse") is None
