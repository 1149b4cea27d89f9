"""Mel images as a torch module of plain matrix products, for graphs that take audio.

The same numbers as `mosrt.mel.front_end`, by operators that ONNX Runtime and TensorRT
both have: Pad, Gather, Reshape, Transpose, MatMul and element-wise arithmetic. STFT and DFT are
not among them.

A transform of N = N1·N2 points is two products. With sample n = n1·N2 + n2 and bin k = k1 + N1·k2,

    X[k] = Σ_n2 exp(-2πi n2 k / N) Σ_n1 x[n1·N2 + n2] exp(-2πi n1 k1 / N1),

which is J. W. Cooley and J. W. Tukey's step ("An Algorithm for the Machine Calculation of Complex
Fourier Series", Math. Comp. 19, 1965). The window is part of the first product's constants, the
phases n2·k1 are part of the second's, so that nothing is left to do in between. The spectrum of
real samples repeats, conjugated: k1 up to N1 / 2 is enough.

For 1024 points that is a sixteenth of the multiplications of one product with all bins. The sums
are shorter as well, which is what lets single precision do: constants are rounded from double once,
and the error stays some 160 dB below the loudest bin.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from mosrt._arrays import FloatArray
from mosrt.bundle.front_end_spec import MelSpec
from mosrt.mel.filterbank import mel_filterbank
from mosrt.mel.front_end import AMIN, resize_weights

__all__ = ["MelImages"]


class MelImages(nn.Module):
    """Log-mel images of crops, as `mosrt.mel.front_end.MelFrontEnd` makes them.

    Args:
        spec: Geometry.
        sample_rate_hz: Rate of the crops.
    """

    second: torch.Tensor
    filters: torch.Tensor
    resize: torch.Tensor | None

    def __init__(self, spec: MelSpec, sample_rate_hz: int) -> None:
        super().__init__()
        self.spec = spec
        filters = mel_filterbank(
            sample_rate_hz=sample_rate_hz,
            n_fft=spec.n_fft,
            n_mels=spec.n_mels,
            f_min_hz=spec.f_min_hz,
            f_max_hz=spec.f_max_hz,
        )
        self.windows = nn.ModuleList([_FirstProduct(spec, window) for window in spec.windows])
        second, bins = _second(*_factors(spec.n_fft))
        self.register_buffer("second", _single(second))
        self.register_buffer("filters", _single(_by_bin(filters, bins, spec.n_fft)))
        resized = spec.n_frames != spec.image_width
        resize = resize_weights(spec.n_frames, spec.image_width) if resized else None
        self.register_buffer("resize", None if resize is None else _single(resize))

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Images of crops.

        Args:
            crops: (batch, n_crops, crop_samples) float32 in [-1, 1].

        Returns:
            (batch, n_crops * windows, image_height, image_width) float32 in [0, 1]; crop-major,
            then window.
        """
        spec = self.spec
        single = crops.reshape(-1, spec.crop_samples)
        # One window after the other: their spectra need not be in memory together.
        images = torch.stack([self._image(window(single)) for window in self.windows], dim=1)
        n_images = spec.n_crops * len(spec.windows)
        return images.reshape(-1, n_images, spec.image_height, spec.image_width)

    def _image(self, parts: torch.Tensor) -> torch.Tensor:
        """First products (k1, n * frames, re and im of n2) -> images (n, n_mels, image_width)."""
        spectrum = parts @ self.second
        n_k1, n2 = spectrum.shape[0], spectrum.shape[2] // 2
        re, im = spectrum[:, :, :n2], spectrum[:, :, n2:]
        power = (re * re + im * im).permute(1, 0, 2).reshape(-1, n_k1 * n2)
        mel = (power @ self.filters).reshape(-1, self.spec.n_frames, self.spec.n_mels)
        image = self._normalised_db(mel).transpose(1, 2)
        return image if self.resize is None else image @ self.resize

    def _normalised_db(self, mel: torch.Tensor) -> torch.Tensor:
        """1 + (dB below the crop's maximum) / floor_db, at least 0."""
        floor_db = self.spec.floor_db
        peak = mel.amax(dim=(1, 2), keepdim=True).clamp(min=AMIN)
        floor = (peak * 10 ** (-floor_db / 10)).clamp(min=AMIN)
        below = torch.log(torch.maximum(mel, floor)) - torch.log(peak)
        return below * (10 / math.log(10) / floor_db) + 1.0


