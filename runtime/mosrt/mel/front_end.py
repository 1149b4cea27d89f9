"""Computes the log-mel images of a crop with NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from mosrt._arrays import Float32Array
from mosrt.bundle.front_end_spec import MelSpec

from .power import mel_power

__all__ = ["AMIN", "MelFrontEnd", "resize_weights"]

AMIN: Final = 1e-10  # librosa.power_to_db: power below this is silence
_RESIZE_COLUMNS: Final = 32
_RESIZE_ROWS: Final = 128


class MelFrontEnd:
    """Computes log-mel images for the spectrogram branch: in dB, normalised, resized along time.

    An instance holds only constants, so several threads may use it at once. It starts no threads.

    Args:
        spec: Geometry of the images, from the manifest.
        sample_rate_hz: Sampling rate of the crops.
    """

    def __init__(self, spec: MelSpec, sample_rate_hz: int) -> None:
        self._spec = spec
        self._power = mel_power(spec, sample_rate_hz)
        self._segments = _resize_segments(spec.n_frames, spec.image_width)

    def spectrograms(
        self, crop: Float32Array, windows: Iterable[int] | None = None
    ) -> dict[int, Float32Array]:
        """Normalised log-mel spectrograms of a crop, before the resize.

        Args:
            crop: Samples (crop_samples,) float32 in [-1, 1].
            windows: Window lengths to compute; by default all of the spec's.

        Returns:
            For each window length an array (n_mels, frames) float32, from 1 at the spectrogram's
            own maximum to 0 at `floor_db` below it or lower, within rounding.

        Raises:
            ValueError: The crop's length is not the spec's.
        """
        if crop.shape != (self._spec.crop_samples,):
            raise ValueError(f"crop must have shape ({self._spec.crop_samples},), not {crop.shape}")
        wanted = self._spec.windows if windows is None else tuple(windows)
        power = self._power(np.asarray(crop, np.float32), wanted)
        return {window: _normalised_db(power[window], self._spec.floor_db) for window in wanted}

    def images(
        self, crop: Float32Array, windows: Iterable[int] | None = None
    ) -> dict[int, Float32Array]:
        """The log-mel images of a crop: its `spectrograms`, resized along time.

        Returns:
            For each window length an image (image_height, image_width) float32 in [0, 1].
        """
        spectrograms = self.spectrograms(crop, windows)
        return {window: self._resize(rows) for window, rows in spectrograms.items()}

    def _resize(self, spectrogram: Float32Array) -> Float32Array:
        """Resizes (n_mels, frames) along time to (n_mels, image_width), if they differ."""
        if self._spec.n_frames == self._spec.image_width:
            return spectrogram
        n_mels = len(spectrogram)
        image = np.empty((n_mels, self._spec.image_width), np.float32)
        rows = _RESIZE_ROWS if n_mels % _RESIZE_ROWS == 0 else n_mels
        for frames, columns, weights in self._segments:
            part = spectrogram[:, frames].reshape(-1, rows, len(weights))
            np.matmul(part, weights, out=image[:, columns].reshape(-1, rows, weights.shape[1]))
        return image


def _normalised_db(power: Float32Array, floor_db: float) -> Float32Array:
    """1 + (dB relative to the maximum) / floor_db, at least 0; overwrites `power`."""
    peak = max(float(power.max()), AMIN)
    np.maximum(power, np.float32(max(peak * 10 ** (-floor_db / 10), AMIN)), out=power)
    np.log10(power, out=power)
    scale = 10 / floor_db
    power *= np.float32(scale)
    power += np.float32(1 - scale * math.log10(peak))
    return power


def resize_weights(n_in: int, n_out: int) -> npt.NDArray[np.float64]:
    """Antialiased bilinear resize of `n_in` samples to `n_out`, as a matrix (n_in, n_out).

    Output i is centred at (i + 1/2) · n_in / n_out. Its triangular kernel is widened by the factor
    n_in / n_out when shrinking, cut at the ends and normalised to the sum 1. Pillow, and torch with
    antialias=True, use the same definition.
    """
    scale = n_in / n_out
    support = max(scale, 1.0)
    centres = (np.arange(n_out) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), n_in)
    positions = np.arange(n_in)[:, None]
    kernel = np.maximum(0.0, 1.0 - np.abs(positions + 0.5 - centres) / support)
    kernel *= (positions >= first) & (positions < last)
    weights: npt.NDArray[np.float64] = kernel / kernel.sum(axis=0)
    return weights


def _resize_segments(n_in: int, n_out: int) -> list[tuple[slice, slice, Float32Array]]:
    """Splits the resize into small dense products: input range, output range, weights."""
    weights = resize_weights(n_in, n_out).astype(np.float32)
    segments = []
    for first in range(0, n_out, _RESIZE_COLUMNS):
        columns = slice(first, min(first + _RESIZE_COLUMNS, n_out))
        used = np.flatnonzero(weights[:, columns].any(axis=1))
        frames = slice(int(used[0]), int(used[-1]) + 1)
        segments.append((frames, columns, np.ascontiguousarray(weights[frames, columns])))
    return segments
