"""NVML: NVIDIA's management library, which tells a GPU's energy and memory without CUDA."""

from __future__ import annotations

import ctypes
from typing import Any, Final

__all__ = ["Nvml"]

_LIBRARY: Final = "libnvidia-ml.so.1"


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Nvml:
    """The library, initialised, and its handles of all GPUs.

    Args:
        library: The library; the system's by default.

    Attributes:
        n_gpus: GPUs that it knows.

    Raises:
        OSError: It is not here, or does not answer.
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
        """Energy that a GPU has taken since the driver was loaded.

        Raises:
            OSError: It is not there, or does not count.
        """
        millijoules = ctypes.c_ulonglong()
        if self._library.nvmlDeviceGetTotalEnergyConsumption(
            self._handle(gpu), ctypes.byref(millijoules)
        ):
            raise OSError(f"GPU {gpu} does not count its energy")
        return millijoules.value / 1e3

    def used_bytes(self, gpu: int) -> int:
        """Memory of a GPU that is in use, by whatever process.

        Raises:
            OSError: It is not there, or does not tell, as GPUs that share the CPU's memory do not.
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
