"""Gives speech the faults of voice conversion: a timbre that wanders, and two voices at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from mosrt._arrays import Complex64Array, Float32Array, FloatArray
from mosrt_export.distill.data.degradations import Degradation

from .pitch import PITCH_HOP, retimed, wander
from .spectra import envelope_of, istft, stft

__all__ = ["CONVERSIONS", "shifted_formants"]


def shifted_formants(spectrum: Complex64Array, factors: float | FloatArray) -> Complex64Array:
    """Scales the frequencies of spectral envelopes by factors, one a frame, and keeps the pitch."""
    envelope = envelope_of(np.abs(spectrum))
    n_bins, n_frames = envelope.shape
    low = np.clip(np.arange(n_bins)[:, None] / factors, 0, n_bins - 1)
    below = np.broadcast_to(low.astype(np.int32), envelope.shape)
    part = (low - below).astype(np.float32)
    at = below * 1, np.minimum(below + 1, n_bins - 1)
    columns = np.arange(n_frames)
    shifted = (1 - part) * envelope[at[0], columns] + part * envelope[at[1], columns]
    return np.asarray(spectrum * np.exp(np.clip(shifted - envelope, -6, 4)), np.complex64)


def _formant_drift(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Lets the size of the vocal tract wander, by up to half."""
    spectrum = stft(speech, 512)
    depth = 0.04 + 0.42 * severity
    curve = wander(spectrum.shape[1], float(rng.uniform(3, 40)), rng)
    return istft(shifted_formants(spectrum, np.exp(depth * curve)), len(speech))


def _two_voices(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Speaks parts with another voice, which has another pitch and other formants."""
    n = len(speech) // PITCH_HOP + 1
    change = float(rng.choice([-1, 1])) * (0.04 + 0.4 * severity)
    other = retimed(speech, np.full(n, np.exp(change * float(rng.uniform(0.6, 1.2)))))
    formants = float(np.exp(0.4 * change))
    other = istft(shifted_formants(stft(other, 512), formants), len(speech))
    curve = wander(len(speech) // 400 + 2, float(rng.uniform(4, 20)), rng)
    sharp = float(rng.uniform(2, 12))
    share = np.interp(np.arange(len(speech)), np.arange(len(curve)) * 400, curve)
    share = np.clip(share * sharp + 0.5, 0, 1)
    return (speech + share * (other - speech)).astype(np.float32)


def _source_leakage(
    speech: Float32Array, severity: float, rng: np.random.Generator
) -> Float32Array:
    """Leaves the pitch of the source beside that of the target."""
    n = len(speech) // PITCH_HOP + 1
    ratio = float(np.exp(rng.choice([-1, 1]) * rng.uniform(0.12, 0.5)))
    target = retimed(speech, np.full(n, ratio))
    gain = np.float32(10 ** ((-30 + 28 * severity) / 20))
    if rng.random() < 0.4:
        delay = int(rng.integers(20, 240))
        speech = np.concatenate([np.zeros(delay, np.float32), speech[:-delay]])
    return ((target + gain * speech) / (1 + 0.5 * gain)).astype(np.float32)


def _creak(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Breaks the voice: irregular and missing periods, and falls to half the pitch."""
    n = len(speech) // PITCH_HOP + 1
    where = wander(n, float(rng.uniform(4, 15)), rng) > 0.75 - 1.3 * severity
    where[n // 2 : n // 2 + 10] = True  # at least there
    jitter = np.exp(rng.normal(0, 0.1 + 0.25 * severity, n))
    low = np.where(where, float(rng.choice([0.5, 0.6, 0.75])) * jitter, 1.0)
    return retimed(speech, low)


CONVERSIONS: Final[Mapping[str, Degradation]] = {
    "formant drift": _formant_drift,
    "two voices": _two_voices,
    "source leakage": _source_leakage,
    "creak": _creak,
}
