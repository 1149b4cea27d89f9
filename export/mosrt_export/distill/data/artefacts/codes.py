"""Gives speech the losses of acoustic models and neural codecs: smooth, coarse or missing parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import scipy.ndimage

from mosrt._arrays import Complex64Array, Float32Array, IntArray
from mosrt_export.distill.data.degradations import Degradation
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ

from .spectra import at_phase, envelope_of, griffin_lim, istft, mel_bank, mel_smoothed, polar, stft

__all__ = ["CODES"]

_FLOOR: Final = np.float32(1e-5)


def _oversmoothed(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Smooths mel bands over time and frequency, and inverts them well.

    The phases start as those of the speech, and are made to fit the smooth magnitudes.
    """
    spectrum = stft(speech)
    n_mels = int(rng.choice([40, 60, 80, 100]))
    log_mel = np.log(mel_smoothed(np.abs(spectrum), n_mels) + _FLOOR)
    sigma = (rng.uniform(0, 14) * severity, rng.uniform(0.3, 5) * severity)
    smooth = scipy.ndimage.gaussian_filter(log_mel, sigma)
    if rng.random() < 0.4:  # less variance than speech has
        mean = smooth.mean(axis=1, keepdims=True)
        smooth = mean + (1 - 0.5 * severity * rng.random()) * (smooth - mean)
    keep = np.float32(0.7 * max(0.0, 1 - 2.5 * severity))
    fine = np.log(np.abs(spectrum) + _FLOOR) - log_mel
    # Pitch is kept, which a good vocoder would restore.
    detail = np.float32(rng.uniform(0.5, 1)) if rng.random() < 0.7 else keep
    magnitude = np.exp(smooth + detail * fine).astype(np.float32)
    return griffin_lim(magnitude, len(speech), 3, rng, start=spectrum)


def _nearest(frames: Float32Array, book: Float32Array) -> IntArray:
    distance = np.square(book).sum(1)[None] - 2 * frames @ book.T
    return np.asarray(distance.argmin(axis=1))


def _vector_quantised(
    speech: Float32Array, severity: float, rng: np.random.Generator
) -> Float32Array:
    """Codes the mel bands of each frame by ever fewer entries of a residual codebook."""
    return _coded(speech, severity, rng, swaps=0.0)


