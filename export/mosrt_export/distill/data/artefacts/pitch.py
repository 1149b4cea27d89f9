"""Finds the pitch of speech, and changes its pitch and timing by overlapping pitch periods."""

from __future__ import annotations

import bisect
import functools
from typing import Final, TypeAlias

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray

from mosrt._arrays import Float32Array, FloatArray
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ

__all__ = ["PITCH_HOP", "BoolArray", "pitch_of", "pulses", "retimed", "wander"]

BoolArray: TypeAlias = NDArray[np.bool_]

PITCH_HOP: Final = 80
_FRAME: Final = 640
_LOWEST_HZ: Final = 65.0
_HIGHEST_HZ: Final = 420.0
_VOICED: Final = 0.45  # least correlation with the speech one period later
_UNVOICED_PERIOD: Final = 96
_MOST: Final = 512  # samples of a period and its neighbourhood


def pitch_of(speech: Float32Array) -> tuple[FloatArray, BoolArray]:
    """Returns pitch in Hz and whether there is one, both (frames,), every `PITCH_HOP` samples.

    It is the highest peak of the normalised autocorrelation. Pitch is interpolated where unvoiced.
    """
    n_frames = len(speech) // PITCH_HOP + 1
    padded = np.zeros((n_frames - 1) * PITCH_HOP + _FRAME, np.float32)
    padded[_FRAME // 2 : _FRAME // 2 + len(speech)] = speech[: len(padded) - _FRAME // 2]
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::PITCH_HOP]
    window = np.hanning(_FRAME).astype(np.float32)
    size = 1024
    power = np.square(np.abs(scipy.fft.rfft(frames * window, size)))
    correlation = scipy.fft.irfft(power, size)
    shape = scipy.fft.irfft(np.square(np.abs(scipy.fft.rfft(window, size))), size)
    first, last = int(SAMPLE_RATE_HZ / _HIGHEST_HZ), int(SAMPLE_RATE_HZ / _LOWEST_HZ)
    lags = np.arange(first, last)
    energy = correlation[:, :1] + 1e-9
    normal = correlation[:, lags] / energy * (shape[0] / shape[lags])
    normal = normal - np.float32(0.0004) * lags  # of equal peaks the first
    best = normal.argmax(axis=1)
    loud = energy[:, 0] > 1e-4 * energy.max()
    voiced = (normal[np.arange(n_frames), best] > _VOICED) & loud
    voiced = scipy.ndimage.binary_opening(voiced, np.ones(5))
    if not voiced.any():
        return np.full(n_frames, 120.0), voiced
    positions = np.flatnonzero(voiced)
    log_hz = np.log(SAMPLE_RATE_HZ / lags[best[positions]])
    log_hz = scipy.ndimage.median_filter(log_hz, 7)
    hz = np.exp(np.interp(np.arange(n_frames), positions, log_hz))
    return hz, voiced


def wander(n: int, smooth: float, rng: np.random.Generator) -> FloatArray:
    """Returns a random smooth curve (n,) with a maximum of 1 or a minimum of -1."""
    coarse = scipy.ndimage.gaussian_filter1d(rng.normal(0, 1, n), smooth)
    return np.asarray(coarse / (np.abs(coarse).max() + 1e-9), np.float64)


def pulses(pitch_hz: FloatArray, n_samples: int) -> Float32Array:
    """Returns pulses (n_samples,) of energy 1 a period, at a pitch every `PITCH_HOP` samples."""
    hz = np.interp(np.arange(n_samples), np.arange(len(pitch_hz)) * PITCH_HOP, pitch_hz)
    cycles = np.cumsum(hz / SAMPLE_RATE_HZ)
    at = np.flatnonzero(np.diff(np.floor(cycles), prepend=0.0))
    out = np.zeros(n_samples + 1, np.float32)
    late = (cycles[at] % 1.0) / (hz[at] / SAMPLE_RATE_HZ)  # samples since the pulse, 0 to 1
    gain = np.sqrt(SAMPLE_RATE_HZ / hz[at])
    np.add.at(out, at, (gain * (1 - late)).astype(np.float32))
    np.add.at(out, np.maximum(at - 1, 0), (gain * late).astype(np.float32))
    return out[:n_samples]


def retimed(
    speech: Float32Array,
    pitch_ratio: FloatArray,
    source: FloatArray | None = None,
) -> Float32Array:
    """Returns speech with another pitch or timing (TD-PSOLA; Moulines and Charpentier, 1990).

    Args:
        speech: Speech (samples,).
        pitch_ratio: New pitch relative to the old (frames,), every `PITCH_HOP` samples.
        source: For each `PITCH_HOP` samples of the result, which sample of `speech` is there; None
            keeps the timing.
    """
    hz, voiced = pitch_of(speech)
    marks = _marks(speech, hz, voiced)
    n, last, at, number = len(speech), len(hz) - 1, 0.0, 0
    if source is None:
        source = np.arange(len(hz), dtype=np.float64) * PITCH_HOP
    out, weight = np.zeros(n + 2 * _MOST, np.float32), np.zeros(n + 2 * _MOST, np.float32)
    padded = np.pad(speech, _MOST)
    while at < n:
        frame = min(int(at / PITCH_HOP), len(source) - 1)
        wanted = min(max(source[frame] + at - frame * PITCH_HOP, 0.0), n - 1.0)
        number = min(max(bisect.bisect(marks, wanted), 1), len(marks) - 2)
        if wanted - marks[number - 1] < marks[number] - wanted and number > 1:
            number -= 1
        mark = marks[number]
        before, after = mark - marks[number - 1], marks[number + 1] - mark
        begin = round(at) + _MOST - before
        window = _grain_window(before, after)
        out[begin : begin + before + after] += (
            window * padded[mark + _MOST - before : mark + _MOST + after]
        )
        weight[begin : begin + before + after] += window
        where = min(mark // PITCH_HOP, last)
        ratio = pitch_ratio[min(where, len(pitch_ratio) - 1)] if voiced[where] else 1.0
        at += max(after / ratio, 20.0)
    # Where periods are closer than they were, they would add up to louder speech.
    return np.asarray(out / np.maximum(weight, 1.0), np.float32)[_MOST : _MOST + n]


@functools.lru_cache(4096)
def _grain_window(before: int, after: int) -> Float32Array:
    """Returns two halves of Hann windows, which add up to 1 with those of the neighbours."""
    rise = 0.5 - 0.5 * np.cos(np.pi * np.arange(before) / before)
    fall = 0.5 + 0.5 * np.cos(np.pi * np.arange(after) / after)
    return np.concatenate([rise, fall]).astype(np.float32)


def _marks(speech: Float32Array, hz: FloatArray, voiced: BoolArray) -> list[int]:
    """Returns the samples that pitch periods are centred on: peaks, where there is a pitch."""
    marks, at, n = [0], 0, len(speech)
    steps = np.where(voiced, SAMPLE_RATE_HZ / hz, _UNVOICED_PERIOD).tolist()
    flags = voiced.tolist()
    while at < n - 1:
        frame = min(at // PITCH_HOP, len(steps) - 1)
        step = steps[frame]
        if flags[frame]:
            begin, end = at + int(0.8 * step), at + int(1.2 * step) + 1
            part = speech[begin:end]
            at = begin + int(part.argmax()) if len(part) else n - 1
        else:
            at += int(step)
        marks.append(min(at, n - 1))
    return [*marks, marks[-1] + _UNVOICED_PERIOD, marks[-1] + 2 * _UNVOICED_PERIOD]
