"""Front ends as torch modules, for graphs that read audio instead of features.

They compute the same numbers as `mosrt.mos.scorer`, with operators that both ONNX Runtime and
TensorRT have: Pad, Gather, Reshape, Transpose, MatMul and element-wise arithmetic. STFT and DFT are
not among them.

An FFT of N = N1·N2 points is computed as two matrix products. With sample n = n1·N2 + n2 and bin
k = k1 + N1·k2,

    X[k] = Σ_n2 exp(-2πi n2 k / N) Σ_n1 x[n1·N2 + n2] exp(-2πi n1 k1 / N1)

(J. W. Cooley and J. W. Tukey, "An Algorithm for the Machine Calculation of Complex Fourier Series",
Math. Comp. 19, 1965). The constants of the first product include the window, those of the second
include the phases n2·k1. The spectrum of real samples is conjugate-symmetric, so k1 runs only up to
N1 / 2.

For 1024 points this takes a sixteenth of the multiplications of one product with all bins. The sums
are also shorter, so that single precision is enough: constants are computed in double precision and
rounded once, and the error stays about 160 dB below the loudest bin.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mosrt._arrays import FloatArray, IntArray
from mosrt.bundle.front_end_spec import FRONT_END_SCOPE, MelSpec, SslSpec
from mosrt.bundle.manifest import Manifest, TensorSpec
from mosrt.mel.front_end import AMIN, resize_weights
from mosrt.mel.power import mel_filterbank

from .graph import BATCH, OnnxModule, tensor

__all__ = ["AudioGraph", "MelImages", "mel_tensor", "with_front_end"]

_WAVEFORM: Final = "waveform"
_IMAGES: Final = "images"
_CROPS: Final = "crops"


class AudioGraph(OnnxModule):
    """A network with its front end, so that the graph reads audio.

    Args:
        network: A module that reads "waveform" (normalised), "images", or both.
        ssl: Front end of its waveform branch, or None.
        mel: Front end of its spectrogram branch, or None.
        sample_rate_hz: Sample rate of the crops.

    Attributes:
        input_names: "waveform" (batch, crop_samples), not normalised, and "crops" (batch, n_crops,
            crop_samples), as far as the network needs them.
        output_sizes: Those of the network.
    """

    def __init__(
        self, network: OnnxModule, *, ssl: SslSpec | None, mel: MelSpec | None, sample_rate_hz: int
    ) -> None:
        super().__init__()
        self.network = network
        front_end = nn.ModuleDict()
        if ssl is not None:
            front_end[_WAVEFORM] = _Normalised(ssl.epsilon)
        if mel is not None:
            front_end[_IMAGES] = MelImages(mel, sample_rate_hz)
        # Calibration finds the nodes that must stay float32 by this name.
        self.add_module(FRONT_END_SCOPE, front_end)
        self.input_names = tuple(
            _CROPS if name == _IMAGES else name for name in network.input_names
        )
        self.output_sizes = network.output_sizes
        self.eval().requires_grad_(False)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors named by `input_names` -> tensors named by `output_sizes`."""
        front_end = self.get_submodule(FRONT_END_SCOPE)
        features = [
            front_end.get_submodule(name)(audio)
            for name, audio in zip(self.network.input_names, inputs, strict=True)
        ]
        outputs: tuple[torch.Tensor, ...] = self.network(*features)
        return outputs


class _Normalised(nn.Module):
    """Normalises waveforms (batch, samples) to zero mean and unit variance."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        centred = waveform - waveform.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        return centred / torch.sqrt(variance + self.epsilon)


def mel_tensor(mel: MelSpec, front_end: str) -> TensorSpec:
    """What the spectrogram branch reads: crops if the front end is "graph", images if "numpy"."""
    if front_end == "graph":
        return tensor(_CROPS, BATCH, mel.n_crops, mel.crop_samples)
    n_images = mel.n_crops * len(mel.windows)
    return tensor(_IMAGES, BATCH, n_images, mel.image_height, mel.image_width)


def with_front_end(manifest: Manifest, front_end: str) -> Manifest:
    """Converts a manifest to one of graphs with another of `FRONT_ENDS`."""
    mel, inputs = manifest.mel, manifest.inputs
    if mel is not None and manifest.front_end != front_end:
        read = mel_tensor(mel, front_end)
        inputs = tuple(read if spec.name == mel.tensor else spec for spec in inputs)
        mel = dataclasses.replace(mel, tensor=read.name)
    return dataclasses.replace(manifest, front_end=front_end, mel=mel, inputs=inputs)


class MelImages(nn.Module):
    """Log-mel images of crops, equal to those of `mosrt.mel.front_end.MelFrontEnd`."""

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
        # One window after the other, so that their spectra are not in memory together.
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
    """Crops (n, crop_samples) -> (k1, n * frames, re and im of n2), for one window length."""

    units: torch.Tensor
    first: torch.Tensor

    def __init__(self, spec: MelSpec, window: int) -> None:
        super().__init__()
        n1, n2 = _factors(spec.n_fft)
        self.rows, self.columns, self.n_k1 = -(-window // n2), n2, n1 // 2 + 1
        # Frames are gathered in units, the longest that divide both the hop and a row.
        self.unit = math.gcd(spec.hop_length, n2)
        before = spec.n_fft // 2 - (spec.n_fft - window) // 2
        end = before + spec.crop_samples
        read = (spec.n_frames - 1) * spec.hop_length + self.rows * n2
        self.n_units = -(-max(end, read) // self.unit)
        self.padding = (before, self.n_units * self.unit - end)
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
    # Index products are reduced modulo N1 first, which keeps the phases exact.
    angles = 2 * np.pi / n1 * (np.outer(rows, k1) % n1)
    constants: FloatArray = hann.T[:, :, None] * np.hstack([np.cos(angles), -np.sin(angles)])
    return constants


def _second(n1: int, n2: int) -> tuple[FloatArray, IntArray]:
    """Constants (k1, re and im of n2, re and im of k2), and the bin of each k1 and k2."""
    bins = np.arange(n1 // 2 + 1)[:, None] + n1 * np.arange(n2)
    n_fft = n1 * n2
    angles = 2 * np.pi / n_fft * (np.arange(n2)[:, None] * bins[:, None, :] % n_fft)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.block([[cos, -sin], [sin, cos]]), bins.reshape(-1)


def _by_bin(filters: FloatArray, bins: IntArray, n_fft: int) -> FloatArray:
    """Filters (n_mels, n_fft // 2 + 1) for a power spectrum with `bins`, (bins, n_mels).

    A bin above n_fft / 2 mirrors one below. Bins that occur twice are counted once.
    """
    mirrored = np.minimum(bins, n_fft - bins)
    _, once = np.unique(mirrored, return_index=True)
    found = np.zeros((len(bins), len(filters)))
    found[once] = filters[:, mirrored[once]].T
    return found


def _single(constants: FloatArray) -> torch.Tensor:
    return torch.from_numpy(constants.astype(np.float32))
