"""Defines the network of students, from segments of audio to a score for every domain.

The network sees magnitudes to the power 0.3, of windows of 20 ms, and of 6 ms, which tell glottal
pulses apart: damage to the phase alone, as some vocoders leave it, shows in both. Complex spectra
and group delays taught it worse. What is silent has no weight: neither its length nor zeros at the
end change a score.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mosrt.bundle.front_end_spec import FRONT_END_SCOPE

__all__ = [
    "BINS",
    "FRAME_SIZE",
    "HINT_SAMPLES",
    "SEGMENT_SAMPLES",
    "STEP_SAMPLES",
    "Encoder",
    "StudentNetwork",
]

SEGMENT_SAMPLES: Final = 81_920  # 5.12 s
STEP_SAMPLES: Final = 2_560  # zeros of this length hide where an input ends from all convolutions
FRAME_SIZE: Final = 160
HINT_SAMPLES: Final = 640  # from one frame of the encoder to the next
_WINDOW: Final = 320
_HOP: Final = 160
_SHORT_WINDOW: Final = 96
_SHORT_HOP: Final = 80
# From 100 Hz to 7.25 kHz: what resampling filters roll off above differs between recordings.
_LOWEST_BIN: Final = 2
BINS: Final = 144
_EXPONENT: Final = 0.3
# Frames count from 50 dB below the loudest one, and fully from 40 dB.
_SILENT_DB: Final = -50.0
_FADE_DB: Final = 10.0
_POWER_FLOOR: Final = 1e-10
_BIN_FLOOR: Final = 1e-6  # 60 dB below the mean power of a bin
_CHANNELS: Final = 1 + _HOP // _SHORT_HOP
_WIDTHS: Final = (16, 48, 96, 128, 160, 160)
_TIME_STRIDES: Final = (1, 2, 2, 1, 1, 1)
_BLOCKS: Final = 4
_KERNEL: Final = 9
_HIDDEN_SIZE: Final = 96
_LEAST_DEVIATION_MOS: Final = 0.02


class Spectrogram(nn.Module):
    """Maps segments to compressed magnitudes and the weight of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("long", _fourier(_WINDOW), persistent=False)
        self.register_buffer("short", _fourier(_SHORT_WINDOW), persistent=False)

    def forward(
        self, waveform: torch.Tensor, gains: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Magnitudes and weights of segments; their level has no effect.

        Args:
            waveform: Segments (batch, samples).
            gains: Frequency response (batch, BINS) to apply, for training.

        Returns:
            Magnitudes to the power 0.3 (batch, 3, BINS, frames), those of one long and two short
            windows, and weights (batch, 1, 1, frames) from 0, for silence, to 1.
        """
        power = _power(waveform, self.get_buffer("long"), _HOP)
        short = _power(waveform, self.get_buffer("short"), _SHORT_HOP)
        short = short.reshape(short.shape[0], BINS, -1, _HOP // _SHORT_HOP).permute(0, 3, 1, 2)
        if gains is not None:
            response = gains.square()[:, None, :, None]
            power, short = power * response, short * response
        levels = power.sum(dim=2, keepdim=True)
        loudest = levels.amax(dim=3, keepdim=True) + _POWER_FLOOR
        levels_db = 10 * torch.log10(levels / loudest + _POWER_FLOOR)
        weights = ((levels_db - _SILENT_DB) / _FADE_DB).clip(0, 1)
        mean = (levels * weights).sum(dim=3, keepdim=True)
        mean = mean / (weights.sum(dim=3, keepdim=True) + _POWER_FLOOR)
        # White noise has the same power in all of them.
        both = torch.cat([power, short * (_WINDOW / _SHORT_WINDOW)], dim=1)
        relative = both / (mean / BINS + _POWER_FLOOR)
        return (relative + _BIN_FLOOR) ** (_EXPONENT / 2), weights


def _fourier(window: int) -> torch.Tensor:
    """Real and imaginary parts of a windowed Fourier transform, (2 * BINS, 1, window) float32.

    The mean of each window is taken out, so that a constant offset reaches no bin.
    """
    bins = np.arange(_LOWEST_BIN, _LOWEST_BIN + BINS)
    turns = np.outer(bins, np.arange(window)) % _WINDOW / _WINDOW
    phasors, weights = np.exp(-2j * np.pi * turns), np.hanning(window + 1)[:-1]
    phasors = (phasors - np.average(phasors, axis=1, weights=weights)[:, None]) * weights
    rows = np.concatenate([phasors.real, phasors.imag])[:, None]
    return torch.from_numpy(rows.astype(np.float32))


def _power(waveform: torch.Tensor, rows: torch.Tensor, hop: int) -> torch.Tensor:
    """Power (batch, 1, BINS, samples / hop) of windows that begin with each hop of segments.

    None of them sees what is before, so that STEP_SAMPLES of zeros at the end suffice.
    """
    padded = functional.pad(waveform[:, None], (0, rows.shape[2] - hop))
    spectra = functional.conv1d(padded, rows, stride=hop)
    return spectra.reshape(spectra.shape[0], 2, BINS, -1).square().sum(dim=1, keepdim=True)


def _convolution(n_in: int, n_out: int, time_stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, (2, time_stride), 1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    )


class _Block(nn.Module):
    """A depthwise convolution over time and two layers per frame, with a residual connection."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.time = nn.Conv2d(
            size, size, (1, _KERNEL), padding=(0, _KERNEL // 2), groups=size, bias=False
        )
        self.norm = nn.BatchNorm2d(size)
        self.layers = nn.Sequential(
            nn.Conv2d(size, 2 * size, 1), nn.ReLU(), nn.Conv2d(2 * size, size, 1)
        )

    def forward(self, frames: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Frames (batch, size, 1, frames) and their weights to frames of the same shape."""
        out: torch.Tensor = frames + self.layers(self.norm(self.time(frames * weights)))
        return out


class Encoder(nn.Module):
    """Maps segments to frames and an embedding of the segment."""

    feature_size: Final = 3 * FRAME_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.add_module(FRONT_END_SCOPE, Spectrogram())
        stages = []
        n_in, bins = _CHANNELS, BINS
        for width, time_stride in zip(_WIDTHS, _TIME_STRIDES, strict=True):
            stages.append(_convolution(n_in, width, time_stride))
            n_in, bins = width, (bins + 1) // 2
        self.stages = nn.Sequential(*stages)
        self.frame = nn.Sequential(
            nn.Conv2d(n_in, FRAME_SIZE, (bins, 1), bias=False), nn.BatchNorm2d(FRAME_SIZE)
        )
        self.blocks = nn.ModuleList([_Block(FRAME_SIZE) for _ in range(_BLOCKS)])
        self.attention = nn.Conv2d(FRAME_SIZE, 1, 1)

    def forward(
        self, waveform: torch.Tensor, gains: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames and embeddings of segments.

        Args:
            waveform: Segments (batch, samples); samples are a multiple of STEP_SAMPLES.
            gains: As for `Spectrogram`.

        Returns:
            Frames (batch, FRAME_SIZE, samples / HINT_SAMPLES), and embeddings
            (batch, feature_size): a weighted mean by attention, the mean, and the standard
            deviation over time.
        """
        magnitudes, weights = self.get_submodule(FRONT_END_SCOPE)(waveform, gains)
        weights = functional.avg_pool2d(weights, (1, HINT_SAMPLES // _HOP))
        frames = self.frame(self.stages(magnitudes))
        for block in self.blocks:
            frames = block(frames, weights)
        frames = frames.float()[:, :, 0]
        weights = weights[:, 0]
        attention = torch.exp(4 * torch.tanh(self.attention(frames[:, :, None])[:, :, 0].float()))
        parts = [_mean(frames, attention * weights), _mean(frames, weights)]
        centred = frames - parts[1][:, :, None]
        # The root is kept away from zero, where its gradient is infinite.
        parts.append(torch.sqrt(_mean(centred * centred, weights) + 1e-4))
        return frames, torch.cat(parts, dim=1)


def _mean(frames: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean over time of frames (batch, size, frames); weights (batch, 1, frames)."""
    return (frames * weights).sum(dim=2) / (weights.sum(dim=2) + 1e-6)


class Head(nn.Module):
    """Maps embeddings to a standardised score for every domain.

    All domains share a hidden layer, which each domain scales and shifts. What is learned from one
    source of labels thus helps the others.
    """

    def __init__(self, feature_size: int, n_domains: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(feature_size)
        self.dropout = nn.Dropout(0.1)
        self.shared = nn.Linear(feature_size, _HIDDEN_SIZE)
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(n_domains, _HIDDEN_SIZE))
        self.shift = nn.Parameter(0.3 * torch.randn(n_domains, _HIDDEN_SIZE))
        self.score = nn.Parameter(torch.randn(n_domains, _HIDDEN_SIZE) / _HIDDEN_SIZE**0.5)
        self.offset = nn.Parameter(torch.zeros(n_domains))
        self.spread = nn.Linear(_HIDDEN_SIZE, 1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps embeddings (batch, feature_size) to scores and the error of the default score.

        Returns:
            Standardised scores (batch, n_domains), and the standard deviation in MOS (batch, 1) of
            the default score's error. To learn it does not change the scores: its gradient stops
            at the hidden layer.
        """
        hidden = self.shared(self.dropout(self.norm(features)))
        active = torch.relu(hidden[:, None] * self.scale + self.shift)
        spread = self.spread(torch.relu(hidden.detach()).float())
        deviation = functional.softplus(spread) + _LEAST_DEVIATION_MOS
        return (active * self.score).sum(dim=2) + self.offset, deviation


class StudentNetwork(nn.Module):
    """The encoder and the head. Its scores are standardised.

    Args:
        n_domains: Number of scores.
        hint_size: Size of a teacher's frames that the encoder's frames are compared with; 0 for
            none.
    """

    def __init__(self, n_domains: int, hint_size: int = 0) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.head = Head(self.encoder.feature_size, n_domains)
        self.hint = nn.Conv1d(FRAME_SIZE, hint_size, 1) if hint_size else None
