"""ONNX Runtime: the backend that is always there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from mosrt._arrays import Array, Float32Array
from mosrt.bundle.manifest import Member, TensorSpec, Variant
from mosrt.errors import BundleError, ProviderError
from mosrt.host.cache import Cache, cache_directory
from mosrt.host.cpu import CpuFeatures

from .base import check_tensors
from .ort_cuda import BoundSession, load_cuda_libraries
from .precision import may_use_tf32

__all__ = ["PROVIDERS", "OrtBackend"]


PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt-ep": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
}
_GPU_BATCH: Final = 4
# Smaller networks are optimised in milliseconds.
_WORTH_CACHING_BYTES: Final = 16_000_000
_OPTIMISED: Final = "optimised.onnx"
# Weights go to a file beside the graph, so that they are mapped instead of copied, and sessions and
# processes share them. Not those that kernels pack for themselves, too: a float network gains
# nothing by it, and ONNX Runtime 1.32 miscounts the bytes of packed 8-bit weights, so that the file
# does not load.
_OPTIMISED_ENTRIES: Final = {
    "session.optimized_model_external_initializers_file_name": f"{_OPTIMISED}.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
# Sums of products of bytes are exact on every processor: without 8-bit dot products, x86-64 adds
# pairs of them in 16 bits, which overflow but for weights of 7 bits. It costs such processors a
# third of their speed, others nothing.
_EXACT_ENTRIES: Final = {"session.x64quantprecision": "1"}
_CUDA_OPTIONS: Final = {
    # The precision of a variant is in its graph: TF32 would make 10 bits out of 23.
    "use_tf32": "0",
    # By default algorithms race each other at the first run, and another may win next time.
    "cudnn_conv_algo_search": "HEURISTIC",
}
# Those whose inputs are to be in the GPU's memory.
_BOUND: Final = ("cuda", "tensorrt-ep")


class OrtBackend:
    """Runs a variant's graphs with ONNX Runtime, one session per network.

    Args:
        directory: Where the bundle's files are.
        variant: The variant to run.
        inputs: Inputs that the graphs must have.
        outputs: Outputs that the graphs must have.
        provider: A key of `PROVIDERS`.
        threads: Threads for one call.
        cache: Where optimised graphs are kept for the CPU; by default nowhere.

    Raises:
        ProviderError: The provider is unknown, not in this ONNX Runtime, or failed to start.
        BundleError: A graph does not load, or is not what the manifest says.
    """

    def __init__(
        self,
        directory: Path,
        variant: Variant,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        provider: str = "cpu",
        threads: int = 1,
        cache: Cache | None = None,
    ) -> None:
        _check_available(provider)
        if provider in _BOUND:
            load_cuda_libraries()
        engine = _Engine(
            provider=provider,
            threads=threads,
            entries={} if variant.sums_fit else _EXACT_ENTRIES,
            cache=cache,
        )
        sessions = [engine.open(directory, member) for member in variant.members]
        for session in sessions:
            for kind, wanted, present in (
                ("input", inputs, session.get_inputs()),
                ("output", outputs, session.get_outputs()),
            ):
                check_tensors(kind, wanted, {tensor.name: tensor.shape for tensor in present})
        self._sessions: list[Any] = sessions
        self.provider = provider
        # One view already fills a CPU.
        self.batch_size = 1 if provider == "cpu" else _GPU_BATCH

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Float32Array]:
        """Runs a batch; see `mosrt.backends.Backend`."""
        results = [session.run(list(outputs), dict(feeds)) for session in self._sessions]
        return {name: np.stack([result[i] for result in results]) for i, name in enumerate(outputs)}

    def close(self) -> None:
        """Releases the sessions."""
        self._sessions.clear()


def present_providers() -> tuple[str, ...]:
    """The keys of `PROVIDERS` that this ONNX Runtime was built with."""
    present = onnxruntime.get_available_providers()
    return tuple(name for name, full in PROVIDERS.items() if full in present)


def _check_available(provider: str) -> None:
    here = present_providers()
    if provider not in here:
        raise ProviderError(
            f"provider {provider!r} is not in the installed onnxruntime {onnxruntime.__version__}, "
            f"which has: {', '.join(here)}; install the onnxruntime package for your hardware"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    """How networks are run.

    Attributes:
        provider: A key of `PROVIDERS`.
        threads: Threads for one call.
        entries: Session options by name, beside those that all have.
        cache: Where optimised graphs are kept for the CPU, if anywhere.
    """

    provider: str
    threads: int
    entries: Mapping[str, str]
    cache: Cache | None

    def open(self, directory: Path, member: Member) -> Any:
        """A network's session, from the cache where that is quicker."""
        graph, digest = directory / member.graph.path, member.sha256
        size = sum(file.bytes for file in member.files)
        if self.cache is not None and self.provider == "cpu" and size >= _WORTH_CACHING_BYTES:
            session = self.cache.get(
                {
                    "engine": "onnxruntime",
                    "files": [file.sha256 for file in member.files],
                    "cpu": CpuFeatures.read().to_dict(),
                },
                {
                    "onnxruntime": onnxruntime.__version__,
                    "options": {**_OPTIMISED_ENTRIES, **self.entries},
                },
                make=lambda entry: self._optimise(graph, digest, entry),
                load=lambda entry: self._load_optimised(entry, digest),
            )
            if session is not None:
                return session
        return _session(graph, self._options(), self.provider, digest)

    def _options(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Planning memory ahead costs a sixth more of it and gains no time on these graphs.
        options.enable_mem_pattern = False
        # Workers that wait for the next node spin, which gains a tenth, but for less than a
        # millisecond, or processes that share the cores would take them from each other, and not
        # beyond the run: the front end of the next clip needs them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", "200")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for name, value in self.entries.items():
            options.add_session_config_entry(name, value)
        return options

    def _optimise(self, graph: Path, digest: str, entry: Path) -> None:
        """Writes the graph as ONNX Runtime optimises it for this CPU."""
        options = self._options()
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(entry / _OPTIMISED)
        for name, value in _OPTIMISED_ENTRIES.items():
            options.add_session_config_entry(name, value)
        _session(graph, options, "cpu", digest)

    def _load_optimised(self, entry: Path, digest: str) -> Any:
        options = self._options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return _session(entry / _OPTIMISED, options, "cpu", digest)


def _with_options(provider: str, digest: str) -> list[Any]:
    """What a session is to run on: the provider, and what takes the nodes it does not know.

    Args:
        provider: A key of `PROVIDERS`.
        digest: SHA-256 of the network's files.
    """
    cuda = (PROVIDERS["cuda"], _CUDA_OPTIONS)
    if provider == "cuda":
        return [cuda]
    if provider == "tensorrt-ep":
        # A folder per network: ONNX Runtime would take engines of the same graph, other weights.
        # And per arithmetic, which is built into them.
        name = f"{digest[:16]}-tf32" if may_use_tf32(provider) else digest[:16]
        directory = cache_directory() / "tensorrt-ep" / onnxruntime.__version__ / name
        directory.mkdir(parents=True, exist_ok=True)
        kept = {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(directory),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(directory),
        }
        return [(PROVIDERS[provider], kept), cuda]
    return [PROVIDERS[provider]]


def _needs(provider: str) -> str:
    """What a provider needs to start; ONNX Runtime logs what of it is missing, and nothing else."""
    if provider not in _BOUND:
        return ""
    major = str(getattr(onnxruntime, "cuda_version", "")).split(".")[0]
    cuda = f"CUDA {major}" if major else "CUDA"
    more = ", and TensorRT" if provider == "tensorrt-ep" else ""
    return (
        f"; it needs an NVIDIA GPU and its driver, {cuda} and cuDNN 9 (`pip install "
        f"'onnxruntime-gpu[cuda,cudnn]'` brings both){more}"
    )


def _session(graph: Path, options: Any, provider: str, digest: str) -> Any:
    try:
        session = onnxruntime.InferenceSession(
            graph, options, providers=_with_options(provider, digest)
        )
    except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
        if provider != "cpu":
            raise ProviderError(f"provider {provider!r} failed to start: {exc}") from exc
        raise BundleError(
            f"{graph}: ONNX Runtime {onnxruntime.__version__} cannot load it ({exc}); "
            "verify the bundle with `mosrt info --verify`, or upgrade onnxruntime"
        ) from exc
    # A provider that cannot start is replaced by the CPU without a word.
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise ProviderError(
            f"provider {provider!r} could not start on this machine{_needs(provider)}"
        )
    # Nor may one that fails later be.
    session.disable_fallback()
    return BoundSession(session, "cuda") if provider in _BOUND else session
