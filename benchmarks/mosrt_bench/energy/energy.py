"""Measure the energy of a score by the machine's own counters, where they can be read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

from mosrt_bench.worker.device import Nvml

from .jetson_rails import PowerRail, Sampling, rails

__all__ = ["Counter", "GpuEnergy", "Rapl", "counters", "energy"]

_POWERCAP: Final = Path("/sys/class/powercap")
_MEASURED_S: Final = 2.0


class Counter(Protocol):
    """Counts the energy that a part of the machine has used.

    Attributes:
        name: Name of the part.
    """

    name: str

    def joules(self) -> float:
        """Energy since some fixed time in the past."""
        ...


class Rapl:
    """Counts the energy of a processor package by Linux's powercap files (Intel and AMD RAPL).

    Args:
        zone: Its directory.

    Raises:
        OSError: The counter cannot be read; most systems allow it to root only.
    """

    def __init__(self, zone: Path) -> None:
        self.name = f"RAPL {(zone / 'name').read_text(encoding='ascii').strip()}"
        self._file = zone / "energy_uj"
        self._range_uj = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last_uj = self._read()
        self._wrapped_uj = 0

    def joules(self) -> float:
        """Energy so far, corrected for overflows of the counter."""
        value = self._read()
        if value < self._last_uj:
            self._wrapped_uj += self._range_uj
        self._last_uj = value
        return (value + self._wrapped_uj) / 1e6

    def _read(self) -> int:
        return int(self._file.read_text(encoding="ascii"))


class GpuEnergy:
    """Counts the energy of a GPU by NVIDIA's management library.

    Args:
        gpu: Number of the GPU.
        nvml: The library.

    Raises:
        OSError: There is no such GPU, or it does not count its energy.
    """

    def __init__(self, gpu: int, nvml: Nvml) -> None:
        self.name = f"GPU {gpu}"
        self._gpu, self._nvml = gpu, nvml
        self.joules()

    def joules(self) -> float:
        """Energy since the GPU's driver was loaded."""
        return self._nvml.joules(self._gpu)


def counters(powercap: Path = _POWERCAP) -> tuple[list[Counter], list[str]]:
    """The counters that can be read on this machine, and why others cannot."""
    found: list[Counter] = []
    notes = []
    zones = [z for z in sorted(powercap.glob("*-rapl:*")) if z.name.count(":") == 1]
    if not zones:
        notes.append("energy of the processor: no RAPL counters on this machine")
    for zone in zones:
        try:
            found.append(Rapl(zone))
        except OSError as exc:
            notes.append(f"energy of the processor: {exc.filename or zone}: {exc.strerror or exc}")
    try:
        nvml = Nvml()
    except OSError as exc:
        notes.append(f"energy of GPUs: {exc}")
    else:
        for gpu in range(nvml.n_gpus):
            try:
                found.append(GpuEnergy(gpu, nvml))
            except OSError as exc:
                notes.append(f"energy of GPUs: {exc}")
    board, missing = rails()
    return [*found, *board], [*notes, *missing]


def energy(
    configurations: Mapping[str, Callable[[], object]],
    meters: list[Counter],
    *,
    seconds: float = _MEASURED_S,
    now: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Measures the energy per score of whole parts of the machine, other programs included.

    Args:
        configurations: Calls that score once, by name.
        meters: The counters.
        seconds: Least time per configuration.
        now: The clock, in seconds.

    Returns:
        Rows with "contestant", "part", "joules" per score, "watts" and "runs".
    """
    rows: list[dict[str, Any]] = []
    if not meters:
        return rows
    with ExitStack() as stack:
        board = [meter for meter in meters if isinstance(meter, PowerRail)]
        if board:
            stack.enter_context(Sampling(board))
        for name, run in configurations.items():
            before = [meter.joules() for meter in meters]
            begun, runs = now(), 0
            while runs == 0 or now() - begun < seconds:
                run()
                runs += 1
            elapsed_s = now() - begun
            for meter, first in zip(meters, before, strict=True):
                used = meter.joules() - first
                rows.append(
                    {
                        "contestant": name,
                        "part": meter.name,
                        "joules": used / runs,
                        "watts": used / elapsed_s,
                        "runs": runs,
                    }
                )
    return rows
