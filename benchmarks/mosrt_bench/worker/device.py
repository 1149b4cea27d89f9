"""Device: which GPU there is, and how much of its memory is in use."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType

from mosrt.backends.cuda import Cuda
from mosrt.errors import ProviderError

__all__ = ["MemoryPeak", "describe_gpu", "used_bytes_reader"]

UsedBytes = Callable[[], int]

_EVERY_S = 0.01


def describe_gpu() -> str | None:
    """Name, driver and memory of the GPUs as nvidia-smi tells them; None where it cannot."""
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


def used_bytes_reader(cuda: Cuda | None = None) -> UsedBytes:
    """A call that tells how many bytes of device 0 are in use, by whatever process.

    Args:
        cuda: CUDA's runtime library; found if left out.

    Raises:
        ProviderError: There is no GPU, or no CUDA runtime library.
    """
    cuda = Cuda.open() if cuda is None else cuda
    cuda.compute_capability()

    def used_bytes() -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        cuda.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    return used_bytes


class MemoryPeak:
    """The most device memory that was in use during a block, over what was before it.

    The whole device is looked at, every 10 ms: a process's own account leaves out what libraries
    and its context take. It is right on a GPU that nothing else uses.

    Args:
        used_bytes: See `used_bytes_reader`.
    """

    def __init__(self, used_bytes: UsedBytes) -> None:
        self._used_bytes = used_bytes
        self._before = self._most = used_bytes()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryPeak:
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._watcher.join()

    @property
    def peak_mb(self) -> float:
        """In units of 1e6 bytes."""
        return round((self._most - self._before) / 1e6, 1)

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            try:
                self._most = max(self._most, self._used_bytes())
            except (OSError, ProviderError):  # the device is lost; the contestant says more
                return
