"""Degrades speech: noises, filters, rooms, dropouts and codecs, from mild (0) to severe (1)."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
import scipy.signal
import soundfile as sf
import soxr

from mosrt._arrays import Float32Array
from mosrt.errors import MosrtError

from .speech import SAMPLE_RATE_HZ

__all__ = [
    "DEGRADATIONS",
    "Degradation",
    "DegradationError",
    "add_noise",
    "coloured_noise",
    "filtered",
    "reverberated",
]

Degradation: TypeAlias = Callable[[Float32Array, float, np.random.Generator], Float32Array]
"""Maps speech (samples,) at 16 kHz, a severity from 0 to 1 and a random generator to speech
of the same length."""


class DegradationError(MosrtError, RuntimeError):
    """A program that a degradation needs is not installed or failed."""


def add_noise(speech: Float32Array, noise: Float32Array, snr_db: float) -> Float32Array:
    """Returns speech (samples,) with noise (samples,) added at a signal-to-noise ratio."""
    speech_rms = float(np.sqrt(np.mean(np.square(speech, dtype=np.float64))))
    noise_rms = float(np.sqrt(np.mean(np.square(noise, dtype=np.float64))))
    gain = speech_rms / max(noise_rms, 1e-9) * 10 ** (-snr_db / 20)
    noisy: Float32Array = speech + np.float32(gain) * noise
    return noisy


def coloured_noise(n_samples: int, slope: float, rng: np.random.Generator) -> Float32Array:
    """Returns Gaussian noise (samples,) whose power falls as 1 / frequency ** slope."""
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    frequencies = np.maximum(np.arange(len(spectrum)), 1.0)
    noise = np.fft.irfft(spectrum / frequencies ** (slope / 2), n_samples)
    return np.asarray(noise / noise.std(), np.float32)


def reverberated(
    speech: Float32Array, decay_s: float, direct: float, rng: np.random.Generator
) -> Float32Array:
    """Returns speech in a room, modelled as exponentially decaying noise after the direct sound.

    Args:
        speech: Speech (samples,).
        decay_s: Reverberation time, in which the response falls by 60 dB.
        direct: Energy of the direct sound relative to that of the reverberation.
        rng: Source of the room impulse response.
    """
    delay_s, dullness = float(rng.uniform(0.001, 0.01)), float(rng.uniform(0.0, 0.6))
    length = int(decay_s * SAMPLE_RATE_HZ)
    time_s = np.arange(length) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(length) * 10 ** (-3 * time_s / decay_s)
    tail[: int(delay_s * SAMPLE_RATE_HZ)] = 0.0
    # Walls and air absorb high frequencies.
    tail = scipy.signal.lfilter([1.0, dullness], [1.0], tail)
    response = tail / np.sqrt(np.sum(np.square(tail)))
    response[0] = np.sqrt(direct)
    wet = scipy.signal.fftconvolve(speech, response)[: len(speech)]
    level = float(np.abs(speech).max()) / max(float(np.abs(wet).max()), 1e-6)
    return np.asarray(wet * level, np.float32)


def filtered(
    speech: Float32Array, order: int, cutoff_hz: float, kind: str = "lowpass"
) -> Float32Array:
    """Returns speech through a Butterworth filter."""
    sections = scipy.signal.butter(order, cutoff_hz, kind, fs=SAMPLE_RATE_HZ, output="sos")
    return np.asarray(scipy.signal.sosfilt(sections, speech), np.float32)


def _between(mild: float, severe: float, severity: float) -> float:
    return mild + (severe - mild) * severity


def _noise(slope: float, mild_db: float, severe_db: float) -> Degradation:
    """Returns a degradation by coloured noise, from one signal-to-noise ratio to another."""

    def degrade(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
        noise = coloured_noise(len(speech), slope, rng)
        return add_noise(speech, noise, _between(mild_db, severe_db, severity))

    return degrade


def _babble(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    # the speech itself, shifted, reversed and retuned: a crowd that needs no other recordings
    crowd = np.zeros(len(speech), np.float32)
    for _ in range(8):
        rate = float(rng.uniform(0.8, 1.25))
        voice = soxr.resample(speech[:: int(rng.choice([-1, 1]))].copy(), rate, 1.0, quality="LQ")
        crowd += np.resize(np.roll(voice, int(rng.integers(len(voice)))), len(speech))
    return add_noise(speech, crowd, _between(36, -3, severity))


def _hum(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    time_s = np.arange(len(speech)) / SAMPLE_RATE_HZ
    base_hz = float(rng.choice([50.0, 60.0, rng.uniform(100, 3000)]))
    hum = np.zeros(len(speech))
    for harmonic in range(1, 6):
        if (hum_hz := base_hz * harmonic) < SAMPLE_RATE_HZ / 2:
            gain, phase = rng.uniform(0.1, 1), rng.uniform(0, 6)
            hum += gain * np.sin(2 * np.pi * hum_hz * time_s + phase)
    return add_noise(speech, hum.astype(np.float32), _between(40, 0, severity))


def _filter(kind: str, orders: tuple[int, int], mild_hz: float, severe_hz: float) -> Degradation:
    """Returns a degradation by a filter of random order, from one cutoff to another."""

    def degrade(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
        order = int(rng.integers(*orders))
        return filtered(speech, order, mild_hz * (severe_hz / mild_hz) ** severity, kind)

    return degrade


def _clipping(speech: Float32Array, severity: float, _rng: np.random.Generator) -> Float32Array:
    limit = float(np.quantile(np.abs(speech), _between(0.998, 0.6, severity**0.7)))
    return np.clip(speech, -limit, limit)


def _reverberation(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    return reverberated(speech, _between(0.15, 1.3, severity), _between(12.0, 0.15, severity), rng)


def _dropouts(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    packet = int(rng.choice([160, 320, 640, 960]))
    lost = rng.random(len(speech) // packet + 1) < _between(0.01, 0.35, severity)
    lost[int(np.abs(speech).argmax()) // packet] = True  # at least one audible packet
    damaged = speech.copy()
    repeats = rng.random() < 0.3
    for i in np.flatnonzero(lost).tolist():
        where = slice(i * packet, (i + 1) * packet)
        previous = damaged[max(i - 1, 0) * packet : max(i, 1) * packet]
        damaged[where] = previous[: len(damaged[where])] if repeats and i else 0.0
    return damaged


def _resolution(speech: Float32Array, severity: float, _rng: np.random.Generator) -> Float32Array:
    step = 2.0 ** -_between(10, 3.5, severity) * float(np.abs(speech).max())
    return np.asarray(np.round(speech / step) * step, np.float32)


def _aliasing(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    factor = round(_between(2, 6, severity))
    held = np.repeat(speech[::factor], factor)[: len(speech)]
    share = np.float32(rng.uniform(0.3, 1.0))
    mixed: Float32Array = share * held + (1 - share) * speech
    return mixed


def _coded(
    speech: Float32Array, rate_hz: int, container: str, subtype: str, compression: float | None
) -> Float32Array:
    narrow = soxr.resample(speech, SAMPLE_RATE_HZ, rate_hz) if rate_hz != SAMPLE_RATE_HZ else speech
    file = io.BytesIO()
    samples = np.clip(narrow, -1, 1)
    sf.write(file, samples, rate_hz, subtype, format=container, compression_level=compression)
    file.seek(0)
    decoded, _ = sf.read(file, dtype="float32")
    wide = soxr.resample(decoded, rate_hz, SAMPLE_RATE_HZ) if rate_hz != SAMPLE_RATE_HZ else decoded
    return _aligned(speech, wide)


def _aligned(clean: Float32Array, delayed: Float32Array) -> Float32Array:
    """Returns `delayed` without the codec's delay, at most 0.2 s, at the length of `clean`."""
    size = 1 << (2 * len(clean)).bit_length()
    product = np.fft.rfft(delayed, size) * np.conj(np.fft.rfft(clean, size))
    correlation = np.fft.irfft(product, size)
    lag = int(np.argmax(correlation[: SAMPLE_RATE_HZ // 5]))
    aligned = np.zeros_like(clean)
    part = delayed[lag : lag + len(clean)]
    aligned[: len(part)] = part
    return aligned


def _lossy(
    container: str, subtype: str, rates_hz: list[int], mild: float, severe: float
) -> Degradation:
    """Returns a degradation by a codec, from one compression level to another."""

    def degrade(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
        rate_hz = 16_000 if severity < 0.6 else int(rng.choice(rates_hz))
        return _coded(speech, rate_hz, container, subtype, _between(mild, severe, severity))

    return degrade


def _telephone(speech: Float32Array, severity: float, _rng: np.random.Generator) -> Float32Array:
    kind = (("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("WAV", "GSM610"))[min(int(severity * 3), 2)]
    return _coded(speech, 8_000, *kind, None)


def _codec2(speech: Float32Array, severity: float, _rng: np.random.Generator) -> Float32Array:
    mode = ("3200", "2400", "1600", "1300", "1200", "700C")[min(int(severity * 6), 5)]
    narrow = soxr.resample(speech, SAMPLE_RATE_HZ, 8_000)
    coded = (np.clip(narrow, -1, 1) * 32767).astype("<i2").tobytes()
    try:
        for program in ("c2enc", "c2dec"):
            command = [program, mode, "-", "-"]
            coded = subprocess.run(  # noqa: S603
                command, input=coded, capture_output=True, check=True, timeout=60
            ).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        raise DegradationError(f"codec2 failed ({exc}); install the system package codec2") from exc
    decoded = np.frombuffer(coded, "<i2").astype(np.float32) / 32768
    return _aligned(speech, soxr.resample(decoded, 8_000, SAMPLE_RATE_HZ))


DEGRADATIONS: Final[Mapping[str, Degradation]] = {
    "white noise": _noise(0, 45, 0),
    "pink noise": _noise(1, 42, -3),
    "brown noise": _noise(2, 36, -9),
    "babble": _babble,
    "hum": _hum,
    "low-pass": _filter("lowpass", (4, 13), 7000, 900),
    "high-pass": _filter("highpass", (2, 7), 150, 1500),
    "clipping": _clipping,
    "reverberation": _reverberation,
    "dropouts": _dropouts,
    "resolution": _resolution,
    "aliasing": _aliasing,
    "MP3": _lossy("MP3", "MPEG_LAYER_III", [8_000, 11_025, 12_000, 16_000], 0.3, 0.99),
    "Opus": _lossy("OGG", "OPUS", [8_000, 12_000, 16_000], 0.88, 1.0),
    "low-rate Opus": _lossy("OGG", "OPUS", [12_000, 16_000], 0.965, 1.0),
    "telephone": _telephone,
    "codec2": _codec2,
}
