"""Writes candidates for a variant, and compares their scores with FP32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from mosrt.bundle.manifest import File, Member, Variant
from mosrt.host.files import sha256_of
from mosrt_calibration.clips import Clip
from mosrt_calibration.graph import write_graph
from mosrt_calibration.scoring import ModelUnderTest, Scored

from .drift import HEADINGS, Drift

__all__ = ["MEASUREMENT_HEADINGS", "Evaluator", "Measurement", "written"]

MEASUREMENT_HEADINGS: Final = f"{HEADINGS} {'faster':>7} {'MB':>7}"
_MIN_FOLDER: Final = 3

Models = Mapping[str, Any]
"""Graphs (onnx.ModelProto) by network. Other networks keep their FP32 files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Drift, speed and size of a candidate.

    Attributes:
        drift: Drift in the default domain.
        by_folder: Drift over the clips of each subdirectory with at least three clips, such as
            clean and degraded. Empty if all clips are in one directory.
        heads: Drift by domain that is computed from the outputs of the graph.
        worst_domain: Largest mean absolute difference of a domain, in the drift's unit.
        times_as_fast: Median over clips of the time in the FP32 graphs, divided by that in the
            candidate's. It is rough: each clip is timed once.
        n_bytes: Size of the files.
        offsets: Offset in MOS by domain of the graph, added to scores before they were compared;
            may be zeros.
    """

    drift: Drift
    by_folder: Mapping[str, Drift]
    heads: Mapping[str, Drift]
    worst_domain: float
    times_as_fast: float
    n_bytes: int
    offsets: tuple[float, ...]

    def line(self) -> str:
        """Drift, speed and size in one line of fixed width, under `MEASUREMENT_HEADINGS`."""
        return f"{self.drift.line()} {self.times_as_fast:6.2f}x {self.n_bytes / 1e6:7.2f}"

    def to_dict(self) -> dict[str, Any]:
        """The values for a report."""
        return {
            "drift": self.drift.to_dict(),
            "drift_by_folder": {name: drift.to_dict() for name, drift in self.by_folder.items()},
            "times_as_fast": round(self.times_as_fast, 3),
            "bytes": self.n_bytes,
        }


class Evaluator:
    """Measures candidates for variants of a model under test.

    Args:
        tested: The model under test.
    """

    def __init__(self, tested: ModelUnderTest) -> None:
        self.tested = tested
        self._references: dict[tuple[int | None, tuple[str, ...]], Scored] = {}

    def reference(self, clips: Sequence[Clip], views: int | None = None) -> Scored:
        """Scores of the FP32 model, computed once for the same clips and views."""
        key = views, tuple(clip.name for clip in clips)
        if key not in self._references:
            self._references[key] = self.tested.score(
                self.tested.reference, clips, "fp32", views=views
            )
        return self._references[key]

    def measure(
        self,
        models: Models,
        clips: Sequence[Clip],
        label: str,
        *,
        kind: str | None = None,
        views: int | None = None,
        offset_clips: Sequence[Clip] = (),
    ) -> Measurement:
        """Writes graphs to a temporary directory, and scores clips with them.

        Args:
            models: The graphs.
            clips: Clips to score.
            label: Label of the progress bar.
            kind: Numeric precision of the graphs, as the manifest names it.
            views: Views of each clip; None for as many as the runtime takes by default.
            offset_clips: If given, each domain's mean error on one view of these clips is
                subtracted from its MOS. Quantisation errors have a bias.
        """
        tested, relative = self.tested, self.tested.is_uncertainty
        heads = tested.manifest.heads.values()  # one with a curved map has no one offset
        n_domains = len(tested.manifest.domains)
        reference = self.reference(clips, views)
        with TemporaryDirectory(prefix=".candidate-", dir=tested.directory) as temporary:
            variant = written(tested, models, Path(temporary), "candidate", kind)
            found = tested.score(variant, clips, label, views=views)
            offsets = np.zeros(found.values.shape[1])
            if offset_clips and not relative and not any(head.x for head in heads):
                scored = found
                if views != 1 or list(offset_clips) != list(clips):
                    scored = tested.score(variant, offset_clips, f"{label}, mean error", views=1)
                offsets = (self.reference(offset_clips, 1).values - scored.values).mean(axis=0)
                for i, head in enumerate(heads, n_domains):  # they weigh the corrected outputs
                    row = head.weights.get(tested.manifest.outputs[0].name, ())
                    offsets[i] = np.dot(row, offsets[: len(row)])
        speed_ups = reference.model_ms / np.maximum(found.model_ms, 1e-6)

        def drift(clips: list[int] | slice, domain: int) -> Drift:
            corrected = found.values[clips, domain] + offsets[domain]
            return Drift.between(reference.values[clips, domain], corrected, relative=relative)

        drifts = [drift(slice(None), domain) for domain in range(len(offsets))]
        return Measurement(
            drift=drifts[tested.column],
            by_folder={name: drift(rows, tested.column) for name, rows in _folders(clips).items()},
            heads=dict(zip(tested.manifest.heads, drifts[n_domains:], strict=True)),
            worst_domain=max(drift.mean_abs for drift in drifts),
            times_as_fast=float(np.median(speed_ups)),
            n_bytes=sum(file.bytes for file in variant.files),
            offsets=tuple(offsets[:n_domains].tolist()),
        )


def written(
    tested: ModelUnderTest, models: Models, directory: Path, name: str, kind: str | None
) -> Variant:
    """Writes the graphs of a variant.

    Args:
        tested: The model under test; its directory is the root of the bundle.
        models: Graphs by network.
        directory: Directory to write to, the root or below.
        name: Name of the variant, which replaces "fp32" in file names.
        kind: Numeric precision of the graphs, as the manifest names it.
    """
    members = []
    for member in tested.reference.members:
        if member.name not in models:
            members.append(member)
            continue
        stem = Path(member.graph.path).name
        renamed = stem.replace("fp32", name)
        if renamed == stem:
            renamed = f"{Path(stem).stem}.{name}.onnx"
        graph, weights = write_graph(models[member.name], directory / renamed)
        members.append(
            Member(
                name=member.name,
                graph=_file(graph, tested.directory),
                weights=None if weights is None else _file(weights, tested.directory),
            )
        )
    return Variant(opset=tested.reference.opset, members=tuple(members), kind=kind)


def _file(path: Path, root: Path) -> File:
    return File(
        path=path.relative_to(root).as_posix(), sha256=sha256_of(path), bytes=path.stat().st_size
    )


def _folders(clips: Sequence[Clip]) -> dict[str, list[int]]:
    """Positions of the clips of each subdirectory; empty if all clips are in one."""
    found: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        found.setdefault(clip.name.rpartition("/")[0].partition("/")[0], []).append(i)
    enough = {name: rows for name, rows in sorted(found.items()) if len(rows) >= _MIN_FOLDER}
    return enough if len(found) > 1 else {}
