"""The three kinds of UTMOSv2 model as torch modules, and the module behind their ONNX graph.

The original modules have the published state-dict keys and are the reference of the parity check.
`GraphModel` makes one the module that is exported, which scores all domains at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final

import torch
from torch import nn

from mosrt_export.graphs.graph import OnnxModule

from .config import Kind, ModelConfig
from .spectrogram import SpectrogramBranch, SpectrogramGraph
from .ssl_encoder import SslBranch, SslGraph

__all__ = ["Fusion", "GraphModel", "Model", "SpectrogramOnly", "SslOnly", "build"]

Branches = Mapping[str, SslBranch | SpectrogramBranch]
_INPUTS: Final = {"ssl": "waveform", "spec": "images"}


class Model(nn.Module, ABC):
    """Base of the original modules: a linear head on branch features and a one-hot domain.

    Attributes:
        kind: "fusion", "spec" or "ssl".
        n_domains: Number of data domains.
        fc: The linear head.
    """

    kind: Kind
    n_domains: int
    fc: nn.Linear

    @abstractmethod
    def branches(self) -> Branches:
        """The branches by "ssl" and "spec", in the head's order."""

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Branch features by output name ("ssl_features", "spec_features"), in the head's order."""
        return {
            f"{name}_features": branch.embed(inputs[_INPUTS[name]])
            for name, branch in self.branches().items()
        }

    def forward(self, inputs: dict[str, torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Predicts the mean opinion score.

        Args:
            inputs: "waveform" (batch, samples) and "images" (batch, images, height, width), as the
                kind needs.
            domain: (batch, n_domains) float32, one-hot.

        Returns:
            (batch,) float32 on the scale from 1 to 5.
        """
        return self.score(self.features(inputs), domain)

    def score(self, features: dict[str, torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Applies the head to the result of `features`."""
        parts = list(features.values())
        if self.kind == "fusion":
            # In a fusion model, the domain inputs of each branch are always zero.
            zeros = torch.zeros_like(domain)
            parts = [column for part in parts for column in (part, zeros)]
        scores: torch.Tensor = self.fc(torch.cat([*parts, domain], dim=1))
        return scores.squeeze(1)


class Fusion(Model):
    """Both branches and one linear head."""

    def __init__(self, config: ModelConfig, n_domains: int) -> None:
        super().__init__()
        self.kind, self.n_domains = "fusion", n_domains
        self.ssl = SslBranch(config.ssl)
        self.spec_long = SpectrogramBranch(config.spectrogram)
        size = self.ssl.feature_size + self.spec_long.feature_size
        self.fc = nn.Linear(size + 3 * n_domains, 1)

    def branches(self) -> Branches:
        """Both."""
        return {"ssl": self.ssl, "spec": self.spec_long}


class SslOnly(Model, SslBranch):
    """The waveform branch with a head of its own; its keys have no prefix."""

    def __init__(self, config: ModelConfig, n_domains: int) -> None:
        SslBranch.__init__(self, config.ssl)
        self.kind, self.n_domains = "ssl", n_domains
        self.fc = nn.Linear(self.feature_size + n_domains, 1)

    def branches(self) -> Branches:
        """The model itself."""
        return {"ssl": self}


class SpectrogramOnly(Model, SpectrogramBranch):
    """The spectrogram branch with a head of its own; its keys have no prefix."""

    def __init__(self, config: ModelConfig, n_domains: int) -> None:
        SpectrogramBranch.__init__(self, config.spectrogram)
        self.kind, self.n_domains = "spec", n_domains
        self.fc = nn.Linear(self.feature_size + n_domains, 1)

    def branches(self) -> Branches:
        """The model itself."""
        return {"spec": self}


def build(kind: Kind, config: ModelConfig, n_domains: int) -> Model:
    """Builds the original module of a kind, in evaluation mode and without trained weights."""
    classes: dict[Kind, type[Fusion | SslOnly | SpectrogramOnly]] = {
        "fusion": Fusion,
        "ssl": SslOnly,
        "spec": SpectrogramOnly,
    }
    model = classes[kind](config, n_domains)
    model.eval().requires_grad_(False)
    return model


class GraphModel(OnnxModule):
    """The module behind an ONNX graph, which returns scores of all domains, and features.

    It equals the original up to rounding. Stems read one channel, columns for zero inputs are
    removed, norms are folded, and attention is averaged before its linear part. The original is
    changed in place and must not be used afterwards.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.input_names = tuple(_INPUTS[name] for name in model.branches())
        self.output_sizes = {"mos": model.n_domains}
        for name, branch in model.branches().items():
            graph = SslGraph(branch) if isinstance(branch, SslBranch) else SpectrogramGraph(branch)
            self.add_module(name, graph)
            self.output_sizes[f"{name}_features"] = branch.feature_size
        columns = model.fc.weight.detach()
        keep, start = [], 0
        gap = model.n_domains if model.kind == "fusion" else 0
        for size in list(self.output_sizes.values())[1:]:
            keep.append(columns[:, start : start + size])
            start += size + gap
        # The domain is one-hot, so its columns of the head are one offset per domain.
        self.weight = nn.Parameter(torch.cat(keep, dim=1).T.contiguous(), requires_grad=False)
        offsets = columns[:, start:].double() + model.fc.bias.detach().double()
        self.offsets = nn.Parameter(offsets.float(), requires_grad=False)
        self.eval().requires_grad_(False)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Computes scores and features.

        Args:
            *inputs: The tensors named by `input_names`.

        Returns:
            Tensors named by `output_sizes`: mos (batch, n_domains), then the branches' features.
        """
        features = [graph(x) for graph, x in zip(self.children(), inputs, strict=True)]
        joined = torch.cat(features, dim=1) if len(features) > 1 else features[0]
        return (joined @ self.weight + self.offsets, *features)
