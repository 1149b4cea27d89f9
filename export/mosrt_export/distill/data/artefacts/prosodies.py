"""Gives speech the wrong melody or timing, at the sound quality that it has."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final

import numpy as np
import scipy.ndimage
import soxr

from mosrt._arrays import Float32Array
from mosrt_export.distill.data.degradations import Degradation
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ

from .pitch import PITCH_HOP, pitch_of, retimed, wander

__all__ = ["PROSODIES"]

_FADE: Final = 80


def _flat_pitch(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Reduces the melody up to a monotone, often at a wrong height."""
    hz, voiced = pitch_of(speech)
    if not voiced.any():
        return speech * np.float32(0.99)
    mean = float(np.log(hz[voiced]).mean())
    keep = max(0.0, 0.9 - severity)
    height = float(rng.normal(0, 0.12)) * severity
    return retimed(speech, np.exp((keep - 1) * (np.log(hz) - mean) + height))


def _wrong_pitch(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Adds a melody that has nothing to do with the sentence: slow, trembling, or in steps."""
    n = len(speech) // PITCH_HOP + 1
    depth = 0.06 + 0.5 * severity
    kind = int(rng.integers(3))
    if kind == 0:
        melody = wander(n, float(rng.uniform(10, 40)), rng)
    elif kind == 1:
        melody = wander(n, float(rng.uniform(1.5, 5)), rng) * 0.6
    else:
        melody = np.repeat(rng.uniform(-1, 1, n), rng.integers(8, 50, n))[:n]
    return retimed(speech, np.exp(depth * melody))


def _octave_jumps(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Doubles or halves the pitch for moments, as errors of a pitch tracker do."""
    n = len(speech) // PITCH_HOP + 1
    share = 0.02 + 0.35 * severity
    lengths = rng.integers(4, 24, n)
    jumps = np.repeat(rng.random(n) < share, lengths)[:n]
    jumps[n // 3 : n // 3 + 8] = True  # at least one
    ratio = np.repeat(rng.choice([0.5, 0.5, 2.0, 1.5], n), lengths)[:n]
    return retimed(speech, np.where(jumps, ratio, 1.0))


def _uneven_tempo(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Hurries and drags, as wrong durations of sounds do."""
    n = len(speech) // PITCH_HOP + 1
    spread = 0.12 + 0.75 * severity
    if rng.random() < 0.5:
        log_rate = np.repeat(rng.normal(0, spread, n), rng.integers(8, 40, n))[:n]
    else:
        log_rate = 2 * spread * wander(n, float(rng.uniform(6, 30)), rng)
    rate = np.exp(log_rate - log_rate.mean())
    source = np.cumsum(rate)
    source *= (n - 1) * PITCH_HOP / source[-1]
    return retimed(speech, np.ones(n), source)


def _joined(parts: list[Float32Array], n_samples: int, fade: int = _FADE) -> Float32Array:
    """Returns parts one after the other, cross-faded, cut or filled with zeros to a length."""
    out = np.zeros(n_samples + fade, np.float32)
    slope = np.linspace(0, 1, fade, dtype=np.float32)
    at = 0
    for part in parts:
        if len(part) < 2 * fade:
            continue
        shaped = part.copy()
        if at:
            shaped[:fade] *= slope
        shaped[-fade:] *= slope[::-1]
        shaped = shaped[: len(out) - at]
        out[at : at + len(shaped)] += shaped
        at += len(shaped) - fade
        if at >= n_samples:
            break
    return out[:n_samples]


def _cuts(speech: Float32Array, count: int, rng: np.random.Generator) -> list[int]:
    """Returns random samples, in order, where the speech is louder than its pauses."""
    level = scipy.ndimage.uniform_filter1d(np.abs(speech), 800)
    loud = np.flatnonzero(level > 0.3 * level.mean())
    if len(loud) < count:
        loud = np.arange(len(speech))
    return sorted(rng.choice(loud, count).tolist())


def _pauses(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Stops in the middle of words and phrases."""
    count = 1 + round(7 * severity)
    bounds = [0, *_cuts(speech, count, rng), len(speech)]
    parts = []
    for begin, end in itertools.pairwise(bounds):
        length = int(rng.uniform(0.08, 0.2 + 0.25 * severity) * SAMPLE_RATE_HZ)
        noise = rng.normal(0, 1e-4 * rng.random(), length).astype(np.float32)
        parts += [speech[begin:end], noise]
    return _joined(parts[:-1], len(speech))


def _sound_errors(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Cuts, repeats, stretches and exchanges sounds of 50 to 160 ms."""
    count = 1 + round(13 * severity)
    parts, at = [], 0
    for cut in _cuts(speech, count, rng):
        if cut <= at:
            continue
        length = int(rng.uniform(0.05, 0.16) * SAMPLE_RATE_HZ)
        parts.append(speech[at:cut])
        sound = speech[cut : cut + length]
        kind = int(rng.integers(4))
        at = cut + length
        if kind == 0:
            continue
        if kind == 1:
            parts += [sound] * int(rng.integers(2, 4))
        elif kind == 2 and len(sound) > 1000:
            longer = float(rng.uniform(1.6, 3.0))
            n = int(len(sound) * longer)
            source = np.linspace(0, len(sound) - 1, n // PITCH_HOP + 1)
            long = np.zeros(n, np.float32)
            long[: len(sound)] = sound
            parts.append(retimed(long, np.ones(len(source)), source))
        else:
            other = int(rng.integers(max(1, len(speech) - length)))
            parts.append(speech[other : other + length])
    parts.append(speech[at:])
    return _joined(parts, len(speech))


def _units(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    """Joins units whose level, tone and pitch do not match."""
    parts, at = [], 0
    while at < len(speech):
        length = int(rng.uniform(0.08, 0.4) * SAMPLE_RATE_HZ)
        unit = speech[at : at + length]
        at += length
        gain = 10 ** (rng.normal(0, 1 + 4 * severity) / 20)
        tilt = np.float32(rng.uniform(-0.75, 0.75) * severity)
        toned = unit.copy()
        toned[1:] -= tilt * unit[:-1]
        ratio = float(np.exp(rng.normal(0, 0.01 + 0.1 * severity)))
        if len(toned) > 400:
            toned = soxr.resample(toned, ratio, 1.0, quality="LQ")
        parts.append(np.asarray(toned * gain / (1 + abs(tilt) * 0.3), np.float32))
    return _joined(parts, len(speech), round(80 - 64 * severity))


PROSODIES: Final[Mapping[str, Degradation]] = {
    "flat pitch": _flat_pitch,
    "wrong pitch": _wrong_pitch,
    "octave jumps": _octave_jumps,
    "uneven tempo": _uneven_tempo,
    "misplaced pauses": _pauses,
    "sound errors": _sound_errors,
    "unit concatenation": _units,
}
