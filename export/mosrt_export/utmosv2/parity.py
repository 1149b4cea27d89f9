"""Compares UTMOSv2's graphs, run by the runtime, with the torch modules behind them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch

from mosrt._arrays import Float32Array
from mosrt.audio.recording import Recording
from mosrt.audio.sources import AudioSource
from mosrt.backends import OrtBackend
from mosrt.bundle.manifest import Manifest, Member
from mosrt.crops import PlanRule
from mosrt.errors import AudioError
from mosrt.host.cpu import usable_cores
from mosrt.mos.scorer import FusionFrontEnd
from mosrt_export.graphs.front_end import with_front_end
from mosrt_export.parity import Drift, relative, rounded

__all__ = ["TOLERANCE_MOS", "Row", "Scored", "View", "compare", "drift_of", "make_views"]

TOLERANCE_MOS: Final = 1e-3


class Scored(Protocol):
    """A torch module with which a graph must agree."""

    @property
    def n_domains(self) -> int:
        """Number of data domains."""

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Embeddings by output name, (batch, size) each, from inputs by name."""

    def score(self, features: dict[str, torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Scores (batch,) for one-hot domains (batch, n_domains)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The model's input for one clip.

    Attributes:
        clip: Name of the clip, for tables.
        feeds: Inputs of the graph by name, batch axis of 1 included, float32.
        features: Inputs of the torch module by name, computed in NumPy. They differ from `feeds`
            for graphs that read audio.
    """

    clip: str
    feeds: Mapping[str, Float32Array]
    features: Mapping[str, Float32Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The comparison of one clip and one network.

    Attributes:
        member: Name of the network.
        clip: Name of the clip.
        torch_mos: Torch's scores, (domains,).
        graph_mos: The graph's scores, (domains,).
        features: Largest difference of each embedding by name, relative to its largest value.
    """

    member: str
    clip: str
    torch_mos: Float32Array
    graph_mos: Float32Array
    features: Mapping[str, float]

    @property
    def difference(self) -> float:
        """Largest difference over domains in MOS; nan or infinite if a score is."""
        with np.errstate(invalid="ignore"):
            return float(np.abs(self.torch_mos.astype(np.float64) - self.graph_mos).max())

    @property
    def passed(self) -> bool:
        """Whether the scores agree and are finite."""
        return self.difference <= TOLERANCE_MOS and all(
            np.isfinite(value) for value in self.features.values()
        )

    @property
    def line(self) -> str:
        """The comparison as a line of a table."""
        features = ", ".join(f"{name} {value:.1e}" for name, value in self.features.items())
        return (
            f"{self.member:10} {self.clip[:28]:28} {self.torch_mos[0]:9.5f} "
            f"{self.graph_mos[0]:9.5f} {self.difference:9.1e}  {features}"
        )


def drift_of(rows: Sequence[Row]) -> Drift:
    """Summarises comparisons, of which there is at least one."""
    differences = [row.difference for row in rows]
    values: dict[str, Any] = {
        "mos_max_abs": rounded(max(differences)),
        "mos_mean_abs": rounded(float(np.mean(differences))),
    }
    for name in rows[0].features:
        values[f"{name}_max_rel"] = rounded(max(row.features[name] for row in rows))
    values |= {"n_clips": len({row.clip for row in rows}), "against": "torch fp32"}
    return Drift(
        values=values,
        limit=f"{TOLERANCE_MOS:g} MOS",
        rows=[(row.line, row.passed) for row in rows],
        header=f"{'network':10} {'clip':28} {'torch':>9} {'onnx':>9} {'max |d|':>9}  features",
    )


def make_views(manifest: Manifest, sources: Iterable[AudioSource]) -> list[View]:
    """Computes one view of each clip with the runtime's front end.

    Raises:
        AudioError: A clip cannot be scored.
    """
    front_end = FusionFrontEnd(manifest)
    numpy_front_end = FusionFrontEnd(with_front_end(manifest, "numpy"))
    views = []
    for source in sources:
        try:
            recording = Recording(source, manifest.sample_rate_hz)
        except AudioError as exc:
            raise AudioError(f"parity check: {exc}", flags=exc.flags) from exc
        plan = PlanRule(kind="grid", views=1).plan(recording.n_samples, front_end.geometry)
        made = (each.views(recording, plan) for each in (front_end, numpy_front_end))
        for feeds, features in zip(*made, strict=True):
            views.append(View(clip=source.name, feeds=_batched(feeds), features=_batched(features)))
    return views


def _batched(view: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
    return {name: value[np.newaxis] for name, value in view.items()}


def compare(
    directory: Path, manifest: Manifest, member: Member, model: Scored, views: Sequence[View]
) -> list[Row]:
    """Compares one network of a bundle with the original module that it was exported from."""
    outputs = [tensor.name for tensor in manifest.outputs]
    backend = OrtBackend(
        directory,
        dataclasses.replace(manifest.variants["fp32"], members=(member,)),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        threads=usable_cores(),
    )
    with contextlib.closing(backend):
        # ONNX Runtime runs first, so that its memory is released before torch needs memory.
        answers = [backend.run(view.feeds, outputs) for view in views]
    rows = []
    for view, answer in zip(views, answers, strict=True):
        torch_mos, features = _torch_answer(model, view)
        row = Row(
            member=member.name,
            clip=view.clip,
            torch_mos=torch_mos,
            graph_mos=answer[outputs[0]][0, 0],
            features={name: relative(answer[name][0, 0], x) for name, x in features.items()},
        )
        rows.append(row)
    return rows


def _torch_answer(model: Scored, view: View) -> tuple[Float32Array, dict[str, Float32Array]]:
    """Computes features, and scores of all domains with one-hot vectors."""
    inputs = {name: torch.from_numpy(value) for name, value in view.features.items()}
    with torch.inference_mode():
        features = model.features(inputs)
        n = model.n_domains
        repeated = {name: value.expand(n, -1) for name, value in features.items()}
        mos = model.score(repeated, torch.eye(n))
    return mos.numpy(), {name: value[0].numpy() for name, value in features.items()}
