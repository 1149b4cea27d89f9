"""Writes candidates for a variant, compares their scores with FP32, and checks batch invariance."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from mosrt._arrays import Array, Float32Array
from mosrt.bundle.manifest import File, Member, Variant
from mosrt.errors import MosrtError
from mosrt.host.files import sha256_of
from mosrt_calibration.clips import Clip
from mosrt_calibration.graph import write_graph
from mosrt_calibration.scoring import ModelUnderTest, Progress, Scored

from .drift import HEADINGS, Drift

__all__ = [
    "MEASUREMENT_HEADINGS",
    "BatchInvarianceError",
    "Evaluator",
    "Measurement",
    "fixed_batch",
    "written",
]

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
        worst_domain: Largest mean absolute difference of a domain, in the drift's unit.
        times_as_fast: Median over clips of the time in the FP32 graphs, divided by that in the
            candidate's. It is rough: each clip is timed once.
        n_bytes: Size of the files.
        offsets: Offset in MOS by domain, added to scores before they were compared; may be zeros.
    """

    drift: Drift
    by_folder: Mapping[str, Drift]
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
        progress: Makes progress bars.
    """

    def __init__(self, tested: ModelUnderTest, progress: Progress) -> None:
        self.tested = tested
        self._progress = progress
        self._references: dict[tuple[int | None, tuple[str, ...]], Scored] = {}

    def reference(self, clips: Sequence[Clip], views: int | None = None) -> Scored:
        """Scores of the FP32 model, computed once for the same clips and views."""
        key = views, tuple(clip.name for clip in clips)
        if key not in self._references:
            found = self.tested.score(
                self.tested.reference, clips, "fp32", self._progress, views=views
            )
            self._references[key] = found
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
        reference = self.reference(clips, views)
        relative = self.tested.manifest.uncertainty is not None
        root = self.tested.directory
        with TemporaryDirectory(prefix=".candidate-", dir=root) as temporary:
            variant = written(self.tested, models, Path(temporary), "candidate", kind)
            found = self.tested.score(variant, clips, label, self._progress, views=views)
            offsets = np.zeros(found.values.shape[1])
            if offset_clips and not relative:
                scored = found
                if views != 1 or list(offset_clips) != list(clips):
                    scored = self.tested.score(
                        variant, offset_clips, f"{label}, mean error", self._progress, views=1
                    )
                offsets = (self.reference(offset_clips, 1).values - scored.values).mean(axis=0)
        values = found.values + offsets
        speed_ups = reference.model_ms / np.maximum(found.model_ms, 1e-6)
        drifts = [
            Drift.between(one, other, relative=relative)
            for one, other in zip(reference.values.T, values.T, strict=True)
        ]
        column = self.tested.column
        return Measurement(
            drift=drifts[column],
            by_folder={
                folder: Drift.between(
                    reference.values[rows, column], values[rows, column], relative=relative
                )
                for folder, rows in _folders(clips).items()
            },
            worst_domain=max(drift.mean_abs for drift in drifts),
            times_as_fast=float(np.median(speed_ups)),
            n_bytes=sum(file.bytes for file in variant.files),
            offsets=tuple(offsets.tolist()),
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


_BATCH: Final = 4

Feeds = Mapping[str, Array]


class BatchInvarianceError(MosrtError, RuntimeError):
    """A variant does not give the same score twice."""


class _CapturedError(Exception):
    """The first view was captured."""


class _Capture:
    """A backend that keeps the first view that it is given, and stops there."""

    provider = "cpu"
    batch_size = 1

    def __init__(self) -> None:
        self.view: dict[str, Array] = {}

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> dict[str, Float32Array]:
        """Keeps a copy of the inputs; see `mosrt.backends.Backend`."""
        del outputs
        self.view = {name: value.copy() for name, value in feeds.items()}
        raise _CapturedError

    def close(self) -> None:
        """Nothing to release."""


def fixed_batch(tested: ModelUnderTest, variant: Variant, clips: Sequence[Clip]) -> int | None:
    """The batch size that a variant needs for scores that do not depend on the batch.

    Four views are run alone, as one batch, and the first once more. A model that measures
    uncertainty runs one chunk at a time, and only has to give the same result twice.

    Args:
        tested: The model under test.
        variant: Variant of the model, with files below `tested.directory`.
        clips: Clips that the views are taken from.

    Returns:
        None if results are bit-identical alone and in a batch, 1 otherwise.

    Raises:
        BatchInvarianceError: Two runs of the same input give different results.
    """
    if tested.manifest.uncertainty is not None:
        with tested.scorer(variant) as scorer:
            once, twice = (scorer.score_file(clips[0].path).measures for _ in range(2))
        _check_repeats(once == twice)
        return None
    views = [_view(tested, clip) for clip in clips[:_BATCH]]
    views += [views[-1]] * (_BATCH - len(views))
    backend = tested.backend(variant)
    output = tested.manifest.outputs[0].name
    try:
        alone = np.concatenate([backend.run(view, [output])[output] for view in views], axis=1)
        again = backend.run(views[0], [output])[output]
        batch = {name: np.concatenate([view[name] for view in views]) for name in views[0]}
        together = backend.run(batch, [output])[output]
    finally:
        backend.close()
    _check_repeats(np.array_equal(alone[:, :1], again))
    return None if np.array_equal(alone, together) else 1


def _check_repeats(same: bool) -> None:
    if not same:
        raise BatchInvarianceError(
            "the same clip gives two scores; nothing was written. Try --threads 1 or another "
            "version of onnxruntime"
        )


def _view(tested: ModelUnderTest, clip: Clip) -> Feeds:
    """The first view of a clip, as a batch of one."""
    capture = _Capture()
    with (
        tested.probed(tested.reference.members[0], capture) as scorer,
        contextlib.suppress(_CapturedError),
    ):
        tested.score_clip(scorer, clip)
    return capture.view
