"""How many threads this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["usable_cores"]

_MOUNT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores(*, mount: Path = _MOUNT, membership: Path = _MEMBERSHIP) -> int:
    """Cores this process may really use: its affinity mask, cut by a container's CPU quota.

    A container limited to two cores' worth of time on a 64-core host still shows 64 cores; a
    pool of 64 threads would then be throttled to a crawl.

    Args:
        mount: Where the cgroup file system is mounted (version 1 or 2).
        membership: The file that names this process's cgroups.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    quotas = [quota for quota in _quotas(mount, membership) if quota > 0]
    return max(1, round(min([cores, *quotas])))


def _quotas(mount: Path, membership: Path) -> Iterator[float]:
    """CPU quotas in cores of this process's cgroups and all above them; any may be absent."""
    for line in _read(membership).splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers == "":  # version 2, "max 100000" or "200000 100000"
            for directory in _upwards(mount, group):
                quota, period = [*_read(directory / "cpu.max").split(), "", ""][:2]
                yield from _ratio(quota, period)
        elif "cpu" in controllers.split(","):  # version 1, no limit is written as -1
            for directory in _upwards(mount / "cpu", group):
                yield from _ratio(
                    _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
                )


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """The directory of `group` and of its ancestors; inside a container only the root may exist."""
    parts = PurePosixPath(group).parts[1:]
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _ratio(quota: str, period: str) -> Iterator[float]:
    try:
        yield int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
