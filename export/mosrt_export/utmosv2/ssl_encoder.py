"""The branch of UTMOSv2 that reads waveforms with an SSL encoder, with the published keys.

A new encoder of transformers is added to `_WAVEFORM_ENCODERS`.

Sources for the architecture: Baba et al., "The T05 System for the VoiceMOS Challenge 2024"
(arXiv 2409.09305), and the shapes in the published state dicts.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from mosrt_export.errors import ConfigError
from mosrt_export.graphs.rewrites import MeanAttention, fold_weight_norm, use_plain_operators
from mosrt_export.limits import build_refusals, check_parameters, check_settings

from .config import EncoderConfig, SslConfig, did_you_mean

__all__ = ["SslBranch", "SslGraph", "build_encoder"]

_WAVEFORM_ENCODERS: Final = (
    "data2vec-audio",
    "hubert",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wav2vec2-conformer",
    "wavlm",
)
_REFUSED: Final = {
    "wav2vec2-bert": (
        "it reads log-mel features, which its own feature extractor computes, not a waveform"
    ),
    "whisper": "it is an encoder-decoder over log-mel features, not a waveform encoder",
}


def build_encoder(config: EncoderConfig) -> nn.Module:
    """Creates an SSL encoder with random weights, without a download.

    Returns:
        A transformers model that maps (batch, samples) to hidden states (batch, frames, hidden).
        Attention is eager where possible, which exports to plain MatMul and Softmax.

    Raises:
        ConfigError: The architecture does not read waveforms, or an override is unknown or invalid.
    """
    import transformers  # noqa: PLC0415 - slow to import

    model_type = config.model_type.replace("_", "-")
    model_type = {"w2v-bert": "wav2vec2-bert", "w2v-bert-2.0": "wav2vec2-bert"}.get(
        model_type, model_type
    )
    if model_type in _REFUSED:
        raise ConfigError(f"ssl.encoder.model_type {model_type!r}: {_REFUSED[model_type]}")
    if model_type not in _WAVEFORM_ENCODERS:
        raise ConfigError(
            f"ssl.encoder.model_type {model_type!r} is not a waveform encoder mosrt can export; "
            f"{did_you_mean(model_type, _WAVEFORM_ENCODERS)}"
        )
    known = transformers.AutoConfig.for_model(model_type).to_dict()
    for key in config.overrides:
        if key not in known:
            raise ConfigError(f"unknown key 'ssl.encoder.{key}'; {did_you_mean(key, known)}")
    # Two types have only their own implementation of attention.
    attention = None if model_type in ("wavlm", "wav2vec2-conformer") else "eager"
    with build_refusals("ssl.encoder: transformers refuses these values", ConfigError):
        check_settings(config.overrides)
        settings = transformers.AutoConfig.for_model(model_type, **dict(config.overrides))

        def build() -> nn.Module:
            model: nn.Module = transformers.AutoModel.from_config(
                settings, attn_implementation=attention, trust_remote_code=False
            )
            return model

        check_parameters(build)
        return build().eval()


class _Encoder(nn.Module):
    """Holds a transformers model under the published key prefix `encoder.model.`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.model = build_encoder(config)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns all hidden states, each (batch, frames, hidden), starting with the embedding."""
        output: Any = self.model(waveform, output_hidden_states=True, return_dict=True)
        # transformers 5 records the last layer before its final norm, transformers 4 after it;
        # the checkpoints were trained with the latter.
        return (*output.hidden_states[:-1], output.last_hidden_state)


class SslBranch(nn.Module):
    """A weighted sum of hidden states, attention over time, then pooling.

    Attributes:
        feature_size: Size of the features, twice the hidden size.
    """

    def __init__(self, config: SslConfig) -> None:
        super().__init__()
        self.encoder = _Encoder(config.encoder)
        settings: Any = self.encoder.model.config
        hidden = int(settings.hidden_size)
        if hidden % config.attention_heads:
            raise ConfigError(
                f"ssl.attention_heads ({config.attention_heads}) does not divide the encoder's "
                f"hidden_size ({hidden})"
            )
        self.weights = nn.Parameter(torch.zeros(int(settings.num_hidden_layers) + 1))
        self.attn = nn.ModuleList(
            [nn.MultiheadAttention(hidden, config.attention_heads, batch_first=True)]
        )
        self.feature_size = 2 * hidden

    def embed(self, waveform: torch.Tensor) -> torch.Tensor:
        """Computes the features of normalised crops.

        Args:
            waveform: (batch, samples) float32, each row of zero mean and unit variance.

        Returns:
            (batch, feature_size): mean over time of the attention's output, then maximum over time
            of its input.
        """
        x = mixed_states(self.encoder(waveform), self.weights)
        y, _ = self.attn[0](x, x, x, need_weights=False)
        return torch.cat([y.mean(dim=1), x.amax(dim=1)], dim=1)


def mixed_states(states: tuple[torch.Tensor, ...], weights: torch.Tensor) -> torch.Tensor:
    """Sums hidden states, each (batch, frames, hidden), with layer weights that need no softmax."""
    mixed = states[0] * weights[0]
    for i, state in enumerate(states[1:], start=1):
        mixed = mixed + state * weights[i]
    return mixed


class SslGraph(nn.Module):
    """The same function as `SslBranch`, rewritten for export."""

    def __init__(self, branch: SslBranch) -> None:
        super().__init__()
        fold_weight_norm(branch)
        use_plain_operators(branch.encoder)
        self.encoder, self.weights = branch.encoder, branch.weights
        attention: Any = branch.attn[0]
        self.attention = MeanAttention(attention)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """As `SslBranch.embed`."""
        x = mixed_states(self.encoder(waveform), self.weights)
        return torch.cat([self.attention(x), x.amax(dim=1)], dim=1)
