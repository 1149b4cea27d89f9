"""Ask NVIDIA's libraries and tools about the GPUs: their energy, and their memory over time."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["Nvml", "UsedBytes", "describe_gpu", "device_memory", "memory_peak", "polling"]

UsedBytes = Callable[[], int]

_LIBRARY: Final = "libnvidia-ml.so.1"
_EVERY_S: Final = 0.01


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
        self._read("nvmlDeviceGetTotalEnergyConsumption", gpu, millijoules, "count its energy")
        return millijoules.value / 1e3

    def used_bytes(self, gpu: int) -> int:
        """Memory of a GPU that all processes together use.

        Raises:
            OSError: There is no such GPU, or it does not tell, as GPUs that share the CPU's memory.
        """
        memory = (ctypes.c_ulonglong * 3)()  # total, free, used
        self._read("nvmlDeviceGetMemoryInfo", gpu, memory, "tell its memory")
        return memory[2]

    def _read(self, function: str, gpu: int, value: Any, what: str) -> None:
        """Lets one of the library's functions write a GPU's value."""
        handle = ctypes.c_void_p()
        if self._library.nvmlDeviceGetHandleByIndex_v2(gpu, ctypes.byref(handle)):
            raise OSError(f"no GPU {gpu}")
        if getattr(self._library, function)(handle, ctypes.byref(value)):
            raise OSError(f"GPU {gpu} does not {what}")


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


@contextmanager
def polling(poll: Callable[[], object]) -> Iterator[None]:
    """Calls a function every 10 ms in the background of a block, until it raises OSError."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_EVERY_S):
            try:
                poll()
            except OSError:  # the device is lost, which whoever uses it will report
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def memory_peak(used_bytes: UsedBytes) -> Iterator[Callable[[], float]]:
    """Measures the most GPU memory in use during a block, over what was in use before it.

    It reads the memory of the whole device every 10 ms, because a process's own account leaves out
    its libraries and its CUDA context. The figure is right on a GPU that nothing else uses.

    Args:
        used_bytes: See `device_memory`.

    Yields:
        A function that gives the peak so far, in MB of 1e6 bytes.
    """
    before = most = used_bytes()

    def update() -> None:
        nonlocal most
        most = max(most, used_bytes())

    with polling(update):
        yield lambda: round((most - before) / 1e6, 1)
