import math

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

import mosrt
from mosrt.bundle.fields import parse
from mosrt.bundle.mos_map import MosMap

RATED = st.lists(
    st.tuples(st.floats(0, 10).map(lambda x: round(x, 1)), st.floats(1, 5)), min_size=8, max_size=40
)


@given(RATED)
def test_isotonic_equals_scipy(rated: list[tuple[float, float]]) -> None:
    x, y = (np.array(values) for values in zip(*rated, strict=True))
    if len(np.unique(x)) < 5:
        return
    knots, inverse = np.unique(x, return_inverse=True)
    means = np.bincount(inverse, weights=y) / np.bincount(inverse)
    best = scipy.optimize.isotonic_regression(
        means, weights=np.bincount(inverse), increasing=False
    ).x
    if best[0] - best[-1] < 1e-9:
        return
    fitted = MosMap.fit(x.tolist(), y.tolist(), kind="isotonic", description="test")
    np.testing.assert_allclose([fitted(knot) for knot in knots], best, atol=1e-9)


def test_linear_and_its_leave_one_out_error() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 3, 30)
    y = 5 - 1.2 * x + rng.normal(0, 0.1, 30)
    fitted = MosMap.fit(x.tolist(), y.tolist(), kind="linear", description="test")
    slope, intercept = np.polyfit(x, y, 1)
    for value in np.linspace(x.min(), x.max(), 5):
        assert fitted(value) == pytest.approx(slope * value + intercept)
    assert fitted(100.0) == pytest.approx(slope * x.max() + intercept)
    # Left-out residuals by the hat matrix, for clips inside the range of the others.
    design = np.stack([x, np.ones(30)], axis=1)
    hat = design @ np.linalg.pinv(design)
    left_out = (y - hat @ y) / (1 - np.diag(hat))
    inside = (x > x.min()) & (x < x.max())
    assert math.sqrt(np.mean(left_out[inside] ** 2)) == pytest.approx(fitted.loo_rmse, rel=0.1)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], "at least 5"),
        ([1.0] * 9, [3.0, 2.0, 1.0] * 3, "of different uncertainty, not 1"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0], "not rated lower"),
    ],
)
@pytest.mark.parametrize("kind", ["isotonic", "linear"])
def test_what_does_not_fit(x: list[float], y: list[float], message: str, kind: str) -> None:
    with pytest.raises(mosrt.CalibrationError, match=message):
        MosMap.fit(x, y, kind=kind, description="test")


@pytest.mark.parametrize(
    ("x", "y"), [([1, 1], [2, 1]), ([1, 2], [1, 2]), ([1], [1]), ([1, 2], [math.nan, 1])]
)
def test_a_map_that_is_none_is_refused(x: list[float], y: list[float]) -> None:
    stored = {
        "kind": "linear", "uncertainty": x, "mos": y, "n_clips": 5, "loo_rmse": 0.1,
        "description": "",
    }  # fmt: skip
    with pytest.raises(mosrt.BundleError, match=r"uncertainty\.mos_map"):
        parse(stored, MosMap, "uncertainty.mos_map")
