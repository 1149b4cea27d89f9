"""Wav2Vec: the wav2vec v1 network, with the state-dict keys of the published checkpoints.

Facts about the architecture: Schneider et al., "wav2vec: Unsupervised Pre-training for Speech
Recognition" (arXiv 1904.05862), and the shapes and options in the published checkpoints.
"""

from __future__ import annotations

import torch
from torch import nn

from .architecture import Architecture, Layer
from .quantizer import build_quantizer

__all__ = ["Wav2Vec"]


class Wav2Vec(nn.Module):
    """Waveform → features z, context c, and predictions of future features.

    Args:
        architecture: Its shape; weights start as torch starts them.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.architecture = a
        self.feature_extractor = Encoder(a)
        self.vector_quantizer = None
        if a.quantizer is not None:
            channels = a.encoder_layers[-1][0]
            self.vector_quantizer = build_quantizer(a.quantizer, channels, a.activation)
        self.feature_aggregator = ContextNetwork(a)
        self.wav2vec_predictions = StepPredictor(a.context_layers[-1][0], a.channels, a.n_steps)

    def features(self, waveform: torch.Tensor) -> torch.Tensor:
        """Features z, quantised if the model quantises.

        Args:
            waveform: (batch, samples) at 16 kHz, not normalised; rows of one length, since norms
                span time.

        Returns:
            (batch, channels, frames).
        """
        z: torch.Tensor = self.feature_extractor(waveform)
        return z if self.vector_quantizer is None else self.vector_quantizer(z)

    def context(self, features: torch.Tensor) -> torch.Tensor:
        """Context c, which hears features up to its own frame: (batch, channels, frames)."""
        c: torch.Tensor = self.feature_aggregator(features)
        return c

    def predictions(self, context: torch.Tensor) -> torch.Tensor:
        """Predicted features from each context frame.

        Returns:
            (batch, steps, frames, channels); step s at frame t predicts z at frame
            t + first_horizon + s.
        """
        p: torch.Tensor = self.wav2vec_predictions(context)
        return p

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (batch, channels, frames) and predictions (batch, steps, frames, channels)."""
        z = self.features(waveform)
        return z, self.predictions(self.context(z))


class Encoder(nn.Module):
    """Strided convolutions without padding, each followed by norm and activation."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.log_compression, self.skip = a.log_compression, a.encoder_skip
        self.residual_scale = a.residual_scale
        blocks = []
        n_in = 1
        for channels, kernel, stride in a.encoder_layers:
            blocks.append(
                nn.Sequential(
                    nn.Conv1d(n_in, channels, kernel, stride=stride, bias=False),
                    nn.Identity(),  # where the published code has dropout: keys count it
                    JointNorm(channels, affine=a.affine_norm),
                    activation(a.activation),
                )
            )
            n_in = channels
        self.conv_layers = nn.ModuleList(blocks)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, samples) → (batch, channels, frames)."""
        x = waveform.unsqueeze(1)
        for block in self.conv_layers:
            residual, x = x, block(x)
            if self.skip and x.shape[1] == residual.shape[1]:
                stride = residual.shape[2] // x.shape[2]
                residual = residual[:, :, ::stride][:, :, : x.shape[2]]
                x = (x + residual) * self.residual_scale
        return torch.log(torch.abs(x) + 1.0) if self.log_compression else x


class ContextNetwork(nn.Module):
    """Causal convolutions over features, each a residual block."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.skip, self.residual_scale = a.context_skip, a.residual_scale
        blocks: list[nn.Module] = []
        projections: list[nn.Module] = []
        n_in = a.channels
        for layer in a.context_layers:
            blocks.append(_context_block(n_in, layer, a))
            matched = layer[0] == n_in or not a.context_skip
            projections.append(
                nn.Identity() if matched else nn.Conv1d(n_in, layer[0], 1, bias=False)
            )
            n_in = layer[0]
        self.conv_layers = nn.Sequential(*blocks)
        self.residual_proj = nn.ModuleList(projections)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames) → (batch, channels, frames)."""
        x = features
        for block, project in zip(self.conv_layers, self.residual_proj, strict=True):
            y = block(x)
            x = (y + project(x)) * self.residual_scale if self.skip else y
        return x


def _context_block(n_in: int, layer: Layer, architecture: Architecture) -> nn.Sequential:
    channels, kernel, stride = layer
    ahead = (kernel - 1, 0)
    return nn.Sequential(
        nn.ConstantPad1d(ahead, 0.0) if architecture.zero_pad else nn.ReplicationPad1d(ahead),
        nn.Conv1d(n_in, channels, kernel, stride=stride, bias=architecture.context_bias),
        nn.Identity(),
        JointNorm(channels, affine=architecture.affine_norm),
        activation(architecture.activation),
    )


class StepPredictor(nn.Module):
    """One linear map per future step, stored as the transposed convolution that it equals."""

    def __init__(self, n_in: int, n_out: int, n_steps: int) -> None:
        super().__init__()
        self.project_to_steps = nn.ConvTranspose2d(n_in, n_out, (1, n_steps))

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames) → (batch, steps, frames, channels)."""
        weight = self.project_to_steps.weight[:, :, 0].permute(2, 0, 1)  # steps, in, out
        frames = context.transpose(1, 2).unsqueeze(1)
        return frames @ weight + self.get_parameter("project_to_steps.bias")


class JointNorm(nn.Module):
    """Group norm with one group: statistics over channels and time together.

    Written as reductions, time first: TensorRT's importer has computed statistics per channel for
    a GroupNormalization of one group, and a sum over both axes at once loses digits in float32.
    """

    def __init__(self, channels: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames), any shape of the last two."""
        if self.training:  # the same in one operator, whose gradient is several times faster
            return nn.functional.group_norm(x, 1, self.weight, self.bias, self.eps)
        mean = x.mean(dim=2, keepdim=True).mean(dim=1, keepdim=True)
        centred = x - mean
        variance = (centred * centred).mean(dim=2, keepdim=True).mean(dim=1, keepdim=True)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is None or self.bias is None:
            return centred * scale
        return centred * (scale * self.weight[:, None]) + self.bias[:, None]


def activation(name: str) -> nn.Module:
    """The activation that options call `name`: "relu", or the exact "gelu"."""
    return nn.ReLU() if name == "relu" else nn.GELU()
