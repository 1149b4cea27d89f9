"""The three kinds of UTMOSv2 model as torch modules, and the module behind their ONNX graph.

The original modules have the published state-dict keys and are the reference of the parity check.
`simplified` converts one to the module that is exported, which scores all domains at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import nn

from mosrt_export.graphs.graph import OnnxModule

from .config import Kind, ModelConfig
from .spectrogram import SpectrogramBranch, SpectrogramGraph
from .ssl import SslBranch, SslGraph

__all__ = ["Fusion", "GraphModel", "Model", "SpectrogramOnly", "SslOnly", "build", "simplified"]

_INPUTS: Final[dict[Kind, tuple[str, ...]]] = {
    "fusion": ("waveform", "images"),
    "spec": ("images",),
    "ssl": ("waveform",),
}


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
    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Branch features by output name ("ssl_features", "spec_features"), in the head's order."""

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

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """SSL features, then spectrogram features."""
        return {
            "ssl_features": self.ssl.embed(inputs["waveform"]),
            "spec_features": self.spec_long.embed(inputs["images"]),
        }


class SslOnly(Model, SslBranch):
    """The waveform branch with a head of its own; its keys have no prefix."""

    def __init__(self, config: ModelConfig, n_domains: int) -> None:
        SslBranch.__init__(self, config.ssl)
        self.kind, self.n_domains = "ssl", n_domains
        self.fc = nn.Linear(self.feature_size + n_domains, 1)

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """SSL features."""
        return {"ssl_features": self.embed(inputs["waveform"])}


class SpectrogramOnly(Model, SpectrogramBranch):
    """The spectrogram branch with a head of its own; its keys have no prefix."""

    def __init__(self, config: ModelConfig, n_domains: int) -> None:
        SpectrogramBranch.__init__(self, config.spectrogram)
        self.kind, self.n_domains = "spec", n_domains
        self.fc = nn.Linear(self.feature_size + n_domains, 1)

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Spectrogram features."""
        return {"spec_features": self.embed(inputs["images"])}


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

    Attributes:
        input_names: Inputs in order.
        output_sizes: Outputs in order, "mos" first, and the size of each beside the batch.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.kind = model.kind
        self.input_names = _INPUTS[model.kind]
        self.ssl: SslGraph | None = None
        self.spec: SpectrogramGraph | None = None
        self.output_sizes = {"mos": model.n_domains}
        ssl = model if isinstance(model, SslBranch) else getattr(model, "ssl", None)
        if isinstance(ssl, SslBranch):
            self.ssl = SslGraph(ssl)
            self.output_sizes["ssl_features"] = ssl.feature_size
        spec = model if isinstance(model, SpectrogramBranch) else getattr(model, "spec_long", None)
        if isinstance(spec, SpectrogramBranch):
            self.spec = SpectrogramGraph(spec)
            self.output_sizes["spec_features"] = spec.feature_size
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

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Computes scores and features.

        Args:
            *inputs: The tensors named by `input_names`.

        Returns:
            Tensors named by `output_sizes`: mos (batch, n_domains), then the branches' features.
        """
        named = dict(zip(self.input_names, inputs, strict=True))
        features = []
        if self.ssl is not None:
            features.append(self.ssl(named["waveform"]))
        if self.spec is not None:
            features.append(self.spec(named["images"]))
        joined = torch.cat(features, dim=1) if len(features) > 1 else features[0]
        return (joined @ self.weight + self.offsets, *features)


def simplified(model: Model) -> GraphModel:
    """Converts an original module to the module that is exported.

    The result equals the original up to rounding. Stems read one channel, columns for zero inputs
    are removed, norms are folded, and attention is averaged before its linear part. `model` is
    changed in place and must not be used afterwards.
    """
    graph = GraphModel(model)
    graph.eval().requires_grad_(False)
    return graph
