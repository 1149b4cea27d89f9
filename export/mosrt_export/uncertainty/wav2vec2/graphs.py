"""Modules behind the ONNX graphs of wav2vec 2.0 and HuBERT models of transformers.

The convolutions run once per chunk of audio. The encoder runs once per pass of dropout or masking,
whose random part is an input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mosrt_export.graphs.rewrites import fold_weight_norm, use_plain_operators

__all__ = ["Convolutions", "DropoutEncoder", "MaskedEncoder", "simplify"]


def simplify(model: nn.Module) -> None:
    """Rewrites a transformers model for export, in place."""
    fold_weight_norm(model)
    use_plain_operators(model)


class Convolutions(nn.Module):
    """The graph "convolutions": strided convolutions on the waveform."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.feature_extractor = base.feature_extractor

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, samples) → (batch, frames, channels)."""
        features: torch.Tensor = self.feature_extractor(waveform).transpose(1, 2)
        return features


class DropoutEncoder(nn.Module):
    """The graph "encoder" with dropout on the features, before the norm of the projection.

    Without a CTC head it returns the last hidden units.
    """

    def __init__(self, base: Any, head: nn.Module | None) -> None:
        super().__init__()
        self.projection = base.feature_projection
        self.encoder = base.encoder
        self.head = nn.Identity() if head is None else head

    def forward(self, features: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """Computes the logits of each pass.

        Args:
            features: (1, frames, channels).
            keep: Factors on the features, 0 where dropped, (passes, frames, channels).

        Returns:
            (passes, frames, columns).
        """
        projected = self.projection(features * keep)
        # wav2vec 2.0 also returns the normalised features; HuBERT does not.
        hidden = projected[0] if isinstance(projected, tuple) else projected
        logits: torch.Tensor = self.head(self.encoder(hidden, return_dict=True).last_hidden_state)
        return logits


class MaskedEncoder(nn.Module):
    """The graph "encoder" of `Wav2Vec2ForPreTraining`, from features to contrastive logits.

    Masking is a weighted sum instead of a boolean index, and quantisation an arg-max.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        base = model.wav2vec2
        self.projection, self.encoder = base.feature_projection, base.encoder
        self.mask = base.masked_spec_embed
        self.project_hid, self.project_q = model.project_hid, model.project_q
        quantizer = model.quantizer
        self.scores, self.n_groups = quantizer.weight_proj, quantizer.num_groups
        self.n_codes, self.codes = quantizer.num_vars, quantizer.codevectors
        self.temperature = float(model.config.contrastive_logits_temperature)

    def forward(
        self, features: torch.Tensor, spans: torch.Tensor, negatives: torch.Tensor
    ) -> torch.Tensor:
        """Computes cosine similarities divided by the temperature.

        Args:
            features: (batch, frames, channels).
            spans: 1 where a frame is masked, else 0; (batch, frames).
            negatives: Distractors of each frame, (batch, frames, negatives) int64.

        Returns:
            (batch, frames, 1 + negatives), starting with the frame's own quantised
            features; minus infinity where a distractor has the same codes.
        """
        hidden, normed = self.projection(features)
        masked = spans.unsqueeze(2)
        hidden = hidden * (1.0 - masked) + self.mask * masked
        context = self.project_hid(self.encoder(hidden, return_dict=True).last_hidden_state)
        targets, codes = self._quantise(normed)
        matrix = _unit(context) @ _unit(targets).transpose(1, 2) / self.temperature
        batch, n_frames, n_negatives = negatives.shape
        own = torch.arange(n_frames, device=features.device).reshape(1, -1, 1)
        index = torch.cat([own.expand(batch, n_frames, 1), negatives], dim=2)
        logits = torch.gather(matrix, 2, index)
        flat = negatives.reshape(batch, -1)
        theirs = torch.gather(codes, 1, flat).reshape(batch, n_frames, n_negatives)
        same = theirs == codes.unsqueeze(2)
        others = torch.where(same, torch.full_like(logits[:, :, 1:], -torch.inf), logits[:, :, 1:])
        return torch.cat([logits[:, :, :1], others], dim=2)

    def _quantise(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projected quantised features (batch, frames, size), and an index of their codes."""
        chosen, number = [], torch.zeros_like(normed[:, :, 0], dtype=torch.int64)
        for group, part in enumerate(self.scores(normed).split(self.n_codes, dim=2)):
            best = part.argmax(dim=2)
            chosen.append(self.codes[0, group * self.n_codes : (group + 1) * self.n_codes][best])
            number = number * self.n_codes + best
        return self.project_q(torch.cat(chosen, dim=2)), number


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Scales rows to unit length, as torch's cosine similarity does."""
    return x / torch.clamp(torch.sqrt((x * x).sum(dim=-1, keepdim=True)), min=1e-8)
