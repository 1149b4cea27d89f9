"""Defines the network of students, the graph that is exported from it, and its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from mosrt.host.files import replacing
from mosrt_export.distill.data.images import MEL
from mosrt_export.distill.recipe import Overall, Recipe
from mosrt_export.errors import CheckpointError
from mosrt_export.graphs.graph import OnnxModule

from .training import Standardisation

__all__ = [
    "OVERALL",
    "MelBranch",
    "Student",
    "StudentGraph",
    "StudentNetwork",
    "combination",
    "combined",
]

OVERALL: Final = "overall"
_FORMAT: Final = "mosrt-student-1"
_NANO_FORMAT: Final = "mosrt-nano-1"  # whose domains and default score are those of the recipe
_CHANNELS: Final = 64
_FRAME_SIZE: Final = 96
_HIDDEN_SIZE: Final = 96
_NANO_DOMAINS: Final = ("bvcc", "p808", "fidelity", "anchor")


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
    """

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            _convolution(len(MEL.windows), 16, 2),
            _convolution(16, 16),
            _convolution(16, 32, 2),
            _Residual(32),
            _convolution(32, _CHANNELS, 2),
            _Residual(_CHANNELS),
            _Residual(_CHANNELS),
        )
        self.frame = nn.Conv1d(_CHANNELS * (MEL.n_mels // 8), _FRAME_SIZE, 1)
        self.attention = nn.Conv1d(_FRAME_SIZE, 1, 1)
        self.feature_size = 4 * _FRAME_SIZE + _CHANNELS

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


class Head(nn.Module):
    """Maps embeddings to a standardised score for every domain.

    All domains share a hidden layer, which each domain scales and shifts. What is learned from one
    source of labels thus helps the others.
    """

    def __init__(self, feature_size: int, n_domains: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(feature_size)
        self.dropout = nn.Dropout(0.1)
        self.shared = nn.Linear(feature_size, _HIDDEN_SIZE)
        self.scale = nn.Parameter(1 + 0.3 * torch.randn(n_domains, _HIDDEN_SIZE))
        self.shift = nn.Parameter(0.3 * torch.randn(n_domains, _HIDDEN_SIZE))
        self.score = nn.Parameter(torch.randn(n_domains, _HIDDEN_SIZE) / _HIDDEN_SIZE**0.5)
        self.offset = nn.Parameter(torch.zeros(n_domains))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps features (batch, feature_size) to standardised scores (batch, n_domains)."""
        hidden = self.shared(self.dropout(self.norm(features)))
        hidden = torch.relu(hidden[:, None] * self.scale + self.shift)
        return (hidden * self.score).sum(dim=2) + self.offset


class StudentNetwork(nn.Module):
    """The branch and the head. Its scores are standardised."""

    def __init__(self, n_domains: int) -> None:
        super().__init__()
        self.mel = MelBranch()
        self.head = Head(self.mel.feature_size, n_domains)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images (batch, windows, mels, frames) in [0, 1] to (batch, n_domains)."""
        scores: torch.Tensor = self.head(self.mel(images))
        return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A trained network and what its scores mean.

    Attributes:
        network: The network, in evaluation mode on the CPU.
        domains: Names of its scores, the teachers' default score first.
        standard: Mean and standard deviation of the labels.
        combination: How the default score is made of the others, or {} if the first domain is it;
            see `combination`.
        provenance: How it was trained, as plain values.
    """

    network: StudentNetwork
    domains: tuple[str, ...]
    standard: Standardisation
    combination: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Writes a checkpoint of tensors and plain values."""
        saved = {
            "format": _FORMAT,
            "domains": list(self.domains),
            "combination": dict(self.combination),
            "state": self.network.state_dict(),
            "mean": torch.from_numpy(self.standard.mean),
            "deviation": torch.from_numpy(self.standard.deviation),
            "provenance": dict(self.provenance),
        }
        with replacing(path) as part:
            torch.save(saved, part)

    @classmethod
    def load(cls, path: Path) -> Student:
        """Reads a checkpoint. Raises CheckpointError if the file is none."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["format"] not in (_FORMAT, _NANO_FORMAT):
                raise CheckpointError(
                    f"{path}: format {saved['format']!r}, not {_FORMAT!r}; train it again"
                )
            domains = tuple(saved.get("domains", _NANO_DOMAINS))
            standard = Standardisation(saved["mean"].numpy(), saved["deviation"].numpy())
            rule = saved.get("combination")
            if rule is None:
                rule = combination(Recipe.read("nano").overall, domains, standard)
            network = StudentNetwork(len(domains))
            network.load_state_dict(saved["state"])
        except CheckpointError:
            raise
        except Exception as exc:
            raise CheckpointError(
                f"{path}: not a checkpoint made by `mosrt distill` ({exc})"
            ) from exc
        return cls(
            network=network.eval().requires_grad_(False),
            domains=domains,
            standard=standard,
            combination=rule,
            provenance=saved["provenance"],
        )


def combination(
    overall: Overall | None, domains: Sequence[str], standard: Standardisation
) -> dict[str, Any]:
    """Returns a rule for the default score with the z-scores' means and deviations, as JSON values.

    Numbers are rounded, so that the model card can give the exact formula.
    """
    if overall is None:
        return {}
    averaged = {}
    for name in overall.averaged:
        column = domains.index(name)
        mean, deviation = (
            round(float(values[column]), 3) for values in (standard.mean, standard.deviation)
        )
        averaged[name] = {"mean": mean, "deviation": deviation}
    return {**dataclasses.asdict(overall), "averaged": averaged}


def combined(scores: torch.Tensor, domains: Sequence[str], rule: Mapping[str, Any]) -> torch.Tensor:
    """Maps scores (batch, domains) to the default score (batch, 1); see `combination`."""

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


class StudentGraph(OnnxModule):
    """The module that is exported: scores on the labels' scales, the default score first.

    It shares the tensors of the student. `domains` are the names of its scores.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.model = student.network
        self.combination = student.combination
        self._own = student.domains
        self.domains = (OVERALL, *self._own) if self.combination else self._own
        self.n_domains = len(self.domains)
        standard = student.standard
        self.register_buffer("mean", torch.from_numpy(standard.mean.astype(np.float32)))
        self.register_buffer("deviation", torch.from_numpy(standard.deviation.astype(np.float32)))
        self.input_names = ("images",)
        self.output_sizes = {"mos": self.n_domains, "spec_features": self.model.mel.feature_size}
        self.eval().requires_grad_(False)

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the embedding by output name."""
        return {"spec_features": self.model.mel(inputs["images"])}

    def score(self, features: dict[str, torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Returns scores (batch,) of one-hot domains (batch, n_domains)."""
        return (self.scores(features["spec_features"]) * domain).sum(dim=1)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Returns scores (batch, n_domains)."""
        scores: torch.Tensor = self.model.head(features) * self.deviation + self.mean
        if not self.combination:
            return scores
        return torch.cat([combined(scores, self._own, self.combination), scores], dim=1)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps the tensors of `input_names` to those of `output_sizes`."""
        features = self.model.mel(*inputs)
        return self.scores(features), features
