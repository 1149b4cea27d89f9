"""wav2vec v1 and vq-wav2vec in torch: sizes, as a checkpoint states them, and modules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

__all__ = ["Architecture", "Layer", "QuantizerSpec", "Wav2Vec", "receptive_field"]

Layer = tuple[int, int, int]
"""Channels, kernel length and stride of one convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerSpec:
    """The vector quantiser of vq-wav2vec (arXiv 1910.05453).

    Attributes:
        kind: "gumbel" (arg-max of a projection) or "kmeans" (nearest code).
        n_codes: Codes per group (`vq_vars`).
        n_groups: Groups that the channels are split into (`vq_groups`).
        shared_codes: Whether the groups share one code book (`combine_groups`).
        channels: Channels of the quantised features (`vq_dim`).
        depth: Linear layers of the Gumbel projection (`vq_depth`).
    """

    kind: Literal["gumbel", "kmeans"]
    n_codes: int
    n_groups: int
    shared_codes: bool
    channels: int
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The shape of a wav2vec v1 model (arXiv 1904.05862).

    Attributes:
        encoder_layers: Convolutions from waveform to features (`conv_feature_layers`).
        context_layers: Causal convolutions from features to context (`conv_aggregator_layers`).
        n_steps: Number of future frames that are predicted (`prediction_steps`).
        n_negatives: Number of distractors per frame (`num_negatives`).
        offset: Distance in frames from a context frame to the first predicted one. By default the
            receptive field of a feature frame, rounded up (`offset` "auto").
        activation: Activation after every norm.
        log_compression: Whether features are log(|x| + 1).
        encoder_skip: Residual connections in the encoder (`skip_connections_feat`).
        context_skip: Residual connections in the context network (`skip_connections_agg`).
        residual_scale: Factor on residual sums.
        context_bias: Whether context convolutions have a bias (not `no_conv_bias`).
        zero_pad: Whether the context is padded by zeros instead of its first frame.
        affine_norm: Whether norms have weights (not `non_affine_group_norm`).
        quantizer: Vector quantiser between encoder and context, or None.
    """

    encoder_layers: tuple[Layer, ...]
    context_layers: tuple[Layer, ...]
    n_steps: int = 12
    n_negatives: int = 10
    offset: int | None = None
    activation: Literal["relu", "gelu"] = "relu"
    log_compression: bool = True
    encoder_skip: bool = False
    context_skip: bool = True
    residual_scale: float = math.sqrt(0.5)
    context_bias: bool = True
    zero_pad: bool = False
    affine_norm: bool = True
    quantizer: QuantizerSpec | None = None

    @property
    def hop_samples(self) -> int:
        """Hop between feature frames, in samples."""
        return math.prod(stride for _, _, stride in self.encoder_layers)

    @property
    def receptive_samples(self) -> int:
        """Receptive field of a feature frame, in samples."""
        return receptive_field((kernel, stride) for _, kernel, stride in self.encoder_layers)

    @property
    def first_horizon(self) -> int:
        """Distance in frames from a context frame to the first frame it predicts."""
        if self.offset is not None:
            return self.offset
        return math.ceil(self.receptive_samples / self.hop_samples)

    @property
    def channels(self) -> int:
        """Channels of the features, quantised if there is a quantiser."""
        if self.quantizer is not None:
            return self.quantizer.channels
        return self.encoder_layers[-1][0]

    @property
    def min_samples(self) -> int:
        """Shortest recording in samples that gives one prediction."""
        return self.receptive_samples + self.first_horizon * self.hop_samples


def receptive_field(layers: Iterable[tuple[int, int]]) -> int:
    """Samples that one frame depends on, after convolutions of (kernel length, stride)."""
    length, hop = 1, 1
    for kernel, stride in layers:
        length += (kernel - 1) * hop
        hop *= stride
    return length


class Wav2Vec(nn.Module):
    """Maps a waveform to features z, context c, and predictions of future features."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.architecture = a
        self.feature_extractor = Encoder(a)
        self.vector_quantizer: nn.Module | None = None
        channels = a.encoder_layers[-1][0]
        if a.quantizer is not None and a.quantizer.kind == "kmeans":
            self.vector_quantizer = KmeansQuantizer(a.quantizer, channels)
        elif a.quantizer is not None:
            self.vector_quantizer = GumbelQuantizer(a.quantizer, channels, a.activation)
        self.feature_aggregator = ContextNetwork(a)
        self.wav2vec_predictions = StepPredictor(a.context_layers[-1][0], a.channels, a.n_steps)

    def features(self, waveform: torch.Tensor) -> torch.Tensor:
        """Computes features z, quantised if the model has a quantiser.

        Args:
            waveform: (batch, samples) at 16 kHz, not normalised. All rows have one length,
                because norms span time.

        Returns:
            (batch, channels, frames).
        """
        z: torch.Tensor = self.feature_extractor(waveform)
        return z if self.vector_quantizer is None else self.vector_quantizer(z)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (batch, channels, frames) and predictions (batch, steps, frames, channels).

        The prediction of step s at frame t is of the features at frame t + first_horizon + s.
        """
        z = self.features(waveform)
        return z, self.wav2vec_predictions(self.feature_aggregator(z))


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
                    nn.Identity(),  # dropout in the published code, which its keys count
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
        for channels, kernel, stride in a.context_layers:
            ahead = (kernel - 1, 0)
            blocks.append(
                nn.Sequential(
                    nn.ConstantPad1d(ahead, 0.0) if a.zero_pad else nn.ReplicationPad1d(ahead),
                    nn.Conv1d(n_in, channels, kernel, stride=stride, bias=a.context_bias),
                    nn.Identity(),
                    JointNorm(channels, affine=a.affine_norm),
                    activation(a.activation),
                )
            )
            matched = channels == n_in or not a.context_skip
            project = nn.Identity() if matched else nn.Conv1d(n_in, channels, 1, bias=False)
            projections.append(project)
            n_in = channels
        self.conv_layers = nn.Sequential(*blocks)
        self.residual_proj = nn.ModuleList(projections)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames) → (batch, channels, frames)."""
        x = features
        for block, project in zip(self.conv_layers, self.residual_proj, strict=True):
            y = block(x)
            x = (y + project(x)) * self.residual_scale if self.skip else y
        return x