def _code_swaps(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Codes mel bands as above, and exchanges some codes, as a language model errs."""
    return _coded(speech, 0.1 * rng.random(), rng, swaps=0.005 + 0.5 * severity**1.5)


def _coded(
    speech: Float32Array, coarse: float, rng: np.random.Generator, swaps: float
) -> Float32Array:
    spectrum = stft(speech, hop=256)
    bank = mel_bank(64)
    log_mel = np.log(bank @ np.abs(spectrum) + np.float32(1e-4)).T
    n_frames = len(log_mel)
    hold = int(rng.choice([1, 1, 2]))
    frames = log_mel[:: 2 * hold] if coarse > 0.6 else log_mel[::hold]
    size = round(160 * (6 / 160) ** coarse)
    left, built = frames.copy(), np.zeros_like(frames)
    for stage in range(max(1, round(3 - 2 * coarse))):
        book = left[rng.choice(len(left), min(size, len(left)), replace=False)]
        for _ in range(2):  # of Lloyd's algorithm
            codes = _nearest(left, book)
            counts = np.bincount(codes, minlength=len(book))[:, None]
            sums = np.zeros_like(book)
            np.add.at(sums, codes, left)
            book = np.where(counts > 0, sums / np.maximum(counts, 1), book).astype(np.float32)
        codes = _nearest(left, book)
        if swaps and stage < 2:
            wrong = rng.random(len(codes)) < swaps * (0.4 if stage == 0 else 1.0)
            codes = np.where(wrong, rng.permutation(codes), codes)
        built += book[codes]
        left = left - book[codes]
    steps = np.arange(n_frames) * (len(frames) / n_frames)
    coded = built[np.minimum(steps.astype(int), len(frames) - 1)]
    weights = bank / np.maximum(bank.sum(axis=0), 1e-6)
    gain = np.exp(np.clip(weights.T @ (coded - log_mel).T, -8, 5)).astype(np.float32)
    start = spectrum
    if rng.random() < 0.5:
        angle = rng.normal(0, 0.8 * (coarse + swaps), spectrum.shape[::-1]).astype(np.float32).T
        start = np.asarray(spectrum * polar(np.ones_like(angle), angle), np.complex64)
    return griffin_lim(np.abs(spectrum) * gain, len(speech), 2, rng, start=start)


def _spectral_holes(
    speech: Float32Array, severity: float, rng: np.random.Generator
) -> Float32Array:
    """Quantises spectra with steps that follow the envelope, which leaves holes and tones."""
    spectrum = stft(speech, int(rng.choice([512, 1024, 2048])))
    envelope = np.exp(envelope_of(np.abs(spectrum), 0.002))
    grid = scipy.ndimage.zoom(
        rng.normal(0, 0.35, (12, spectrum.shape[1] // 3 + 1)),
        (len(spectrum) / 12, spectrum.shape[1] / (spectrum.shape[1] // 3 + 1)),
        order=0, grid_mode=True, mode="nearest",
    )[: len(spectrum), : spectrum.shape[1]]  # fmt: skip
    step = envelope * np.exp(grid).astype(np.float32) * np.float32(0.35 + 2.6 * severity)
    scaled = spectrum / step
    if rng.random() < 0.5:
        rounded = np.round(scaled.real) + 1j * np.round(scaled.imag)
    else:  # magnitudes only
        magnitude = np.abs(scaled)
        rounded = at_phase(np.round(magnitude), scaled)
    if rng.random() < 0.3:  # holes filled with noise
        noise = rng.normal(0, 0.25, spectrum.shape) * np.exp(
            2j * np.pi * rng.random(spectrum.shape)
        )
        rounded = np.where(np.abs(rounded) == 0, noise, rounded)
    return istft(np.asarray(rounded * step, np.complex64), len(speech))


def _bandwidth_extension(
    speech: Float32Array, severity: float, rng: np.random.Generator
) -> Float32Array:
    """Replaces what is above a frequency by a copy of lower frequencies, at a guessed level."""
    spectrum = stft(speech)
    magnitude = np.abs(spectrum)
    n_bins = len(spectrum)
    corner_hz = 6000 * (1800 / 6000) ** severity * float(rng.uniform(0.9, 1.1))
    corner = int(corner_hz / SAMPLE_RATE_HZ * 2 * (n_bins - 1))
    other = spectrum.copy()
    sources = corner - 1 - np.arange(n_bins - corner) % max(corner * 2 // 3, 1)
    if rng.random() < 0.5:
        sources = corner // 3 + np.arange(n_bins - corner) % max(corner * 2 // 3, 1)
    copied = spectrum[sources]
    wanted = np.sqrt(np.square(magnitude[corner:]).mean(axis=0) + 1e-12)
    found = np.sqrt(np.square(np.abs(copied)).mean(axis=0) + 1e-12)
    gain_db = rng.normal(0, 2 + 5 * severity) + rng.normal(0, 3 * severity, len(wanted))
    gain = (wanted / found) ** rng.uniform(0.6, 1.0) * 10 ** (gain_db / 20)
    gain = np.minimum(gain, 4)
    other[corner:] = copied * scipy.ndimage.gaussian_filter1d(gain, 1)
    if rng.random() < 0.3:
        turned: Complex64Array = polar(
            np.abs(other[corner:]), rng.uniform(-3, 3, other[corner:].shape).astype(np.float32)
        )
        other[corner:] = turned
    return istft(np.asarray(other, np.complex64), len(speech))


CODES: Final[Mapping[str, Degradation]] = {
    "oversmoothed mels": _oversmoothed,
    "vector quantisation": _vector_quantised,
    "code swaps": _code_swaps,
    "spectral holes": _spectral_holes,
    "bandwidth extension": _bandwidth_extension,
}
