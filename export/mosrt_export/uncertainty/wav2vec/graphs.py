"""Modules behind the ONNX graphs of wav2vec v1: `Wav2Vec` rewritten for export, and its logits.

The encoder treats time as the width of images that are one pixel high, because ONNX Runtime has
blocked convolutions for two dimensions only. They take 20 to 40 % less time than those for one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .model import ContextNetwork, Encoder, Wav2Vec

__all__ = ["Contrast", "Dense", "Wav2VecGraph"]


class Wav2VecGraph(nn.Module):
    """The graph "encoder": waveform to features and predictions, by the network's weights."""

    def __init__(self, model: Wav2Vec) -> None:
        super().__init__()
        self.encoder = _EncoderGraph(model.feature_extractor)
        self.quantizer = model.vector_quantizer
        self.context = _ContextGraph(model.feature_aggregator)
        self.predictor = model.wav2vec_predictions

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Wav2Vec.forward`."""
        z = self.encoder(waveform[:, None, None])
        if self.quantizer is not None:
            z = self.quantizer(z.squeeze(2)).unsqueeze(2)
        return z.squeeze(2), self.predictor(self.context(z).squeeze(2))


class _EncoderGraph(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.log_compression, self.skip = encoder.log_compression, encoder.skip
        self.residual_scale = encoder.residual_scale
        self.blocks = nn.ModuleList(
            nn.Sequential(_wide(conv), norm, act)
            for conv, _, norm, act in map(_parts, encoder.conv_layers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            residual, x = x, block(x)
            if self.skip and x.shape[1] == residual.shape[1]:
                stride = residual.shape[3] // x.shape[3]
                residual = residual[:, :, :, ::stride][:, :, :, : x.shape[3]]
                x = (x + residual) * self.residual_scale
        return torch.log(torch.abs(x) + 1.0) if self.log_compression else x


class _ContextGraph(nn.Module):
    def __init__(self, context: ContextNetwork) -> None:
        super().__init__()
        self.skip, self.residual_scale = context.skip, context.residual_scale
        self.blocks = nn.ModuleList(
            nn.Sequential(_Pad(pad), _wide(conv), norm, act)
            for pad, conv, _, norm, act in map(_parts, context.conv_layers)
        )
        self.projections = nn.ModuleList(
            _wide(project) if isinstance(project, nn.Conv1d) else project
            for project in context.residual_proj
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, project in zip(self.blocks, self.projections, strict=True):
            y = block(x)
            x = (y + project(x)) * self.residual_scale if self.skip else y
        return x


class _Pad(nn.Module):
    """Pads before the first frame, with zeros or with that frame."""

    def __init__(self, pad: nn.ConstantPad1d | nn.ReplicationPad1d) -> None:
        super().__init__()
        zeros = isinstance(pad, nn.ConstantPad1d)
        self.mode = "constant" if zeros else "replicate"
        self.ahead = int(pad.padding[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (self.ahead, 0, 0, 0), mode=self.mode)


def _parts(block: nn.Module) -> list[Any]:
    """The modules of an `nn.Sequential`."""
    return list(block.children())


def _wide(conv: nn.Conv1d) -> nn.Conv2d:
    """Converts a convolution over time to one over images that are one pixel high."""
    kernel, stride = (1, conv.kernel_size[0]), (1, conv.stride[0])
    wide = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride=stride, bias=False)
    wide.weight, wide.bias = nn.Parameter(conv.weight.detach().unsqueeze(2)), conv.bias
    return wide


class Contrast(nn.Module):
    """The graph "contrast": logits of each frame and its distractors, as dot products.

    Args:
        n_steps: Number of future frames predicted from each frame.
        first_horizon: Distance in frames from a context frame to the first frame it predicts.
    """

    def __init__(self, *, n_steps: int, first_horizon: int) -> None:
        super().__init__()
        self.n_steps, self.first_horizon = n_steps, first_horizon

    def forward(
        self, features: torch.Tensor, predictions: torch.Tensor, negatives: torch.Tensor
    ) -> torch.Tensor:
        """Computes logits by predicted frame.

        Args:
            features: (batch, channels, frames).
            predictions: (batch, steps, frames, channels), from each context frame.
            negatives: Distractors of each frame, (batch, negatives, frames) int64.

        Returns:
            (batch, frames, steps, 1 + negatives); zeros where a frame has no context.
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
            [padded[:, s, self.n_steps - 1 - s :][:, :n_frames] for s in range(self.n_steps)], dim=2
        )
        return aligned @ targets.transpose(2, 3)


class Dense(nn.Module):
    """The graph "dense": dot products of predictions with every frame."""

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """(batch, queries, channels) and (batch, channels, frames) → (batch, queries, frames)."""
        return queries @ features
