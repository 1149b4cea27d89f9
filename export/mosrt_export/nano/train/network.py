"""Network: the fusion model in miniature, a mel CNN and a self-supervised encoder, by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Combination", "MelBranch", "NanoHead", "SslBranch"]


def _convolution(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
    )


class _Residual(nn.Module):
    """Two convolutions around which the input goes straight on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(batch, channels, mels, frames), kept."""
        return torch.relu(maps + self.second(self.first(maps)))


class MelBranch(nn.Module):
    """Log-mel images of several windows -> an embedding of the clip.

    Local patterns are pooled by their maximum over time and frequency, as in DNSMOS Pro, and
    frames by mean, deviation, maximum and attention.

    Args:
        n_windows: Images per clip.
        n_mels: Rows of an image; a multiple of 8.
        widths: Channels of the three stages, each half as high and wide as the one before.
        frame_size: Size of a frame's embedding.
    """

    def __init__(
        self,
        n_windows: int,
        n_mels: int,
        widths: tuple[int, int, int] = (16, 32, 64),
        frame_size: int = 96,
    ) -> None:
        super().__init__()
        first, middle, last = widths
        stages = [
            _convolution(n_windows, first, 2),
            _convolution(first, first),
            _convolution(first, middle, 2),
            _Residual(middle),
            _convolution(middle, last, 2),
            _Residual(last),
            _Residual(last),
        ]
        self.stages = nn.Sequential(*stages)
        self.frame = nn.Conv1d(last * (n_mels // 8), frame_size, 1)
        self.attention = nn.Conv1d(frame_size, 1, 1)
        self.feature_size = 4 * frame_size + last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (batch, windows, mels, frames) in [0, 1] -> (batch, feature_size)."""
        maps = self.stages(2 * images - 1)
        patterns = maps.amax(dim=(2, 3)).float()
        frames = torch.relu(self.frame(maps.flatten(1, 2))).float()
        weights = torch.softmax(self.attention(frames).float(), dim=2)
        mean = frames.mean(dim=2)
        spread = _deviation(frames, mean)
        parts = [mean, spread, frames.amax(dim=2), (weights * frames).sum(dim=2), patterns]
        return torch.cat(parts, dim=1)


def _deviation(frames: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Deviation over time of frames (batch, size, frames), kept off zero: its slope is infinite."""
    centred = frames - mean[:, :, None]
    return torch.sqrt((centred * centred).mean(dim=2) + 1e-4)


class SslBranch(nn.Module):
    """A self-supervised waveform encoder whose features are pooled over time.

    Args:
        encoder: Waveforms (batch, samples) -> features (batch, channels, frames).
        channels: Channels of the features.
    """

    def __init__(self, encoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.feature_size = 3 * channels

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Waveforms (batch, samples) at unit variance -> (batch, feature_size)."""
        features = self.encoder(waveform).float()
        mean = features.mean(dim=2)
        spread = _deviation(features, mean)
        return torch.cat([mean, spread, features.amax(dim=2)], dim=1)


class NanoHead(nn.Module):
    """Embeddings -> a standardised score per domain, all in one run.

    The domain scales and shifts the hidden layer that all domains share, so that what is learned
    from one source of labels serves the others.

    Args:
        feature_size: Size of the joined embeddings.
        n_domains: Sources of labels.
        hidden_size: Size of the hidden layer.
        dropout: Share of features dropped in training.
    """

    def __init__(
        self, feature_size: int, n_domains: int, hidden_size: int = 96, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(feature_size)
        self.dropout = nn.Dropout(dropout)
        self.shared = nn.Linear(feature_size, hidden_size)
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(n_domains, hidden_size))
        self.shift = nn.Parameter(0.3 * torch.randn(n_domains, hidden_size))
        self.score = nn.Parameter(torch.randn(n_domains, hidden_size) / hidden_size**0.5)
        self.offset = nn.Parameter(torch.zeros(n_domains))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (batch, feature_size) -> standardised scores (batch, n_domains)."""
        hidden = self.shared(self.dropout(self.norm(features)))
        hidden = torch.relu(hidden[:, None] * self.scale + self.shift)
        return (hidden * self.score).sum(dim=2) + self.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """How the default score is made of the domains' scores.

    score = offset + scale · (mean of the z-scores of `averaged`
            - Σ slope · max(0, threshold - domain) over `penalties`)

    Attributes:
        averaged: Domain -> mean and standard deviation that make its z-score.
        penalties: Domain -> threshold in its own units, and slope.
        offset: Score of an average clip.
        scale: Of the z-score.
    """

    averaged: Mapping[str, tuple[float, float]]
    penalties: Mapping[str, tuple[float, float]]
    offset: float
    scale: float

    def __call__(self, scores: torch.Tensor, domains: Sequence[str]) -> torch.Tensor:
        """Scores (batch, domains) in their own units -> the default score (batch, 1)."""
        total = torch.zeros_like(scores[:, :1])
        for name, (mean, deviation) in self.averaged.items():
            column = domains.index(name)
            total = total + (scores[:, column : column + 1] - mean) * (
                1 / (deviation * len(self.averaged))
            )
        for name, (threshold, slope) in self.penalties.items():
            column = domains.index(name)
            total = total - slope * torch.relu(threshold - scores[:, column : column + 1])
        return self.offset + self.scale * total

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "averaged": {
                name: {"mean": mean, "deviation": deviation}
                for name, (mean, deviation) in self.averaged.items()
            },
            "penalties": {
                name: {"threshold": threshold, "slope": slope}
                for name, (threshold, slope) in self.penalties.items()
            },
            "offset": self.offset,
            "scale": self.scale,
        }
