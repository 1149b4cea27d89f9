# ruff: noqa: N802 - CUDA's own names
"""Stand-ins for CUDA's runtime library and TensorRT's module, for machines without a GPU.

What they are honest about: device memory is memory of its own that only queued copies reach; what
is queued runs when a thread waits for it and not before; handles are released once; a context
serves one run at a time, and forgets nothing but what it is told. Misuse is an AssertionError.
What they fake: the arithmetic. Element j of an output's last axis is (j + 1) times the sum of each
input over all axes but the first.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
import types
from collections import Counter
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import numpy.typing as npt

Work = Callable[[], None]
Array = npt.NDArray[Any]

_FIRST_ADDRESS = 0x7F00_0000_0000
_ALIGNMENT = 256
_NAMES = {
    0: "cudaSuccess",
    2: "cudaErrorMemoryAllocation",
    35: "cudaErrorInsufficientDriver",
    100: "cudaErrorNoDevice",
    901: "cudaErrorStreamCaptureInvalidated",
}


class FakeCudart:
    """The functions of libcudart that mosrt calls.

    Attributes:
        calls: Names of the functions called so far, unless `silent`.
        live: How many handles of each kind there are.
        failures: Error codes by function and number of the call, counted from 1.
    """

    def __init__(self, *, devices: int = 1, capability: tuple[int, int] = (8, 7)) -> None:
        self.devices = devices
        self.capability = capability
        self.calls: list[str] = []
        self.silent = False
        self.live: Counter[str] = Counter()
        self.failures: dict[tuple[str, int], int] = {}
        self.last_error = 0
        self._counts: Counter[str] = Counter()
        self._handles: dict[int, tuple[str, Any]] = {}
        self._next = _FIRST_ADDRESS
        self._guard = threading.RLock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(type(self), f"_{name}", None)
        if function is None:
            raise AttributeError(name)

        def call(*args: Any) -> int:
            with self._guard:
                if not self.silent:
                    self.calls.append(name)
                self._counts[name] += 1
                code = self.failures.get((name, self._counts[name]), 0)
                if code == 0:
                    code = function(self, *args) or 0
                else:
                    self.last_error = code
                    if name == "cudaStreamEndCapture":  # it ends nevertheless
                        self._get("stream", args[0]).recorded = None
                return code

        return call

    # What is not an error code.

    def cudaGetErrorName(self, code: ctypes.c_int) -> bytes:
        return _NAMES[code.value].encode()

    def cudaGetErrorString(self, code: ctypes.c_int) -> bytes:
        return f"description of {code.value}".encode()

    def cudaGetLastError(self) -> int:
        code, self.last_error = self.last_error, 0
        return code

    # Devices.

    def _cudaGetDeviceCount(self, count: Any) -> None:
        count._obj.value = self.devices

    def _cudaDeviceGetAttribute(self, value: Any, which: ctypes.c_int, device: Any) -> None:
        assert device.value == 0
        value._obj.value = self.capability[{75: 0, 76: 1}[which.value]]

    # Memory.

    def _cudaMalloc(self, pointer: Any, size: ctypes.c_size_t) -> None:
        pointer._obj.value = self._new("device", np.zeros(size.value, np.uint8), size.value)

    def _cudaFree(self, pointer: ctypes.c_void_p) -> None:
        self._release("device", pointer)

    def _cudaHostAlloc(self, pointer: Any, size: ctypes.c_size_t, flags: Any) -> None:
        assert flags.value == 0
        memory = np.full(size.value, 0xAA, np.uint8)  # nobody promises zeros
        pointer._obj.value = memory.ctypes.data
        self._handles[memory.ctypes.data] = ("host", memory)
        self.live["host"] += 1

    def _cudaFreeHost(self, pointer: ctypes.c_void_p) -> None:
        self._release("host", pointer)

    def _cudaMemcpyAsync(
        self, target: Any, source: Any, size: Any, kind: Any, stream: ctypes.c_void_p
    ) -> None:
        kinds = {1: ("device", "host"), 2: ("host", "device")}[kind.value]
        to, origin = (
            self._get(expected, pointer)
            for expected, pointer in zip(kinds, (target, source), strict=True)
        )
        n_bytes = size.value
        assert n_bytes <= min(len(to), len(origin))

        def copy() -> None:
            to[:n_bytes] = origin[:n_bytes]

        self.queue(stream.value or 0, copy)

    def memory(self, address: int) -> Array:
        """Device memory by its address."""
        found: Array = self._get("device", ctypes.c_void_p(address))
        return found

    # Streams, events, graphs.

    def queue(self, stream: int, work: Work) -> None:
        """Puts work into a stream, or into what it is recording."""
        state = self._get("stream", ctypes.c_void_p(stream))
        (state.queued if state.recorded is None else state.recorded).append(work)

    def _cudaStreamCreateWithFlags(self, pointer: Any, flags: Any) -> None:
        assert flags.value == 1
        pointer._obj.value = self._new("stream", _Stream())

    def _cudaStreamDestroy(self, stream: ctypes.c_void_p) -> None:
        assert not self._get("stream", stream).queued, "a stream with work is destroyed"
        self._release("stream", stream)

    def _cudaStreamSynchronize(self, stream: ctypes.c_void_p) -> None:
        self._get("stream", stream).run()

    def _cudaEventCreateWithFlags(self, pointer: Any, flags: Any) -> None:
        assert flags.value == 3
        pointer._obj.value = self._new("event", _Event())

    def _cudaEventDestroy(self, event: ctypes.c_void_p) -> None:
        self._release("event", event)

    def _cudaEventRecord(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        self._get("event", event).stream = self._get("stream", stream)

    def _cudaEventSynchronize(self, event: ctypes.c_void_p) -> None:
        self._get("event", event).stream.run()

    def _cudaStreamBeginCapture(self, stream: ctypes.c_void_p, mode: Any) -> None:
        assert mode.value == 1
        state = self._get("stream", stream)
        assert state.recorded is None
        state.recorded = []

    def _cudaStreamEndCapture(self, stream: ctypes.c_void_p, template: Any) -> None:
        state = self._get("stream", stream)
        recorded, state.recorded = state.recorded, None
        assert recorded is not None
        template._obj.value = self._new("template", recorded)

    def _cudaGraphInstantiateWithFlags(self, pointer: Any, template: Any, flags: Any) -> None:
        assert flags.value == 0
        pointer._obj.value = self._new("graph", list(self._get("template", template)))

    def _cudaGraphDestroy(self, template: ctypes.c_void_p) -> None:
        self._release("template", template)

    def _cudaGraphExecDestroy(self, graph: ctypes.c_void_p) -> None:
        self._release("graph", graph)

    def _cudaGraphLaunch(self, graph: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        for work in self._get("graph", graph):
            self.queue(stream.value or 0, work)

    def _new(self, kind: str, value: Any, size: int = 1) -> int:
        handle = self._next
        self._next += -(-size // _ALIGNMENT) * _ALIGNMENT
        self._handles[handle] = (kind, value)
        self.live[kind] += 1
        return handle

    def _get(self, kind: str, handle: ctypes.c_void_p) -> Any:
        found, value = self._handles[handle.value or 0]
        assert found == kind, f"a {found} is used as a {kind}"
        return value

    def _release(self, kind: str, handle: ctypes.c_void_p) -> None:
        self._get(kind, handle)
        del self._handles[handle.value or 0]
        self.live[kind] -= 1


class _Stream:
    def __init__(self) -> None:
        self.queued: list[Work] = []
        self.recorded: list[Work] | None = None

    def run(self) -> None:
        assert self.recorded is None, "a wait inside of a capture"
        queued, self.queued = self.queued, []
        for work in queued:
            work()


class _Event:
    stream: _Stream


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 2


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}

Tensors = dict[str, tuple[str, list[int]]]


def engine_bytes(inputs: Tensors, outputs: Tensors, profile: dict[str, Any]) -> bytes:
    """What the stand-in takes for a serialised engine; tensors by name as (type, shape).

    A size of -1 is the first input's: the first of an output its batch, others its last.
    """
    described = {"inputs": inputs, "outputs": outputs, "profile": profile}
    return json.dumps(described).encode()


class ILogger:
    Severity = Severity

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class FakeTensorRt(types.ModuleType):
    """A module "tensorrt" whose engines run on a `FakeCudart`.

    Attributes:
        released: Names of what was released, in order.
        n_contexts: Contexts made so far.
        refuse_recording: Whether a run inside of a capture fails, as of an engine with loops.
    """

    def __init__(self, cudart: FakeCudart, version: str = "10.3.0", name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__version__ = version
        self.__spec__ = ModuleSpec(name, None)
        self.ILogger = ILogger
        self.TensorIOMode = TensorIOMode
        self.cudart = cudart
        self.released: list[str] = []
        self.n_contexts = 0
        self.refuse_recording = False
        self.Runtime = lambda logger: _Runtime(self, logger)


class _Runtime:
    def __init__(self, trt: FakeTensorRt, logger: ILogger) -> None:
        self.trt = trt
        self._logger = logger

    def deserialize_cuda_engine(self, content: Any) -> _Engine | None:
        try:
            return _Engine(self, json.loads(bytes(content)), self._logger)
        except ValueError:
            self._logger.log(Severity.ERROR, "Serialization assertion magicTag failed.")
            return None

    def __del__(self) -> None:
        self.trt.released.append("runtime")


class _Engine:
    def __init__(self, runtime: _Runtime, described: dict[str, Any], logger: ILogger) -> None:
        self.trt = runtime.trt
        self.described = described
        self.logger = logger
        self._tensors: Tensors = {**described["inputs"], **described["outputs"]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode["INPUT" if name in self.described["inputs"] else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensors[name][0]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self._tensors[name][1])

    def create_execution_context(self) -> _Context:
        self.trt.n_contexts += 1
        return _Context(self)

    def __del__(self) -> None:
        self.trt.released.append("engine")


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._busy = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine.described["profile"][name]
        fits = all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True))
        if not fits:
            self._engine.logger.log(Severity.ERROR, f"{name}: {shape} is outside of the profile")
        else:
            self._shapes[name] = tuple(shape)
        return fits

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine.described["inputs"] if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        first = self._shapes[next(iter(self._engine.described["inputs"]))]
        _, shape = self._engine.described["outputs"][name]
        sizes = [first[0] if i == 0 else first[-1] for i in range(len(shape))]
        return tuple(
            size if known == -1 else known for known, size in zip(shape, sizes, strict=True)
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt = self._engine.trt
        recording = trt.cudart._get("stream", ctypes.c_void_p(stream)).recorded is not None
        if recording and trt.refuse_recording:
            self._engine.logger.log(Severity.ERROR, "operation not permitted while capturing")
            return False
        assert not self._busy, "two runs of a context at once"
        self._busy = not recording
        inputs = {name: self._tensor(name) for name in self._engine.described["inputs"]}
        outputs = {name: self._tensor(name) for name in self._engine.described["outputs"]}

        def compute() -> None:
            self._busy = False
            for output in outputs.values():
                output[...] = expected(inputs, output.shape)

        trt.cudart.queue(stream, compute)
        return True

    def _tensor(self, name: str) -> Array:
        """A tensor in device memory, at its present shape."""
        shape = self.get_tensor_shape(name)
        dtype = np.dtype(_NUMPY[self._engine.get_tensor_dtype(name).name])
        memory = self._engine.trt.cudart.memory(self._addresses[name])
        return memory[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    def __del__(self) -> None:
        self._engine.trt.released.append("context")


def expected(inputs: dict[str, Array], shape: tuple[int, ...]) -> Array:
    """What the stand-in computes for an output of `shape`, float64."""
    total = sum(
        values.astype(np.float64).reshape(len(values), -1).sum(1) for values in inputs.values()
    )
    factors = np.arange(1, shape[-1] + 1)
    return np.broadcast_to(np.reshape(total, (-1, *[1] * (len(shape) - 1))) * factors, shape)
