"""Where crops may start, against a count frame by frame."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosrt.crops import CropGeometry, CropPlan
from mosrt.speech import SpeechMask, StartRanges

FRAME = 320


def mask(frames: list[bool], min_share: float = 0.3) -> SpeechMask:
    return SpeechMask(np.array(frames), FRAME, min_share)


@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    st.integers(0, FRAME - 1),
)
def test_starts_are_those_with_enough_speech(
    frames: list[bool], n_crop: int, min_share: float, extra: int
) -> None:
    last = max(len(frames) - n_crop, 0) * FRAME + extra * (len(frames) > n_crop)
    found = mask(frames, min_share).starts(n_crop * FRAME, last).ranges
    assert len(found)
    assert found.min() >= 0
    assert found.max() <= last
    if len(frames) <= n_crop:
        assert found.tolist() == [[0, last]]
        return
    shares = [sum(frames[i : i + n_crop]) / n_crop for i in range(-(-last // FRAME) + 1)]
    least = min(min_share, max(shares))
    for i, share in enumerate(shares):
        start = min(i * FRAME, last)
        inside = any(first <= start <= end for first, end in found.tolist())
        assert inside or share < least
        if start == i * FRAME and inside:
            assert share >= least


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6), st.data())
def test_distances_leave_gaps_out(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    ranges, at = [], 0
    for length, gap in parts:
        ranges.append((at, at + length))
        at += length + gap
    starts = StartRanges(np.array(ranges))
    assert starts.length == sum(length for length, _ in parts)
    place = data.draw(st.integers(0, starts.length))
    found = int(starts.at(np.array([place]))[0])
    assert any(first <= found <= last for first, last in ranges)
    assert sum(max(0, min(last, found) - first) for first, last in ranges) == place


def test_without_pauses_the_grid_is_that_of_all_of_the_recording() -> None:
    speech = mask([True] * 1000)
    for geometry in (
        CropGeometry(),
        CropGeometry(
            ssl_samples=122_880, spec_samples=0, n_crops=0, n_windows=0, segment_hop_samples=16_000
        ),
    ):
        for views in (None, 1, 7):
            plain = CropPlan.grid(1000 * FRAME - 77, views, geometry=geometry)
            found = CropPlan.grid(1000 * FRAME - 77, views, geometry=geometry, speech=speech)
            assert found == plain


@pytest.mark.parametrize("views", [None, 3, 20])
def test_views_in_a_long_pause_are_skipped(views: int | None) -> None:
    """10 s of speech, 30 s without, 10 s of speech; segments of 3 s."""
    geometry = CropGeometry(
        ssl_samples=48_000, spec_samples=0, n_crops=0, n_windows=0, segment_hop_samples=16_000
    )
    frames = [True] * 500 + [False] * 1500 + [True] * 500
    plan = CropPlan.grid(len(frames) * FRAME, views, geometry=geometry, speech=mask(frames, 0.5))
    starts_s = plan.ssl_starts / 16_000
    assert plan.n_views == (views or 18)  # 17 s of starts, at most 1 s apart
    assert np.all((starts_s <= 8.5) | (starts_s >= 38.5))
    assert starts_s.min() == 0
    assert starts_s.max() == 47


def test_views_follow_the_time_that_has_speech() -> None:
    geometry = CropGeometry(ssl_samples=48_000, spec_samples=22_400, min_views=1, max_views=100)
    frames = [True] * 500 + [False] * 5000 + [True] * 500
    n_samples = len(frames) * FRAME
    plan = CropPlan.grid(n_samples, geometry=geometry, speech=mask(frames, 0.5))
    assert plan.n_views < CropPlan.grid(n_samples, geometry=geometry).n_views / 4
    for starts, length in ((plan.ssl_starts, 48_000), (plan.spec_starts.ravel(), 22_400)):
        for start in starts.tolist():
            inside = np.array(frames)[start // FRAME : (start + length) // FRAME]
            assert inside.mean() > 0.45
