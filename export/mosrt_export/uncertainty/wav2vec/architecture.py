"""Describes the shape of a wav2vec v1 network.

Names in brackets are those of fairseq's `wav2vec` model options, as checkpoints store them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Architecture", "Layer", "QuantizerSpec"]

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
        length, hop = 1, 1
        for _, kernel, stride in self.encoder_layers:
            length += (kernel - 1) * hop
            hop *= stride
        return length

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
