"""Histograms of MOS: what is kept of the scores, and that adding them loses nothing."""

import json
import math

import numpy as np
import pytest

from mosrt import MosHistogram


def histogram(scores: np.ndarray) -> MosHistogram:
    found = MosHistogram()
    for score in scores:
        found.add(float(score))
    return found


def test_mean_and_percentiles() -> None:
    scores = np.random.default_rng(0).normal(3.4, 0.5, 2_000)
    found = histogram(scores)
    assert found.n == 2_000
    assert found.mean == pytest.approx(scores.mean())
    for q in (0, 5, 50, 95, 100):
        assert found.percentile(q) == pytest.approx(
            np.percentile(np.clip(scores, 1, 5), q), abs=0.051
        )


def test_scores_beyond_the_scale_are_in_the_outermost_bins() -> None:
    found = histogram(np.array([-3.0, 0.999, 1.0, 4.999, 5.0, 7.0]))
    assert found.counts[0] == 3
    assert found.counts[-1] == 3
    assert found.percentile(0) == pytest.approx(1.0)
    assert found.percentile(100) == pytest.approx(5.0)


def test_sums_are_those_of_all_scores() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.uniform(1, 5, 30), rng.uniform(1, 5, 50)
    total = histogram(one) + MosHistogram.from_dict(
        json.loads(json.dumps(histogram(other).to_dict()))
    )
    both = histogram(np.concatenate([one, other]))
    np.testing.assert_array_equal(total.counts, both.counts)
    assert total.mean == pytest.approx(both.mean)


def test_without_scores() -> None:
    assert MosHistogram().n == 0
    assert math.isnan(MosHistogram().mean)
    assert math.isnan(MosHistogram().percentile(5))


@pytest.mark.parametrize(
    "change", [{"kind": "x"}, {"counts": [0] * 79}, {"counts": None}, {"bin_mos": 0.1}]
)
def test_other_dictionaries_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a MOS histogram"):
        MosHistogram.from_dict({**MosHistogram().to_dict(), **change})
