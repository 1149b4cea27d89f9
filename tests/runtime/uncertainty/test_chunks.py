"""Chunks of long recordings: what they cover, and that they are read right."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mosrt.audio.recording import Recording
from mosrt.audio.sources import ArraySource
from mosrt.bundle.uncertainty_spec import UncertaintySpec
from mosrt.uncertainty.family import chunk_bounds
from tests.conftest import noise


def spec(window_samples: int, hop_samples: int, receptive_samples: int) -> UncertaintySpec:
    return UncertaintySpec(
        hop_samples=hop_samples,
        receptive_samples=receptive_samples,
        min_samples=receptive_samples,
        zero_pad_below_samples=0,
        window_samples=window_samples,
        normalised=False,
        layouts=("dense",),
        measure="dense.entropy",
        sign=1,
        seed=0,
    )


@given(st.integers(465, 3_000_000), st.sampled_from([20_000, 320_000]), st.sampled_from([160, 320]))
def test_chunks_tile_the_frames(n_samples: int, window: int, hop: int) -> None:
    receptive = 465
    chunks = chunk_bounds(n_samples, spec(window, hop, receptive))
    if n_samples <= window:
        assert chunks == [(0, n_samples)]
        return
    starts = [
        frame * hop
        for first, last in chunks
        for frame in range(first // hop, (last - receptive) // hop + 1)
    ]
    assert starts == list(range(0, n_samples - receptive + 1, hop))
    lengths = [last - first for first, last in chunks]
    assert max(lengths) <= window
    assert max(lengths) - min(lengths) <= hop
    # As few as can be: with one less, some chunk would be longer than the window.
    frames = (n_samples - receptive) // hop + 1
    fewer = len(chunks) - 1
    assert not fewer or math.ceil(frames / fewer) > (window - receptive) // hop + 1


@settings(max_examples=20)
@given(st.integers(4_000, 60_000), st.booleans(), st.sampled_from([16_000, 22_050]))
def test_chunks_read_in_one_pass_equal_the_whole(
    n_samples: int, remove_silence: bool, rate_hz: int
) -> None:
    samples = noise(n_samples) * 4
    samples[1_000 : min(n_samples, 20_000) - 500] = 0.0
    whole = Recording(ArraySource(samples, rate_hz), 16_000, remove_silence=remove_silence)
    streamed = Recording(
        ArraySource(samples, rate_hz), 16_000, remove_silence=remove_silence, kept_s=0.0
    )
    bounds = chunk_bounds(whole.n_samples, spec(5_000, 160, 465))
    for a, b in zip(whole.chunks(bounds), streamed.chunks(bounds), strict=True):
        np.testing.assert_array_equal(a, b)
