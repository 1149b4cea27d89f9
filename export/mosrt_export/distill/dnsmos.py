"""Scores speech with the published DNSMOS models, as their authors' script does.

P.808 (Reddy et al., ICASSP 2021) and P.835 (ICASSP 2022); models CC-BY-4.0, code MIT. The score is
the mean over windows of 9.01 s, one every second (DNS-Challenge, dnsmos_local.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime

from mosrt._arrays import Float32Array
from mosrt.errors import BundleError
from mosrt.mel.power import mel_filterbank

__all__ = ["SAMPLE_RATE_HZ", "WINDOW_SAMPLES", "DnsmosP808", "DnsmosP835", "open_dnsmos"]

SAMPLE_RATE_HZ: Final = 16_000
WINDOW_SAMPLES: Final = 144_160  # 9.01 s, the input of both models
_MEL_N_FFT: Final = 321
_N_MELS: Final = 120


class _Dnsmos:
    """The windows and the session, on one thread of the CPU, that both models share."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
            raise BundleError(f"{path}: not a DNSMOS model ({exc})") from exc
        self._input = self.session.get_inputs()[0].name

    def windows(self, waveform: Float32Array) -> list[Float32Array]:
        """Windows of 9.01 s of a waveform (samples,), one every second."""
        while len(waveform) < WINDOW_SAMPLES:
            waveform = np.concatenate([waveform, waveform])
        # Counted as in the published script, which drops a last window that would still fit.
        count = int(len(waveform) // SAMPLE_RATE_HZ - 9.01) + 1
        return [
            waveform[i * SAMPLE_RATE_HZ : i * SAMPLE_RATE_HZ + WINDOW_SAMPLES] for i in range(count)
        ]

    def _run(self, feed: Float32Array) -> Float32Array:
        (output,) = self.session.run(None, {self._input: feed.astype(np.float32)})
        row: Float32Array = output[0]
        return row


class DnsmosP808(_Dnsmos):
    """DNSMOS P.808, `model_v8.onnx`, whose scores do not depend on level."""

    name: Final = "DNSMOS P.808"
    domain: Final = "p808"
    maps: Final = {"p808": (0.0, 1.0, 0.0)}

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        window = np.hanning(_MEL_N_FFT + 1)[:-1, None]
        bins = np.arange(_MEL_N_FFT // 2 + 1)
        angle = 2 * np.pi * np.outer(np.arange(_MEL_N_FFT), bins) / _MEL_N_FFT
        basis = np.concatenate([window * np.cos(angle), window * np.sin(angle)], axis=1)
        self._fourier = basis.astype(np.float32)
        bank = mel_filterbank(
            sample_rate_hz=SAMPLE_RATE_HZ,
            n_fft=_MEL_N_FFT,
            n_mels=_N_MELS,
            f_min_hz=0.0,
            f_max_hz=SAMPLE_RATE_HZ / 2,
        )
        self._mel_bank = np.ascontiguousarray(bank.T, np.float32)

    def __call__(self, waveform: Float32Array) -> float:
        """Returns the predicted MOS of a waveform (samples,) at 16 kHz."""
        scores = []
        for window in self.windows(waveform):
            padded = np.pad(window[:-160], _MEL_N_FFT // 2)
            frames = np.lib.stride_tricks.sliding_window_view(padded, _MEL_N_FFT)[::160]
            # 321 is 3 times a prime, where a matrix product is faster than an FFT.
            parts = (frames @ self._fourier).reshape(len(frames), 2, -1)
            mel = np.square(parts).sum(axis=1) @ self._mel_bank
            image = np.maximum(
                10 * np.log10(np.maximum(mel / max(float(mel.max()), 1e-10), 1e-10)), -80.0
            )
            scores.append(float(self._run((image[None] + 40) / 40)[0]))
        return float(np.mean(scores))


class DnsmosP835(_Dnsmos):
    """The overall score of DNSMOS P.835, `sig_bak_ovr.onnx`."""

    name: Final = "DNSMOS P.835 OVRL"
    domain: Final = "ovrl"
    # Coefficients of x², x and 1 from each output x to MOS.
    maps: Final = {
        "sig": (-0.08397278, 1.22083953, 0.0052439),
        "bak": (-0.13166888, 1.60915514, -0.39604546),
        "ovr": (-0.06766283, 1.11546468, 0.04602535),
    }

    def __call__(self, waveform: Float32Array) -> float:
        """Returns the predicted overall MOS of a waveform (samples,) at 16 kHz."""
        raw = [self._run(window[None])[2] for window in self.windows(waveform)]
        return float(np.mean(np.polyval(self.maps["ovr"], raw)))


def open_dnsmos(path: Path) -> DnsmosP808 | DnsmosP835:
    """Opens an ONNX file, whose inputs tell P.808 (spectrograms) from P.835 (samples).

    Raises:
        BundleError: The file is neither.
    """
    model = _Dnsmos(path)
    (first, *others), outputs = model.session.get_inputs(), model.session.get_outputs()
    sizes = [size if isinstance(size, int) else None for size in first.shape[1:]]
    if not others and sizes in ([900, _N_MELS], [None, _N_MELS]):
        return DnsmosP808(path)
    if not others and sizes in ([WINDOW_SAMPLES], [None]) and outputs[0].shape[-1] == 3:
        return DnsmosP835(path)
    raise BundleError(
        f"{path}: neither DNSMOS P.808 (900 frames of {_N_MELS} mels) nor P.835 ({WINDOW_SAMPLES} "
        f"samples, three scores): the input is {first.shape}, the output {outputs[0].shape}"
    )
