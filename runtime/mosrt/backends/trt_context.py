"""Lane: what one thread at a time needs to run an engine."""

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

__all__ = ["Lane"]


_LARGEST: Final = 2
_LOG = logging.getLogger(__name__)


class Lane:
    """An execution context with a stream and buffers of its own; for one thread at a time.

    For every input and output there is one buffer on the device and one, page-locked, on the host,
    both as large as the profile's largest shape asks for and used again in every call. Inputs are
    copied from the caller into the lane, outputs out of it into new arrays, so that neither side
    ever sees the other's memory.

    What a call queues is the same for the same shapes, so from the third such call in a row it is
    replayed as a CUDA graph. There is one graph, of the context's present shapes: TensorRT may
    change what a recorded graph relies on when a context changes shape. An engine that cannot be
    recorded runs without.

    Args:
        tensorrt: The module, for its log.
        cuda: CUDA's runtime library.
        engine: The deserialised engine.
        profile: The shapes it was built for.
        dtypes: Type of every input and output by name.

    Raises:
        ProviderError: There is not enough memory for another lane.
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
        self._output_shapes: dict[str, tuple[int, ...]] = {}
        self._graph: Graph | None = None
        self._graph_outputs: tuple[str, ...] | None = None
        self._runs_alike = 0
        self._capture = True
        # Released from the last to the first: the context before the stream it may still use.
        with ExitStack() as resources:
            self._stream = Stream(cuda)
            resources.callback(self._stream.close)
            self._context: Any = self._new_context(engine, profile)
            resources.callback(self._forget_context)
            self._event = Event(cuda)
            resources.callback(self._event.close)
            self._set_shapes({name: shapes[_LARGEST] for name, shapes in profile.items()})
            largest = {
                **{name: shapes[_LARGEST] for name, shapes in profile.items()},
                **{name: self._tensor_shape(name) for name in dtypes if name not in profile},
            }
            self._tensors: dict[str, _Tensor] = {}
            for name, shape in largest.items():
                dtype = np.dtype(dtypes[name])
                tensor = _Tensor(dtype, *_buffers(cuda, shape, dtype, resources))
                self._tensors[name] = tensor
                self._require(
                    self._context.set_tensor_address(name, tensor.device.address),
                    f"take a buffer for {name!r}",
                )
            resources.callback(self._drop_graph)
            self._resources = resources.pop_all()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Runs the engine once.

        Args:
            feeds: Every input by name, of a shape that the profile allows. Only read, and not
                after the return.
            outputs: Names of the outputs wanted.

        Returns:
            Output tensors by name. They belong to the caller.

        Raises:
            ProviderError: CUDA or TensorRT failed.
        """
        self._prepare({name: feeds[name].shape for name in self._inputs}, tuple(outputs))
        for name in self._inputs:
            tensor = self._tensors[name]
            # Types that differ are a mistake of the caller's, not something to convert.
            np.copyto(tensor.view(feeds[name].shape), feeds[name], casting="no")
        try:
            self._queue(outputs)
            self._event.record(self._stream)
            self._event.synchronize()
        except ProviderError:
            # The next run must not overwrite buffers that this one may still be copied from.
            with suppress(ProviderError):
                self._stream.synchronize()
            raise
        return {
            name: self._tensors[name].view(self._output_shapes[name]).copy() for name in outputs
        }

    def close(self) -> None:
        """Releases everything, the latest first."""
        self._resources.close()

    def _prepare(self, shapes: Mapping[str, tuple[int, ...]], outputs: tuple[str, ...]) -> None:
        """Tells the context of new shapes; counts the calls that are alike."""
        if shapes == self._shapes and outputs == self._graph_outputs:
            self._runs_alike += 1
            return
        self._drop_graph()
        self._runs_alike = 0
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
        self._output_shapes.clear()

    def _tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        self._require(min(shape, default=0) >= 0, f"say how large {name!r} is, but {shape}")
        return shape

    def _queue(self, outputs: Sequence[str]) -> None:
        """Queues copies and the engine, as a graph once that pays."""
        for name in outputs:
            if name not in self._output_shapes:
                self._output_shapes[name] = self._tensor_shape(name)
        # The first run of a shape may allocate, which a capture cannot hold; the second shows that
        # the shape stays.
        if self._graph is None and self._capture and self._runs_alike >= 2:
            self._record(outputs)
        if self._graph is None:
            self._queue_singly(outputs)
        else:
            self._graph.launch(self._stream)

    def _queue_singly(self, outputs: Sequence[str]) -> None:
        for name, shape in self._shapes.items():
            tensor = self._tensors[name]
            self._cuda.copy_in(tensor.device, tensor.host, tensor.n_bytes(shape), self._stream)
        with self._tensorrt.log() as lines:
            self._require(
                self._context.execute_async_v3(self._stream.handle), "run the engine", lines
            )
        for name in outputs:
            tensor = self._tensors[name]
            n_bytes = tensor.n_bytes(self._output_shapes[name])
            self._cuda.copy_out(tensor.host, tensor.device, n_bytes, self._stream)

    def _record(self, outputs: Sequence[str]) -> None:
        # TensorRT-RTX says beforehand whether a context can be recorded.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream.handle):
            self._capture = False
            return
        try:
            with self._stream.capturing() as captured:
                self._queue_singly(outputs)
        except ProviderError as exc:
            _LOG.info("engine runs without a CUDA graph: %s", exc)
            self._capture = False
        else:
            self._graph = captured[0]

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _forget_context(self) -> None:
        # Its memory goes with the last reference.
        self._context = None

    def _new_context(self, engine: Any, profile: Profile) -> Any:
        """An execution context whose results do not depend on what ran before."""
        with self._tensorrt.log() as lines:
            context = engine.create_execution_context(*_options(self._tensorrt, engine, profile))
            self._require(context is not None, "make an execution context", lines)
        return context

    def _require(self, done: bool, what: str, lines: Sequence[str] = ()) -> None:
        """Raises ProviderError with TensorRT's own words unless a call succeeded."""
        if not done:
            said = "; ".join(lines) or "it does not say why"
            raise ProviderError(f"{self._tensorrt} could not {what}: {said}")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """The buffers of an input or output."""

    dtype: np.dtype[Any]
    device: DeviceBuffer
    host: HostBuffer

    def view(self, shape: tuple[int, ...]) -> Array:
        """The host's buffer as an array of a shape."""
        return self.host.array(shape, self.dtype)

    def n_bytes(self, shape: tuple[int, ...]) -> int:
        """Size of a shape in bytes."""
        return math.prod(shape) * self.dtype.itemsize


def _buffers(
    cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any], resources: ExitStack
) -> tuple[DeviceBuffer, HostBuffer]:
    """A buffer on the device and one on the host, which `resources` releases."""
    n_bytes = max(1, math.prod(shape) * dtype.itemsize)
    device = DeviceBuffer(cuda, n_bytes)
    resources.callback(device.close)
    host = HostBuffer(cuda, n_bytes)
    resources.callback(host.close)
    return device, host


def _options(tensorrt: TensorRt, engine: Any, profile: Profile) -> tuple[Any, ...]:
    """Arguments for a new context: TensorRT-RTX must not change kernels between runs.

    By default it compiles kernels for a new shape while others run it meanwhile, so that the
    second run of a recording would give other numbers than the first. Where only the batch varies,
    kernels are compiled before the first run; where the length does, one kernel serves all.
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
