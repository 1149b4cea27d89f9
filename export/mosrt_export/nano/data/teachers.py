"""Computes labels of training clips: scores of published models, and full-reference fidelity."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pesq
import torch
from torch import nn

from mosrt._arrays import Float32Array, FloatArray
from mosrt.errors import MosrtError

from .dnsmos import DnsmosP808, DnsmosP835
from .voices import SAMPLE_RATE_HZ

__all__ = [
    "DnsmosP808",
    "DnsmosP835",
    "DnsmosPro",
    "TeacherError",
    "fidelity",
    "log_spectral_distance_db",
]


class TeacherError(MosrtError, ValueError):
    """A teacher's file cannot be used."""


class DnsmosPro:
    """DNSMOS Pro (Cumlin et al., Interspeech 2024; MIT).

    Its scores depend on level, so that the level is set to -26 dBFS RMS first.

    Args:
        path: The published TorchScript file.
        reduced: Whether convolutions run in bfloat16. This is several times faster on processors
            that support it, and changes scores by about 0.01.

    Raises:
        TeacherError: The file is not a DNSMOS Pro model.
    """

    _LEVEL_DB: Final = -26.0
    _N_FFT: Final = 320
    _HOP: Final = 160
    _LENGTH: Final = 160_000  # trained on 10 s

    def __init__(self, path: Path, *, reduced: bool = False) -> None:
        try:
            published = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
            self._convolutions = _folded(published.state_dict())
            self._head = published._head
        except (AttributeError, KeyError, ValueError, RuntimeError) as exc:
            raise TeacherError(f"{path}: not a DNSMOS Pro model ({exc})") from exc
        self._reduced = reduced
        self._window = np.hanning(self._N_FFT + 1)[:-1].astype(np.float32)

    def __call__(self, waveform: Float32Array) -> float:
        """Returns the mean of the predicted MOS distribution of a waveform (samples,) at 16 kHz."""
        rms = max(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))), 1e-9)
        levelled = waveform * np.float32(10 ** (self._LEVEL_DB / 20) / rms)
        # The published script repeats clips up to 10 s. Because of the maximum pooling this changes
        # scores of 5 s clips by 0.2 at most, and takes twice as long.
        padded = np.pad(levelled[: self._LENGTH], self._N_FFT // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self._N_FFT)[:: self._HOP]
        magnitude = np.abs(np.fft.rfft(frames * self._window, axis=1))
        spectrum = np.log10(np.clip(magnitude, 1e-7, 1e7)).astype(np.float32)
        with torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16, enabled=self._reduced):
                maps = self._convolutions(torch.from_numpy(spectrum)[None, None])
            return float(self._head(maps.amax((2, 3)).float())[0, 0]) * 2 + 3


def _folded(state: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """Returns the convolutions of DNSMOS Pro with batch norm folded in: several times faster."""
    layers: list[nn.Module] = []
    for i in range(4):
        prefix = f"_encoder.encoder.{i}."
        weight, bias = state[f"{prefix}0.weight"], state[f"{prefix}0.bias"]
        gain, shift, mean, variance = (
            state[f"{prefix}1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / torch.sqrt(variance + 1e-5)
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        layer.weight.data = weight * scale[:, None, None, None]
        layer.bias = nn.Parameter((bias - mean) * scale + shift)
        layers += [layer, nn.ReLU()]
        if i == 1:
            layers.append(nn.MaxPool2d(3))
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


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
