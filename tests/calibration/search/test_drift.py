import json

import numpy as np
import pytest
from scipy import stats

from mosrt_calibration.search.drift import Budget, Drift


def test_figures_are_those_of_scipy_and_numpy() -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(1, 5, 50).round(1)  # with ties
    found = reference + 0.3 * rng.standard_normal(50).round(1)
    drift = Drift.between(reference, found, relative=False)
    differences = np.abs(reference - found)
    assert drift.mean_abs == pytest.approx(differences.mean())
    assert drift.max_abs == pytest.approx(differences.max())
    assert np.mean(differences <= drift.p95_abs) >= 0.95
    assert drift.srcc == pytest.approx(stats.spearmanr(reference, found).statistic)
    assert drift.lcc == pytest.approx(stats.pearsonr(reference, found).statistic)
    assert drift.n_clips == 50


def test_uncertainty_drifts_relative_to_its_mean() -> None:
    reference = np.array([2.0, 2.0, 4.0, 8.0])
    drift = Drift.between(reference, reference + 0.4, relative=True)
    assert drift.mean_abs == pytest.approx(0.1)
    assert set(drift.to_dict()) >= {"uncertainty_mean_rel", "uncertainty_max_rel", "srcc", "lcc"}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_holds_no_budget(bad: float) -> None:
    reference = np.array([1.0, 2.0, 3.0])
    drift = Drift.between(reference, np.array([1.0, 2.0, bad]), relative=False)
    assert not Budget(max_drift=1e9, min_srcc=-1.0).holds(drift)
    json.dumps(drift.to_dict(), allow_nan=False)


def test_a_budget_is_about_the_mean_and_the_order() -> None:
    reference = np.array([1.0, 2.0, 3.0, 4.0])
    near = Drift.between(reference, reference + 0.01, relative=False)
    assert Budget(max_drift=0.02, min_srcc=0.99).holds(near)
    assert not Budget(max_drift=0.005, min_srcc=0.99).holds(near)
    swapped = Drift.between(reference, np.array([1.0, 2.0, 4.0, 3.0]), relative=False)
    assert Budget(max_drift=1.0, min_srcc=0.75).holds(swapped)
    assert not Budget(max_drift=1.0, min_srcc=0.9).holds(swapped)
