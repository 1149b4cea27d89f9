"""Run a bundle's variant on an execution provider, as a user of mosrt would."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnxruntime

import mosrt
from mosrt.backends.cuda import Cuda
from mosrt.backends.engine_file import EngineFiles
from mosrt.backends.ort import PROVIDERS
from mosrt.backends.trt_module import find_tensorrt
from mosrt.bundle.bundle import Bundle
from mosrt.errors import ProviderError
from mosrt.score import Score

from .protocol import Configuration, LoadKind, time_callers

__all__ = ["ENGINE_BATCHES", "MosrtRunner"]

ENGINE_BATCHES: Final = (1, 8, 32)
"""Smallest, usual and largest number of views per run of engines that the bench builds."""

# Half a second of audio, which every speech model takes.
_FREE_SAMPLES: Final = 8_000


class MosrtRunner:
    """Runs a bundle; see `mosrt_bench.worker.protocol.Runner`.

    For the provider "tensorrt", engines are built that the cache does not have.

    Raises:
        MosrtError: It cannot be run on this machine.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self.facts: dict[str, Any] = {}
        if configuration.provider == "tensorrt":
            self.facts = _build_missing(Bundle.open(configuration.bundle), configuration.variant)
        self._scorer = mosrt.load(
            Path(configuration.bundle),
            variant=configuration.variant,
            provider=configuration.provider,
            threads=configuration.threads,
        )
        self.provider = self._scorer.provider
        self._options: dict[str, Any] = {"plan": configuration.plan, "views": configuration.views}

    def score(self, clip: Path) -> dict[str, Any]:
        """See `Runner.score`."""
        score = self._scorer.score_file(clip, **self._options)
        return {"scores": _compared(score), "duration_s": score.duration_s}

    def time(self, clip: Path) -> dict[str, float]:
        """See `Runner.time`."""
        data = clip.read_bytes()
        started = time.perf_counter()
        score = self._scorer.score_file(data, **self._options)
        total_ms = 1e3 * (time.perf_counter() - started)
        stages = dict(score.timings_ms)
        stages["rest"] = max(0.0, total_ms - sum(stages.values()))
        return {**stages, "total": total_ms}

    def run_many(self, clip: Path, kind: LoadKind, count: int, n_clips: int) -> float:
        """See `Runner.run_many`."""
        data = clip.read_bytes()
        if kind == "callers":
            return time_callers(
                lambda: self._scorer.score_file(data, **self._options), count, n_clips
            )
        self._scorer.batch_size = count
        started = time.perf_counter()
        self._scorer.score_many([data] * n_clips, **self._options)
        return time.perf_counter() - started

    def nodes(self) -> dict[str, int] | None:
        """Nodes of the first network by provider; None where ONNX Runtime does not tell."""
        full = PROVIDERS.get(self._configuration.provider)
        if full is None:
            return None
        bundle = Bundle.open(self._configuration.bundle)
        variant = bundle.variant(self._configuration.variant)
        with bundle.extracted(variant) as directory:
            try:
                counts = _nodes_by_provider(directory / variant.members[0].graph.path, full)
            except Exception:  # noqa: BLE001 - ONNX Runtime's exceptions share no other base
                return None
        names = {long: short for short, long in PROVIDERS.items()}
        return {names.get(long, long): count for long, count in counts.items()}

    def close(self) -> None:
        """See `Runner.close`."""
        self._scorer.close()


def _nodes_by_provider(graph: Path, provider: str) -> dict[str, int]:
    """Runs a graph on ones, under ONNX Runtime's profiler, and counts its nodes by provider.

    A provider that cannot run a node leaves it to the CPU without a message, and some providers
    leave every node. A session still lists such a provider first, so only the profiler can tell.

    Providers are called by ONNX Runtime's names.
    """
    with TemporaryDirectory(prefix="mosrt-profile-", ignore_cleanup_errors=True) as directory:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(directory, "profile"))
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(graph, options, providers=[provider])
        session.run(None, {tensor.name: _ones(tensor) for tensor in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = {
        (event["args"].get("node_index"), event["name"]): event["args"]["provider"]
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
    return dict(Counter(nodes.values()))


def _compared(score: Score) -> dict[str, float]:
    """What a bench compares of a clip's score: the MOS by domain, or the uncertainty."""
    if "uncertainty" in score.measures:
        return {"uncertainty": score.measures["uncertainty"]}
    return dict(score.domains)


def _ones(tensor: Any) -> np.ndarray[Any, Any]:
    shape = [size if isinstance(size, int) else _FREE_SAMPLES for size in tensor.shape]
    shape[0] = 1
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    return np.ones(shape, "float32" if kind == "float" else kind)


def _build_missing(bundle: Bundle, variant: str) -> dict[str, Any]:
    """Builds the TensorRT engines of a variant for which the cache has none.

    Returns:
        Facts: TensorRT and GPU, and how many engines were built in how many seconds.
    """
    from mosrt_export.trt.builder import BuildSettings, check_gpu  # noqa: PLC0415 - for TensorRT only
    from mosrt_export.trt.engines import plan_engines, target_of  # noqa: PLC0415
    from mosrt_export.trt.shapes import size_ranges  # noqa: PLC0415

    tensorrt = find_tensorrt()
    # TensorRT-RTX would build for minutes without a GPU that can run the engine.
    check_gpu(tensorrt, Cuda.open().compute_capability())
    target = target_of(tensorrt)
    files = EngineFiles()
    chosen = bundle.variant(variant)
    batch = None if bundle.manifest.uncertainty is not None else ENGINE_BATCHES
    started = time.perf_counter()
    n_built = 0
    with bundle.extracted(chosen) as directory:
        for engine in plan_engines(
            bundle.manifest,
            chosen,
            directory,
            target=target,
            ranges=size_ranges(bundle.manifest, batch=batch),
            settings=BuildSettings(),
        ):
            try:
                files.find(engine.key.graph, target)
            except ProviderError:
                engine.build(tensorrt, files)
                n_built += 1
    return {
        "tensorrt": f"{target.module} {target.version}",
        "compute_capability": target.compute_capability,
        "engines_built": n_built,
        "build_s": round(time.perf_counter() - started, 3) if n_built else 0.0,
    }
