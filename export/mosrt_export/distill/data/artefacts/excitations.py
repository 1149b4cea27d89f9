"""Gives speech the artificial excitation of vocoders: pulses and noise instead of a voice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import scipy.ndimage
import scipy.signal

from mosrt._arrays import Complex64Array, Float32Array, FloatArray
from mosrt_export.distill.data.degradations import Degradation
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ

from .pitch import PITCH_HOP, BoolArray, pitch_of, pulses, wander
from .spectra import envelope_of, istft, stft

__all__ = ["EXCITATIONS"]

_N_FFT: Final = 512
_HOP: Final = 128
_HZ_PER_BIN: Final = SAMPLE_RATE_HZ / _N_FFT


def _at_frames(values: FloatArray | BoolArray, n_frames: int) -> FloatArray:
    """Returns values every `PITCH_HOP` samples as values at the frames of a spectrum."""
    return np.interp(np.arange(n_frames) * _HOP, np.arange(len(values)) * PITCH_HOP, values)


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> Complex64Array:
    noise: Complex64Array = rng.standard_normal((*shape[::-1], 2), np.float32).view(np.complex64)
    return noise[..., 0].T * np.float32(np.sqrt(0.5))


def _rising(corner_hz: float | FloatArray, width_hz: float = 500.0) -> Float32Array:
    """Returns a share that rises from 0 to 1 around a frequency (bins, 1 or frames)."""
    hz = np.arange(_N_FFT // 2 + 1)[:, None] * _HZ_PER_BIN
    return np.asarray(np.clip((hz - corner_hz) / width_hz + 0.5, 0, 1), np.float32)


def _pulse_vocoder(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Resynthesises envelopes with pulses and noise in a fixed mix, and hard decisions on voicing.

    Up to severity 0.5 low frequencies stay as they are.
    """
    spectrum = stft(speech, _N_FFT, _HOP)
    magnitude = np.abs(spectrum)
    hz, voiced = pitch_of(speech)
    if rng.random() < 0.3 + 0.4 * severity:  # wrong decisions
        flips = np.repeat(rng.random(len(voiced)) < 0.25 * severity, 10)[: len(voiced)]
        voiced = voiced ^ flips
    if rng.random() < 0.4:
        hz = hz * np.exp(0.08 * severity * wander(len(hz), float(rng.uniform(1, 10)), rng))
    envelope = np.exp(envelope_of(magnitude, float(rng.uniform(0.0011, 0.0024))))
    train = stft(pulses(hz, len(speech)), _N_FFT, _HOP)
    noise = _noise(spectrum.shape, rng) * np.float32(np.abs(train).mean() * 1.1)
    mix = np.float32(rng.uniform(0.0, 0.5)) * _rising(float(rng.uniform(0, 4000)), 3000)
    share = np.maximum((_at_frames(voiced, spectrum.shape[1]) < 0.5), mix).astype(np.float32)
    excitation = np.sqrt(1 - share) * train + np.sqrt(share) * noise
    built = envelope * excitation
    # The level of each frame is that of the speech.
    gain = np.sqrt(np.square(magnitude).sum(0) / (np.square(np.abs(built)).sum(0) + 1e-12))
    built *= scipy.ndimage.gaussian_filter1d(gain, 1)
    keep = 1 - _rising(5000 * (1 - severity / 0.5), 800) if severity < 0.5 else np.float32(0)
    return istft(np.asarray(built + keep * (spectrum - built), np.complex64), len(speech), _HOP)


def _noise_filled(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Replaces harmonics above a frequency by noise, as of one maximum voiced frequency."""
    spectrum = stft(speech, _N_FFT, _HOP)
    envelope = np.exp(envelope_of(np.abs(spectrum), 0.003))
    corner_hz = 5500 * (500 / 5500) ** severity * float(rng.uniform(0.8, 1.2))
    width_hz = float(rng.choice([50.0, 400.0, 1500.0]))
    noise = envelope * _noise(spectrum.shape, rng) * np.float32(10 ** (rng.uniform(1, 4) / 20))
    share = _rising(corner_hz, width_hz)
    return istft(np.asarray(spectrum + share * (noise - spectrum), np.complex64), len(speech), _HOP)


def _aperiodicity(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Makes voices breathy or hoarse with noise of the speech's own envelope."""
    spectrum = stft(speech, _N_FFT, _HOP)
    envelope = np.exp(envelope_of(np.abs(spectrum), 0.003))
    noise = envelope * _noise(spectrum.shape, rng)
    tilt = np.linspace(float(rng.uniform(-12, 0)), 0, len(spectrum))[:, None]
    level_db = -20 + 34 * severity + tilt
    if rng.random() < 0.4:  # comes and goes
        level_db = level_db + 8 * wander(spectrum.shape[1], float(rng.uniform(2, 15)), rng) - 4
    gain = (10 ** (level_db / 20)).astype(np.float32)
    return istft(np.asarray(spectrum + gain * noise, np.complex64), len(speech), _HOP)


def _subharmonics(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Makes every second or third period weaker, as vocal fry and poor vocoders do."""
    hz, voiced = pitch_of(speech)
    samples = np.arange(len(speech))
    hz = np.interp(samples, np.arange(len(hz)) * PITCH_HOP, hz) / int(rng.choice([2, 2, 3]))
    if rng.random() < 0.3:
        hz = hz * float(rng.uniform(0.8, 1.3))  # not even a fraction of the pitch
    where = np.interp(samples, np.arange(len(voiced)) * PITCH_HOP, voiced)
    if rng.random() < 0.5:
        parts = wander(len(voiced), 12, rng) > 0.4 - 0.8 * severity
        where = where * np.interp(samples, np.arange(len(parts)) * PITCH_HOP, parts)
    depth = 0.08 + 0.9 * severity
    wave = np.sin(2 * np.pi * np.cumsum(hz / SAMPLE_RATE_HZ))
    return (speech * (1 + depth * where * wave) / (1 + 0.5 * depth)).astype(np.float32)


def _hop_ringing(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Adds what repeats at the rate of frames: a hum with resonances, modulation, or clicks."""
    hop = int(rng.choice([80, 120, 160, 200, 220, 240, 256, 275, 300]))
    n = len(speech)
    pattern = np.zeros(hop)
    for _ in range(int(rng.integers(1, 5))):
        decay = np.exp(-np.arange(hop) / rng.uniform(8, hop))
        turn = 2 * np.pi * rng.uniform(300, 7500) / SAMPLE_RATE_HZ
        pattern += rng.normal() * decay * np.sin(turn * np.arange(hop) + rng.uniform(0, 6))
    pattern /= np.abs(pattern).max() + 1e-9
    repeated = np.resize(pattern, n).astype(np.float32)
    sections = scipy.signal.butter(1, 30, fs=SAMPLE_RATE_HZ, output="sos")
    level = np.abs(scipy.signal.sosfilt(sections, np.abs(speech))).astype(np.float32)
    level += np.float32(rng.choice([0.0, 0.02]) * level.max())  # audible in pauses too
    gain = np.float32(10 ** ((-32 + 36 * severity) / 20))
    if rng.random() < 0.35:
        return np.asarray(speech * (1 + min(1.2, 3 * float(gain)) * repeated), np.float32)
    return np.asarray(speech + gain * level * repeated, np.float32)


EXCITATIONS: Final[Mapping[str, Degradation]] = {
    "pulse vocoder": _pulse_vocoder,
    "noise-filled harmonics": _noise_filled,
    "aperiodicity": _aperiodicity,
    "subharmonics": _subharmonics,
    "hop ringing": _hop_ringing,
}
