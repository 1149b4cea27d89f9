"""Varies clean speech as rooms, microphones and studios do, which leaves it clean."""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy.ndimage
import scipy.signal

from mosrt._arrays import Float32Array, FloatArray

from .degradations import DEGRADATIONS, coloured_noise, filtered, reverberated
from .speech import SAMPLE_RATE_HZ

__all__ = ["gate_pauses", "restore", "room_response", "vary_studio"]

_SPEED_M_S: Final = 343.0
_ORDER: Final = 5  # of image sources in each direction
_CODECS: Final = ("MP3", "Opus")


def restore(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Reduces background noise by spectral subtraction, and rumble by a high-pass filter."""
    out = speech
    if rng.random() < 0.75:
        floor = float(10 ** (-rng.uniform(6, 30) / 20))
        _, _, spectrum = scipy.signal.stft(out, nperseg=512, noverlap=384)
        magnitude = np.abs(spectrum)
        background = 2 * np.quantile(magnitude, 0.1, axis=1, keepdims=True)
        gain = np.clip(1 - (background / np.maximum(magnitude, 1e-9)) ** 2, floor, 1)
        gain = scipy.ndimage.gaussian_filter(gain, 1)
        _, quiet = scipy.signal.istft(spectrum * gain, nperseg=512, noverlap=384)
        out = np.resize(quiet.astype(np.float32), len(speech))
    if rng.random() < 0.5:
        out = filtered(out, 2, float(rng.uniform(50, 130)), "highpass")
    return out


def vary_studio(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Varies what differs between good recordings.

    These are the room, microphone, bandwidth, compression, noise gate, noise floor, and mild
    coding.
    """
    out = speech
    if rng.random() < 0.35:
        out = _convolved(out, room_response(rng))
    elif rng.random() < 0.2:
        out = reverberated(out, float(rng.uniform(0.08, 0.25)), float(rng.uniform(8, 60)), rng)
    if rng.random() < 0.6:
        out = _through_microphone(out, rng)
    if rng.random() < 0.3:
        low_hz, order = (6000, 8) if rng.random() < 0.75 else (4500, 2)
        out = filtered(out, order, float(rng.uniform(low_hz, 7900)))
    if rng.random() < 0.35:
        out = gate_pauses(out, rng)
    if rng.random() < 0.25:
        out = _compressed(out, rng)
    if rng.random() < 0.6:
        noise = coloured_noise(len(out), float(rng.uniform(0, 2)), rng)
        out = out + np.float32(out.std() * 10 ** (-rng.uniform(34, 80) / 20)) * noise
    if rng.random() < 0.1:
        time_s = np.arange(len(out)) / SAMPLE_RATE_HZ
        hum_hz = float(rng.choice([50, 60, 100, 120]))
        hum = np.sin(2 * np.pi * hum_hz * time_s).astype(np.float32)
        out = out + np.float32(out.std() * 10 ** (-rng.uniform(38, 60) / 20)) * hum
    if rng.random() < 0.12:
        codec = DEGRADATIONS[str(rng.choice(_CODECS))]
        out = codec(out, float(rng.uniform(0, 0.3)), rng)
    return out


def _convolved(speech: Float32Array, response: FloatArray) -> Float32Array:
    wet = scipy.signal.fftconvolve(speech, response)[: len(speech)]
    return np.asarray(wet * (float(speech.std()) / max(float(wet.std()), 1e-9)), np.float32)


def room_response(rng: np.random.Generator) -> FloatArray:
    """Returns the impulse response (samples,) of a small room with a near microphone.

    Early reflections are those of image sources in a box (Allen and Berkley, 1979); after them
    comes decaying noise. It starts with the direct sound, of amplitude 1.
    """
    size_m = rng.uniform([1.5, 1.8, 2.2], [7.0, 5.5, 3.2])
    microphone = rng.uniform(0.2, 0.8, 3) * size_m
    direction = rng.normal(0, 1, 3)
    distance_m = float(rng.uniform(0.05, 0.7))
    source = microphone + direction / np.linalg.norm(direction) * distance_m
    source = np.clip(source, 0.02 * size_m, 0.98 * size_m)
    reflection = np.sqrt(1 - rng.uniform(0.25, 0.85))
    cells = np.arange(-_ORDER, _ORDER + 1)
    axes = [
        np.concatenate([2 * cells * length + at, 2 * cells * length - at]) - ear
        for length, at, ear in zip(size_m, source, microphone, strict=True)
    ]
    bounces = np.concatenate([np.abs(2 * cells), np.abs(2 * cells - 1)])
    squares = [np.square(axis) for axis in axes]
    away_m = np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2]).ravel()
    order = (bounces[:, None, None] + bounces[:, None] + bounces).ravel()
    first_m = away_m.min()
    gain = reflection**order * first_m / away_m * rng.choice([1.0, -1.0], len(order), p=[0.9, 0.1])
    gain[away_m.argmin()] = 1.0
    volume, surface = float(np.prod(size_m)), 2 * float(size_m @ np.roll(size_m, 1))
    absorbed = surface * (1 - reflection**2)
    decay_s = float(np.clip(0.161 * volume / absorbed, 0.05, 0.6))
    length = int(decay_s * SAMPLE_RATE_HZ)
    late = (away_m - first_m) / _SPEED_M_S * SAMPLE_RATE_HZ
    kept = late < length - 1
    whole = late[kept].astype(int)
    part = late[kept] - whole
    response = np.zeros(length + 1)
    np.add.at(response, whole, gain[kept] * (1 - part))
    np.add.at(response, whole + 1, gain[kept] * part)
    # Walls absorb high frequencies more.
    dull = scipy.signal.lfilter([1 - (pole := rng.uniform(0, 0.5))], [1, -pole], response[8:])
    response[8:] = dull
    time_s = np.arange(len(response)) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(len(response)) * 10 ** (-3 * time_s / decay_s)
    begin = int(min(2 * float(size_m.min()) / _SPEED_M_S * SAMPLE_RATE_HZ, length / 2))
    tail[:begin] = 0
    early = np.sqrt(np.square(response[begin // 2 :]).sum())
    response += tail * (0.5 * early / (np.sqrt(np.square(tail).sum()) + 1e-9))
    return np.asarray(response, np.float64)


def _through_microphone(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Applies a smooth random frequency response, often with weak or strong low frequencies."""
    knots = int(rng.integers(5, 16))
    tilt_db = float(rng.normal(0, 4))
    curve = scipy.ndimage.gaussian_filter1d(rng.normal(0, 4, knots), 0.8, mode="nearest")
    gains_db = curve + np.linspace(-tilt_db / 2, tilt_db / 2, knots)
    taps = scipy.signal.firwin2(129, np.linspace(0, 1, knots), 10 ** (gains_db / 20))
    out = np.asarray(scipy.signal.fftconvolve(speech, taps, mode="same"), np.float32)
    if rng.random() < 0.4:
        near = filtered(out, 1, float(rng.uniform(80, 250)))
        out = out + np.float32(rng.uniform(-0.6, 1.0)) * near
    if rng.random() < 0.3:
        out = filtered(out, int(rng.integers(1, 4)), float(rng.uniform(40, 160)), "highpass")
    return out


def _compressed(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Reduces differences of level, and rounds peaks off."""
    window = int(rng.uniform(0.01, 0.08) * SAMPLE_RATE_HZ)
    power = scipy.ndimage.uniform_filter1d(np.square(speech, dtype=np.float64), window)
    level = np.sqrt(np.maximum(power, 0)) + 1e-9
    threshold = float(np.quantile(level, 0.95)) * 10 ** (-rng.uniform(3, 15) / 20)
    share = 1 - 1 / float(rng.uniform(1.3, 4))
    out = speech * np.maximum(level / threshold, 1.0) ** -share
    if rng.random() < 0.4:
        limit = float(np.abs(out).max()) * rng.uniform(0.5, 1.0)
        out = limit * np.tanh(out / limit)
    return np.asarray(out, np.float32)


def gate_pauses(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Attenuates pauses by a random number of dB, or mutes them."""
    window = 400
    level = np.sqrt(scipy.signal.fftconvolve(np.square(speech), np.ones(window) / window, "same")
                    .clip(1e-12))  # fmt: skip
    threshold = float(np.quantile(level, 0.95)) * 10 ** (-rng.uniform(25, 45) / 20)
    floor = 0.0 if rng.random() < 0.4 else 10 ** (-rng.uniform(6, 30) / 20)
    gate = np.where(level > threshold, 1.0, floor)
    gate = scipy.signal.fftconvolve(gate, np.hanning(322)[1:-1] / np.hanning(322).sum(), "same")
    return np.asarray(speech * gate, np.float32)
