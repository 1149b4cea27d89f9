"""Ask NVIDIA's libraries and tools about the GPUs: their energy, and their memory over time."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["MemoryPeak", "Nvml", "Polling", "UsedBytes", "describe_gpu", "device_memory"]

UsedBytes = Callable[[], int]

_LIBRARY: Final = "libnvidia-ml.so.1"
_EVERY_S: Final = 0.01


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Nvml:
    """NVIDIA's management library, which needs no CUDA.

    Args:
        library: The library; the system's by default.

    Attributes:
        n_gpus: Number of GPUs.

    Raises:
        OSError: The library is missing or does not answer.
    """

    def __init__(self, library: Any = None) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY) if library is None else library
        except OSError:
            raise OSError("NVIDIA's management library is not here") from None
        count = ctypes.c_uint()
        if self._library.nvmlInit_v2() or self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            raise OSError("NVIDIA's management library does not answer")
        self.n_gpus = count.value

    def joules(self, gpu: int) -> float:
        """Energy that a GPU has used since its driver was loaded.

        Raises:
            OSError: There is no such GPU, or it does not count its energy.
        """
        millijoules = ctypes.c_ulonglong()
        if self._library.nvmlDeviceGetTotalEnergyConsumption(
            self._handle(gpu), ctypes.byref(millijoules)
        ):
            raise OSError(f"GPU {gpu} does not count its energy")
        return millijoules.value / 1e3

    def used_bytes(self, gpu: int) -> int:
        """Memory of a GPU that all processes together use.

        Raises:
            OSError: There is no such GPU, or it does not tell, as GPUs that share the CPU's memory.
        """
        memory = _Memory()
        if self._library.nvmlDeviceGetMemoryInfo(self._handle(gpu), ctypes.byref(memory)):
            raise OSError(f"GPU {gpu} does not tell its memory")
        return int(memory.used)

    def _handle(self, gpu: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        if self._library.nvmlDeviceGetHandleByIndex_v2(gpu, ctypes.byref(handle)):
            raise OSError(f"no GPU {gpu}")
        return handle


def device_memory(nvml: Nvml | None = None) -> tuple[UsedBytes | None, list[str]]:
    """A function that gives the memory in use on all GPUs, or None and the reason.

    Args:
        nvml: The library to ask; the system's by default.
    """
    try:
        library = Nvml() if nvml is None else nvml

        def used_bytes() -> int:
            return sum(library.used_bytes(gpu) for gpu in range(library.n_gpus))

        used_bytes()
    except OSError as exc:
        return None, [f"device memory: {exc}"]
    return used_bytes, []


def describe_gpu() -> str | None:
    """Name, driver and memory of the GPUs by nvidia-smi; None where it does not run."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


_P = TypeVar("_P", bound="Polling")


class Polling:
    """Calls a function every 10 ms in the background of a block, until it raises OSError.

    Args:
        poll: The function.
    """

    def __init__(self, poll: Callable[[], None]) -> None:
        self._poll = poll
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self: _P) -> _P:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            try:
                self._poll()
            except OSError:  # the device is lost, which whoever uses it will report
                return


class MemoryPeak(Polling):
    """Measures the most GPU memory in use during a block, over what was in use before it.

    It reads the memory of the whole device every 10 ms, because a process's own account leaves out
    its libraries and its CUDA context. The figure is right on a GPU that nothing else uses.

    Args:
        used_bytes: See `device_memory`.
    """

    def __init__(self, used_bytes: UsedBytes) -> None:
        super().__init__(self._update)
        self._used_bytes = used_bytes
        self._before = self._most = used_bytes()

    @property
    def peak_mb(self) -> float:
        """In units of 1e6 bytes."""
        return round((self._most - self._before) / 1e6, 1)

    def _update(self) -> None:
        self._most = max(self._most, self._used_bytes())
