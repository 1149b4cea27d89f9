"""Tests that degradations keep their contract and do what their names say, by other measures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
from numpy.typing import NDArray

from mosrt_export.distill.data.degradations import (
    DEGRADATIONS,
    DegradationError,
    add_noise,
    coloured_noise,
    reverberated,
)
from tests.standins.nano import lag, spectral_error_db, speech, waveform_error_db

Float32Array = NDArray[np.float32]

# Filters, and codecs that do not keep phases, are compared by spectra; the others by waveforms.
SPECTRAL = ("low-pass", "high-pass", "codec2")


def degraded(kind: str, clean: Float32Array, severity: float, seed: int = 0) -> Float32Array:
    if kind == "codec2" and shutil.which("c2enc") is None:
        pytest.skip("the program c2enc (codec2) is not installed")
    return DEGRADATIONS[kind](clean, severity, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize("severity", [0.0, 0.55, 1.0])
def test_the_contract(kind: str, severity: float) -> None:
    """Length, type and seed are kept; at 23 456 samples no block of a codec ends evenly."""
    clean = speech(2)[:23_456]
    before = clean.copy()
    first, same = (degraded(kind, clean, severity) for _ in range(2))
    assert first.shape == clean.shape
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert np.array_equal(first, same)
    assert not np.array_equal(first, clean)
    assert np.array_equal(clean, before)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_severe_is_further_away_than_mild(kind: str) -> None:
    """The error grows on average over seeds, by an audible margin."""
    clean = speech(2)
    measure: Callable[[Float32Array, Float32Array], float]
    measure, margin = (spectral_error_db, 0.5) if kind in SPECTRAL else (waveform_error_db, 3.0)
    mild, severe = (
        np.mean([measure(clean, degraded(kind, clean, severity, seed)) for seed in range(3)])
        for severity in (0.0, 1.0)
    )
    assert severe > mild + margin


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.5, 40.0])
def test_noise_has_the_given_ratio(snr_db: float) -> None:
    """Within 1e-3 dB, the rounding of float32 at 40 dB."""
    clean = speech(2)
    noise = (3 * np.random.default_rng(0).standard_normal(len(clean))).astype(np.float32)
    added = add_noise(clean, noise, snr_db).astype(np.float64) - clean
    energy = np.sum(clean.astype(np.float64) ** 2) / np.sum(added**2)
    assert 10 * np.log10(energy) == pytest.approx(snr_db, abs=1e-3)


@pytest.mark.parametrize("slope", [0.0, 0.8, 1.0, 2.0])
def test_the_slope_of_coloured_noise(slope: float) -> None:
    """Fitted to Welch's density over 200 windows, whose bins vary by 0.3 dB."""
    noise = coloured_noise(200_000, slope, np.random.default_rng(1))
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(1.0, abs=1e-3)
    hz, density = scipy.signal.welch(noise.astype(np.float64), 16_000, nperseg=2048)
    band = (hz > 100) & (hz < 7000)
    fitted, _ = np.polyfit(np.log(hz[band]), np.log(density[band]), 1)
    assert -fitted == pytest.approx(slope, abs=0.05)


@pytest.mark.parametrize(("decay_s", "direct"), [(0.3, 4.0), (0.9, 0.3)])
def test_rooms_have_the_given_decay(decay_s: float, direct: float) -> None:
    """Schroeder's backward integral of the impulse response falls by 60 dB in `decay_s`."""
    click = np.zeros(20_000, np.float32)
    click[0] = 1.0
    answer = reverberated(click, decay_s, direct, np.random.default_rng(2)).astype(np.float64)
    assert answer[0] ** 2 / np.sum(answer[1:] ** 2) == pytest.approx(direct, rel=1e-3)
    left = np.cumsum(answer[:0:-1] ** 2)[::-1]
    level_db = 10 * np.log10(left / left[0])
    fit = np.flatnonzero((level_db < -5) & (level_db > -25))
    fall_db, _ = np.polyfit(fit / 16_000, level_db[fit], 1)
    assert -60 / fall_db == pytest.approx(decay_s, rel=0.15)  # one room of random noise


@pytest.mark.parametrize("kind", ["MP3", "Opus", "telephone"])
@pytest.mark.parametrize("severity", [0.1, 0.5])
def test_codecs_come_back_in_time(kind: str, severity: float) -> None:
    clean = speech(2)
    assert abs(lag(clean, degraded(kind, clean, severity))) <= 1


def test_clipping_keeps_smaller_samples() -> None:
    """Two in a thousand samples are clipped at best, two in five at worst."""
    clean = speech(2)
    for severity, share in ((0.0, 0.002), (1.0, 0.4)):
        clipped = degraded("clipping", clean, severity)
        limit = np.abs(clipped).max()
        touched = np.abs(clean) > limit
        assert np.array_equal(clipped[~touched], clean[~touched])
        assert np.array_equal(np.sign(clipped[touched]), np.sign(clean[touched]))
        assert touched.mean() == pytest.approx(share, rel=0.05, abs=1e-4)


def test_dropouts_are_whole_packets() -> None:
    clean = np.random.default_rng(0).uniform(0.1, 0.5, 48_000).astype(np.float32)
    shares = []
    for seed in range(8):
        changed = degraded("dropouts", clean, 1.0, seed) != clean
        edges = np.flatnonzero(np.diff(np.r_[False, changed, False].astype(int)))
        assert not np.any(edges[edges < len(clean)] % 160)
        shares.append(changed.mean())
    assert np.mean(shares) == pytest.approx(0.35, abs=0.05)


def test_resolution_counts_levels() -> None:
    """At worst, 3.5 bits below the peak: 2 * 11 steps and zero."""
    coarse = degraded("resolution", speech(2), 1.0)
    assert len(np.unique(coarse)) <= 23
    assert len(np.unique(degraded("resolution", speech(2), 0.0))) > 500


@pytest.mark.parametrize(("kind", "low"), [("low-pass", False), ("high-pass", True)])
def test_filters_attenuate_their_stop_band(kind: str, low: bool) -> None:
    """At the highest severity white noise is attenuated by 20 dB far beyond the cutoff."""
    noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    hz, density = scipy.signal.welch(degraded(kind, noise, 1.0), 16_000, nperseg=1024)
    lost, kept = (hz > 2500, (hz > 100) & (hz < 600))
    if low:
        lost, kept = ((hz > 20) & (hz < 400), hz > 3000)
    assert 10 * np.log10(density[kept].mean() / density[lost].mean()) > 20


def test_without_codec2_the_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DegradationError, match="install the system package codec2"):
        DEGRADATIONS["codec2"](speech(1), 0.5, np.random.default_rng(0))
