"""Parity: what the bundle answers through the runtime, against the torch modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt.audio.recording import Recording
from mosrt.audio.sources import AUDIO_SUFFIXES, AudioSource, FileSource
from mosrt.backends import OrtBackend
from mosrt.bundle.manifest import Manifest, Member, Variant
from mosrt.crops import PlanRule
from mosrt.errors import AudioError, MosrtError
from mosrt.host.cpu import usable_cores
from mosrt.mos.front_end import FusionFrontEnd
from mosrt_export.clips import parity_clips
from mosrt_export.graphs.audio import taking_features

__all__ = [
    "TOLERANCE_MOS",
    "Drift",
    "ParityError",
    "Row",
    "Scored",
    "View",
    "audio_sources",
    "compare",
    "make_views",
]

TOLERANCE_MOS: Final = 1e-3
_MAX_FILES: Final = 32


class Scored(Protocol):
    """A torch module whose answers a graph must give."""

    @property
    def n_domains(self) -> int:
        """Data domains it scores for."""

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Embeddings by output name, (batch, size) each, from inputs by name."""

    def score(self, features: dict[str, torch.Tensor], domain: torch.Tensor) -> torch.Tensor:
        """Scores (batch,) for one-hot domains (batch, n_domains)."""


class ParityError(MosrtError):
    """The graph and the torch modules disagree; nothing was written.

    Attributes:
        drift: What differed.
    """

    def __init__(self, message: str, drift: Drift | None = None) -> None:
        super().__init__(message)
        self.drift = drift


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the model reads of one clip.

    Attributes:
        clip: Name of the clip, for tables.
        feeds: Inputs of the graph by name, batch axis of 1 included, float32.
        features: What the torch module reads by name, made in NumPy: the same, but for graphs that
            take audio.
    """

    clip: str
    feeds: Mapping[str, NDArray[np.float32]]
    features: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One clip through one network.

    Attributes:
        member: The network.
        clip: The clip.
        torch_mos: Torch's scores, (domains,).
        graph_mos: The graph's scores, (domains,).
        features: Largest difference of each embedding, relative to its largest value, by name.
    """

    member: str
    clip: str
    torch_mos: NDArray[np.float32]
    graph_mos: NDArray[np.float32]
    features: Mapping[str, float]

    @property
    def difference(self) -> float:
        """Largest difference over domains in MOS; nan or infinite where a score is."""
        with np.errstate(invalid="ignore"):
            return float(np.abs(self.torch_mos.astype(np.float64) - self.graph_mos).max())

    @property
    def passed(self) -> bool:
        """Whether the scores agree; anything that is not finite does not."""
        return self.difference <= TOLERANCE_MOS and all(
            np.isfinite(value) for value in self.features.values()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The outcome for all networks and clips."""

    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether there was something to compare and all of it agrees."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Figures for the manifest, rounded to what can be relied on."""
        differences = [row.difference for row in self.rows]
        figures: dict[str, Any] = {
            "mos_max_abs": _rounded(max(differences)),
            "mos_mean_abs": _rounded(float(np.mean(differences))),
        }
        for name in self.rows[0].features:
            figures[f"{name}_max_rel"] = _rounded(max(row.features[name] for row in self.rows))
        figures["n_clips"] = len({row.clip for row in self.rows})
        figures["against"] = "torch fp32"
        return figures

    def table(self) -> str:
        """One line per network and clip, those that differ marked."""
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
    """The clips to compare on: a file, a directory of files, or for None those that come along.

    Raises:
        ParityError: There is nothing to hear at `path`.
    """
    if path is None:
        return [*parity_clips()]
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise ParityError(
            f"{path}: no audio files ({', '.join(sorted(AUDIO_SUFFIXES))}) to compare on"
        )
    try:
        return [FileSource(file, name=file.name) for file in files[:_MAX_FILES]]
    except AudioError as exc:
        raise ParityError(f"--parity-audio: {exc}") from exc


def make_views(manifest: Manifest, sources: Iterable[AudioSource]) -> list[View]:
    """One view of each clip, made by the runtime's own front end.

    Raises:
        ParityError: A clip cannot be scored.
    """
    front_end = FusionFrontEnd(manifest)
    numpy_front_end = FusionFrontEnd(taking_features(manifest))
    views = []
    for source in sources:
        try:
            recording = Recording(source, manifest.sample_rate_hz)
        except AudioError as exc:
            raise ParityError(f"parity check: {exc}") from exc
        plan = PlanRule(kind="grid", views=1).plan(recording.n_samples, front_end.geometry)
        made = (each.views(recording, plan) for each in (front_end, numpy_front_end))
        for feeds, features in zip(*made, strict=True):
            views.append(View(clip=source.name, feeds=_batched(feeds), features=_batched(features)))
    return views


def _batched(view: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return {name: value[np.newaxis] for name, value in view.items()}


def compare(
    directory: Path, manifest: Manifest, member: Member, model: Scored, views: Sequence[View]
) -> list[Row]:
    """Runs views through one network of a bundle and through the torch module it came from.

    Args:
        directory: Of the bundle.
        manifest: Its manifest.
        member: The network.
        model: The faithful module, weights loaded.
        views: What to compare on.
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
        # all of ONNX Runtime's answers first, so that its memory is gone before torch's is needed
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
                    name: _relative(answer[name][0, 0], value) for name, value in features.items()
                },
            )
        )
    return rows


def _torch_answer(
    model: Scored, view: View
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Scores of all domains, each by its own one-hot vector, and features."""
    inputs = {name: torch.from_numpy(value) for name, value in view.features.items()}
    with torch.inference_mode():
        features = model.features(inputs)
        n = model.n_domains
        repeated = {name: value.expand(n, -1) for name, value in features.items()}
        mos = model.score(repeated, torch.eye(n))
    return mos.numpy(), {name: value[0].numpy() for name, value in features.items()}


def _relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    with np.errstate(invalid="ignore"):
        scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
        return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
