"""Defines the network of `nano`, the graph that is exported from it, and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from mosrt.errors import MosrtError
from mosrt.host.files import replacing
from mosrt_export.graphs.graph import OnnxModule
from mosrt_export.nano.data.dataset import LABELS
from mosrt_export.nano.data.images import MEL

from .training import Standardisation

__all__ = [
    "OVERALL",
    "Nano",
    "NanoError",
    "NanoGraph",
    "NanoHead",
    "combined",
    "default_score",
    "load_nano",
    "save_nano",
]

OVERALL: Final = "overall"
_FORMAT: Final = "mosrt-nano-1"
# The domains of both teachers count the same. Fidelity and anchor only lower the score of clips
# that are clearly degraded or come from an old engine. Above their thresholds they say nothing
# about how natural modern synthetic speech sounds.
_AVERAGED: Final = ("p808", "bvcc")
_PENALTIES: Final = {
    "fidelity": {"threshold": 3.0, "slope": 0.4},
    "anchor": {"threshold": 2.8, "slope": 0.5},
}
_OFFSET: Final = 3.4
_SCALE: Final = 0.6


class NanoError(MosrtError, ValueError):
    """A checkpoint of the recipe cannot be used."""


def _convolution(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
    )


class _Residual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (batch, channels, mels, frames) to the same shape."""
        return torch.relu(maps + self.second(self.first(maps)))


