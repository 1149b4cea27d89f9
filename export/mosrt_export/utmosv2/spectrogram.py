"""The branch of UTMOSv2 that reads mel images, with the published state-dict keys.

Sources for the architecture: Baba et al., "The T05 System for the VoiceMOS Challenge 2024"
(arXiv 2409.09305), and the shapes in the published state dicts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mosrt_export.errors import ConfigError
from mosrt_export.graphs.rewrites import MeanAttention, fold_batch_norm, use_one_channel
from mosrt_export.limits import build_refusals

from .config import SpectrogramConfig

__all__ = ["SpectrogramBranch", "SpectrogramGraph", "build_backbone"]


def build_backbone(name: str) -> nn.Module:
    """Creates a timm network with random weights that returns a feature map, without a download.

    Raises:
        ConfigError: timm has no such network, or cannot build it without head and pooling.
    """
    import timm  # noqa: PLC0415 - seconds to import; checkpoint.py must not pay for it

    if not timm.is_model(name):
        architecture = name.split(".", maxsplit=1)[0]
        near = timm.list_models(f"{architecture[:12]}*")[:6] or timm.list_models(
            "*efficientnetv2_s*"
        )
        raise ConfigError(
            f"spectrogram.backbone {name!r} is not a timm network; some near it: {', '.join(near)}"
        )
    with build_refusals(f"spectrogram.backbone {name!r} has no form without pooling", ConfigError):
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=0, global_pool="", in_chans=3
        )
    return model.eval()


class SpectrogramBranch(nn.Module):
    """One backbone per window, weighted sum over windows, pooling, attention over frequency.

    Attributes:
        feature_size: Size of the features, four times the channels of a backbone.
    """

    def __init__(self, config: SpectrogramConfig) -> None:
        super().__init__()
        self.n_crops, self.n_windows = config.n_crops, len(config.windows)
        self.image_size = (config.n_mels, config.image_width)
        self.backbones = nn.ModuleList([build_backbone(config.backbone) for _ in config.windows])
        self.weights = nn.Parameter(torch.zeros(self.n_windows))
        channels = self._channels(config)
        if 2 * channels % config.attention_heads:
            raise ConfigError(
                f"spectrogram.attention_heads ({config.attention_heads}) does not divide twice the "
                f"backbone's channels ({2 * channels})"
            )
        self.attn = nn.MultiheadAttention(2 * channels, config.attention_heads, batch_first=True)
        self.feature_size = 4 * channels

    def _channels(self, config: SpectrogramConfig) -> int:
        """Channels of the backbone's feature map, found by running it on one blank image."""
        backbone: Any = self.backbones[0]
        height, width = self.image_size
        what = f"spectrogram.backbone {config.backbone!r} cannot read images of {height} x {width}"
        with build_refusals(what, ConfigError), torch.inference_mode():
            shape = tuple(backbone(torch.zeros(1, 3, height, width)).shape)
        channels = {backbone.num_features, getattr(backbone, "head_hidden_size", None)}
        if len(shape) != 4 or shape[1] not in channels:
            raise ConfigError(
                f"spectrogram.backbone {config.backbone!r} gives features {shape[1:]}; the branch "
                f"needs a convolutional feature map ({backbone.num_features}, rows, columns)"
            )
        return int(shape[1])

    def rows(self, images: torch.Tensor) -> torch.Tensor:
        """The input sequence of the attention.

        Args:
            images: (batch, n_crops * n_windows, height, width) float32, crop-major, then window.

        Returns:
            (batch, rows, 2 * channels): average over time, then maximum over time.
        """
        crops = []
        for crop in range(self.n_crops):
            mixed = torch.zeros(())
            for window, backbone in enumerate(self.backbones):
                image = images[:, crop * self.n_windows + window]
                three = image.unsqueeze(1).expand(-1, 3, -1, -1)
                mixed = mixed + backbone(three) * self.weights[window]
            crops.append(mixed)
        joined = torch.cat(crops, dim=3)
        pooled = torch.cat([joined.mean(dim=3), joined.amax(dim=3)], dim=1)
        return pooled.transpose(1, 2)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Features of the images of one view.

        Args:
            images: (batch, n_crops * n_windows, height, width) float32 in [0, 1].

        Returns:
            (batch, feature_size): mean over rows of the attention's output, then maximum over rows
            of its input.
        """
        x = self.rows(images)
        y, _ = self.attn(x, x, x, need_weights=False)
        return torch.cat([y.mean(dim=1), x.amax(dim=1)], dim=1)


class SpectrogramGraph(nn.Module):
    """The same function as `SpectrogramBranch`, rewritten for export.

    The stem reads one channel, batch norm is folded into the convolutions, and each backbone
    processes all crops of the batch in one run.
    """

    def __init__(self, branch: SpectrogramBranch) -> None:
        super().__init__()
        self.n_crops, self.n_windows = branch.n_crops, branch.n_windows
        self.image_size = branch.image_size
        self.backbones = branch.backbones
        self.channels = [use_one_channel(backbone) for backbone in self.backbones]
        for backbone, channels in zip(self.backbones, self.channels, strict=True):
            fold_batch_norm(backbone, torch.zeros(1, channels, *self.image_size))
        self.weights = branch.weights
        self.attention = MeanAttention(branch.attn)

    def rows(self, images: torch.Tensor) -> torch.Tensor:
        """As `SpectrogramBranch.rows`."""
        height, width = self.image_size
        grouped = images.reshape(-1, self.n_crops, self.n_windows, height, width)
        mixed = torch.zeros(())
        for window, backbone in enumerate(self.backbones):
            image = grouped[:, :, window].reshape(-1, 1, height, width)
            if self.channels[window] == 3:
                image = image.expand(-1, 3, -1, -1)
            feature_map = backbone(image) * self.weights[window]
            mixed = feature_map if window == 0 else mixed + feature_map
        channels, n_rows, n_columns = mixed.shape[1:]
        crops = mixed.reshape(-1, self.n_crops, channels, n_rows, n_columns)
        pooled = torch.cat([crops.mean(dim=(1, 4)), crops.amax(dim=(1, 4))], dim=1)
        return pooled.transpose(1, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As `SpectrogramBranch.embed`."""
        x = self.rows(images)
        return torch.cat([self.attention(x), x.amax(dim=1)], dim=1)
