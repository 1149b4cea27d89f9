"""Defines students: a trained network, its checkpoint, and the graph that is exported from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from mosrt.host.files import replacing
from mosrt_export.distill.recipe import Overall
from mosrt_export.errors import CheckpointError
from mosrt_export.graphs.graph import OnnxModule

from .network import StudentNetwork
from .training import Standardisation

__all__ = [
    "MOS_RANGE",
    "OVERALL",
    "Student",
    "StudentGraph",
    "combination",
    "combined",
    "default_score",
]

OVERALL: Final = "overall"
MOS_RANGE: Final = (1.0, 5.0)
_FORMAT: Final = "mosrt-student-2"


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
    deviation_factor: float
    provenance: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Writes a checkpoint of tensors and plain values."""
        saved = {
            "format": _FORMAT,
            "domains": list(self.domains),
            "combination": dict(self.combination),
            "deviation_factor": self.deviation_factor,
            "state": {
                name: value
                for name, value in self.network.state_dict().items()
                if not name.startswith("hint.")  # of which only training has a use
            },
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
            if saved["format"] != _FORMAT:
                raise CheckpointError(
                    f"{path}: format {saved['format']!r}, not {_FORMAT!r}; train it again"
                )
            domains = tuple(saved["domains"])
            standard = Standardisation(saved["mean"].numpy(), saved["deviation"].numpy())
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
            combination=saved["combination"],
            deviation_factor=saved["deviation_factor"],
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


def default_score(
    scores: torch.Tensor, *, domains: Sequence[str], rule: Mapping[str, Any]
) -> torch.Tensor:
    """Maps scores (batch, domains) to the default score (batch, 1): the first without a rule."""
    return combined(scores, domains, rule) if rule else scores[:, :1]


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
        self.register_buffer("label_mean", torch.from_numpy(standard.mean.astype(np.float32)))
        self.register_buffer(
            "label_deviation", torch.from_numpy(standard.deviation.astype(np.float32))
        )
        self.input_names = ("waveform",)
        self.output_sizes = {
            "mos": self.n_domains,
            "deviation": 1,
            "features": self.model.encoder.feature_size,
        }
        self.eval().requires_grad_(False)

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the embedding by output name."""
        return {"features": self.model.encoder(inputs["waveform"])[1]}

    def score(self, features: dict[str, torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Returns scores (batch,) of one-hot domains (batch, n_domains)."""
        return (self.scores(features["features"])[0] * domain).sum(dim=1)

    def scores(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns scores (batch, n_domains) from 1 to 5, and the first one's deviation."""
        standardised, deviation = self.model.head(features)
        scores = standardised * self.label_deviation + self.label_mean
        if self.combination:
            scores = torch.cat([combined(scores, self._own, self.combination), scores], dim=1)
        return scores.clip(*MOS_RANGE), deviation

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps the tensors of `input_names` to those of `output_sizes`."""
        features = self.model.encoder(*inputs)[1]
        return (*self.scores(features), features)
