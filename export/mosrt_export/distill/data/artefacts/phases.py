"""Damages phases and keeps magnitudes, as vocoders do that predict magnitudes well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import scipy.fft
import scipy.ndimage

from mosrt._arrays import Complex64Array, Float32Array
from mosrt_export.distill.data.degradations import Degradation

from .spectra import at_phase, griffin_lim, istft, mel_smoothed, polar, stft

__all__ = ["PHASES"]


def _above(spectrum: Complex64Array, other: Complex64Array, severity: float) -> Complex64Array:
    """Returns phases of `other` above a frequency that falls to 0 Hz at severity 0.7.

    Vocoders lose the phases of high frequencies first.
    """
    corner = max(0.0, 1 - severity / 0.7) ** 1.5 * 0.75 * len(spectrum)
    share = np.clip((np.arange(len(spectrum)) - corner) / 12 + 0.5, 0, 1).astype(np.float32)
    mixed = spectrum + share[:, None] * (other - spectrum)
    return at_phase(np.abs(spectrum), np.asarray(mixed, np.complex64))


def _few_iterations(
    speech: Float32Array, severity: float, rng: np.random.Generator
) -> Float32Array:
    """Estimates the phases of exact magnitudes, in 6 iterations or fewer."""
    spectrum = stft(speech)
    n_iterations = round(6 * (1 - severity))
    guess = griffin_lim(np.abs(spectrum), len(speech), n_iterations, rng)
    return istft(_above(spectrum, stft(guess), severity), len(speech))


def _mel_phase(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Estimates phases from mel bands alone."""
    spectrum = stft(speech)
    smooth = mel_smoothed(np.abs(spectrum), int(rng.choice([40, 60, 80])))
    guess = griffin_lim(smooth, len(speech), round(5 * (1 - severity)), rng)
    return istft(_above(spectrum, stft(guess), severity), len(speech))


def _randomised(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Turns the phases of each frame at random: as a whole, in bands, or with a delay.

    Short windows make it rough, and long ones smear pulses.
    """
    n_fft = int(rng.choice([128, 256, 512, 2048, 4096]))
    spectrum = stft(speech, n_fft)
    n_bins, n_frames = spectrum.shape
    spread = 0.25 + 2.5 * severity
    bands = int(rng.choice([1, 2, 8, 32, n_bins]))
    turn = rng.normal(0, spread, (n_frames, bands)).astype(np.float32)
    where = np.minimum(np.arange(n_bins) * bands // n_bins, bands - 1)
    angle = turn[:, where].T
    if rng.random() < 0.3:
        delay = rng.normal(0, 6 * severity, n_frames)  # in samples
        angle = angle + np.outer(np.arange(n_bins) * 2 * np.pi / n_fft, delay).astype(np.float32)
    return istft(spectrum * polar(np.ones_like(angle), angle), len(speech))


def _zero_phase(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Gives all frames the same phases, which makes a pulse of each and buzzes at their rate."""
    n_fft = int(rng.choice([256, 512, 1024]))
    spectrum = stft(speech, n_fft)
    shared = rng.normal(0, rng.uniform(0, 2), len(spectrum)).astype(np.float32)
    other = polar(np.abs(spectrum), np.broadcast_to(shared[:, None], spectrum.shape))
    return istft(_above(spectrum, other, severity), len(speech))


def _minimum_phase(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Gives each frame the phases that the least delay would have with its magnitudes."""
    n_fft = int(rng.choice([512, 1024]))
    spectrum = stft(speech, n_fft)
    magnitude = np.abs(spectrum)
    cepstrum = scipy.fft.irfft(np.log(magnitude.T + np.float32(1e-6)))
    cepstrum[:, 1 : n_fft // 2] *= 2
    cepstrum[:, n_fft // 2 + 1 :] = 0
    angle = scipy.fft.rfft(cepstrum).imag.T
    return istft(_above(spectrum, polar(magnitude, angle), severity), len(speech))


def _quantised_phase(
    speech: Float32Array, severity: float, rng: np.random.Generator
) -> Float32Array:
    """Rounds phases to few values, or smooths their steps over time or frequency."""
    spectrum = stft(speech, int(rng.choice([512, 1024])))
    if rng.random() < 0.5:
        step = np.float32(2 * np.pi / (2 + 10 * (1 - severity) ** 2))
        angle = np.round(np.angle(spectrum) / step) * step
        return istft(polar(np.abs(spectrum), angle), len(speech))
    unit = at_phase(np.float32(1), spectrum)
    axis = int(rng.integers(2))
    first, later = (unit[:1], unit[1:]) if axis == 0 else (unit[:, :1], unit[:, 1:])
    earlier = unit[:-1] if axis == 0 else unit[:, :-1]
    steps = later * earlier.conj()
    sigma = 0.2 + 6 * severity**2
    smooth = scipy.ndimage.gaussian_filter1d(steps.real, sigma, axis) + 1j * (
        scipy.ndimage.gaussian_filter1d(steps.imag, sigma, axis)
    )
    turned = np.cumsum(np.angle(smooth), axis=axis) + np.angle(first)
    angle = np.concatenate([np.angle(first), turned], axis=axis).astype(np.float32)
    other = polar(np.abs(spectrum), angle)
    return istft(_above(spectrum, other, min(1.0, 0.3 + severity)), len(speech))


def _dispersion(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Delays frequencies differently, by up to 100 ms: clicks turn into chirps."""
    size = scipy.fft.next_fast_len(len(speech) + 2048, real=True)
    knots = rng.uniform(0, 1, int(rng.integers(4, 40)))
    positions = np.linspace(0, len(knots) - 1, size // 2 + 1)
    delay = np.interp(positions, np.arange(len(knots)), knots)
    delay = (delay - delay.mean()) * (32 * (1600 / 32) ** severity)
    angle = -2 * np.pi / size * np.cumsum(delay)
    spectrum = scipy.fft.rfft(speech, size)
    turned = scipy.fft.irfft(spectrum * polar(np.ones_like(angle), angle), size)
    return np.asarray(turned[: len(speech)], np.float32)


PHASES: Final[Mapping[str, Degradation]] = {
    "few iterations": _few_iterations,
    "mel phase": _mel_phase,
    "random phase": _randomised,
    "zero phase": _zero_phase,
    "minimum phase": _minimum_phase,
    "quantised phase": _quantised_phase,
    "dispersion": _dispersion,
}
