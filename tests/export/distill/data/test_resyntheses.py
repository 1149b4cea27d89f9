"""Tests that resyntheses keep their contract and do what their names say, by other measures."""

from __future__ import annotations

import numpy as np
import pytest
import pyworld
import scipy.signal

from mosrt_export.distill.data.artefacts.spectra import griffin_lim, mel_smoothed
from mosrt_export.distill.data.resyntheses import RESYNTHESES, RETIMED
from tests.standins.nano import spectral_error_db, speech, waveform_error_db

# These change phases or timing, so that only spectra can be compared.
SPECTRAL = ("Griffin-Lim", "warble", "WORLD", "pulse vocoder", *RETIMED)


@pytest.mark.parametrize("kind", RESYNTHESES)
@pytest.mark.parametrize("severity", [0.0, 1.0])
def test_the_contract(kind: str, severity: float) -> None:
    clean = speech(2)[:23_456]
    before = clean.copy()
    first, same = (RESYNTHESES[kind](clean, severity, np.random.default_rng(1)) for _ in range(2))
    assert first.shape == clean.shape
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert np.array_equal(first, same)
    assert not np.array_equal(first, clean)
    assert np.array_equal(clean, before)


# What leaks is the speech itself, which brings the result closer to it.
@pytest.mark.parametrize("kind", [kind for kind in RESYNTHESES if kind != "source leakage"])
def test_severe_is_further_away_than_mild(kind: str) -> None:
    clean = speech(2.5)
    measure, margin = (spectral_error_db, 0.2) if kind in SPECTRAL else (waveform_error_db, 3.0)
    mild, severe = (
        np.mean([
            measure(clean, RESYNTHESES[kind](clean, severity, np.random.default_rng(seed)))
            for seed in range(4)
        ])
        for severity in (0.0, 1.0)
    )  # fmt: skip
    assert severe > mild + margin


def test_griffin_lim_converges() -> None:
    """Spectral convergence: how far the result's magnitudes are from those asked for."""
    clean = speech(1.5)

    def magnitudes(samples: np.ndarray) -> np.ndarray:
        _, _, spectrum = scipy.signal.stft(samples, nperseg=1024, noverlap=768)
        return np.asarray(np.abs(spectrum), np.float32)

    wanted = magnitudes(clean)
    errors = []
    for n_iterations in (1, 4, 16, 48):
        built = griffin_lim(wanted, len(clean), n_iterations, np.random.default_rng(0))
        assert built.shape == clean.shape
        found = magnitudes(built)
        errors.append(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]
    assert errors[-1] < 0.25


def test_flat_magnitudes_stay_flat() -> None:
    """Flat magnitudes stay the same."""
    flat = np.full((513, 3), 0.7, np.float32)
    smooth = mel_smoothed(flat, 80)
    # the first and the last bin belong to no triangle
    np.testing.assert_allclose(smooth[1:-1], 0.7, rtol=1e-5)


def test_the_mildest_world_keeps_the_pitch() -> None:
    clean = speech(1.5)
    built = RESYNTHESES["WORLD"](clean, 0.0, np.random.default_rng(0))
    medians = []
    for samples in (clean, built):
        pitch_hz, time_s = pyworld.dio(samples.astype(np.float64), 16_000)
        pitch_hz = pyworld.stonemask(samples.astype(np.float64), pitch_hz, time_s, 16_000)
        medians.append(np.median(pitch_hz[pitch_hz > 0]))
    assert medians[1] == pytest.approx(medians[0], rel=0.03)


def test_a_comb_has_teeth() -> None:
    """The autocorrelation of white noise with an echo shows delay and gain of the echo."""
    noise = np.random.default_rng(0).standard_normal(60_000).astype(np.float32)
    combed = RESYNTHESES["comb"](noise, 1.0, np.random.default_rng(3)).astype(np.float64)
    spectrum = np.abs(np.fft.rfft(combed, 1 << 17)) ** 2
    correlation = np.fft.irfft(spectrum)[:400]
    correlation /= correlation[0]
    delay = int(np.argmax(correlation[1:])) + 1
    assert 12 <= delay < 160
    # gain / (1 + gain ** 2) with gain 0.85
    assert correlation[delay] == pytest.approx(0.85 / (1 + 0.85**2), abs=0.02)


def test_upsampling_grows_by_the_decibel() -> None:
    """The same tones at both ends of the scale, 38 dB apart but for rounding."""
    clean = speech(1.5)
    for seed in range(4):
        powers = []
        for severity in (0.0, 1.0):
            other = RESYNTHESES["upsampling"](clean, severity, np.random.default_rng(seed))
            powers.append(np.sum((other.astype(np.float64) - clean) ** 2))
        assert 10 * np.log10(powers[1] / powers[0]) == pytest.approx(38, abs=1e-2)


def test_upsampling_makes_images() -> None:
    """A tone of 1 kHz gets images at the frequencies that the factors give."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(32_000) / 16_000).astype(np.float32)
    for seed in range(4):
        added = RESYNTHESES["upsampling"](tone, 1.0, np.random.default_rng(seed)) - tone
        power = np.abs(np.fft.rfft(added * np.hanning(len(added)))) ** 2
        # Factors 2, 4, 5 and 8 give images 1 kHz beside multiples of 1600 and 2000 Hz.
        hz = np.fft.rfftfreq(len(added), 1 / 16_000)
        near = np.zeros(len(hz), bool)
        for multiple in np.r_[np.arange(0, 8001, 1600), np.arange(0, 8001, 2000)]:
            for beside in (-1000, 0, 1000):
                near |= np.abs(hz - multiple - beside) < 25
        assert power[near].sum() > 0.99 * power.sum()
