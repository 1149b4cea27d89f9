"""Collects statistics of a network's activations over clips, and caches them on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime

from mosrt._arrays import Array, Float32Array
from mosrt.bundle.manifest import Member
from mosrt.host.cache import cache_directory
from mosrt.host.files import replacing, sha256_of
from mosrt_calibration.clips import Clip, list_sha256
from mosrt_calibration.graph import Topology, write_graph
from mosrt_calibration.scoring import ModelUnderTest

from .statistics import BINS, Statistics

__all__ = ["ActivationProbe", "collect", "default_cache", "slices"]

_LOG = logging.getLogger(__name__)
_LAYOUT: Final = 3  # of the cache files; with a new number old files are ignored
# ONNX Runtime's outputs are copied, so that twice as much memory is used.
_SLICE_BYTES: Final = 1200 * 1024 * 1024
# Assumed size of a tensor whose shape depends on the recording.
_UNKNOWN_BYTES: Final = 16 * 1024 * 1024
_FLOAT_BYTES: Final = 4


def default_cache() -> Path:
    """Default directory of cached statistics; one that cannot be made if there is no home."""
    return (cache_directory() or Path(os.devnull)) / "calibration"


def collect(
    tested: ModelUnderTest,
    member: Member,
    model: Any,
    tensors: Sequence[str],
    clips: Sequence[Clip],
    *,
    histograms: bool,
    cache: Path,
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

    Raises:
        NonFiniteError: An activation is infinite or not a number.
    """
    axes = _channel_axes(Topology(model))
    found = Statistics()
    files = write_graph(model, tested.directory / f".probe.{member.name}.onnx")
    graph, written = files[0], [path for path in files if path is not None]
    try:
        digests = [sha256_of(path) for path in written]
        key = [_LAYOUT, BINS, tested.sha256, *digests, list_sha256(clips), histograms]
        for names in slices(model, tensors):
            digest = hashlib.sha256(json.dumps([*key, names]).encode()).hexdigest()
            file = cache / f"{digest[:40]}.npz"
            seen, done = _restored(file)

            def observe(name: str, values: Float32Array, seen: Statistics = seen) -> None:
                seen.observe(name, values, axis=axes.get(name), histogram=histograms)

            if done < len(clips):
                probe = ActivationProbe(graph, names, observe, threads=tested.threads)
                with (
                    tested.scorer(tested.reference, {member.name: probe}) as scorer,
                    tested.progress(clips[done:], f"{member.name}: ranges") as each,
                ):
                    for clip in each:
                        tested.score_clip(scorer, clip, views=1)
                        done += 1
                        _save(file, seen, done)
            found = found.updated(seen)
    finally:
        for path in written:
            path.unlink()
    return found


def _channel_axes(topology: Topology) -> dict[str, int]:
    """Channel axis of the input of each weighted node."""
    return {
        node.input[0]: 1 if node.op_type.startswith("Conv") else -1
        for node in topology.nodes.values()
        if topology.weighted(node)
    }


def _restored(file: Path) -> tuple[Statistics, int]:
    """The cached statistics, and the number of clips in them."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = dict(archive)
        return Statistics.from_arrays(arrays), int(arrays["done"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # missing or damaged
        return Statistics(), 0


def _save(file: Path, seen: Statistics, done: int) -> None:
    arrays: dict[str, Any] = {"done": np.array(done), **seen.arrays()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part, part.open("wb") as sink:
            np.savez(sink, **arrays)
    except OSError as exc:
        _LOG.info("cache %s cannot be used: %s", file.parent, exc)


def slices(model: Any, names: Sequence[str], limit_bytes: int = _SLICE_BYTES) -> list[list[str]]:
    """Splits tensors into slices of at most `limit_bytes`; a larger tensor is its own slice."""
    values = Topology(model).values
    found: list[list[str]] = []
    held = 0
    for name in names:
        size = _bytes(values[name].type.tensor_type.shape) if name in values else _UNKNOWN_BYTES
        if not found or held + size > limit_bytes:
            found.append([])
            held = 0
        found[-1].append(name)
        held += size
    return found


def _bytes(shape: Any) -> int:
    """Size of an FP32 tensor with a batch of one."""
    sizes = [dim.dim_value for dim in shape.dim]
    if not sizes or not all(sizes[1:]):
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
        self,
        graph: Path,
        names: Sequence[str],
        observe: Callable[[str, Float32Array], None],
        *,
        threads: int,
    ) -> None:
        model = onnx.load(graph, load_external_data=False)
        present = {value.name for value in (*model.graph.input, *model.graph.output)}
        for name in names:
            if name not in present:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
        self._names = names
        self._observe = observe
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
        inner = [name for name in self._names if name not in feeds]
        names = list(dict.fromkeys([*outputs, *inner]))
        results = dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        for name in self._names:
            self._observe(name, results[name] if name in results else np.asarray(feeds[name]))
        return {name: results[name][np.newaxis] for name in outputs}

    def close(self) -> None:
        """Releases the session."""
        del self._session
