import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosrt import CropGeometry, CropPlan, PlanError, PlanRule
from mosrt.crops import tiled_length
from tests.conftest import GOLDEN

PLANS: list[dict[str, Any]] = json.loads((GOLDEN / "reference_plan.json").read_text())


@pytest.mark.parametrize("case", PLANS, ids=lambda case: f"{case['n_samples']}-{case['seed']}")
def test_reference_equals_the_public_draws(case: dict[str, Any]) -> None:
    plan = CropPlan.reference(case["n_samples"], case["seed"])
    expected = CropPlan(
        np.array([case["ssl_start"]]),
        np.array([case["spec_starts"]]),
        np.array([case["mix_starts"]]),
        np.array([case["mix_lambdas"]]),
    )
    assert plan == expected


def test_reference_views_continue_one_stream() -> None:
    two = CropPlan.reference(86_320, 3, views=2)
    assert two.ssl_starts[0] == CropPlan.reference(86_320, 3).ssl_starts[0]
    assert two != CropPlan.reference(86_320, 4, views=2)


@given(n_samples=st.integers(1, 10_000_000), views=st.none() | st.integers(1, 40))
def test_grid_stays_inside_and_is_even(n_samples: int, views: int | None) -> None:
    geometry = CropGeometry()
    plan = CropPlan.grid(n_samples, views)
    plan.check(n_samples, geometry)
    assert plan.mix_starts is None
    if views is None:
        assert 2 <= plan.n_views <= 8
    else:
        assert plan.n_views == views
    for starts, crop_samples in ((plan.ssl_starts, 48_000), (plan.spec_starts, 22_400)):
        spread = np.sort(starts.ravel())
        if len(spread) > 1:
            assert spread[0] == 0
            assert spread[-1] == tiled_length(n_samples, crop_samples) - crop_samples
            assert np.ptp(np.diff(spread)) <= 1


def test_grid_views_follow_the_length() -> None:
    assert [CropPlan.grid(int(s * 16_000)).n_views for s in (1, 4, 9, 10, 24, 7200)] == [
        2, 2, 3, 4, 8, 8,
    ]  # fmt: skip


def test_grid_density_is_the_models() -> None:
    geometry = CropGeometry(view_every_samples=80_000, min_views=1, max_views=12)
    lengths = (1, 79_999, 80_000, 80_001, 160_000, 160_001, 959_999, 10_000_000)
    views = [CropPlan.grid(n, geometry=geometry).n_views for n in lengths]
    assert views == [1, 1, 1, 2, 2, 3, 12, 12]
    assert CropPlan.grid(10_000_000, 20, geometry=geometry).n_views == 20


def test_segments_cover_the_recording() -> None:
    """As many segments as Distill-MOS reads, and where it reads them."""
    geometry = CropGeometry(
        ssl_samples=122_880, spec_samples=0, n_crops=0, n_windows=0, segment_hop_samples=16_000
    )
    for n_samples in (1_600, 122_880, 122_881, 138_880, 138_881, 500_000):
        over = max(n_samples - 122_880, 0)
        n_hops = int(np.ceil(over / 16_000)) + 1
        expected = [int(place * over) for place in np.linspace(0, 1, n_hops)]
        plan = CropPlan.grid(n_samples, geometry=geometry)
        assert plan.ssl_starts.tolist() == expected
        plan.check(n_samples, geometry)
    assert CropPlan.grid(500_000, 3, geometry=geometry).ssl_starts.tolist() == [0, 188_560, 377_120]
    with pytest.raises(PlanError, match="no random crops"):
        CropPlan.reference(500_000, 0, geometry=geometry)
    late = CropPlan(np.array([1]), np.zeros((1, 0), np.int64))
    with pytest.raises(PlanError, match="can start at 0 at the latest"):
        late.check(1_600, geometry)


