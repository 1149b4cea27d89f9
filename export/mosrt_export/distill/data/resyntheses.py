"""Analyses and resynthesises speech with the artefacts of vocoders, from mild (0) to severe (1)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Final

import numpy as np
import scipy.ndimage
import scipy.signal

from mosrt._arrays import Float32Array

from .artefacts.codes import CODES
from .artefacts.conversions import CONVERSIONS
from .artefacts.excitations import EXCITATIONS
from .artefacts.phases import PHASES
from .artefacts.prosodies import PROSODIES
from .artefacts.spectra import griffin_lim, istft, mel_bank, mel_smoothed, stft
from .degradations import Degradation
from .speech import SAMPLE_RATE_HZ

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # it imports pkg_resources
    import pyworld

__all__ = ["RESYNTHESES", "RETIMED"]


def _griffin_lim(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    magnitude = np.abs(stft(speech))
    if rng.random() < 0.7:
        # From 160 to 30 bands, so that the severity is audible beside the estimated phases.
        magnitude = mel_smoothed(magnitude, round(160 * (30 / 160) ** severity))
    return griffin_lim(magnitude, len(speech), round(24 * (2 / 24) ** severity), rng)


def _mel_smoothing(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Smooths magnitudes as an acoustic model does, and keeps the phases."""
    spectrum = stft(speech)
    magnitude = np.abs(spectrum)
    n_mels = round(160 * (20 / 160) ** severity)
    smooth = np.log(mel_smoothed(magnitude, n_mels) + 1e-5)
    sigma = (rng.uniform(0, 2) * severity, rng.uniform(0, 3) * severity)
    smooth = scipy.ndimage.gaussian_filter(smooth, sigma)
    share = np.float32(rng.uniform(0.5, 1.0))
    mixed = np.exp(share * smooth + (1 - share) * np.log(magnitude + 1e-5))
    return istft(spectrum / np.maximum(magnitude, 1e-6) * mixed, len(speech))


def _quantised_mels(speech: Float32Array, severity: float,
                    rng: np.random.Generator) -> Float32Array:  # fmt: skip
    """Quantises band levels to steps of some dB, as coarse discrete codes do."""
    spectrum = stft(speech)
    bank = mel_bank(int(rng.choice([40, 80])))
    level_db = 20 * np.log10(bank @ np.abs(spectrum) + 1e-5)
    step_db = 2 + 16 * severity
    delta_db = np.round(level_db / step_db) * step_db - level_db
    if rng.random() < 0.5:
        delta_db = rng.normal(0, step_db / 3, delta_db.shape)
    weights = bank / np.maximum(bank.sum(axis=0), 1e-6)
    gain = 10 ** (weights.T @ delta_db / 20)
    return istft((spectrum * gain).astype(np.complex64), len(speech))


def _phase_noise(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    spectrum = stft(speech)
    spread = 0.2 + 2.3 * severity
    shift = rng.normal(0, spread, spectrum.shape)
    if rng.random() < 0.5:  # neural vocoders lose the phase of high frequencies first
        shift *= np.linspace(0, 1, len(shift))[:, None] ** float(rng.uniform(0.3, 2))
    return istft((spectrum * np.exp(1j * shift)).astype(np.complex64), len(speech))


def _upsampling(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Adds the tones and spectral images of transposed convolutions."""
    factor = int(rng.choice([2, 4, 5, 8]))
    position = np.arange(len(speech))
    pattern = rng.normal(0, 1, factor)[position % factor].astype(np.float32)
    sections = scipy.signal.butter(2, 50, fs=SAMPLE_RATE_HZ, output="sos")
    envelope = np.abs(scipy.signal.sosfilt(sections, np.abs(speech))).astype(np.float32)
    carrier = speech if rng.random() < 0.5 else envelope
    gain = np.float32(10 ** ((-45 + 38 * severity) / 20))
    relative = np.float32(speech.std() / (carrier.std() + 1e-9))
    return np.asarray(speech + gain * relative * pattern * carrier, np.float32)


def _comb(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    delay = int(rng.integers(12, 160))
    delayed = np.concatenate([np.zeros(delay, np.float32), speech[:-delay]])
    return (speech + np.float32(0.1 + 0.75 * severity) * delayed).astype(np.float32)


def _warble(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Varies the pitch irregularly, as a poor pitch model does."""
    n_samples = len(speech)
    wander = scipy.ndimage.gaussian_filter1d(
        rng.normal(0, 1, n_samples // 160 + 2), float(rng.uniform(2, 12))
    )
    wander /= np.abs(wander).max() + 1e-9
    depth = 8 + 100 * severity
    shift = np.interp(np.arange(n_samples), np.arange(len(wander)) * 160, wander) * depth
    shift = scipy.ndimage.uniform_filter1d(shift, 320)
    samples = np.arange(n_samples)
    return np.asarray(np.interp(samples + shift, samples, speech), np.float32)


def _world(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Resynthesises with WORLD (Morise et al., 2016), smoothed, with flat pitch or other noise."""
    period_ms = 5.0 + 5.0 * severity
    double = speech.astype(np.float64)
    pitch_hz, time_s = pyworld.dio(double, SAMPLE_RATE_HZ, frame_period=period_ms)
    envelope = pyworld.cheaptrick(double, pitch_hz, time_s, SAMPLE_RATE_HZ)
    noise = pyworld.d4c(double, pitch_hz, time_s, SAMPLE_RATE_HZ)
    if rng.random() < 0.7:
        sigma = (6 * severity * rng.random(), 12 * severity * rng.random())
        envelope = np.exp(scipy.ndimage.gaussian_filter(np.log(envelope), sigma))
    if rng.random() < 0.4:
        voiced = pitch_hz > 0
        mean_hz = pitch_hz[voiced].mean() if voiced.any() else 0.0
        keep = 1 - severity
        pitch_hz = np.where(voiced, mean_hz + keep * (pitch_hz - mean_hz), 0.0)
    if rng.random() < 0.3:
        noise = np.clip(noise + severity * rng.uniform(-1, 1), 0.001, 0.999)
    built = pyworld.synthesize(pitch_hz, envelope, noise, SAMPLE_RATE_HZ, period_ms)
    out = np.zeros_like(speech)
    out[: len(built)] = built[: len(speech)]
    return out


def _metallic(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Removes weak bins at random, which leaves isolated tones as denoisers and vocoders do."""
    spectrum = stft(speech)
    magnitude = np.abs(spectrum)
    threshold = np.quantile(magnitude, 0.3 + 0.6 * severity, axis=1, keepdims=True)
    gate = (magnitude * rng.lognormal(0, 0.5, magnitude.shape) > threshold).astype(np.float32)
    floor = np.float32(10 ** (-(10 + 30 * severity) / 20))
    return istft((spectrum * np.maximum(gate, floor)).astype(np.complex64), len(speech))


RESYNTHESES: Final[Mapping[str, Degradation]] = {
    "Griffin-Lim": _griffin_lim,
    "mel smoothing": _mel_smoothing,
    "quantised mels": _quantised_mels,
    "phase noise": _phase_noise,
    "upsampling": _upsampling,
    "comb": _comb,
    "warble": _warble,
    "WORLD": _world,
    "metallic": _metallic,
    **PHASES,
    **EXCITATIONS,
    **CODES,
    **PROSODIES,
    **CONVERSIONS,
}

RETIMED: Final = frozenset({*PROSODIES, "creak", "source leakage", "two voices"})
"""Resyntheses whose periods are elsewhere than before, so that samples cannot be compared."""
