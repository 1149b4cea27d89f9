"""Tests full-reference fidelity."""

from __future__ import annotations

import numpy as np
import pytest

from mosrt_export.distill.data.degradations import add_noise
from mosrt_export.distill.data.fidelity import fidelity, log_spectral_distance_db
from tests.standins.nano import speech


def test_a_clip_has_full_fidelity_to_itself() -> None:
    """Within the four digits of the largest PESQ."""
    clean = speech(3)
    assert fidelity(clean, clean) == pytest.approx(5.0, abs=1e-3)
    assert log_spectral_distance_db(clean, clean) == 0.0


def test_fidelity_falls_with_noise() -> None:
    clean = speech(3)
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    scores = [fidelity(clean, add_noise(clean, noise, snr_db)) for snr_db in (45, 30, 15, 0)]
    assert scores == sorted(scores, reverse=True)
    assert min(-np.diff(scores)) > 0.2
    assert 1 <= scores[-1] < 2
    assert scores[0] > 4


def test_missing_high_frequencies_lower_the_fidelity() -> None:
    """The distance penalises a missing band, which PESQ hardly does."""
    clean = speech(3)
    spectrum = np.fft.rfft(clean)
    spectrum[int(len(spectrum) * 0.43) :] = 0  # above 3.4 kHz
    narrow = np.fft.irfft(spectrum, len(clean)).astype(np.float32)
    assert fidelity(clean, narrow) < fidelity(clean, clean) - 0.5


@pytest.mark.parametrize("gain", [0.01, 0.3, 8.0])
def test_the_distance_does_not_depend_on_level(gain: float) -> None:
    """Within the rounding of float32, in dB."""
    clean = speech(2)
    rng = np.random.default_rng(1)
    other = add_noise(clean, rng.standard_normal(len(clean)).astype(np.float32), 10)
    distance = log_spectral_distance_db(clean, other)
    assert distance > 3
    louder = (np.float32(gain) * other).astype(np.float32)
    assert log_spectral_distance_db(clean, louder) == pytest.approx(distance, abs=1e-3)


def test_the_distance_of_a_known_filter() -> None:
    """Noise whose upper half is 6 dB lower differs by 6 dB in half of the bands.

    Levels are relative to peaks, which vary by some tenths of a dB in 5 s of noise.
    """
    noise = np.random.default_rng(2).standard_normal(80_000)
    spectrum = np.fft.rfft(noise)
    spectrum[len(spectrum) // 2 :] /= 2
    filtered = np.fft.irfft(spectrum, len(noise))
    distance = log_spectral_distance_db(noise.astype(np.float32), filtered.astype(np.float32))
    assert distance == pytest.approx(20 * np.log10(2) * np.sqrt(0.5), abs=0.3)


def test_the_distance_is_symmetric() -> None:
    clean = speech(2)
    other = (np.sign(clean) * np.abs(clean) ** 0.7).astype(np.float32)
    distance = log_spectral_distance_db(clean, other)
    assert distance > 1
    assert log_spectral_distance_db(other, clean) == pytest.approx(distance, abs=1e-9)


@pytest.mark.parametrize("n_samples", [48_000, 2000])
def test_fidelity_without_speech_is_nan(n_samples: int) -> None:
    """Silence, and a clip too short for PESQ."""
    silence = np.zeros(n_samples, np.float32)
    clean = speech(3)[:n_samples] if n_samples < 3000 else silence
    assert np.isnan(fidelity(clean, silence))
