"""Runs a TensorRT engine in an execution context with a stream and buffers of its own."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mosrt._arrays import Array
from mosrt.errors import ProviderError

from .cuda import Cuda, DeviceBuffer, Event, Graph, HostBuffer, Stream
from .engine_file import Profile
from .trt_module import TensorRt

__all__ = ["ExecutionContext"]

_LARGEST: Final = 2
_LOG = logging.getLogger(__name__)


class ExecutionContext:
    """An execution context with a stream and buffers of its own, for one thread at a time.

    Every input and output has one buffer on the device and one page-locked buffer on the host. Both
    are as large as the profile's largest shape needs, and every call uses them again. Inputs are
    copied into these buffers and outputs are copied into new arrays, so no memory is shared with
    the caller.

    Calls with the same shapes queue the same work. From the third such call in a row, that work is
    replayed as a CUDA graph. Only the graph of the current shapes is kept, because TensorRT may
    change what a graph relies on when a context changes shape. An engine that cannot be captured
    runs without a graph.

    Args:
        tensorrt: The module, for its log.
        cuda: CUDA's runtime library.
        engine: The deserialised engine.
        profile: The shapes that the engine was built for.
        dtypes: Type of every input and output by name.

    Raises:
        ProviderError: Memory does not suffice for one more execution context.
    """

    def __init__(
        self,
        tensorrt: TensorRt,
        cuda: Cuda,
        engine: Any,
        profile: Profile,
        dtypes: Mapping[str, npt.DTypeLike],
    ) -> None:
        self._tensorrt = tensorrt
        self._cuda = cuda
        self._inputs = tuple(profile)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._graph: Graph | None = None
        self._graph_outputs: tuple[str, ...] | None = None
        self._same_shape_runs = 0
        self._may_capture = True
        # Released from last to first: the context goes before the stream that it may still use.
        with ExitStack() as resources:
            self._stream = Stream(cuda)
            resources.callback(self._stream.close)
            with tensorrt.log() as lines:
                options = _options(tensorrt, engine, profile)
                self._context: Any = engine.create_execution_context(*options)
                self._require(self._context is not None, "make an execution context", lines)
            # TensorRT frees the context with its last reference.
            resources.callback(setattr, self, "_context", None)
            self._event = Event(cuda)
            resources.callback(self._event.close)
            self._set_shapes({name: shapes[_LARGEST] for name, shapes in profile.items()})
            outputs = [name for name in dtypes if name not in profile]
            largest = {**self._shapes, **{name: self._tensor_shape(name) for name in outputs}}
            self._tensors: dict[str, _Tensor] = {}
            for name, shape in largest.items():
                dtype = np.dtype(dtypes[name])
                n_bytes = max(1, math.prod(shape) * dtype.itemsize)
                device = DeviceBuffer(cuda, n_bytes)
                resources.callback(device.close)
                host = HostBuffer(cuda, n_bytes)
                resources.callback(host.close)
                self._tensors[name] = _Tensor(dtype, device, host)
                taken = self._context.set_tensor_address(name, device.address)
                self._require(taken, f"take a buffer for {name!r}")
            resources.callback(self._drop_graph)
            self._resources = resources.pop_all()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Runs the engine once.

        Args:
            feeds: Every input by name, of a shape that the profile allows; read only during the
                call.
            outputs: Names of the outputs wanted.

        Returns:
            Output tensors by name, as new arrays.

        Raises:
            ProviderError: CUDA or TensorRT failed.
        """
        self._prepare({name: feeds[name].shape for name in self._inputs}, tuple(outputs))
        for name in self._inputs:
            tensor = self._tensors[name]
            # A wrong type is a mistake of the caller, so it is not converted.
            np.copyto(tensor.view(feeds[name].shape), feeds[name], casting="no")
        try:
            self._queue(outputs)
            self._event.record(self._stream)
            self._event.synchronize()
        except ProviderError:
            # Copies may still be running; the next run must not overwrite their buffers.
            with suppress(ProviderError):
                self._stream.synchronize()
            raise
        return {name: self._tensors[name].view(self._tensor_shape(name)).copy() for name in outputs}

    def close(self) -> None:
        """Releases all resources, the latest first."""
        self._resources.close()

    def _prepare(self, shapes: Mapping[str, tuple[int, ...]], outputs: tuple[str, ...]) -> None:
        """Sets new shapes, or counts one more call with the same shapes and outputs."""
        if shapes == self._shapes and outputs == self._graph_outputs:
            self._same_shape_runs += 1
            return
        self._drop_graph()
        self._same_shape_runs = 0
        self._graph_outputs = outputs
        if shapes != self._shapes:
            self._set_shapes(shapes)

    def _set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = {}
        with self._tensorrt.log() as lines:
            for name, shape in shapes.items():
                self._require(
                    self._context.set_input_shape(name, shape), f"take {name!r} as {shape}", lines
                )
            missing = self._context.infer_shapes()
            self._require(not missing, f"infer shapes without {', '.join(missing)}", lines)
        self._shapes = dict(shapes)

    def _tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        self._require(min(shape, default=0) >= 0, f"infer the shape of {name!r}, which is {shape}")
        return shape

    def _queue(self, outputs: Sequence[str]) -> None:
        """Queues the copies and the engine, as a CUDA graph if there is one."""
        # The first run of a shape may allocate memory, which cannot be captured. A second run shows
        # that the shape stays.
        if self._graph is None and self._may_capture and self._same_shape_runs >= 2:
            self._capture_graph(outputs)
        if self._graph is None:
            self._queue_without_graph(outputs)
        else:
            self._graph.launch(self._stream)

    def _queue_without_graph(self, outputs: Sequence[str]) -> None:
        for name, shape in self._shapes.items():
            tensor = self._tensors[name]
            self._cuda.copy(tensor.device, tensor.host, tensor.view(shape).nbytes, self._stream)
        with self._tensorrt.log() as lines:
            self._require(
                self._context.execute_async_v3(self._stream.address), "run the engine", lines
            )
        for name in outputs:
            tensor = self._tensors[name]
            n_bytes = tensor.view(self._tensor_shape(name)).nbytes
            self._cuda.copy(tensor.host, tensor.device, n_bytes, self._stream)

    def _capture_graph(self, outputs: Sequence[str]) -> None:
        # TensorRT-RTX says beforehand whether a context can be captured.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream.address):
            self._may_capture = False
            return
        try:
            self._graph = self._stream.capture(lambda: self._queue_without_graph(outputs))
        except ProviderError as exc:
            _LOG.info("engine runs without a CUDA graph: %s", exc)
            self._may_capture = False

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _require(self, done: bool, what: str, lines: Sequence[str] = ()) -> None:
        """Raises ProviderError with TensorRT's messages unless a call succeeded."""
        if not done:
            reason = "; ".join(lines) or "no reason given"
            raise ProviderError(f"{self._tensorrt} could not {what}: {reason}")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """The two buffers of an input or output."""

    dtype: np.dtype[Any]
    device: DeviceBuffer
    host: HostBuffer

    def view(self, shape: tuple[int, ...]) -> Array:
        """The host buffer as an array of the given shape."""
        return self.host.array(shape, self.dtype)


def _options(tensorrt: TensorRt, engine: Any, profile: Profile) -> tuple[Any, ...]:
    """Arguments for a new context that keep TensorRT-RTX from changing kernels between runs.

    By default TensorRT-RTX starts with generic kernels and compiles specialised ones meanwhile, so
    the second run of a recording would give other numbers than the first. If only the batch size
    varies, specialised kernels are compiled before the first run; if the length varies, generic
    kernels are used throughout.
    """
    strategies = getattr(tensorrt.module, "DynamicShapesKernelSpecializationStrategy", None)
    if strategies is None:
        return ()
    config = engine.create_runtime_config()
    lengths_vary = any(small[1:] != large[1:] for small, _, large in profile.values())
    config.dynamic_shapes_kernel_specialization_strategy = (
        strategies.NONE if lengths_vary else strategies.EAGER
    )
    return (config,)
