"""Draws waveform, log-mel and uncertainty of one recording, one above the other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np

from mosrt.host.cache import cache_directory

# matplotlib keeps a list of fonts, else in the home directory.
if (_CACHE := cache_directory()) is not None:
    os.environ.setdefault("MPLCONFIGDIR", str(_CACHE / "matplotlib"))

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mosrt._arrays import Float32Array, FloatArray
from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource
from mosrt.host.files import replacing
from mosrt.mel.power import mel_filterbank
from mosrt.score import Score

__all__ = ["draw", "log_mel"]

_N_FFT: Final = 512
_HOP: Final = 160
_N_MELS: Final = 64
_RANGE_DB: Final = 80.0
_MAX_S: Final = 600.0


def draw(file: str | os.PathLike[str], score: Score, *, sample_rate_hz: int, target: Path) -> None:
    """Writes a PNG, complete or not at all.

    Args:
        file: The recording; its first ten minutes are drawn.
        score: Its score, with frames.
        sample_rate_hz: Sampling rate of the model.
        target: File to write.
    """
    recording = Recording(FileSource(file), sample_rate_hz, min_duration_s=0.0)
    n_samples = min(recording.n_samples, int(_MAX_S * sample_rate_hz))
    waveform = next(recording.chunks([(0, n_samples)]))
    duration_s = n_samples / sample_rate_hz
    figure = Figure(figsize=(10, 6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    wave, mel, curve = figure.subplots(3, 1, sharex=True, height_ratios=[1, 2, 1])
    wave.plot(np.arange(n_samples) / sample_rate_hz, waveform, linewidth=0.4)
    wave.set_ylabel("waveform")
    wave.set_title(Path(file).name)
    image = log_mel(waveform, sample_rate_hz)
    mel.imshow(
        image,
        origin="lower",
        aspect="auto",
        extent=(0.0, duration_s, 0.0, len(image)),
        cmap="magma",
    )
    mel.set_ylabel("mel band, dB")
    frames = np.array(score.frames)
    times = np.arange(len(frames)) / score.frame_rate_hz
    shown = times <= duration_s
    curve.plot(times[shown], frames[shown], linewidth=0.8)
    curve.set_ylabel(f"uncertainty\n({score.model})")
    curve.set_xlabel("time, s")
    curve.set_xlim(0.0, duration_s)
    with replacing(target) as part:
        canvas.print_png(part)


def log_mel(waveform: Float32Array, sample_rate_hz: int) -> FloatArray:
    """Log-mel spectrogram to look at, (bands, frames) in dB below its maximum, at least -80.

    Frames of 512 samples every 160, Hann window, 64 Slaney bands up to half the rate.
    """
    padded = np.pad(waveform, (_N_FFT // 2, _N_FFT // 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::_HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_N_FFT) / _N_FFT)
    filters = mel_filterbank(
        sample_rate_hz=sample_rate_hz,
        n_fft=_N_FFT,
        n_mels=_N_MELS,
        f_min_hz=0.0,
        f_max_hz=sample_rate_hz / 2,
    )
    # Some seconds at a time: the spectra of ten minutes take hundreds of megabytes.
    parts = [
        filters @ np.square(np.abs(np.fft.rfft(windows[i : i + 1000] * hann, axis=1))).T
        for i in range(0, len(windows), 1000)
    ]
    power = np.concatenate(parts, axis=1)
    floor = power.max() * 10 ** (-_RANGE_DB / 10) or 1.0
    decibels: FloatArray = 10 * np.log10(np.maximum(power, floor) / max(power.max(), floor))
    return decibels
