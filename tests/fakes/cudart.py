# ruff: noqa: N802 - CUDA's own names
"""A stand-in for CUDA's runtime library, for machines without a GPU.

Device memory is memory of its own that only queued copies reach; what is
queued runs when a thread waits for it and not before; handles are released once. Misuse is an
AssertionError.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable
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
