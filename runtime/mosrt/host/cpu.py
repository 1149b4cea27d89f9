"""Reads the CPU's instruction sets and how many cores this process may use."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["MAX_THREADS", "CpuFeatures", "usable_cores"]

MAX_THREADS: Final = 1024
"""Most threads that a caller may ask for."""

_CPUINFO: Final = Path("/proc/cpuinfo")
_CGROUP_MOUNT: Final = Path("/sys/fs/cgroup")
_CGROUP_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_ARCHITECTURES: Final = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
# Linux's names of CPU flags, first those of x86-64, then those of aarch64, best first.
_INT8_DOT: Final = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
_BF16: Final = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFeatures:
    """The properties of a processor that the choice of a precision depends on.

    Attributes:
        architecture: "x86_64", "aarch64", or another as the system names it.
        model: The manufacturer's name of the processor, empty if unknown.
        flags: Instruction sets as /proc/cpuinfo names them; empty if there is no such file.
    """

    architecture: str
    model: str = ""
    flags: frozenset[str] = frozenset()

    @classmethod
    def read(cls, cpuinfo: Path = _CPUINFO, architecture: str | None = None) -> CpuFeatures:
        """This machine's processor.

        Args:
            cpuinfo: Linux's list of processors, of which the first is read. On macOS and Windows
                there is no such file, so no flags are known.
            architecture: The system's name of the architecture; by default this machine's.
        """
        machine = (architecture or platform.machine()).lower()
        try:
            text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        return cls(
            architecture=_ARCHITECTURES.get(machine, machine),
            model=fields.get("model name", ""),
            flags=frozenset((fields.get("flags") or fields.get("Features", "")).split()),
        )

    def to_dict(self) -> dict[str, Any]:
        """The processor as JSON-ready values."""
        return {"architecture": self.architecture, "model": self.model, "flags": sorted(self.flags)}

    @property
    def int8_dot(self) -> str | None:
        """The flag of the best instruction set for 8-bit dot products, or None."""
        return next((flag for flag in _INT8_DOT if flag in self.flags), None)

    @property
    def bf16(self) -> str | None:
        """The flag of the best instruction set for bfloat16 products, or None."""
        return next((flag for flag in _BF16 if flag in self.flags), None)


def usable_cores(*, mount: Path = _CGROUP_MOUNT, membership: Path = _CGROUP_MEMBERSHIP) -> int:
    """Number of cores this process may use, by its affinity mask and its container's CPU quota.

    A container that is limited to the time of two cores on a 64-core host still shows 64 cores.
    With 64 threads it would be throttled most of the time.

    Args:
        mount: Mount point of the cgroup file system (version 1 or 2).
        membership: The file that names this process's cgroups.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    quotas = [quota for quota in _quotas(mount, membership) if quota > 0]  # -1 is no limit
    return max(1, round(min([cores, *quotas])))


def _quotas(mount: Path, membership: Path) -> list[float]:
    """CPU quotas, in cores, of this process's cgroups and their ancestors, where there are any."""
    found = []
    for line in _read(membership).splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers == "":  # version 2: one file, "max 100000" or "200000 100000"
            root, files = mount, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            root, files = mount / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        own = root / group.lstrip("/")
        for directory in (own, *own.parents):  # of which in a container only the root may exist
            numbers = " ".join(_read(directory / file) for file in files).split()
            with suppress(ValueError, ZeroDivisionError):
                quota, period = map(int, numbers)
                found.append(quota / period)
            if directory == root:
                break
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
