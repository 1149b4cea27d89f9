"""Vector quantisers of vq-wav2vec (arXiv 1910.05453) in evaluation mode: no sampling.

State-dict keys are those of the published checkpoints (`vector_quantizer.…`).
"""

from __future__ import annotations

import torch
from torch import nn

from .architecture import QuantizerSpec

__all__ = ["GumbelQuantizer", "KmeansQuantizer", "build_quantizer"]


def build_quantizer(spec: QuantizerSpec, channels: int, activation: str) -> nn.Module:
    """A quantiser for features of `channels`; `activation` is between its projections."""
    if spec.kind == "kmeans":
        return KmeansQuantizer(spec, channels)
    return GumbelQuantizer(spec, channels, activation)


class GumbelQuantizer(nn.Module):
    """Chooses the code with the largest projected score, in each group."""

    def __init__(self, spec: QuantizerSpec, channels: int, activation: str) -> None:
        super().__init__()
        self.n_groups, self.n_codes, self.shared = spec.n_groups, spec.n_codes, spec.shared_codes
        books = 1 if spec.shared_codes else spec.n_groups
        size = spec.channels // spec.n_groups
        self.vars = nn.Parameter(torch.rand(1, books * spec.n_codes, size))
        n_scores = spec.n_groups * spec.n_codes
        hidden = 2 * channels
        blocks: list[nn.Module] = []
        for i in range(spec.depth - 1):
            act = nn.ReLU() if activation == "relu" else nn.GELU()
            blocks.append(nn.Sequential(nn.Linear(hidden if i else channels, hidden), act))
        last = nn.Linear(hidden if blocks else channels, n_scores)
        # One layer alone is stored without an index in its keys.
        self.weight_proj = nn.Sequential(*blocks, last) if blocks else last

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames) → (batch, quantised channels, frames)."""
        scores = self.weight_proj(features.transpose(1, 2))
        books = self.vars[0].reshape(-1, self.n_codes, self.vars.shape[2])
        chosen = [
            books[0 if self.shared else group][part.argmax(dim=-1)]
            for group, part in enumerate(scores.split(self.n_codes, dim=-1))
        ]
        return torch.cat(chosen, dim=-1).transpose(1, 2)


class KmeansQuantizer(nn.Module):
    """Chooses the code nearest to the projected features, in each group."""

    def __init__(self, spec: QuantizerSpec, channels: int) -> None:
        super().__init__()
        self.n_groups, self.shared = spec.n_groups, spec.shared_codes
        books = 1 if spec.shared_codes else spec.n_groups
        size = spec.channels // spec.n_groups
        self.embedding = nn.Parameter(0.01 * torch.randn(spec.n_codes, books, size))
        self.projection = nn.Sequential(
            nn.Conv1d(channels, channels, 1, groups=spec.n_groups, bias=False),
            GroupedNorm(spec.n_groups, channels),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames) → (batch, quantised channels, frames)."""
        projected = self.projection(features).transpose(1, 2)
        chosen = []
        for group, part in enumerate(projected.chunk(self.n_groups, dim=-1)):
            codes = self.embedding[:, 0 if self.shared else group]
            # |x - c|² without the |x|² that all codes share
            distance = (codes * codes).sum(dim=-1) - 2.0 * (part @ codes.T)
            chosen.append(codes[distance.argmin(dim=-1)])
        return torch.cat(chosen, dim=-1).transpose(1, 2)


class GroupedNorm(nn.Module):
    """Group norm as explicit reductions over a group's channels and time."""

    def __init__(self, n_groups: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames)."""
        channels = x.shape[1]
        grouped = x.reshape(x.shape[0], self.n_groups, channels // self.n_groups, x.shape[2])
        centred = grouped - grouped.mean(dim=(2, 3), keepdim=True)
        variance = (centred * centred).mean(dim=(2, 3), keepdim=True)
        normed = (centred * torch.rsqrt(variance + self.eps)).reshape(x.shape)
        return normed * self.weight[:, None] + self.bias[:, None]
