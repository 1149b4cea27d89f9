"""Measure the energy of a score by the machine's own counters, where they can be read."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from mosrt_bench.worker.device import Nvml, polling

__all__ = ["Counter", "PowerRail", "counters", "energy", "gpus", "packages", "rails"]

_I2C_DRIVERS: Final = Path("/sys/bus/i2c/drivers")
_POWERCAP: Final = Path("/sys/class/powercap")
_MEASURED_S: Final = 2.0

Found = tuple[list["Counter"], list[str]]
"""Counters that can be read, and why others cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """Counts the energy that a part of the machine has used.

    Attributes:
        name: Name of the part in a report.
        joules: Gives the energy since some fixed time in the past.
        range_j: What is added to a difference if the counter began again at zero meanwhile.
        polled: Whether `joules` has to be called often to be accurate.
    """

    name: str
    joules: Callable[[], float]
    range_j: float = 0.0
    polled: bool = False


class PowerRail:
    """Adds up the energy of a rail; the more often it is asked, the more accurately.

    Args:
        watts: Reads the rail's power.
        now: The clock, in seconds.

    Raises:
        OSError: The monitor cannot be read.
    """

    def __init__(
        self, watts: Callable[[], float], *, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._watts = watts
        self._now = now
        self._joules = 0.0
        self._lock = threading.Lock()
        self._last_w, self._last_s = watts(), now()

    def joules(self) -> float:
        """Energy so far: the time since the last call counts at the mean of its two powers."""
        with self._lock:
            power_w, now_s = self._watts(), self._now()
            self._joules += (power_w + self._last_w) / 2 * (now_s - self._last_s)
            self._last_w, self._last_s = power_w, now_s
            return self._joules


def counters() -> Found:
    """All counters that can be read on this machine, and why others cannot."""
    kinds = packages(), gpus(), rails()
    return [one for found, _ in kinds for one in found], [n for _, notes in kinds for n in notes]


def packages(powercap: Path = _POWERCAP) -> Found:
    """Counters of processor packages: Linux's powercap files (Intel and AMD RAPL)."""
    found, notes = [], []
    # a zone within a zone counts a part of the package
    zones = [zone for zone in sorted(powercap.glob("*-rapl:*")) if zone.name.count(":") == 1]
    for zone in zones:
        joules = partial(_product, 1e6, zone / "energy_uj")
        try:
            joules()  # most systems allow it to root only
            name = f"RAPL {(zone / 'name').read_text(encoding='ascii').strip()}"
            range_j = _product(1e6, zone / "max_energy_range_uj")
            found.append(Counter(name=name, joules=joules, range_j=range_j))
        except OSError as exc:
            notes.append(f"energy of the processor: {exc.filename or zone}: {exc.strerror or exc}")
    if not zones:
        notes.append("energy of the processor: no RAPL counters on this machine")
    return found, notes


def gpus(library: Any = None) -> Found:
    """Counters of NVIDIA's GPUs.

    Args:
        library: NVIDIA's management library; the system's by default.
    """
    found, notes = [], []
    try:
        nvml = Nvml(library)
    except OSError as exc:
        return [], [f"energy of GPUs: {exc}"]
    for gpu in range(nvml.n_gpus):
        try:
            nvml.joules(gpu)
            found.append(Counter(name=f"GPU {gpu}", joules=partial(nvml.joules, gpu)))
        except OSError as exc:
            notes.append(f"energy of GPUs: {exc}")
    return found, notes


def rails(drivers: Path = _I2C_DRIVERS, *, now: Callable[[], float] = time.perf_counter) -> Found:
    """Counters of a Jetson's power rails, which its INA3221 monitors measure."""
    found, notes = [], []
    for label, watts in (monitors := list(_monitors(drivers))):
        try:
            rail = PowerRail(watts, now=now)
            found.append(Counter(name=f"rail {label}", joules=rail.joules, polled=True))
        except (OSError, ValueError) as exc:
            notes.append(f"energy of rail {label}: {getattr(exc, 'strerror', None) or exc}")
    if not monitors:
        notes.append("energy of a Jetson's rails: no INA3221 monitors on this machine")
    return found, notes


def _monitors(drivers: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """Labels of rails, and functions that read their power in W."""
    for label in sorted(drivers.glob("ina3221/*/hwmon/hwmon*/in*_label")):
        channel = label.name.removeprefix("in").removesuffix("_label")
        files = [label.with_name(f"{of}{channel}_input") for of in ("in", "curr")]
        if all(file.exists() for file in files):  # the channel of sums has no current
            yield _text(label), partial(_product, 1e6, *files)  # mV and mA
    for label in sorted(drivers.glob("ina3221x/*/iio:device*/rail_name_*")):
        file = label.with_name(f"in_power{label.name.removeprefix('rail_name_')}_input")
        if file.exists():
            yield _text(label), partial(_product, 1e3, file)  # mW


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return file.name


def _product(divisor: float, *files: Path) -> float:
    """The product of the files' integers in a larger unit."""
    return math.prod(int(file.read_text(encoding="ascii")) for file in files) / divisor


def energy(
    name: str,
    score: Callable[[], object],
    meters: list[Counter],
    *,
    seconds: float = _MEASURED_S,
    now: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Measures the energy per score of whole parts of the machine, other programs included.

    Args:
        name: Name of the configuration.
        score: Scores once.
        meters: The counters.
        seconds: Least time.
        now: The clock, in seconds.

    Returns:
        Rows with "contestant", "part", "joules" per score, "watts" and "runs".
    """
    if not meters:
        return []
    polled = [meter.joules for meter in meters if meter.polled]
    # until a monitor cannot be read any more; `joules` then raises the error
    with polling(lambda: [joules() for joules in polled]) if polled else nullcontext():
        before = [meter.joules() for meter in meters]
        begun, runs = now(), 0
        while runs == 0 or now() - begun < seconds:
            score()
            runs += 1
        elapsed_s = now() - begun
        after = [meter.joules() for meter in meters]
    rows = []
    for meter, first, last in zip(meters, before, after, strict=True):
        used = last - first + (meter.range_j if last < first else 0.0)
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
