"""Graphs without weights: logits of predicted features against frames."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Contrast", "Dense"]


class Contrast(nn.Module):
    """Dot products of each frame's predictions with the frame itself and its distractors.

    Args:
        n_steps: Future frames predicted from each frame.
        first_horizon: Frames from a context frame to the first one that it predicts.
    """

    def __init__(self, *, n_steps: int, first_horizon: int) -> None:
        super().__init__()
        self.n_steps, self.first_horizon = n_steps, first_horizon

    def forward(
        self, features: torch.Tensor, predictions: torch.Tensor, negatives: torch.Tensor
    ) -> torch.Tensor:
        """Logits by the frame that is predicted.

        Args:
            features: (batch, channels, frames).
            predictions: (batch, steps, frames, channels), from each context frame.
            negatives: Distractors of each frame, (batch, negatives, frames) int64.

        Returns:
            (batch, frames, steps, 1 + negatives); zeros where a frame has no context so early.
        """
        batch, channels, n_frames = features.shape
        frames = torch.arange(n_frames, device=features.device)
        own = frames.expand(batch, 1, n_frames)
        index = torch.cat([own, negatives], dim=1).transpose(1, 2)
        first = torch.arange(batch, device=features.device) * n_frames
        rows = features.transpose(1, 2).reshape(-1, channels)
        targets = rows[index + first[:, None, None]]  # batch, frames, copies, channels
        # Frame u is predicted with step s from context u - first_horizon - s.
        ahead = self.first_horizon + self.n_steps - 1
        padded = nn.functional.pad(predictions, (0, 0, ahead, 0))
        aligned = torch.stack(
            [padded[:, s, self.n_steps - 1 - s :][:, :n_frames] for s in range(self.n_steps)],
            dim=2,
        )
        return aligned @ targets.transpose(2, 3)


class Dense(nn.Module):
    """Dot products of predictions with every frame."""

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """(batch, queries, channels) and (batch, channels, frames) → (batch, queries, frames)."""
        return queries @ features
