import numpy as np
import pytest

from mosrt_studies.speed.timing import interleave, ratio, timing


def test_contestants_take_turns() -> None:
    order: list[str] = []

    def contestant(name: str) -> float:
        order.append(name)
        return float(len(order))

    times = interleave(
        {"a": lambda: contestant("a"), "b": lambda: contestant("b")}, rounds=3, warm_up=1
    )
    assert order == ["a", "b"] * 4
    assert times == {"a": [3.0, 5.0, 7.0], "b": [4.0, 6.0, 8.0]}


def test_ratio_is_of_pairs() -> None:
    # The machine slows down threefold; the ratio does not notice.
    slow = np.array([2.0, 2.0, 6.0, 6.0, 6.0])
    figure = ratio(slow.tolist(), (slow / 2).tolist())
    assert figure == {"ratio": 2.0, "interval_95": [2.0, 2.0]}


def test_timing_interval_holds_the_median() -> None:
    times = np.random.default_rng(0).gamma(5, 2, 40)
    figure = timing(times.tolist())
    low, high = figure["interval_95_ms"]
    assert low < figure["median_ms"] < high
    assert figure["median_ms"] == pytest.approx(np.median(times), abs=1e-3)
