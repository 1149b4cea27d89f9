"""Seeded sampling: pinned words, distractors, dropout and spans."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosrt.uncertainty.sampling import SeededSampler


def test_the_stream_is_pinned() -> None:
    """Raw PCG64 words, whose stream NumPy promises never to change."""
    words = np.random.PCG64(np.random.SeedSequence([7, 2])).random_raw(3)
    halves = [part for word in words.tolist() for part in (word & 0xFFFFFFFF, word >> 32)]
    assert SeededSampler(7, 2).integers(1000, (6,)).tolist() == [
        half * 1000 >> 32 for half in halves
    ]
    assert (
        SeededSampler(7, 3).integers(1000, (6,)).tolist()
        != SeededSampler(7, 2).integers(1000, (6,)).tolist()
    )
    assert SeededSampler(7, 2).integers(9, (4, 5)).shape == (4, 5)


@given(st.integers(1, 12), st.integers(4, 300), st.integers(0, 99))
def test_negatives_as_the_published_model_samples_them(n: int, n_frames: int, seed: int) -> None:
    """Its rule again as a loop: own index by flat position // n, whatever copy it is."""
    sampled = SeededSampler(seed, 0).integers(n_frames - 1, (n * n_frames,))
    expected = [i + 1 if i >= position // n else i for position, i in enumerate(sampled.tolist())]
    found = SeededSampler(seed, 0).negatives(n, n_frames)
    assert found.ravel().tolist() == expected
    assert 0 <= found.min() <= found.max() < n_frames


@pytest.mark.parametrize("probability", [0.0, 0.42, 0.74, 1.0])
def test_dropout_keeps_what_it_says(probability: float) -> None:
    keep = SeededSampler(0, 0).keep(probability, (50, 100, 20))
    assert keep.dtype == np.float32
    share = np.count_nonzero(keep == 0) / keep.size
    # Four standard deviations of a share of 100 000 samples.
    assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / keep.size)
    if probability < 1:
        np.testing.assert_allclose(keep[keep > 0], 1 / (1 - probability), rtol=1e-6)


@given(st.floats(0.01, 1), st.integers(1, 12), st.integers(3, 200), st.integers(0, 9))
def test_spans(probability: float, length: int, n_frames: int, seed: int) -> None:
    spans = SeededSampler(seed, 0).spans(probability, length, n_frames)
    assert set(np.unique(spans).tolist()) == {0.0, 1.0}
    count = max(1, round(probability * n_frames / length))
    assert 1 <= spans.sum() <= count * length
