"""Teachers: published quality models whose scores the embedded model learns to predict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import torch
from librosa.filters import mel as mel_filters
from numpy.typing import NDArray
from torch import nn

from mosrt.errors import MosrtError

__all__ = ["DnsmosP808", "DnsmosP835", "DnsmosPro", "TeacherError"]

Float32Array = NDArray[np.float32]

SAMPLE_RATE_HZ: Final = 16_000
_WINDOW_SAMPLES: Final = 144_160  # 9.01 s, what both DNSMOS models hear at once
_MEL_N_FFT: Final = 321
_P835_TO_OVRL: Final = (-0.06766283, 1.11546468, 0.04602535)  # DNS-Challenge, dnsmos_local.py


class TeacherError(MosrtError):
    """A teacher's file that cannot be used."""


class DnsmosPro:
    """DNSMOS Pro (Cumlin et al., Interspeech 2024; MIT), which depends on level.

    The level is set to -26 dBFS RMS here, as it has to be for scores to compare.

    Args:
        path: The published TorchScript file.
        reduced: Whether convolutions may run in bfloat16: several times faster where the
            processor has such units, and scores differ by about 0.01.
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
        """The mean of the predicted MOS of a waveform (samples,) at 16 kHz."""
        rms = max(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))), 1e-9)
        levelled = waveform * np.float32(10 ** (self._LEVEL_DB / 20) / rms)
        # Published practice repeats a clip up to 10 s. Pooling by the maximum, the model hears
        # little else then (0.2 at most on clips of 5 s), and takes twice as long.
        padded = np.pad(levelled[: self._LENGTH], self._N_FFT // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self._N_FFT)[:: self._HOP]
        magnitude = np.abs(np.fft.rfft(frames * self._window, axis=1))
        spectrum = np.log10(np.clip(magnitude, 1e-7, 1e7)).astype(np.float32)
        with torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16, enabled=self._reduced):
                maps = self._convolutions(torch.from_numpy(spectrum)[None, None])
            return float(self._head(maps.amax((2, 3)).float())[0, 0]) * 2 + 3


def _folded(state: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """The convolutions of DNSMOS Pro with batch norm folded in, which run several times faster."""
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


class _Dnsmos:
    """What both DNSMOS models share: 9.01 s windows, hop 1 s, mean over windows."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:
            raise TeacherError(f"{path}: not a DNSMOS model ({exc})") from exc
        self._input = self._session.get_inputs()[0].name

    def _windows(self, waveform: Float32Array) -> list[Float32Array]:
        while len(waveform) < _WINDOW_SAMPLES:
            waveform = np.concatenate([waveform, waveform])
        # as the published script counts, which drops a last window that would still fit
        count = int(len(waveform) // SAMPLE_RATE_HZ - 9.01) + 1
        return [
            waveform[i * SAMPLE_RATE_HZ : i * SAMPLE_RATE_HZ + _WINDOW_SAMPLES]
            for i in range(count)
        ]

    def _run(self, feed: Float32Array) -> NDArray[np.float32]:
        (output,) = self._session.run(None, {self._input: feed.astype(np.float32)})
        row: NDArray[np.float32] = output[0]
        return row


class DnsmosP808(_Dnsmos):
    """DNSMOS P.808 (Reddy et al., ICASSP 2021; CC-BY-4.0, code MIT); independent of level.

    Args:
        path: The published ONNX file, `model_v8.onnx`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        window = np.hanning(_MEL_N_FFT + 1)[:-1, None]
        bins = np.arange(_MEL_N_FFT // 2 + 1)
        angle = 2 * np.pi * np.outer(np.arange(_MEL_N_FFT), bins) / _MEL_N_FFT
        basis = np.concatenate([window * np.cos(angle), window * np.sin(angle)], axis=1)
        self._fourier = basis.astype(np.float32)
        bank = mel_filters(sr=SAMPLE_RATE_HZ, n_fft=_MEL_N_FFT, n_mels=120)
        self._mel_bank = np.ascontiguousarray(bank.T, np.float32)

    def __call__(self, waveform: Float32Array) -> float:
        """Predicted MOS of a waveform (samples,) at 16 kHz."""
        scores = []
        for window in self._windows(waveform):
            padded = np.pad(window[:-160], _MEL_N_FFT // 2)
            frames = np.lib.stride_tricks.sliding_window_view(padded, _MEL_N_FFT)[::160]
            # 321 is 3 times a prime, for which a matrix beats the fast Fourier transform
            parts = (frames @ self._fourier).reshape(len(frames), 2, -1)
            mel = np.square(parts).sum(axis=1) @ self._mel_bank
            image = np.maximum(
                10 * np.log10(np.maximum(mel / max(float(mel.max()), 1e-10), 1e-10)), -80.0
            )
            scores.append(float(self._run((image[None] + 40) / 40)[0]))
        return float(np.mean(scores))


class DnsmosP835(_Dnsmos):
    """DNSMOS P.835, its overall score (Reddy et al., ICASSP 2022; CC-BY-4.0, code MIT).

    Args:
        path: The published ONNX file, `sig_bak_ovr.onnx`.
    """

    def __call__(self, waveform: Float32Array) -> float:
        """Predicted overall MOS of a waveform (samples,) at 16 kHz."""
        raw = [self._run(window[None])[2] for window in self._windows(waveform)]
        return float(np.mean(np.polyval(_P835_TO_OVRL, raw)))
