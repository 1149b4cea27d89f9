"""mosrt as a contestant: a bundle's variant on a provider, with batches of the size asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from mosrt.backends import open_backend
from mosrt.backends.cuda import Cuda
from mosrt.backends.engine_file import EngineFiles
from mosrt.backends.trt_module import find_tensorrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import Manifest, Variant
from mosrt.bundle.variants import check
from mosrt.host.cache import Cache, cache_directory
from mosrt.mos.scorer import FusionScorer
from mosrt_bench.bench.configurations import Contestant
from mosrt_bench.bench.provider_coverage import placement
from mosrt_bench.errors import BenchError

from .worker import RATE_HZ

__all__ = ["ENGINE_BATCHES", "MosrtRunner"]

Float32Array = npt.NDArray[np.float32]

ENGINE_BATCHES: Final = (1, 8, 32)
"""Smallest, usual and largest batch of engines that this benchmark builds."""


class MosrtRunner:
    """Runs a bundle; see `gpu.worker.Runner`.

    Runs of the networks have exactly as many views as there are: the padding to a fixed number that
    `mosrt.load` does on a GPU is left out.

    Args:
        reference: Name or path of a bundle that predicts MOS.
        variant: Precision.
        provider: One of mosrt's; for "tensorrt" engines are built that the cache does not have.
        threads: Threads of the front end, and of the networks on a CPU.

    Raises:
        MosrtError: It cannot be run here.
    """

    def __init__(self, reference: str, variant: str, provider: str, *, threads: int) -> None:
        bundle = Bundle.open(find_bundle(reference))
        manifest = bundle.manifest
        if manifest.uncertainty is not None:
            raise BenchError(f"{manifest.name} does not predict MOS")
        check(variant, provider)
        chosen = bundle.variant(variant)
        self.facts: dict[str, Any] = {"onnxruntime": onnxruntime.__version__}
        with bundle.extracted(chosen) as directory:
            if provider == "tensorrt":
                self.facts = _build(manifest, chosen, directory)
            self._backend = open_backend(
                directory,
                chosen,
                inputs=manifest.inputs,
                outputs=manifest.outputs,
                provider=provider,
                threads=threads,
                cache=Cache(cache_directory()),
            )
        self.facts["provider"] = self._backend.provider
        self.facts["views_per_run_by_default"] = self._backend.batch_size
        self._contestant = Contestant(
            bundle=bundle, variant=variant, provider=provider, threads=threads
        )
        self._scorer = FusionScorer(
            manifest,
            self._backend,
            variant=variant,
            threads=threads,
            on_bad_audio="warn",
            remove_silence=False,
        )

    def judge(self, clip: Float32Array) -> list[float]:
        """MOS for every domain."""
        self._backend.batch_size = 1
        return list(self._scorer.score(clip, RATE_HZ, views=1).domains.values())

    def score(self, clip: Float32Array) -> dict[str, float]:
        """Times of the front end, and of the copies and the model together."""
        self._backend.batch_size = 1
        score = self._scorer.score(clip, RATE_HZ, views=1)
        return {stage: score.timings_ms[stage] for stage in ("front_end", "model")}

    def score_batch(self, clips: Sequence[Float32Array]) -> list[float]:
        """MOS for the default domain."""
        self._backend.batch_size = len(clips)
        self._scorer.batch_size = len(clips)
        scores = self._scorer.score_many([(clip, RATE_HZ) for clip in clips], views=1)
        return [score.mos for score in scores]

    def placement(self) -> dict[str, int] | None:
        """Nodes of the first network by provider, where ONNX Runtime runs it."""
        return placement(self._contestant)


def _build(manifest: Manifest, variant: Variant, directory: Path) -> dict[str, Any]:
    """Builds what engines are missing; tells by what, and how long that took."""
    from mosrt_export.trt.builder import BuildSettings  # noqa: PLC0415 - TensorRT's rows only
    from mosrt_export.trt.engines import plan_engines, target_of  # noqa: PLC0415
    from mosrt_export.trt.shapes import size_ranges  # noqa: PLC0415
    from mosrt_export.trt.smoke_test import check_gpu  # noqa: PLC0415

    tensorrt = find_tensorrt()
    # TensorRT-RTX builds without a GPU and for others too, for minutes and for nothing.
    check_gpu(tensorrt, Cuda.open().compute_capability())
    target = target_of(tensorrt)
    files = EngineFiles()
    planned = plan_engines(
        manifest,
        variant,
        directory,
        target=target,
        ranges=size_ranges(manifest, batch=ENGINE_BATCHES),
        settings=BuildSettings(),
    )
    started = time.perf_counter()
    missing = [engine for engine in planned if engine.fault(files) is not None]
    for engine in missing:
        engine.build(tensorrt, files)
    return {
        "tensorrt": f"{target.module} {target.version}",
        "compute_capability": target.compute_capability,
        "engine_batches": list(ENGINE_BATCHES),
        "engines_built": len(missing),
        "build_s": round(time.perf_counter() - started, 3) if missing else 0.0,
    }
