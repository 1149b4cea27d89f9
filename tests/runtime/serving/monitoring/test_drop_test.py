"""The sequential test: its bound on false alarms, for scores of any distribution, and its power."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from mosrt.serving.monitoring.drift import drop_tests
from mosrt.serving.monitoring.drop_test import DropTest

Values = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Values]

DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(3.5, 0.1, shape),
    "rare failures": lambda rng, shape: np.where(
        rng.random(shape) < 0.03, rng.uniform(1, 2, shape), rng.normal(3.8, 0.2, shape)
    ),
    "two kinds of text": lambda rng, shape: rng.choice([3.0, 4.0], shape),
    "uniform": lambda rng, shape: rng.uniform(1, 5, shape),
}
N_STREAMS = 50


def false_alarms(test: DropTest, next_scores: Callable[[], Values], n: int, c: float) -> float:
    """Alarms of a stream, on average, in n scores with 1 unit of time between them."""
    alarms = 0
    for _ in range(n):
        alarmed = test.update(next_scores(), np.ones(N_STREAMS)) >= c
        alarms += int(alarmed.sum())
        test.reset(alarmed)
    return alarms / N_STREAMS


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n_baseline", [20, 400])
def test_false_alarms_are_bounded(name: str, n_baseline: int) -> None:
    """On average over baselines; a threshold of 30 scores allows 10 alarms in 300."""
    rng, draw = np.random.default_rng(1), DISTRIBUTIONS[name]
    tests = drop_tests(draw(rng, (N_STREAMS, n_baseline)))
    for quantile, _, test in tests.values():

        def scores(quantile: Values | None = quantile) -> Values:
            drawn = draw(rng, (N_STREAMS,))
            return drawn if quantile is None else (drawn >= quantile).astype(float)

        assert false_alarms(test, scores, 300, 30.0) <= 10


def test_the_bound_is_used() -> None:
    """With a large baseline the rate is not a small part of what is allowed."""
    rng = np.random.default_rng(2)
    test = DropTest(rng.normal(0, 1, (N_STREAMS, 4_000)), np.full(N_STREAMS, -3.0), 3.0)
    found = false_alarms(test, lambda: rng.normal(0, 1, N_STREAMS), 600, 20.0)
    assert 0.05 * 30 < found <= 30


def test_drops_are_found_and_rises_are_not() -> None:
    rng = np.random.default_rng(3)
    delays = {}
    for drop in (0.0, 0.2, 0.1, -0.3):
        test = drop_tests(rng.normal(3.5, 0.1, (N_STREAMS, 500)))["mean"][2]
        delays[drop] = np.full(N_STREAMS, np.inf)
        for i in range(120):
            # 1000 scores a day, and an alarm in 10 months
            found = test.update(rng.normal(3.5 - drop, 0.1, N_STREAMS), 1 / 30_000) >= 10
            delays[drop][found & np.isinf(delays[drop])] = i + 1
    assert np.isinf(delays[0.0]).all()
    assert np.isinf(delays[-0.3]).all()
    assert 5 < np.median(delays[0.2]) < np.median(delays[0.1]) < 100


def test_time_counts_and_not_scores() -> None:
    """Ten times the scores in the same time leave the evidence of steady scores as it is."""
    baseline = np.random.default_rng(4).normal(3.5, 0.1, 500)
    low = DropTest(baseline, 3.2, 3.8)
    first = [low.update(3.45, 1.0) for _ in range(10)]
    again = DropTest(baseline, 3.2, 3.8)
    assert [again.update(3.45, 0.1) for _ in range(10)] == pytest.approx(np.array(first) / 10)


def test_reset_forgets_the_streams_that_are_named() -> None:
    rng = np.random.default_rng(5)
    test = DropTest(rng.normal(3.5, 0.1, (2, 100)), np.array([3.2, 3.2]), np.array([3.8, 3.8]))
    first = test.update([3.3, 3.3], [1.0, 1.0])
    test.reset(np.array([True, False]))
    one, other = test.update([3.3, 3.3], [1.0, 1.0])
    assert one == pytest.approx(first[0])
    assert other > 1.5 * first[1]


def test_one_score_weighs_no_more_than_the_bound_lets_it() -> None:
    baseline = np.random.default_rng(6).normal(3.5, 0.1, 200)
    found = [float(DropTest(baseline, 3.2, 3.8).update(score, 1.0)) for score in (3.2, 1.0, -1e9)]
    assert found[0] == found[1] == found[2]


def test_a_baseline_that_never_varies() -> None:
    test = drop_tests(np.full(40, 3.0))["mean"][2]
    assert float(test.update(3.0, 1.0)) < 2
    assert max(float(test.update(2.9, 1.0)) for _ in range(40)) > 1000
