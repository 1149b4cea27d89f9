"""Collects statistics of a network's activations over clips, and caches them on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime

from mosrt._arrays import Array, Float32Array
from mosrt.bundle.manifest import Member
from mosrt.host.files import replacing, sha256_of
from mosrt_calibration.clips import Clip, list_sha256
from mosrt_calibration.graph import Topology, write_graph
from mosrt_calibration.scoring import ModelUnderTest, Progress

from .histograms import BINS, Channels, Extrema, Histogram, Histograms

__all__ = ["ActivationProbe", "Statistics", "collect", "default_cache", "slices"]

_LAYOUT: Final = 2  # of the cache files; with a new number old files are ignored


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Statistics of the activations of a network.

    Attributes:
        low: Smallest value by tensor.
        high: Largest value by tensor.
        channels: Statistics per channel of the tensors that weighted nodes read.
        histograms: Histogram by tensor; empty if histograms were not collected.
    """

    low: Mapping[str, float]
    high: Mapping[str, float]
    channels: Mapping[str, Channels]
    histograms: Mapping[str, Histogram]

    def updated(self, other: Statistics) -> Statistics:
        """These statistics, replaced by `other` for the tensors that it has."""
        return Statistics(
            low={**self.low, **other.low},
            high={**self.high, **other.high},
            channels={**self.channels, **other.channels},
            histograms={**self.histograms, **other.histograms},
        )


class _Observers:
    """The extrema, and the histograms if wanted, of the tensors of a slice."""

    def __init__(self, names: Sequence[str], axes: Mapping[str, int], *, histograms: bool) -> None:
        self.extrema = Extrema(names, axes)
        self.histograms = Histograms(names if histograms else ())

    def observe(self, name: str, values: Float32Array) -> None:
        """Adds the values of a tensor (batch, ...)."""
        self.extrema.observe(name, values)
        if self.histograms.found:
            self.histograms.observe(name, values)

    def arrays(self) -> dict[str, Array]:
        """The state, for a file."""
        return {**self.extrema.arrays(), **self.histograms.arrays()}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Restores a state that `arrays` gave."""
        self.extrema.load(arrays)
        self.histograms.load(arrays)


def default_cache() -> Path:
    """Default directory of the cache, below XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "mosrt" / "calibration"


def collect(
    tested: ModelUnderTest,
    member: Member,
    model: Any,
    tensors: Sequence[str],
    clips: Sequence[Clip],
    *,
    histograms: bool,
    cache: Path,
    progress: Progress,
) -> Statistics:
    """Runs clips through a network, and collects statistics of its activations.

    To bound memory, tensors are split into slices, and every slice is a run over the clips. The
    cache is written after every clip, so that an interrupted run continues where it stopped.

    Args:
        tested: The model under test.
        member: The network, one of the model's.
        model: Its graph (onnx.ModelProto), possibly changed by equalisation or smoothing.
        tensors: Names of the activations.
        clips: Calibration clips.
        histograms: Whether to collect histograms too.
        cache: Directory of the cache.
        progress: Makes progress bars.

    Raises:
        NonFiniteError: An activation is infinite or not a number.
    """
    work = tested.directory / f".probe.{member.name}.onnx"
    graph, weights = write_graph(model, work)
    try:
        digests = [sha256_of(path) for path in (graph, weights) if path is not None]
        key = [_LAYOUT, BINS, tested.sha256, *digests, list_sha256(clips)]
        axes = _channel_axes(Topology(model))
        low: dict[str, float] = {}
        high: dict[str, float] = {}
        channels: dict[str, Channels] = {}
        counts: dict[str, Histogram] = {}
        for names in slices(model, tensors):
            seen = _Observers(names, axes, histograms=histograms)
            text = json.dumps([*key, histograms, list(names)])
            file = cache / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.npz"
            done = _restore(file, seen)
            if done < len(clips):
                probe = ActivationProbe(graph, names, seen.observe, threads=tested.threads)
                with (
                    tested.probed(member, probe) as scorer,
                    progress(clips[done:], f"{member.name}: ranges") as each,
                ):
                    for clip in each:
                        tested.score_clip(scorer, clip)
                        done += 1
                        _save(file, seen, done)
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
    """Channel axis of the input of each weighted node."""
    return {
        node.input[0]: 1 if node.op_type.startswith("Conv") else -1
        for node in topology.nodes.values()
        if topology.weighted(node)
    }


def _restore(file: Path, seen: _Observers) -> int:
    """Loads the cached state; gives the number of clips in it."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = dict(archive)
            done = int(arrays.pop("done"))
            seen.load(arrays)
            return done
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # missing or damaged
        return 0


def _save(file: Path, seen: _Observers, done: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part, part.open("wb") as sink:
        arrays: dict[str, Any] = {"done": np.array(done), **seen.arrays()}
        np.savez(sink, **arrays)


Observe = Callable[[str, Float32Array], None]

# ONNX Runtime's outputs are copied, so that twice as much memory is used.
_SLICE_BYTES: Final = 1200 * 1024 * 1024
# Assumed size of a tensor whose shape depends on the recording.
_UNKNOWN_BYTES: Final = 16 * 1024 * 1024
_FLOAT_BYTES: Final = 4


def slices(
    model: Any, names: Sequence[str], limit_bytes: int = _SLICE_BYTES
) -> list[tuple[str, ...]]:
    """Splits tensors into slices of at most `limit_bytes`; a larger tensor is its own slice."""
    shapes = {
        value.name: value.type.tensor_type.shape
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    found: list[list[str]] = []
    held = 0
    for name in names:
        size = _bytes(shapes.get(name))
        if not found or held + size > limit_bytes:
            found.append([])
            held = 0
        found[-1].append(name)
        held += size
    return [tuple(run) for run in found]


def _bytes(shape: Any) -> int:
    """Size of an FP32 tensor with a batch of one."""
    if shape is None or not shape.dim:
        return _UNKNOWN_BYTES
    sizes = [dim.dim_value for dim in shape.dim]
    if not all(sizes[1:]):
        return _UNKNOWN_BYTES
    return int(_FLOAT_BYTES * max(1, sizes[0]) * math.prod(sizes[1:]))


class ActivationProbe:
    """A backend that runs an FP32 graph and passes on the values of some of its tensors.

    Args:
        graph: Path of the graph.
        names: Names of the activations to observe.
        observe: Called on every run with the name and the value, (batch, ...) float32, of each.
        threads: Threads of one run.
    """

    provider = "cpu"
    batch_size = 1

    def __init__(
        self, graph: Path, names: Sequence[str], observe: Observe, *, threads: int
    ) -> None:
        model = onnx.load(graph, load_external_data=False)
        inputs = {value.name for value in model.graph.input}
        outputs = {value.name for value in model.graph.output}
        self._observe = observe
        self._inputs = [name for name in names if name in inputs]
        self._inner = [name for name in names if name not in inputs]
        for name in self._inner:
            if name not in outputs:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
        probed = graph.with_name(f"{graph.stem}.probe.onnx")
        probed.write_bytes(model.SerializeToString())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(
                probed, options, providers=["CPUExecutionProvider"]
            )
        finally:
            probed.unlink()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Float32Array]:
        """Runs a batch; see `mosrt.backends.Backend`."""
        names = list(dict.fromkeys([*outputs, *self._inner]))
        results = dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        for name in self._inputs:
            self._observe(name, np.asarray(feeds[name]))
        for name in self._inner:
            self._observe(name, results[name])
        return {name: results[name][np.newaxis] for name in outputs}

    def close(self) -> None:
        """Releases the session."""
        del self._session