class MelBranch(nn.Module):
    """Maps log-mel images with several window lengths to an embedding of the clip.

    Convolutional features are pooled by their maximum over time and frequency, as in DNSMOS Pro,
    and frames by mean, standard deviation, maximum and attention.

    Args:
        n_windows: Number of images per clip.
        n_mels: Rows of an image; a multiple of 8.
        widths: Channels of the three stages. Each stage halves height and width.
        frame_size: Size of a frame's embedding.

    Attributes:
        feature_size: Size of the embedding.
    """

    def __init__(
        self,
        n_windows: int,
        n_mels: int,
        widths: tuple[int, int, int] = (16, 32, 64),
        frame_size: int = 96,
    ) -> None:
        super().__init__()
        first, middle, last = widths
        stages = [
            _convolution(n_windows, first, 2),
            _convolution(first, first),
            _convolution(first, middle, 2),
            _Residual(middle),
            _convolution(middle, last, 2),
            _Residual(last),
            _Residual(last),
        ]
        self.stages = nn.Sequential(*stages)
        self.frame = nn.Conv1d(last * (n_mels // 8), frame_size, 1)
        self.attention = nn.Conv1d(frame_size, 1, 1)
        self.feature_size = 4 * frame_size + last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, windows, mels, frames) in [0, 1] to (batch, feature_size)."""
        maps = self.stages(2 * images - 1)
        patterns = maps.amax(dim=(2, 3)).float()
        frames = torch.relu(self.frame(maps.flatten(1, 2))).float()
        weights = torch.softmax(self.attention(frames).float(), dim=2)
        mean = frames.mean(dim=2)
        spread = _deviation(frames, mean)
        parts = [mean, spread, frames.amax(dim=2), (weights * frames).sum(dim=2), patterns]
        return torch.cat(parts, dim=1)


def _deviation(frames: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Returns the standard deviation over time of frames (batch, size, frames).

    It is kept above zero, where its gradient is infinite.
    """
    centred = frames - mean[:, :, None]
    return torch.sqrt((centred * centred).mean(dim=2) + 1e-4)


class NanoHead(nn.Module):
    """Maps embeddings to a standardised score for every domain.

    All domains share a hidden layer, which each domain scales and shifts. What is learned from one
    source of labels thus helps the others.

    Args:
        feature_size: Size of the concatenated embeddings.
        n_domains: Number of domains.
        hidden_size: Size of the hidden layer.
        dropout: Share of features dropped in training.
    """

    def __init__(
        self, feature_size: int, n_domains: int, hidden_size: int = 96, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(feature_size)
        self.dropout = nn.Dropout(dropout)
        self.shared = nn.Linear(feature_size, hidden_size)
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(n_domains, hidden_size))
        self.shift = nn.Parameter(0.3 * torch.randn(n_domains, hidden_size))
        self.score = nn.Parameter(torch.randn(n_domains, hidden_size) / hidden_size**0.5)
        self.offset = nn.Parameter(torch.zeros(n_domains))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps features (batch, feature_size) to standardised scores (batch, n_domains)."""
        hidden = self.shared(self.dropout(self.norm(features)))
        hidden = torch.relu(hidden[:, None] * self.scale + self.shift)
        return (hidden * self.score).sum(dim=2) + self.offset


class Nano(nn.Module):
    """The branch and the head. Its scores are standardised."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = MelBranch(len(MEL.windows), MEL.n_mels)
        self.head = NanoHead(self.mel.feature_size, len(LABELS))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, windows, mels, frames) in [0, 1] to (batch, domains)."""
        scores: torch.Tensor = self.head(self.mel(images))
        return scores


def default_score(standard: Standardisation) -> dict[str, Any]:
    """Returns how the default score is computed from the scores of the domains, as JSON values.

    score = offset + scale · (mean of the z-scores of "averaged"
            - Σ slope · max(0, threshold - domain) over "penalties")

    Z-scores are relative to the training data. Numbers are rounded, so that the model card can give
    the exact formula.
    """
    averaged = {}
    for name in _AVERAGED:
        mean, deviation = (
            round(float(values[LABELS.index(name)]), 3)
            for values in (standard.mean, standard.deviation)
        )
        averaged[name] = {"mean": mean, "deviation": deviation}
    return {"averaged": averaged, "penalties": _PENALTIES, "offset": _OFFSET, "scale": _SCALE}


def combined(scores: torch.Tensor, domains: Sequence[str], rule: Mapping[str, Any]) -> torch.Tensor:
    """Maps scores (batch, domains) to the default score (batch, 1); see `default_score`."""

    def of(name: str) -> torch.Tensor:
        column = domains.index(name)
        return scores[:, column : column + 1]

    total = torch.zeros_like(scores[:, :1])
    for name, z in rule["averaged"].items():
        total = total + (of(name) - z["mean"]) * (1 / (z["deviation"] * len(rule["averaged"])))
    for name, penalty in rule["penalties"].items():
        total = total - penalty["slope"] * torch.relu(penalty["threshold"] - of(name))
    overall: torch.Tensor = rule["offset"] + rule["scale"] * total
    return overall


class NanoGraph(OnnxModule):
    """The module that is exported: scores on the labels' scales, the default score first.

    Args:
        model: The trained model, whose tensors are shared.
        standard: Mean and standard deviation of the labels.

    Attributes:
        combination: How the default score is computed; see `default_score`.
        domains: Names of the scores.
        n_domains: Number of scores.
        input_names: Names of the inputs.
        input_shapes: Shape per clip of each input.
        output_sizes: Size per clip of each output, in order, "mos" first.
    """

    def __init__(self, model: Nano, standard: Standardisation) -> None:
        super().__init__()
        self.model = model
        self.combination = default_score(standard)
        self.domains = (OVERALL, *LABELS)
        self.n_domains = len(self.domains)
        self.register_buffer("mean", torch.from_numpy(standard.mean.astype(np.float32)))
        self.register_buffer("deviation", torch.from_numpy(standard.deviation.astype(np.float32)))
        self.input_names = ("images",)
        self.input_shapes = {"images": (len(MEL.windows), MEL.image_height, MEL.image_width)}
        self.output_sizes = {"mos": self.n_domains, "spec_features": model.mel.feature_size}
        self.eval().requires_grad_(False)

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the embedding by output name."""
        return {"spec_features": self.model.mel(inputs["images"])}

    def score(self, features: dict[str, torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Returns scores (batch,) of one-hot domains (batch, n_domains)."""
        return (self.scores(features["spec_features"]) * domain).sum(dim=1)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Returns scores (batch, n_domains)."""
        scores = self.model.head(features) * self.deviation + self.mean
        return torch.cat([combined(scores, LABELS, self.combination), scores], dim=1)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps the tensors of `input_names` to those of `output_sizes`."""
        features = self.model.mel(*inputs)
        return self.scores(features), features


def save_nano(
    path: Path, model: Nano, standard: Standardisation, provenance: dict[str, Any]
) -> None:
    """Writes a checkpoint: tensors, and how the model was trained as plain values."""
    saved = {
        "format": _FORMAT,
        "state": model.state_dict(),
        "mean": torch.from_numpy(standard.mean),
        "deviation": torch.from_numpy(standard.deviation),
        "provenance": provenance,
    }
    with replacing(path) as part:
        torch.save(saved, part)


def load_nano(path: Path) -> tuple[Nano, Standardisation, dict[str, Any]]:
    """Reads a checkpoint.

    Returns:
        The model in evaluation mode, mean and standard deviation of the labels, and how the model
        was trained.

    Raises:
        NanoError: The file is not such a checkpoint.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != _FORMAT:
            raise NanoError(f"{path}: format {saved['format']!r}, not {_FORMAT!r}; train it again")
        model = Nano()
        model.load_state_dict(saved["state"])
    except MosrtError:
        raise
    except Exception as exc:
        raise NanoError(
            f"{path}: not a checkpoint made by `mosrt_export.nano train` ({exc})"
        ) from exc
    standard = Standardisation(saved["mean"].numpy(), saved["deviation"].numpy())
    return model.eval().requires_grad_(False), standard, saved["provenance"]