class StepPredictor(nn.Module):
    """One linear map per future step, stored as an equivalent transposed convolution."""

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

    It is written as reductions, over time first. TensorRT's importer has computed statistics per
    channel for a GroupNormalization of one group, and a sum over both axes at once is less accurate
    in float32.
    """

    def __init__(self, channels: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames), or (batch, channels, 1, frames) in a graph."""
        if self.training:  # one operator, whose gradient is several times faster
            return nn.functional.group_norm(x, 1, self.weight, self.bias, self.eps)
        time = x.ndim - 1
        centred = x - x.mean(dim=time, keepdim=True).mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=time, keepdim=True).mean(dim=1, keepdim=True)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is None or self.bias is None:
            return centred * scale
        by_channel = (slice(None), *(None for _ in x.shape[2:]))
        return centred * (scale * self.weight[by_channel]) + self.bias[by_channel]


def activation(name: str) -> nn.Module:
    """The activation of a name: "relu", or the exact "gelu"."""
    return nn.ReLU() if name == "relu" else nn.GELU()


class GumbelQuantizer(nn.Module):
    """Chooses the code with the largest projected score, in each group."""

    def __init__(self, spec: QuantizerSpec, channels: int, act: str) -> None:
        super().__init__()
        self.n_groups, self.n_codes, self.shared = spec.n_groups, spec.n_codes, spec.shared_codes
        books = 1 if spec.shared_codes else spec.n_groups
        size = spec.channels // spec.n_groups
        self.vars = nn.Parameter(torch.rand(1, books * spec.n_codes, size))
        n_scores = spec.n_groups * spec.n_codes
        hidden = 2 * channels
        blocks: list[nn.Module] = []
        for i in range(spec.depth - 1):
            linear = nn.Linear(hidden if i else channels, hidden)
            blocks.append(nn.Sequential(linear, activation(act)))
        last = nn.Linear(hidden if blocks else channels, n_scores)
        # The keys of a single layer have no index.
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
