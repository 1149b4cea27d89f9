"""Transforms speech into spectra and back: short-time Fourier transforms, mel bands, envelopes."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import scipy.fft
from librosa.filters import mel as mel_filters

from mosrt._arrays import Complex64Array, Float32Array
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ

__all__ = [
    "N_FFT",
    "at_phase",
    "envelope_of",
    "griffin_lim",
    "istft",
    "mel_bank",
    "mel_smoothed",
    "polar",
    "stft",
]

N_FFT: Final = 1024
_MOMENTUM: Final = np.float32(0.9)


@functools.cache
def _window(n_fft: int) -> Float32Array:
    window: Float32Array = np.hanning(n_fft + 1)[:-1].astype(np.float32)
    return window


def stft(speech: Float32Array, n_fft: int = N_FFT, hop: int | None = None) -> Complex64Array:
    """Returns the spectra (n_fft / 2 + 1, frames) of Hann windows, centred every `hop` samples.

    A sine of amplitude 1 has magnitude 1 / 2. `hop` is a fraction of `n_fft`, a quarter if None.
    """
    hop = hop or n_fft // 4
    n_frames = -(-len(speech) // hop) + 1
    padded = np.zeros((n_frames - 1) * hop + n_fft, np.float32)
    padded[n_fft // 2 : n_fft // 2 + len(speech)] = speech
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    spectrum: Complex64Array = scipy.fft.rfft(frames * (_window(n_fft) * np.float32(2 / n_fft)))
    return spectrum.T


def istft(spectrum: Complex64Array, n_samples: int, hop: int | None = None) -> Float32Array:
    """Returns the (n_samples,) speech of spectra that `stft` made, by overlap and addition."""
    n_fft = 2 * (len(spectrum) - 1)
    hop = hop or n_fft // 4
    overlap, window = n_fft // hop, _window(n_fft)
    frames = scipy.fft.irfft(np.ascontiguousarray(spectrum.T, np.complex64), n_fft)
    frames *= window * np.float32(n_fft / 2)
    n_frames = len(frames)
    total = np.zeros((n_frames + overlap - 1, hop), np.float32)
    weight = np.zeros_like(total)
    power = np.square(window).reshape(overlap, hop)
    blocks = frames.reshape(n_frames, overlap, hop)
    for i in range(overlap):
        total[i : i + n_frames] += blocks[:, i]
        weight[i : i + n_frames] += power[i]
    speech = (total / np.maximum(weight, 1e-8)).reshape(-1)[n_fft // 2 :]
    out = np.zeros(n_samples, np.float32)
    out[: len(speech)] = speech[:n_samples]
    return out


def polar(magnitude: Float32Array, angle: Float32Array) -> Complex64Array:
    """Returns spectra of a magnitude and a phase in radians."""
    out = np.empty_like(magnitude, np.complex64)
    np.cos(angle, out=out.real)
    np.sin(angle, out=out.imag)
    out *= magnitude
    return out


def at_phase(magnitude: Float32Array | np.float32, other: Complex64Array) -> Complex64Array:
    """Returns spectra of a magnitude, and of the phase of other spectra."""
    scale = magnitude / np.maximum(np.abs(other), np.float32(1e-9))
    return np.asarray(other * scale, np.complex64)


def griffin_lim(
    magnitude: Float32Array,
    n_samples: int,
    n_iterations: int,
    rng: np.random.Generator,
    start: Complex64Array | None = None,
) -> Float32Array:
    """Returns speech from STFT magnitudes (513, frames), with momentum (Perraudin et al., 2013).

    The phases start as those of `start`, or at random.
    """
    if start is None:
        angle = 2 * np.pi * rng.random(magnitude.shape[::-1], np.float32)
        start = polar(np.ones_like(magnitude), angle.T)
    phase, previous = at_phase(np.float32(1), start), np.zeros_like(start)
    for _ in range(n_iterations):
        rebuilt = stft(istft(magnitude * phase, n_samples))[:, : magnitude.shape[1]]
        ahead = rebuilt + _MOMENTUM * (rebuilt - previous)
        previous = rebuilt
        phase = at_phase(np.float32(1), ahead)
    return istft(magnitude * phase, n_samples)


@functools.cache
def mel_bank(n_mels: int) -> Float32Array:
    """Returns the triangles (n_mels, 513) of mel bands up to 8 kHz, with peaks of 1."""
    bank: Float32Array = mel_filters(sr=SAMPLE_RATE_HZ, n_fft=N_FFT, n_mels=n_mels, norm=None)
    return bank


def mel_smoothed(magnitude: Float32Array, n_mels: int) -> Float32Array:
    """Returns STFT magnitudes (513, frames) averaged within each of `n_mels` mel bands."""
    bank = mel_bank(n_mels)
    mel = bank @ magnitude
    spread = bank.T / np.maximum(bank.sum(axis=1), 1e-6)
    weight = np.maximum(spread @ bank.sum(axis=1, keepdims=True), 1e-6)
    smooth: Float32Array = (spread @ mel / weight).astype(np.float32)
    return smooth


def envelope_of(magnitude: Float32Array, quefrency_s: float = 0.0016) -> Float32Array:
    """Returns log envelopes of STFT magnitudes: cepstra up to a quefrency below a pitch period."""
    log_magnitude = np.log(magnitude.T + np.float32(1e-6))
    cepstrum = scipy.fft.irfft(log_magnitude)
    keep = round(quefrency_s * SAMPLE_RATE_HZ)
    cepstrum[:, keep + 1 : -keep] = 0
    envelope: Float32Array = scipy.fft.rfft(cepstrum).real
    return envelope.T
