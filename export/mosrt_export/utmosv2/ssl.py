"""SslBranch: waveform crops → SSL features, with the state-dict keys of the published checkpoints.

Facts about the architecture: Baba et al., "The T05 System for the VoiceMOS Challenge 2024"
(arXiv 2409.09305), and the shapes in the published state dicts.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn

from .attention import mean_attention
from .config import ConfigError, EncoderConfig, SslConfig, did_you_mean

__all__ = ["SslBranch", "SslGraph", "build_encoder"]

_UNMASKED: Final = "mosrt_unmasked"

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
        "it reads log-mel features, which its own feature extractor must make, and not a waveform"
    ),
    "whisper": "it is an encoder-decoder over log-mel features, not a waveform encoder",
}


def build_encoder(config: EncoderConfig) -> nn.Module:
    """An SSL encoder with random weights; nothing is downloaded.

    Args:
        config: transformers model type and overrides of its configuration class.

    Returns:
        A transformers model that maps (batch, samples) to hidden states (batch, frames, hidden).
        Attention is the eager one, which exports to plain MatMul and Softmax.

    Raises:
        ConfigError: The architecture does not hear waveforms, or an override is unknown or refused.
    """
    import transformers  # noqa: PLC0415 - seconds to import; checkpoint.py must not pay for it

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
    try:
        settings = transformers.AutoConfig.for_model(model_type, **dict(config.overrides))
        model: nn.Module = transformers.AutoModel.from_config(
            settings, attn_implementation=_attention(model_type)
        )
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"ssl.encoder: transformers refuses these values ({exc})") from exc
    return model.eval()


def _attention(model_type: str) -> str | None:
    """Eager attention where there is a choice; these two have only their own form."""
    return None if model_type in ("wavlm", "wav2vec2-conformer") else "eager"


class _Encoder(nn.Module):
    """Holds the transformers model under the published key prefix `encoder.model.`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.model = build_encoder(config)

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """All hidden states, each (batch, frames, hidden), the embedding first."""
        output: Any = self.model(waveform, output_hidden_states=True, return_dict=True)
        # transformers 5 records the last layer before its final norm where 4 recorded it after;
        # the checkpoints were trained with the latter
        return (*output.hidden_states[:-1], output.last_hidden_state)


class SslBranch(nn.Module):
    """Weighted hidden states, attention over time, then pooling.

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
        """Features of normalised crops.

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
    """Hidden states, each (batch, frames, hidden), summed with the layer weights, used raw."""
    mixed = states[0] * weights[0]
    for i, state in enumerate(states[1:], start=1):
        mixed = mixed + state * weights[i]
    return mixed


class SslGraph(nn.Module):
    """The same function as `SslBranch` with weight norm folded, in the form that exports well."""

    def __init__(self, branch: SslBranch) -> None:
        super().__init__()
        fold_weight_norm(branch)
        use_plain_operators(branch.encoder)
        self.encoder, self.weights = branch.encoder, branch.weights
        self.attention = mean_attention(branch.attn[0])

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """As `SslBranch.embed`."""
        x = mixed_states(self.encoder(waveform), self.weights)
        return torch.cat([self.attention(x), x.amax(dim=1)], dim=1)


def fold_weight_norm(module: nn.Module) -> None:
    """Replaces every weight-normalised weight by the plain tensor it evaluates to, in place.

    In float64, so that the result does not depend on the order in which threads sum the norm.
    """
    for submodule in module.modules():
        if nn.utils.parametrize.is_parametrized(submodule, "weight"):
            submodule.double()
            nn.utils.parametrize.remove_parametrizations(
                submodule, "weight", leave_parametrized=True
            )
            submodule.float()


def use_plain_operators(encoder: nn.Module) -> None:
    """Puts an encoder into the form that runtimes recognise, in place.

    Attention loses the mask of ones that it would add, GELU takes the order of operations that
    ONNX Runtime fuses, and a group norm with one group per channel becomes an instance norm.
    """
    from transformers import AttentionInterface  # noqa: PLC0415 - seconds to import
    from transformers.activations import GELUActivation  # noqa: PLC0415

    AttentionInterface.register(_UNMASKED, unmasked_attention)
    for name, module in list(encoder.named_modules()):
        if isinstance(module, (nn.GELU, GELUActivation)):
            encoder.set_submodule(name, Gelu())
        elif isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
            encoder.set_submodule(name, ChannelNorm(module))
        settings: Any = getattr(module, "config", None)
        if settings is not None and settings._attn_implementation == "eager":
            settings._attn_implementation = _UNMASKED


def unmasked_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Eager attention over (batch, heads, frames, size) without a mask, as transformers calls it.

    Returns:
        (batch, frames, heads, size), and no weights.

    Raises:
        ValueError: There is a mask after all, which this function would ignore.
    """
    if attention_mask is not None:
        raise ValueError(f"{type(module).__name__} masks its attention; the exporter expects none")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = torch.softmax((query @ key.transpose(2, 3)) * scale, dim=-1)
    return (weights @ value).transpose(1, 2), None


class Gelu(nn.Module):
    """The exact GELU, x * (1 + erf(x / sqrt 2)) / 2, in the order that ONNX Runtime fuses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return x * (torch.erf(x / math.sqrt(2.0)) + 1.0) * 0.5


class ChannelNorm(nn.Module):
    """`nn.GroupNorm` with one group per channel, as the instance norm that it is."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, samples)."""
        return nn.functional.instance_norm(
            x, weight=self.weight, bias=self.bias, use_input_stats=True, eps=self.eps
        )
