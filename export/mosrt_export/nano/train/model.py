"""Nano: the trained network as a whole, as torch knows it and as the graph computes it."""

from __future__ import annotations

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
from mosrt_export.uncertainty.wav2vec.model import Encoder
from mosrt_export.utmosv2.config import Kind

from .network import Combination, MelBranch, NanoHead, SslBranch
from .pretraining import ARCHITECTURE
from .training import Standardisation

__all__ = ["OVERALL", "Nano", "NanoError", "NanoGraph", "load_nano", "save_nano"]

OVERALL: Final = "overall"
_FORMAT: Final = "mosrt-nano-1"


class NanoError(MosrtError):
    """A checkpoint of the recipe that cannot be used."""


class Nano(nn.Module):
    """Branches and head; the scores it returns are standardised.

    Args:
        with_mel: Whether it has the spectrogram branch.
        with_ssl: Whether it has the waveform branch.

    Attributes:
        kind: "fusion", "spec" or "ssl".
    """

    def __init__(self, *, with_mel: bool, with_ssl: bool) -> None:
        super().__init__()
        self.mel = MelBranch(len(MEL.windows), MEL.n_mels) if with_mel else None
        channels = ARCHITECTURE.channels
        self.ssl = SslBranch(Encoder(ARCHITECTURE), channels) if with_ssl else None
        self.kind: Kind = "fusion" if with_mel and with_ssl else "spec" if with_mel else "ssl"
        size = sum(branch.feature_size for branch in (self.ssl, self.mel) if branch is not None)
        self.head = NanoHead(size, len(LABELS))

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Embeddings by output name, from "waveform" and "images" as the kind needs."""
        features = {}
        if self.ssl is not None:
            features["ssl_features"] = self.ssl(inputs["waveform"])
        if self.mel is not None:
            features["spec_features"] = self.mel(inputs["images"])
        return features

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Waveform (batch, samples) and images, as the kind needs -> (batch, domains)."""
        names = [name for name, branch in (("waveform", self.ssl), ("images", self.mel)) if branch]
        features = self.features(dict(zip(names, inputs, strict=True)))
        scores: torch.Tensor = self.head(torch.cat(list(features.values()), dim=1))
        return scores


class NanoGraph(OnnxModule):
    """What is exported: scores of all domains in their own units, the default's first.

    Args:
        model: Trained; its tensors are shared.
        standard: Undoes the standardisation of labels.
        combination: Makes the default score.

    Attributes:
        kind: "fusion", "spec" or "ssl".
        n_domains: Columns of the scores.
        domains: Their names.
        input_names: Inputs in order.
        output_sizes: Outputs in order, "mos" first, and the size of each beside the batch.
    """

    def __init__(self, model: Nano, standard: Standardisation, combination: Combination) -> None:
        super().__init__()
        self.model = model
        self.combination = combination
        self.kind = model.kind
        self.domains = (OVERALL, *LABELS)
        self.n_domains = len(self.domains)
        self.register_buffer("mean", torch.from_numpy(standard.mean.astype(np.float32)))
        self.register_buffer("deviation", torch.from_numpy(standard.deviation.astype(np.float32)))
        self.input_names = ()
        self.output_sizes = {"mos": self.n_domains}
        if model.ssl is not None:
            self.input_names += ("waveform",)
            self.output_sizes["ssl_features"] = model.ssl.feature_size
        if model.mel is not None:
            self.input_names += ("images",)
            self.output_sizes["spec_features"] = model.mel.feature_size
        self.eval().requires_grad_(False)

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Embeddings by output name."""
        return self.model.features(inputs)

    def score(self, features: dict[str, torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Scores (batch,) of one-hot domains (batch, n_domains)."""
        return (self.scores(features) * domain).sum(dim=1)

    def scores(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Scores (batch, n_domains) in their own units."""
        standardised = self.model.head(torch.cat(list(features.values()), dim=1))
        scores = standardised * self.deviation + self.mean
        return torch.cat([self.combination(scores, LABELS), scores], dim=1)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors named by `input_names` -> tensors named by `output_sizes`."""
        features = self.features(dict(zip(self.input_names, inputs, strict=True)))
        return (self.scores(features), *features.values())


def save_nano(
    path: Path, model: Nano, standard: Standardisation, provenance: dict[str, Any]
) -> None:
    """Writes a checkpoint: tensors, and plain values that say where they come from."""
    saved = {
        "format": _FORMAT,
        "kind": model.kind,
        "state": model.state_dict(),
        "mean": torch.from_numpy(standard.mean),
        "deviation": torch.from_numpy(standard.deviation),
        "provenance": provenance,
    }
    with replacing(path) as part:
        torch.save(saved, part)


def load_nano(path: Path) -> tuple[Nano, Standardisation, dict[str, Any]]:
    """Reads a checkpoint: the model in evaluation mode, its labels' units, where it comes from.

    Raises:
        NanoError: It is something else.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != _FORMAT:
            raise NanoError(f"{path}: format {saved['format']!r}, not {_FORMAT!r}; train it again")
        model = Nano(with_mel=saved["kind"] != "ssl", with_ssl=saved["kind"] != "spec")
        model.load_state_dict(saved["state"])
    except MosrtError:
        raise
    except Exception as exc:
        raise NanoError(
            f"{path}: not a checkpoint made by `mosrt_export.nano train` ({exc})"
        ) from exc
    standard = Standardisation(saved["mean"].numpy(), saved["deviation"].numpy())
    return model.eval().requires_grad_(False), standard, saved["provenance"]
