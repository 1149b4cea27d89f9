"""Measure the energy of a score by the machine's own counters, where they can be read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from mosrt_bench.worker.device import Nvml, Polling

__all__ = ["Counter", "GpuEnergy", "PowerRail", "Rapl", "counters", "energy", "rails"]

_I2C_DRIVERS: Final = Path("/sys/bus/i2c/drivers")
_POWERCAP: Final = Path("/sys/class/powercap")
_MEASURED_S: Final = 2.0

Watts = Callable[[], float]


class PowerRail:
    """Adds up the energy of a rail; the more often `sample` is called, the more accurately.

    Args:
        label: The board's name of the rail.
        watts: Reads the rail's power.
        now: The clock, in seconds.

    Attributes:
        name: Name of the part in a report.

    Raises:
        OSError: The monitor cannot be read.
    """

    def __init__(
        self, label: str, watts: Watts, *, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.name = f"rail {label}"
        self._watts = watts
        self._now = now
        self._joules = 0.0
        self._lock = threading.Lock()
        self._last_w, self._last_s = watts(), now()

    def sample(self) -> None:
        """Adds the time since the last call, at the mean of the power then and now."""
        with self._lock:
            power_w, now_s = self._watts(), self._now()
            self._joules += (power_w + self._last_w) / 2 * (now_s - self._last_s)
            self._last_w, self._last_s = power_w, now_s

    def joules(self) -> float:
        """Energy since the first sample."""
        self.sample()
        return self._joules


def rails(
    drivers: Path = _I2C_DRIVERS, *, now: Callable[[], float] = time.perf_counter
) -> tuple[list[PowerRail], list[str]]:
    """The rails that can be read on this machine, and why others cannot."""
    readers = [*_hwmon(drivers), *_iio(drivers)]
    if not readers:
        return [], ["energy of a Jetson's rails: no INA3221 monitors on this machine"]
    found, notes = [], []
    for label, watts in readers:
        try:
            found.append(PowerRail(label, watts, now=now))
        except (OSError, ValueError) as exc:
            notes.append(f"energy of rail {label}: {getattr(exc, 'strerror', None) or exc}")
    return found, notes


def _hwmon(drivers: Path) -> list[tuple[str, Watts]]:
    """Rails with a voltage in mV and a current in mA; the channel of sums has no such pair."""

    def watts(voltage: Path, current: Path) -> float:
        return _number(voltage) * _number(current) / 1e6

    found: list[tuple[str, Watts]] = []
    for label in sorted(drivers.glob("ina3221/*/hwmon/hwmon*/in*_label")):
        channel = label.name.removeprefix("in").removesuffix("_label")
        voltage, current = (label.with_name(f"{of}{channel}_input") for of in ("in", "curr"))
        if voltage.exists() and current.exists():
            found.append((_text(label), partial(watts, voltage, current)))
    return found


def _iio(drivers: Path) -> list[tuple[str, Watts]]:
    """Rails with a power in mW."""

    def watts(power: Path) -> float:
        return _number(power) / 1e3

    found: list[tuple[str, Watts]] = []
    for label in sorted(drivers.glob("ina3221x/*/iio:device*/rail_name_*")):
        power = label.with_name(f"in_power{label.name.removeprefix('rail_name_')}_input")
        if power.exists():
            found.append((_text(label), partial(watts, power)))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return file.name


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))


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
        self._range_uj = _number(zone / "max_energy_range_uj")
        self._last_uj = _number(self._file)
        self._wrapped_uj = 0

    def joules(self) -> float:
        """Energy so far, corrected for overflows of the counter."""
        value = _number(self._file)
        if value < self._last_uj:
            self._wrapped_uj += self._range_uj
        self._last_uj = value
        return (value + self._wrapped_uj) / 1e6


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
    board = [meter for meter in meters if isinstance(meter, PowerRail)]

    def sample_all() -> None:
        for rail in board:
            rail.sample()

    rows: list[dict[str, Any]] = []
    if not meters:
        return rows
    with ExitStack() as stack:
        if board:
            # until a monitor cannot be read any more; `joules` then raises the error
            stack.enter_context(Polling(sample_all))
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
