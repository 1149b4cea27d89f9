"""Compares a bundle, run by the runtime, with the torch modules that it was exported from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt._arrays import Float32Array
from mosrt.audio.recording import Recording
from mosrt.audio.sources import AUDIO_SUFFIXES, AudioSource, FileSource
from mosrt.backends import OrtBackend
from mosrt.bundle.manifest import Manifest, Member, Variant
from mosrt.crops import PlanRule
from mosrt.errors import AudioError
from mosrt.host.cpu import usable_cores
from mosrt.mos.scorer import FusionFrontEnd
from mosrt_export.clips import parity_clips
from mosrt_export.graphs.front_end import taking_features

__all__ = [
    "TOLERANCE_MOS",
    "Drift",
    "Row",
    "Scored",
    "View",
    "audio_sources",
    "compare",
    "make_views",
    "relative",
]

TOLERANCE_MOS: Final = 1e-3
_MAX_FILES: Final = 32


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Differences of all networks and clips."""

    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether there is at least one comparison, and all agree."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Values for the manifest, rounded to two digits."""
        differences = [row.difference for row in self.rows]
        values: dict[str, Any] = {
            "mos_max_abs": _rounded(max(differences)),
            "mos_mean_abs": _rounded(float(np.mean(differences))),
        }
        for name in self.rows[0].features:
            values[f"{name}_max_rel"] = _rounded(max(row.features[name] for row in self.rows))
        values["n_clips"] = len({row.clip for row in self.rows})
        values["against"] = "torch fp32"
        return values

    def table(self) -> str:
        """A table with one line per network and clip, which marks those that differ."""
        lines = [f"{'network':10} {'clip':28} {'torch':>9} {'onnx':>9} {'max |d|':>9}  features"]
        for row in self.rows:
            features = ", ".join(f"{name} {value:.1e}" for name, value in row.features.items())
            mark = "" if row.passed else "  <- differs"
            lines.append(
                f"{row.member:10} {row.clip[:28]:28} {row.torch_mos[0]:9.5f} "
                f"{row.graph_mos[0]:9.5f} {row.difference:9.1e}  {features}{mark}"
            )
        return "\n".join(lines)


def audio_sources(path: Path | None) -> list[AudioSource]:
    """The clips of the parity check.

    Args:
        path: An audio file or a directory of them; None for the clips that come with mosrt.

    Raises:
        AudioError: There is no audio at `path`.
    """
    if path is None:
        return [*parity_clips()]
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise AudioError(
            f"{path}: no audio files ({', '.join(sorted(AUDIO_SUFFIXES))}) to compare on",
            flags=(),
        )
    try:
        return [FileSource(file, name=file.name) for file in files[:_MAX_FILES]]
    except AudioError as exc:
        raise AudioError(f"--parity-audio: {exc}", flags=exc.flags) from exc


def make_views(manifest: Manifest, sources: Iterable[AudioSource]) -> list[View]:
    """Computes one view of each clip with the runtime's front end.

    Raises:
        AudioError: A clip cannot be scored.
    """
    front_end = FusionFrontEnd(manifest)
    numpy_front_end = FusionFrontEnd(taking_features(manifest))
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
    """Compares one network of a bundle with the torch module that it was exported from.

    Args:
        directory: Directory of the bundle.
        manifest: Its manifest.
        member: The network.
        model: The original module with its weights.
        views: Inputs to compare on.
    """
    outputs = [tensor.name for tensor in manifest.outputs]
    opset = manifest.variants["fp32"].opset
    backend = OrtBackend(
        directory,
        Variant(opset=opset, members=(member,)),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        provider="cpu",
        threads=usable_cores(),
    )
    try:
        # ONNX Runtime runs first, so that its memory is released before torch needs memory.
        answers = [backend.run(view.feeds, outputs) for view in views]
    finally:
        backend.close()
    rows = []
    for view, answer in zip(views, answers, strict=True):
        mos, features = _torch_answer(model, view)
        rows.append(
            Row(
                member=member.name,
                clip=view.clip,
                torch_mos=mos,
                graph_mos=answer[outputs[0]][0, 0],
                features={
                    name: relative(answer[name][0, 0], value) for name, value in features.items()
                },
            )
        )
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


def relative(found: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]) -> float:
    """Largest difference relative to the largest expected value; nan or inf if there is one."""
    with np.errstate(invalid="ignore"):
        scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
        return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
