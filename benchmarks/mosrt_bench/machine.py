"""Describe the machine and the package versions that a result belongs to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil

from mosrt.host.cpu import usable_cores
from mosrt_bench.worker.device import describe_gpu

__all__ = ["describe"]

_PACKAGES = (
    "mosrt", "numpy", "onnxruntime", "openvino", "tensorrt", "soxr", "librosa", "scipy", "torch",
    "timm", "transformers",
)  # fmt: skip
_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8",
    "amx_bf16", "asimddp", "i8mm",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Processor, GPU, memory, operating system and package versions, JSON-ready."""
    cpu = _cpu()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()  # x86, Arm
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "gpu": describe_gpu(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _cpu() -> dict[str, str]:
    """The first processor's entry in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    fields = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
