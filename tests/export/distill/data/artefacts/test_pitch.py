"""Tests that pitch is found, and changed without changing what should stay."""

from __future__ import annotations

import numpy as np
import pytest
import pyworld

from mosrt_export.distill.data.artefacts.pitch import PITCH_HOP, pitch_of, pulses, retimed
from tests.standins.nano import speech


def median_hz(samples: np.ndarray) -> float:
    found, _ = pyworld.dio(samples.astype(np.float64), 16_000)
    return float(np.median(found[found > 0]))


def test_pitch_is_that_of_another_method() -> None:
    clean = speech(2.5)
    hz, voiced = pitch_of(clean)
    assert 0.2 < voiced.mean() < 0.95
    assert np.median(hz[voiced]) == pytest.approx(median_hz(clean), rel=0.06)


def test_pulses_have_the_pitch() -> None:
    train = pulses(np.full(400, 123.0), 400 * PITCH_HOP)
    spectrum = np.abs(np.fft.rfft(train))
    assert np.argmax(spectrum[10:400]) + 10 == round(123.0 * len(train) / 16_000)


@pytest.mark.parametrize("ratio", [0.8, 1.25])
def test_pitch_changes_by_the_ratio(ratio: float) -> None:
    clean = speech(2.5)
    changed = retimed(clean, np.full(len(clean) // PITCH_HOP + 1, ratio))
    assert changed.shape == clean.shape
    assert median_hz(changed) == pytest.approx(ratio * median_hz(clean), rel=0.06)


def test_nothing_asked_is_almost_nothing_done() -> None:
    clean = speech(2.5)
    same = retimed(clean, np.ones(len(clean) // PITCH_HOP + 1))
    assert np.square(same - clean).sum() < 0.02 * np.square(clean).sum()
