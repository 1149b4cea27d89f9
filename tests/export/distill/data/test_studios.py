"""Tests that rooms and studios leave clean speech in time, finite and close to what it was."""

from __future__ import annotations

import numpy as np

from mosrt_export.distill.data.studios import room_response, vary_studio
from tests.standins.nano import lag, spectral_error_db, speech


def test_rooms_start_with_the_direct_sound_and_decay() -> None:
    for seed in range(20):
        response = room_response(np.random.default_rng(seed))
        assert response[0] == np.abs(response).max()
        assert np.isfinite(response).all()
        half = len(response) // 2
        assert np.square(response[half:]).sum() < 0.1 * np.square(response[:half]).sum()


def test_studios_keep_time_and_timbre() -> None:
    clean = speech(2)
    errors, lags = [], []
    for seed in range(12):
        first, same = (vary_studio(clean, np.random.default_rng(seed)) for _ in range(2))
        assert first.shape == clean.shape
        assert first.dtype == np.float32
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, same)
        lags.append(abs(lag(clean, first)))
        errors.append(spectral_error_db(clean, first))
    assert np.median(errors) < 16
    # Strong reflections can make a later pitch period fit better.
    assert np.quantile(lags, 0.75) <= 8
    assert len(set(errors)) > 6
