"""Runs graphs with ONNX Runtime, on the CPU or on one of its GPU providers."""

from __future__ import annotations

import io
import logging
import queue
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from mosrt._arrays import Array, Float32Array
from mosrt.bundle.manifest import Member, TensorSpec, Variant
from mosrt.bundle.onnx_header import check_external_data
from mosrt.errors import BundleError, ProviderError
from mosrt.host.cache import Cache, cache_directory, private_directory
from mosrt.host.cpu import CpuFeatures
from mosrt.host.fork import fork_waits, keep_in_children
from mosrt.host.thread_pool import Calls

from .base import check_tensors, reason, stacked
from .precision import may_use_tf32

__all__ = ["PROVIDERS", "BoundSession", "OrtBackend", "load_cuda_libraries"]

_LOG = logging.getLogger(__name__)

PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt-ep": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
}
_GPU_BATCH: Final = 4
# Smaller networks are optimised in milliseconds, so caching gains nothing.
WORTH_CACHING_BYTES: Final = 16_000_000
_ENTRIES: Final = {
    # By default a file's name may say that it is of another format.
    "session.load_model_format": "ONNX",
    # Threads that wait for the next node spin, which saves a tenth of the time. They spin for less
    # than a millisecond, so that processes can share the cores, and not after the run, when the
    # front end of the next clip needs the cores.
    "session.intra_op.allow_spinning": "1",
    "session.intra_op.spin_duration_us": "200",
    "session.force_spinning_stop": "1",
}
_OPTIMISED: Final = "optimised.onnx"
# Weights are written to a file beside the graph, so that they are memory-mapped and shared by
# sessions and processes. Weights that kernels prepack are not written: float networks gain nothing
# by it, and ONNX Runtime 1.32 miscounts the bytes of prepacked 8-bit weights, so that the file does
# not load.
_OPTIMISED_ENTRIES: Final = {
    "session.optimized_model_external_initializers_file_name": f"{_OPTIMISED}.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}
# Makes 8-bit products exact on every processor. x86-64 without 8-bit dot products adds pairs of
# products in 16 bits, which saturate unless weights have 7 bits. The option costs such processors a
# third of their speed, and others nothing.
_EXACT_ENTRIES: Final = {"session.x64quantprecision": "1"}
_CUDA_OPTIONS: Final = {
    # A variant's precision is that of its graph; TF32 would reduce 23 bits to 10.
    "use_tf32": "0",
    # By default the first run times several algorithms, and the next process may choose another.
    "cudnn_conv_algo_search": "HEURISTIC",
}
# Providers whose inputs are kept in GPU memory.
_BOUND: Final = ("cuda", "tensorrt-ep")


class OrtBackend:
    """Runs a variant's graphs with ONNX Runtime, one session per network.

    Arguments are those of `mosrt.backends.open_backend`; the provider is a key of `PROVIDERS`.

    Raises:
        ProviderError: The provider is unknown, not in this ONNX Runtime, or failed to start.
        BundleError: A graph does not load, or differs from the manifest.
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
        if provider not in (here := present_providers()):
            raise ProviderError(
                f"provider {provider!r} is not in the installed onnxruntime "
                f"{onnxruntime.__version__}, which has: {', '.join(here)}; install the onnxruntime "
                "package for your hardware"
            )
        if provider in _BOUND:
            load_cuda_libraries()
        self.provider = provider
        # A single view already keeps a CPU busy.
        self.batch_size = 1 if provider == "cpu" else _GPU_BATCH
        self._threads = threads
        self._entries = {} if variant.sums_fit else _EXACT_ENTRIES
        self._cache = cache
        self._outputs = outputs
        sessions = [self._open(directory, member) for member in variant.members]
        for session in sessions:
            check_tensors("the graph's input", inputs, _shapes(session.get_inputs()))
            check_tensors("the graph's output", outputs, _shapes(session.get_outputs()))
        if provider in _BOUND:
            sessions = [BoundSession(session, "cuda") for session in sessions]
        self._sessions = sessions
        self._calls = Calls("the backend", sessions.clear)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Float32Array]:
        """Runs a batch; see `mosrt.backends.Backend`."""
        with self._calls.one(), fork_waits():
            try:
                results = [session.run(list(outputs), dict(feeds)) for session in self._sessions]
            except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
                if self.provider != "cpu":
                    raise ProviderError(
                        f"provider {self.provider!r} failed: {reason(exc)}"
                    ) from exc
                raise BundleError(
                    f"ONNX Runtime {onnxruntime.__version__} cannot run the graph ({reason(exc)}); "
                    "verify the bundle with `mosrt info --verify`, or upgrade onnxruntime"
                ) from exc
        named = [dict(zip(outputs, result, strict=True)) for result in results]
        return stacked(self._outputs, named, outputs)

    def close(self) -> None:
        """Waits for calls that run, then releases the sessions."""
        self._calls.close()

    def _open(self, directory: Path, member: Member) -> Any:
        """Opens a network's session, from the cached optimised graph if there is one."""
        graph, weights = member.paths(directory)
        size = sum(file.bytes for file in member.files)
        if self._cache is not None and self.provider == "cpu" and size >= WORTH_CACHING_BYTES:
            session = self._cache.get(
                {"engine": "onnxruntime", "cpu": CpuFeatures.read().to_dict()},
                {
                    "onnxruntime": onnxruntime.__version__,
                    "options": {**_OPTIMISED_ENTRIES, **self._entries},
                },
                files={directory / file.path: file.sha256 for file in member.files},
                make=lambda entry: self._optimise(graph, weights, entry),
                load=self._load_optimised,
            )
            if session is not None:
                return session
        check_external_data(graph, weights)
        return _session(graph, self._options(), self.provider, member.sha256)

    def _options(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Memory patterns take a sixth more memory and save no time on these graphs.
        options.enable_mem_pattern = False
        for name, value in (_ENTRIES | self._entries).items():
            options.add_session_config_entry(name, value)
        return options

    def _optimise(self, graph: Path, weights: Path | None, entry: Path) -> None:
        """Writes the graph as ONNX Runtime optimises it for this CPU."""
        check_external_data(graph, weights)
        options = self._options()
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(entry / _OPTIMISED)
        for name, value in _OPTIMISED_ENTRIES.items():
            options.add_session_config_entry(name, value)
        _session(graph, options, "cpu")
        written = entry / f"{_OPTIMISED}.data"
        check_external_data(entry / _OPTIMISED, written if written.exists() else None)

    def _load_optimised(self, entry: Path) -> Any:
        options = self._options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return _session(entry / _OPTIMISED, options, "cpu")


def present_providers() -> tuple[str, ...]:
    """The keys of `PROVIDERS` that the installed ONNX Runtime supports."""
    present = onnxruntime.get_available_providers()
    return tuple(name for name, full in PROVIDERS.items() if full in present)


def _shapes(tensors: Any) -> dict[str, tuple[None, Sequence[int | str]]]:
    return {tensor.name: (None, tensor.shape) for tensor in tensors}


def _with_options(provider: str, digest: str) -> list[Any]:
    """A session's list of providers with options; the second takes nodes the first cannot run."""
    cuda = (PROVIDERS["cuda"], _CUDA_OPTIONS)
    if provider == "cuda":
        return [cuda]
    if provider == "tensorrt-ep":
        # One folder per network, because ONNX Runtime does not tell engines of the same graph with
        # different weights apart; and one per precision, which is built into an engine.
        name = f"{digest[:16]}-tf32" if may_use_tf32(provider) else digest[:16]
        kept = {}
        if (cache := cache_directory()) is not None:
            directory = cache / "tensorrt-ep" / onnxruntime.__version__ / name
            try:
                private_directory(cache, directory)
                kept = {
                    "trt_engine_cache_enable": "1",
                    "trt_engine_cache_path": str(directory),
                    "trt_timing_cache_enable": "1",
                    "trt_timing_cache_path": str(directory),
                }
            except OSError as exc:
                _LOG.info("cache %s cannot be used: %s", directory, exc)
        return [(PROVIDERS[provider], kept), cuda]
    return [PROVIDERS[provider]]


def _needs(provider: str) -> str:
    """What a provider needs to start, for the message; ONNX Runtime only logs what is missing."""
    if provider not in _BOUND:
        return ""
    major = str(getattr(onnxruntime, "cuda_version", "")).split(".")[0]
    cuda = f"CUDA {major}" if major else "CUDA"
    more = ", and TensorRT" if provider == "tensorrt-ep" else ""
    return (
        f"; it needs an NVIDIA GPU and its driver, {cuda} and cuDNN 9 (`pip install "
        f"'onnxruntime-gpu[cuda,cudnn]'` brings both){more}"
    )


def _session(graph: Path, options: Any, provider: str, digest: str = "") -> Any:
    try:
        with fork_waits():
            session = onnxruntime.InferenceSession(
                graph,
                options,
                providers=_with_options(provider, digest),
                enable_fallback=0,  # which would print, and try the CPU again
            )
        keep_in_children(session)
    except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
        if provider != "cpu":
            raise ProviderError(f"provider {provider!r} failed to start: {reason(exc)}") from exc
        raise BundleError(
            f"{graph}: ONNX Runtime {onnxruntime.__version__} cannot load it ({reason(exc)}); "
            "verify the bundle with `mosrt info --verify`, or upgrade onnxruntime"
        ) from exc
    # ONNX Runtime silently replaces a provider that cannot start by the CPU.
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise ProviderError(
            f"provider {provider!r} could not start on this machine{_needs(provider)}"
        )
    # A provider that fails later must not be replaced either.
    session.disable_fallback()
    return session


def load_cuda_libraries() -> None:
    """Loads CUDA libraries that are installed as Python packages, as torch installs them.

    The system's loader does not search Python packages, so ONNX Runtime would not find cuBLAS and
    cuDNN there. ONNX Runtime's own `preload_dlls` searches only the folder that it is installed in;
    packages may be in any folder of `sys.path`. The system's own libraries are found as usual. A
    library that is missing makes the provider fail to start, with a message.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:  # ONNX Runtime before 1.21
        return
    printed = io.StringIO()
    # The function prints, and standard output is for scores.
    with redirect_stdout(printed):
        for entry in sys.path:
            for folder in sorted(Path(entry, "nvidia").glob("*/lib")):
                preload(directory=str(folder))
        preload()
    if printed.getvalue():
        _LOG.info("%s", printed.getvalue().strip())


class BoundSession:
    """A session whose `run` uses I/O binding, so that inputs stay allocated on the device.

    ONNX Runtime's own `run` allocates every input on the device in every call. Here each running
    call takes an idle binding and copies into its inputs, which are allocated again only when
    shapes change. Results are new arrays on the host.

    Args:
        session: ONNX Runtime's session.
        device: ONNX Runtime's name of the inputs' device, such as "cuda".
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session = session
        self._device = device
        # Bindings that no call uses, each with its inputs on the device.
        self._idle: queue.SimpleQueue[tuple[Any, dict[str, Any]]] = queue.SimpleQueue()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Runs the graph; returns the named outputs, in order."""
        try:
            binding, inputs = self._idle.get_nowait()
        except queue.Empty:
            binding, inputs = self._session.io_binding(), {}
        try:
            for name, array in feeds.items():
                if name not in inputs or tuple(inputs[name].shape()) != array.shape:
                    inputs[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                        array.shape, array.dtype.type, self._device, 0
                    )
                    binding.bind_ortvalue_input(name, inputs[name])
                inputs[name].update_inplace(np.ascontiguousarray(array))
            binding.clear_binding_outputs()
            for name in outputs:
                # ONNX Runtime copies the output to host memory.
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            found: list[Array] = binding.copy_outputs_to_cpu()
            return found
        finally:
            self._idle.put((binding, inputs))
