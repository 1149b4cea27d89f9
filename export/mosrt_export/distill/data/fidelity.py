"""Measures how close degraded speech is to its original."""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
import pesq

from mosrt._arrays import Float32Array, FloatArray

from .speech import SAMPLE_RATE_HZ

__all__ = ["fidelity", "log_spectral_distance_db"]

_PESQ_BEST: Final = 4.6439  # wide-band PESQ of a clip against itself, by P.862.2's mapping
_PESQ_SHARE: Final = 0.7
_SPEECH_RANGE_DB: Final = 50.0
_WORST_DISTANCE_DB: Final = 24.0
_N_FFT: Final = 512
_BANDS: Final = 32


def fidelity(clean: Float32Array, degraded: Float32Array) -> float:
    """Scores how close degraded speech is to the original, from 1 to 5.

    The score is the weighted mean of wide-band PESQ (ITU-T P.862.2) and the log-spectral distance.
    PESQ penalises missing bands less than listeners to synthetic speech do; the distance makes up
    for that.

    Args:
        clean: The original (samples,) at 16 kHz.
        degraded: The degraded version, of the same length and aligned with it.

    Returns:
        The score, or nan if PESQ finds no speech.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            score = float(pesq.pesq(SAMPLE_RATE_HZ, clean, degraded, "wb"))
    except (pesq.PesqError, ValueError):
        return float("nan")
    from_pesq = 1 + 4 * (score - 1) / (_PESQ_BEST - 1)
    distance_db = log_spectral_distance_db(clean, degraded)
    from_distance = 5 - 4 * min(distance_db / _WORST_DISTANCE_DB, 1.0)
    return float(np.clip(_PESQ_SHARE * from_pesq + (1 - _PESQ_SHARE) * from_distance, 1.0, 5.0))


def log_spectral_distance_db(clean: Float32Array, degraded: Float32Array) -> float:
    """Returns the root mean square difference of band levels in dB, over bands and frames.

    Bands are 250 Hz wide. Levels are relative to the peak of each clip, and at least -50 dB.
    """
    difference = _levels_db(clean) - _levels_db(degraded)
    return float(np.sqrt(np.mean(np.square(difference))))


def _levels_db(waveform: Float32Array) -> FloatArray:
    """Returns band levels relative to the peak, (frames, bands), from -50 to 0 dB."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, _N_FFT)[:: _N_FFT // 2]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(_N_FFT), axis=1)[:, 1:]))
    bands = power.reshape(len(power), _BANDS, -1).mean(axis=2)
    peak = max(float(np.quantile(bands, 0.999)), 1e-12)
    levels: FloatArray = 10 * np.log10(np.maximum(bands / peak, 1e-9))
    return np.clip(levels, -_SPEECH_RANGE_DB, 0.0)
