"""Collector: activation statistics of a network over clips, in bounded memory, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mosrt.bundle.manifest import Member
from mosrt.host.files import replacing
from mosrt_calibration.clips import Clip, list_sha256
from mosrt_calibration.passes.graph import Topology, digest, write_graph
from mosrt_calibration.scoring import Progress, Subject

from .histograms import BINS, Channels, Extrema, Histogram, Histograms
from .probe import Tap, slices

__all__ = ["Statistics", "collect", "default_cache"]

_LAYOUT: Final = 2  # of the cache; a new number makes old files count for nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What was seen of the activations of a network.

    Attributes:
        low: Smallest value by tensor.
        high: Largest value by tensor.
        channels: Figures per channel, of the tensors that weighted nodes read.
        histograms: By tensor; none if not asked for.
    """

    low: Mapping[str, float]
    high: Mapping[str, float]
    channels: Mapping[str, Channels]
    histograms: Mapping[str, Histogram]

    def updated(self, other: Statistics) -> Statistics:
        """These, where the others have nothing to say of a tensor."""
        return Statistics(
            low={**self.low, **other.low},
            high={**self.high, **other.high},
            channels={**self.channels, **other.channels},
            histograms={**self.histograms, **other.histograms},
        )


class _Observers:
    """All that looks at the tensors of a slice."""

    def __init__(self, names: Sequence[str], axes: Mapping[str, int], *, histograms: bool) -> None:
        self.extrema = Extrema(names, axes)
        self.histograms = Histograms(names if histograms else ())

    def see(self, name: str, values: NDArray[np.float32]) -> None:
        """Takes in a tensor (batch, ...)."""
        self.extrema.see(name, values)
        if self.histograms.found:
            self.histograms.see(name, values)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything seen so far, for a file."""
        return {**self.extrema.arrays(), **self.histograms.arrays()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Goes on from what `arrays` gave."""
        self.extrema.load(arrays)
        self.histograms.load(arrays)


def default_cache() -> Path:
    """Where statistics are kept: below XDG_CACHE_HOME, or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mosrt" / "calibration"


def collect(
    subject: Subject,
    member: Member,
    model: Any,
    tensors: Sequence[str],
    clips: Sequence[Clip],
    *,
    histograms: bool,
    cache: Path,
    progress: Progress,
) -> Statistics:
    """Runs clips through a network and takes in its activations.

    Tensors come in slices that bound memory, a run per slice and clip. What was seen is
    written to the cache after every clip, so that a run that was broken off goes on where it was.

    Args:
        subject: The model.
        member: The network, as the subject has it.
        model: Its graph (onnx.ModelProto), changed or not.
        tensors: Activations to look at.
        clips: What to hear.
        histograms: Whether to count values as well.
        cache: Directory of the cache.
        progress: Progress bar.
    """
    work = subject.directory / f".tap.{member.name}.onnx"
    graph, weights = write_graph(model, work)
    try:
        job = _Job(
            subject=subject,
            member=member,
            graph=graph,
            clips=clips,
            cache=cache,
            key=[_LAYOUT, BINS, subject.sha256, digest((graph, weights)), list_sha256(clips)],
            progress=progress,
        )
        axes = _channel_axes(Topology(model))
        low: dict[str, float] = {}
        high: dict[str, float] = {}
        channels: dict[str, Channels] = {}
        counts: dict[str, Histogram] = {}
        for names in slices(model, tensors):
            seen = _Observers(names, axes, histograms=histograms)
            job.run(names, seen)
            low |= seen.extrema.low
            high |= seen.extrema.high
            channels |= seen.extrema.channels
            counts |= seen.histograms.found
    finally:
        graph.unlink()
        if weights is not None:
            weights.unlink()
    return Statistics(low=low, high=high, channels=channels, histograms=counts)


def _channel_axes(topology: Topology) -> dict[str, int]:
    """Channel axis of what each weighted node reads."""
    return {
        node.input[0]: 1 if node.op_type.startswith("Conv") else -1
        for node in topology.nodes.values()
        if topology.weighted(node)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Runs over the clips, with what they have in common."""

    subject: Subject
    member: Member
    graph: Path
    clips: Sequence[Clip]
    cache: Path
    key: Sequence[Any]
    progress: Progress

    def run(self, names: Sequence[str], seen: _Observers) -> None:
        """All clips for one slice, from where the cache is."""
        text = json.dumps([*self.key, bool(seen.histograms.found), list(names)])
        file = self.cache / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.npz"
        done = _restore(file, seen)
        if done == len(self.clips):
            return
        tap = Tap(self.graph, names, seen.see, threads=self.subject.threads)
        label = f"{self.member.name}: ranges"
        with (
            self.subject.tapped(self.member, tap) as scorer,
            self.progress(self.clips[done:], label) as each,
        ):
            for clip in each:
                self.subject.hear(scorer, clip)
                done += 1
                _keep(file, seen, done)


def _restore(file: Path, seen: _Observers) -> int:
    """Loads what was seen before; tells how many clips that were."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = dict(archive)
            done = int(arrays.pop("done"))
            seen.load(arrays)
            return done
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # not there, or damaged
        return 0


def _keep(file: Path, seen: _Observers, done: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part, part.open("wb") as sink:
        arrays: dict[str, Any] = {"done": np.array(done), **seen.arrays()}
        np.savez(sink, **arrays)