def test_segments_of_dnsmos() -> None:
    """The loop of DNS-Challenge's dnsmos_local.py, which drops segments a sample short."""
    geometry = CropGeometry(
        ssl_samples=144_160, spec_samples=0, n_crops=0, n_windows=0, segment_hop_samples=16_000,
        segment_repeat=True,
    )  # fmt: skip
    seconds = (0.1, 0.5, 4.505, 4.51, 8.9, 9.01, 10, 11, 16.99, 17, 33.5, 40, 140)
    for n_samples in [round(each * 16_000) for each in seconds]:
        length = n_samples
        while length < 144_160:
            length += length
        n_hops = int(np.floor(length / 16_000) - 9.01) + 1
        expected = [
            i * 16_000
            for i in range(n_hops)
            if min(int((i + 9.01) * 16_000), length) - i * 16_000 == 144_160
        ]
        plan = CropPlan.grid(n_samples, geometry=geometry)
        assert plan.ssl_starts.tolist() == expected
        plan.check(n_samples, geometry)
    # A number of views is spread over the whole recording.
    assert CropPlan.grid(480_000, 2, geometry=geometry).ssl_starts.tolist() == [0, 335_840]


def test_grid_without_a_branch() -> None:
    plan = CropPlan.grid(80_000, geometry=CropGeometry(spec_samples=0, n_crops=0, n_windows=0))
    assert plan.spec_starts.shape == (plan.n_views, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [[0, 0]]), "same number"),
        (([], np.zeros((0, 2), int)), "at least one view"),
        (([-1], [[0, 0]]), "negative"),
        (([0.5], [[0, 0]]), "integers"),
        (([0], [0]), "2-dimensional"),
        (([0], [[0, 0]], np.zeros((1, 2, 4), int)), "go together"),
        (([0], [[0, 0]], np.zeros((1, 2, 4), int), np.zeros((1, 2, 3))), "must both be"),
        (([0], [[0, 0]], np.zeros((1, 2, 4), int), np.full((1, 2, 4), 1.5)), r"\[0, 1\]"),
        (([0], [[0, 0]], np.zeros((1, 2, 4), int), np.full((1, 2, 4), np.nan)), r"\[0, 1\]"),
    ],
)
def test_refuses_what_does_not_fit_together(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        CropPlan(*arguments)


def test_check_names_the_offset() -> None:
    geometry = CropGeometry()
    with pytest.raises(PlanError, match="can start at 2000 at the latest"):
        CropPlan(np.array([2_001]), np.array([[0, 0]])).check(50_000, geometry)
    with pytest.raises(PlanError, match="3 spectrogram crops"):
        CropPlan(np.array([0]), np.array([[0, 0, 0]])).check(50_000, geometry)
    with pytest.raises(PlanError, match="mixes 3 windows"):
        CropPlan(
            np.array([0]), np.array([[0, 0]]), np.zeros((1, 2, 3), int), np.zeros((1, 2, 3))
        ).check(50_000, geometry)


@pytest.mark.parametrize("n_samples", [0, -5])
def test_needs_a_sample(n_samples: int) -> None:
    with pytest.raises(PlanError, match="at least one sample"):
        CropPlan.grid(n_samples)
    with pytest.raises(PlanError, match="at least one sample"):
        CropPlan.reference(n_samples, 0)


def test_rules() -> None:
    geometry = CropGeometry()
    assert PlanRule.parse("grid", 3).plan(90_000, geometry) == CropPlan.grid(90_000, 3)
    assert PlanRule.parse("reference:7").plan(90_000, geometry) == CropPlan.reference(90_000, 7)
    assert PlanRule.parse("paper:2").plan(90_000, geometry) == CropPlan.reference(90_000, 2, 5)
    for text in ("", "grids", "reference", "reference:x", "reference:-1", "grid:3", "paper:"):
        with pytest.raises(PlanError, match="known|needs a seed"):
            PlanRule.parse(text)
    with pytest.raises(PlanError, match="5 views"):
        PlanRule.parse("paper", 3)
    with pytest.raises(PlanError, match="from 1 to 10000"):
        PlanRule.parse("grid", 0)
    with pytest.raises(PlanError, match="seed"):
        CropPlan.reference(90_000, 2**32)
