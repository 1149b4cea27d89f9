"""Computes mel filter banks on Slaney's mel scale."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["mel_filterbank"]

# Slaney's Auditory Toolbox (Interval Research TR 1998-010): linear below 1 kHz, with 200/3 Hz per
# mel; logarithmic above, with 27 mels per factor of 6.4.
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def mel_filterbank(
    *, sample_rate_hz: int, n_fft: int, n_mels: int, f_min_hz: float, f_max_hz: float
) -> npt.NDArray[np.float64]:
    """Triangular filters, each of unit area in Hz, on the bins of an `n_fft`-point power spectrum.

    Args:
        sample_rate_hz: Sampling rate.
        n_fft: FFT size in samples.
        n_mels: Number of filters, evenly spaced in mels from `f_min_hz` to `f_max_hz`.
        f_min_hz: Lower edge of the first filter.
        f_max_hz: Upper edge of the last filter.

    Returns:
        Weights (n_mels, n_fft // 2 + 1) float64, non-negative.
    """
    bins_hz = np.arange(n_fft // 2 + 1) * (sample_rate_hz / n_fft)
    edges_mel = np.linspace(_mel(f_min_hz), _mel(f_max_hz), n_mels + 2)
    edges_hz = _hz(edges_mel)
    widths_hz = np.diff(edges_hz)
    offsets_hz = edges_hz[:, None] - bins_hz
    rising = -offsets_hz[:-2] / widths_hz[:-1, None]
    falling = offsets_hz[2:] / widths_hz[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    area = 2.0 / (edges_hz[2:] - edges_hz[:-2])
    weights: npt.NDArray[np.float64] = triangles * area[:, None]
    return weights


def _mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _LINEAR_HZ_PER_MEL
    return float(_BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def _hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    linear = mel * _LINEAR_HZ_PER_MEL
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, linear, logarithmic)