class _FirstProduct(nn.Module):
    """Crops (n, crop_samples) -> (k1, n * frames, re and im of n2), windowed by one length."""

    units: torch.Tensor
    first: torch.Tensor

    def __init__(self, spec: MelSpec, window: int) -> None:
        super().__init__()
        n1, n2 = _factors(spec.n_fft)
        self.rows, self.columns, self.n_k1 = -(-window // n2), n2, n1 // 2 + 1
        # Frames are gathered in units, the longest that divide both the hop and a row.
        self.unit = math.gcd(spec.hop_length, n2)
        before = spec.n_fft // 2 - (spec.n_fft - window) // 2
        heard = before + spec.crop_samples
        read = (spec.n_frames - 1) * spec.hop_length + self.rows * n2
        self.n_units = -(-max(heard, read) // self.unit)
        self.padding = (before, self.n_units * self.unit - heard)
        starts = np.arange(spec.n_frames) * (spec.hop_length // self.unit)
        units = starts[:, None] + np.arange(self.rows * n2 // self.unit)
        self.register_buffer("units", torch.from_numpy(units.reshape(-1)))
        self.register_buffer("first", _single(_first(n1, n2, window)))

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(crops, self.padding).reshape(-1, self.n_units, self.unit)
        frames = padded.index_select(1, self.units).reshape(-1, self.rows, self.columns)
        parts = (frames.permute(2, 0, 1) @ self.first).reshape(self.columns, -1, 2, self.n_k1)
        return parts.permute(3, 1, 2, 0).reshape(self.n_k1, -1, 2 * self.columns)


def _factors(n_fft: int) -> tuple[int, int]:
    """Two factors of `n_fft`, the second the largest that is no larger than the first."""
    n2 = next(size for size in range(math.isqrt(n_fft), 0, -1) if n_fft % size == 0)
    return n_fft // n2, n2


def _first(n1: int, n2: int, window: int) -> FloatArray:
    """Constants (n2, rows, re and im of k1), with the periodic Hann window of `window` samples."""
    rows = np.arange(-(-window // n2))
    k1 = np.arange(n1 // 2 + 1)
    n = rows[:, None] * n2 + np.arange(n2)
    hann = np.where(n < window, 0.5 - 0.5 * np.cos(2 * np.pi / window * n), 0.0)
    # Products of indices are reduced before they become angles, which keeps phases exact.
    angles = 2 * np.pi / n1 * (np.outer(rows, k1) % n1)
    constants: FloatArray = hann.T[:, :, None] * np.hstack([np.cos(angles), -np.sin(angles)])
    return constants


def _second(n1: int, n2: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """Constants (k1, re and im of n2, re and im of k2), and the bin of each k1 and k2."""
    bins = np.arange(n1 // 2 + 1)[:, None] + n1 * np.arange(n2)
    n_fft = n1 * n2
    angles = 2 * np.pi / n_fft * (np.arange(n2)[:, None] * bins[:, None, :] % n_fft)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.block([[cos, -sin], [sin, cos]]), bins.reshape(-1)


def _by_bin(filters: FloatArray, bins: NDArray[np.int64], n_fft: int) -> FloatArray:
    """Filters (n_mels, n_fft // 2 + 1) for a power spectrum with `bins`, (bins, n_mels).

    A bin over n_fft / 2 is the mirror image of one below. Some come twice and count once.
    """
    mirrored = np.minimum(bins, n_fft - bins)
    _, once = np.unique(mirrored, return_index=True)
    found = np.zeros((len(bins), len(filters)))
    found[once] = filters[:, mirrored[once]].T
    return found


def _single(constants: FloatArray) -> torch.Tensor:
    return torch.from_numpy(constants.astype(np.float32))
