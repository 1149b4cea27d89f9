"""Collector: activation statistics of a network over clips, in bounded memory, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mosrt.manifest import Member
from mosrt.whole_file import replacing

from .clips import Clip, list_sha256
from .graph import Topology, digest, write_graph
from .observation import BINS, Channels, Extrema, Histograms
from .subject import Progress, Subject
from .tap import Tap, slices

__all__ = ["Statistics", "collect", "default_cache"]

_LAYOUT: Final = 1  # of the cache; a new number makes old files count for nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What was seen of the activations of a network.

    Attributes:
        low: Smallest value by tensor.
        high: Largest value by tensor.
        channels: Figures per channel, of the tensors that weighted nodes read.
        histograms: (BINS,) int64 over [-largest, largest] by tensor; none if not asked for.
    """

    low: Mapping[str, float]
    high: Mapping[str, float]
    channels: Mapping[str, Channels]
    histograms: Mapping[str, NDArray[np.int64]]


class _Pass(Protocol):
    def see(self, name: str, values: NDArray[np.float32]) -> None: ...
    def arrays(self) -> dict[str, NDArray[Any]]: ...
    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None: ...


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

    Two passes: extrema and figures per channel, then histograms between them. Tensors come in
    slices that bound memory, a run per slice and clip. What was seen is written to the cache after
    every clip, so that a run that was broken off goes on where it was.

    Args:
        subject: The model.
        member: The network, as the subject has it.
        model: Its graph (onnx.ModelProto), changed or not.
        tensors: Activations to look at.
        clips: What to hear.
        histograms: Whether to do the second pass.
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
        counts: dict[str, NDArray[np.int64]] = {}
        for names in slices(model, tensors):
            extrema = Extrema(names, axes)
            job.run("extrema", names, extrema)
            low |= extrema.low
            high |= extrema.high
            channels |= extrema.channels
            if histograms:
                seen = Histograms({name: max(-low[name], high[name], 0.0) for name in names})
                job.run("histograms", names, seen)
                counts |= seen.counts
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
    """Passes over the clips, with what they have in common."""

    subject: Subject
    member: Member
    graph: Path
    clips: Sequence[Clip]
    cache: Path
    key: Sequence[Any]
    progress: Progress

    def run(self, kind: str, names: Sequence[str], seen: _Pass) -> None:
        """One pass over one slice, from where the cache is."""
        text = json.dumps([*self.key, kind, list(names)])
        file = self.cache / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.npz"
        done = _restore(file, seen)
        if done == len(self.clips):
            return
        tap = Tap(self.graph, names, seen.see, threads=self.subject.threads)
        label = f"{self.member.name}: {kind}"
        with (
            self.subject.tapped(self.member, tap) as scorer,
            self.progress(self.clips[done:], label) as each,
        ):
            for clip in each:
                self.subject.hear(scorer, clip)
                done += 1
                _keep(file, seen, done)


def _restore(file: Path, seen: _Pass) -> int:
    """Loads what a pass saw before; tells how many clips that were."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = dict(archive)
            done = int(arrays.pop("done"))
            seen.load(arrays)
            return done
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # not there, or damaged
        return 0


def _keep(file: Path, seen: _Pass, done: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part, part.open("wb") as sink:
        arrays: dict[str, Any] = {"done": np.array(done), **seen.arrays()}
        np.savez(sink, **arrays)
