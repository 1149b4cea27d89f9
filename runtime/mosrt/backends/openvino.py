"""Runs graphs with OpenVINO on the CPU, in bfloat16 where the CPU has instructions for it."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from mosrt._arrays import Array, Float32Array
from mosrt.bundle.manifest import Member, TensorSpec, Variant
from mosrt.bundle.onnx_header import check_external_data
from mosrt.errors import BundleError, ProviderError, missing_extra
from mosrt.host.cache import Cache
from mosrt.host.cpu import CpuFeatures
from mosrt.host.fork import fork_waits, keep_in_children
from mosrt.host.thread_pool import Calls

from .base import check_tensors, reason, stacked

__all__ = ["OpenVinoBackend"]

_ABSENT: Final[Any] = None  # in `sys.modules`: importing it fails
_PRECISIONS: Final = {"openvino-bf16": "bf16", "openvino-fp32": "f32"}
_BLOB: Final = "compiled.blob"


class OpenVinoBackend:
    """Runs a variant's graphs with OpenVINO on the CPU, one compiled model per network.

    The floating-point part of a graph is computed in float32 or in bfloat16 (8 bits of
    significand). The two give different scores, so they are providers with different names.

    Inputs are not copied; outputs are copied before the next call starts. One call runs at a time,
    and other threads wait.

    Arguments are those of `mosrt.backends.open_backend`. Provider "openvino" is the better of
    "openvino-bf16" and "openvino-fp32" that the CPU supports; the attribute `provider` names it.

    Raises:
        ProviderError: OpenVINO is not installed, or the CPU has no bfloat16 instructions.
        BundleError: A graph does not load, or differs from the manifest.
    """

    def __init__(
        self,
        directory: Path,
        variant: Variant,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        provider: str = "openvino",
        threads: int = 1,
        cache: Cache | None = None,
    ) -> None:
        cpu = CpuFeatures.read()
        if provider == "openvino":
            provider = "openvino-fp32" if cpu.bf16 is None else "openvino-bf16"
        elif provider == "openvino-bf16" and cpu.bf16 is None:
            raise ProviderError(
                "this CPU has no bfloat16 instructions (AMX-BF16 or AVX512-BF16); choose provider "
                "'openvino-fp32'"
            )
        self.provider = provider
        self.batch_size = 1
        self._openvino = _import_openvino()
        self._core: Any = self._openvino.Core()
        keep_in_children(self._core)
        self._mapped: list[Any] = []  # files that compiled models read from
        self._cache = cache
        self._cpu = cpu
        self._inputs, self._outputs = inputs, outputs
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISIONS[provider],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Pinned threads of two processes would compete for the same core.
            "ENABLE_CPU_PINNING": False,
        }
        with fork_waits():
            models = [self._compiled(directory, member) for member in variant.members]
        for model in models:
            check_tensors("the graph's input", inputs, _shapes(model.inputs))
            check_tensors("the graph's output", outputs, _shapes(model.outputs))
        self._requests = [model.create_infer_request() for model in models]
        keep_in_children(*models, *self._requests)
        self._lock = threading.Lock()
        self._calls = Calls("the backend", self._release)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Float32Array]:
        """Runs a batch; see `mosrt.backends.Backend`. All outputs are computed."""
        with self._calls.one(), fork_waits(), self._lock:
            try:
                results = [
                    request.infer(dict(feeds), share_inputs=True, share_outputs=True)
                    for request in self._requests
                ]
            except RuntimeError as exc:
                raise BundleError(
                    f"OpenVINO cannot run the graph ({reason(exc)}); verify the bundle with `mosrt "
                    "info --verify`, choose another variant, or provider 'cpu'"
                ) from exc
            # Copied out of the requests' buffers, which the next call overwrites.
            named = [{name: result[name] for name in outputs} for result in results]
            return stacked(self._outputs, named, outputs)

    def close(self) -> None:
        """Waits for calls that run, then releases the compiled models."""
        self._calls.close()

    def _release(self) -> None:
        self._requests.clear()
        self._core = None
        self._mapped.clear()

    def _compiled(self, directory: Path, member: Member) -> Any:
        """Compiles a network, or takes it from the cache."""
        graph, weights = member.paths(directory)
        if self._cache is not None:
            model = self._cache.get(
                {
                    "engine": "openvino",
                    "cpu": self._cpu.to_dict(),
                    "precision": self._options["INFERENCE_PRECISION_HINT"],
                },
                {"openvino": self._openvino.get_version()},
                files={directory / file.path: file.sha256 for file in member.files},
                make=lambda entry: self._export(graph, weights, entry),
                load=self._import,
            )
            if model is not None:
                return model
        return self._compile(graph, weights)

    def _compile(self, graph: Path, weights: Path | None) -> Any:
        check_external_data(graph, weights)
        try:
            model = self._core.read_model(graph)
            if all(isinstance(size, int) for tensor in self._inputs for size in tensor.shape[1:]):
                # Only the batch is dynamic, and it is always one view here.
                model.reshape({tensor.name: [1, *tensor.shape[1:]] for tensor in self._inputs})
            return self._core.compile_model(model, "CPU", self._options)
        except RuntimeError as exc:
            raise BundleError(
                f"{graph}: OpenVINO {self._openvino.get_version()} cannot load it ({reason(exc)}); "
                "verify the bundle with `mosrt info --verify`, or choose another variant or "
                "provider 'cpu'"
            ) from exc

    def _export(self, graph: Path, weights: Path | None, entry: Path) -> None:
        stream = io.BytesIO()
        self._compile(graph, weights).export_model(stream)
        (entry / _BLOB).write_bytes(stream.getbuffer())

    def _import(self, entry: Path) -> Any:
        # Memory-mapped, so that processes share the weights. The mapping is copy-on-write, because
        # OpenVINO accepts no read-only array.
        blob = np.memmap(entry / _BLOB, np.uint8, "c")
        tensor = self._openvino.Tensor(blob, shared_memory=True)
        model = self._core.import_model(tensor, "CPU", self._options)
        self._mapped.append(blob)
        return model


def _import_openvino() -> Any:
    try:
        # OpenVINO reports every import to its maker, unless this package cannot be imported.
        silenced = sys.modules.setdefault("openvino_telemetry", _ABSENT) is None
        try:
            import openvino  # noqa: PLC0415 - an extra, and slow to import
        finally:
            if silenced:
                del sys.modules["openvino_telemetry"]
    except ImportError as exc:
        message = missing_extra("provider 'openvino'", "openvino", exc.name or "openvino")
        raise ProviderError(message) from exc
    return openvino


def _shapes(tensors: Any) -> dict[str, tuple[None, list[int | str]]]:
    """The shapes of inputs or outputs; "" stands for a dynamic size."""
    found: dict[str, tuple[None, list[int | str]]] = {}
    for tensor in tensors:
        sizes = tensor.get_partial_shape()
        shape = [size.get_length() if size.is_static else "" for size in sizes]
        found |= dict.fromkeys(tensor.names, (None, shape))
    return found
