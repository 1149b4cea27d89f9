"""Calls CUDA's runtime library through ctypes: memory, streams, events and graphs.

Every object here owns one handle, which `close` releases. Nothing is left to the garbage
collector, because handles must be released in order. Handles may be used from any thread: all
threads of a process share the context of device 0, the first that CUDA_VISIBLE_DEVICES allows.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mosrt.errors import ProviderError

__all__ = ["Cuda", "DeviceBuffer", "Event", "Graph", "HostBuffer", "Stream"]

_NO_DEVICE: Final = "; check that there is an NVIDIA GPU and that its driver supports this CUDA"
_CURES: Final = {
    2: "; close other programs, or build the engine again with a smaller --max-batch or "
    "--max-seconds",  # out of memory
    34: _NO_DEVICE,  # the library is a stub
    35: _NO_DEVICE,  # the driver is missing or too old
    100: _NO_DEVICE,  # there is no GPU
}
_ATTRIBUTE_MAJOR: Final = ctypes.c_int(75)
_ATTRIBUTE_MINOR: Final = ctypes.c_int(76)
_STREAM_NON_BLOCKING: Final = 1
# A waiting thread sleeps, because the front end of the next recording needs the core.
_EVENT_BLOCKING_NO_TIMING: Final = 1 | 2
_HOST_TO_DEVICE: Final = 1
_DEVICE_TO_HOST: Final = 2
# Other threads may allocate while this one captures.
_CAPTURE_THREAD_LOCAL: Final = 1

_MAJORS: Final = (13, 12, 11)
_FOLDERS: Final = (
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/aarch64-linux/lib",  # JetPack
    "/usr/local/cuda/targets/sbsa-linux/lib",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
)


class Cuda:
    """CUDA's runtime library; `open` finds and loads it.

    Args:
        library: An object with the library's functions, such as a `ctypes.CDLL`.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    @classmethod
    def open(cls) -> Cuda:
        """Loads libcudart.

        Raises:
            ProviderError: The library was not found; the message says how to install it.
        """
        for name in _candidates():
            try:
                library = ctypes.CDLL(name)
            except OSError:
                continue
            library.cudaGetErrorName.restype = ctypes.c_char_p
            library.cudaGetErrorString.restype = ctypes.c_char_p
            return cls(library)
        raise ProviderError(
            "CUDA's runtime library (libcudart) is missing; on a Jetson install JetPack "
            "(apt install nvidia-jetpack), elsewhere `pip install nvidia-cuda-runtime` or the CUDA "
            "toolkit; if it is installed in an unusual place, add its folder to LD_LIBRARY_PATH"
        )

    def call(self, name: str, *args: Any) -> None:
        """Calls a function that returns an error code; an object here stands for its address.

        Raises:
            ProviderError: The function failed.
        """
        plain = (ctypes.c_void_p(arg.address) if isinstance(arg, _Handle) else arg for arg in args)
        code = getattr(self._library, name)(*plain)
        if code == 0:
            return
        # Clears the error, which the next launch would report again.
        self._library.cudaGetLastError()
        cure = _CURES.get(code, "")
        constant = self._library.cudaGetErrorName(ctypes.c_int(code)).decode()
        text = self._library.cudaGetErrorString(ctypes.c_int(code)).decode()
        raise ProviderError(f"CUDA: {name} failed with {constant} ({code}, {text}){cure}")

    def compute_capability(self) -> str:
        """The compute capability of device 0, such as "8.7".

        Raises:
            ProviderError: There is no GPU, or its driver is missing or too old.
        """
        count = ctypes.c_int()
        self.call("cudaGetDeviceCount", ctypes.byref(count))
        if count.value == 0:
            raise ProviderError("CUDA finds no NVIDIA GPU; check CUDA_VISIBLE_DEVICES")
        major, minor = ctypes.c_int(), ctypes.c_int()
        device = ctypes.c_int(0)
        self.call("cudaDeviceGetAttribute", ctypes.byref(major), _ATTRIBUTE_MAJOR, device)
        self.call("cudaDeviceGetAttribute", ctypes.byref(minor), _ATTRIBUTE_MINOR, device)
        return f"{major.value}.{minor.value}"

    def copy(self, target: _Handle, source: _Handle, n_bytes: int, on: Stream) -> None:
        """Queues a copy between a `HostBuffer` and a `DeviceBuffer`, in either direction."""
        kind = _HOST_TO_DEVICE if isinstance(source, HostBuffer) else _DEVICE_TO_HOST
        size = ctypes.c_size_t(n_bytes)
        self.call("cudaMemcpyAsync", target, source, size, ctypes.c_int(kind), on)


