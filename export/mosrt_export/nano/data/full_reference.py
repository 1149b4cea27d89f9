"""Full reference: how far a clip is from the clean original it was made from."""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
import pesq
from numpy.typing import NDArray

from mosrt._arrays import Float32Array

__all__ = ["fidelity", "log_spectral_distance_db"]


SAMPLE_RATE_HZ: Final = 16_000
_PESQ_BEST: Final = 4.6439  # PESQ wide-band of a clip against itself (P.862.2's mapping)
_PESQ_SHARE: Final = 0.7
_SPEECH_RANGE_DB: Final = 50.0
_WORST_DISTANCE_DB: Final = 24.0
_N_FFT: Final = 512
_BANDS: Final = 32


def fidelity(clean: Float32Array, degraded: Float32Array) -> float:
    """A score from 1 to 5: wide-band PESQ, blended with the log-spectral distance.

    PESQ (ITU-T P.862.2) hears what telephone listeners hear, but forgives missing bands that a
    listener to synthetic speech notices; the distance does not.

    Args:
        clean: The original, (samples,) at 16 kHz.
        degraded: What was made from it, of the same length and aligned with it.

    Returns:
        nan where PESQ finds no speech.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            score = float(pesq.pesq(SAMPLE_RATE_HZ, clean, degraded, "wb"))
    except (pesq.PesqError, ValueError):
        return float("nan")
    heard = 1 + 4 * (score - 1) / (_PESQ_BEST - 1)
    distance = log_spectral_distance_db(clean, degraded)
    seen = 5 - 4 * min(distance / _WORST_DISTANCE_DB, 1.0)
    return float(np.clip(_PESQ_SHARE * heard + (1 - _PESQ_SHARE) * seen, 1.0, 5.0))


def log_spectral_distance_db(clean: Float32Array, degraded: Float32Array) -> float:
    """Root mean square difference in dB of band levels, over bands and frames.

    Levels are equalised over the whole clip first, bands are 250 Hz wide, and what lies more than
    50 dB below a clip's peak counts as silence.
    """
    difference = _levels_db(clean) - _levels_db(degraded)
    return float(np.sqrt(np.mean(np.square(difference))))


def _levels_db(waveform: Float32Array) -> NDArray[np.float64]:
    """Band levels relative to the peak, (frames, bands), from -50 to 0."""
    frames = np.lib.stride_tricks.sliding_window_view(waveform, _N_FFT)[:: _N_FFT // 2]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(_N_FFT), axis=1)[:, 1:]))
    bands = power.reshape(len(power), _BANDS, -1).mean(axis=2)
    peak = max(float(np.quantile(bands, 0.999)), 1e-12)
    levels: NDArray[np.float64] = 10 * np.log10(np.maximum(bands / peak, 1e-9))
    return np.clip(levels, -_SPEECH_RANGE_DB, 0.0)