class _Handle:
    """A pointer that one function of the library makes and another one releases."""

    def __init__(self, cuda: Cuda, make: str, release: str, *args: Any) -> None:
        pointer = ctypes.c_void_p()
        cuda.call(make, ctypes.byref(pointer), *args)
        self._cuda = cuda
        self._release = release
        self._pointer: int | None = pointer.value

    @property
    def address(self) -> int:
        """The address of the memory, or of what stands for the object in other libraries."""
        if self._pointer is None:
            raise RuntimeError(f"{type(self).__name__} is used after it was closed")
        return self._pointer

    def close(self) -> None:
        """Releases the handle; calling it again does nothing."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            self._cuda.call(self._release, ctypes.c_void_p(pointer))


class DeviceBuffer(_Handle):
    """Memory on the GPU."""

    def __init__(self, cuda: Cuda, n_bytes: int) -> None:
        super().__init__(cuda, "cudaMalloc", "cudaFree", ctypes.c_size_t(n_bytes))


class HostBuffer(_Handle):
    """Page-locked host memory, which the GPU accesses by direct memory access."""

    def __init__(self, cuda: Cuda, n_bytes: int) -> None:
        size, flags = ctypes.c_size_t(n_bytes), ctypes.c_uint(0)
        super().__init__(cuda, "cudaHostAlloc", "cudaFreeHost", size, flags)
        self._n_bytes = n_bytes

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The buffer's first bytes as an array, valid until the buffer is closed."""
        memory = (ctypes.c_ubyte * self._n_bytes).from_address(self.address)
        return np.ndarray(shape, dtype, buffer=memoryview(memory))


class Stream(_Handle):
    """A queue of work for the GPU that does not wait for the default stream."""

    def __init__(self, cuda: Cuda) -> None:
        flags = ctypes.c_uint(_STREAM_NON_BLOCKING)
        super().__init__(cuda, "cudaStreamCreateWithFlags", "cudaStreamDestroy", flags)

    def synchronize(self) -> None:
        """Waits until all queued work is done."""
        self._cuda.call("cudaStreamSynchronize", self)

    def capture(self, queue: Callable[[], None]) -> Graph:
        """Captures the work that a function queues into a graph, instead of running it.

        Raises:
            ProviderError: The work cannot be captured; the stream stays usable.
        """
        self._cuda.call("cudaStreamBeginCapture", self, ctypes.c_int(_CAPTURE_THREAD_LOCAL))
        template = ctypes.c_void_p()
        try:
            queue()
        except BaseException:
            # Ending an invalid capture fails too; the first error is the one to report.
            with suppress(ProviderError):
                self._cuda.call("cudaStreamEndCapture", self, ctypes.byref(template))
            if template.value is not None:
                self._cuda.call("cudaGraphDestroy", template)
            raise
        self._cuda.call("cudaStreamEndCapture", self, ctypes.byref(template))
        try:
            return Graph(self._cuda, template)
        finally:
            self._cuda.call("cudaGraphDestroy", template)


class Event(_Handle):
    """A mark in a stream, for which a thread can wait without using a core."""

    def __init__(self, cuda: Cuda) -> None:
        flags = ctypes.c_uint(_EVENT_BLOCKING_NO_TIMING)
        super().__init__(cuda, "cudaEventCreateWithFlags", "cudaEventDestroy", flags)

    def record(self, on: Stream) -> None:
        """Queues the mark after all work queued so far."""
        self._cuda.call("cudaEventRecord", self, on)

    def synchronize(self) -> None:
        """Waits until the GPU reaches the mark."""
        self._cuda.call("cudaEventSynchronize", self)


class Graph(_Handle):
    """Captured work that one call queues; see `Stream.capture`."""

    def __init__(self, cuda: Cuda, template: ctypes.c_void_p) -> None:
        # The arguments of cudaGraphInstantiate differ between CUDA 11 and 12.
        make, flags = "cudaGraphInstantiateWithFlags", ctypes.c_ulonglong(0)
        super().__init__(cuda, make, "cudaGraphExecDestroy", template, flags)

    def launch(self, on: Stream) -> None:
        """Queues the captured work."""
        self._cuda.call("cudaGraphLaunch", self, on)


def _candidates() -> Iterator[str]:
    """Yields names and paths of libcudart: first names for the system's loader, then folders."""
    if sys.platform == "win32":
        yield from (f"cudart64_{major}.dll" for major in (*_MAJORS, 110))
        return
    names = [f"libcudart.so.{major}" for major in _MAJORS]
    names += ["libcudart.so.11.0", "libcudart.so"]
    yield from names
    # NVIDIA's wheels install it inside site-packages.
    for entry in sys.path:
        for folder in ("cu13", "cuda_runtime"):
            yield from (str(Path(entry, "nvidia", folder, "lib", name)) for name in names)
    for folder in _FOLDERS:
        yield from (str(Path(folder, name)) for name in names)
