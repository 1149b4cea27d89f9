"""Measure the energy of a Jetson board's power rails with its INA3221 monitors.

A monitor gives the power of the moment and counts no energy, so a thread reads it repeatedly and
adds up power times time. Linux exposes the monitors in two ways: as hwmon devices, with a voltage
and a current for each rail (JetPack 5 and later), and before that as iio devices, with the power.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

__all__ = ["PowerRail", "Sampling", "rails"]

_I2C_DRIVERS: Final = Path("/sys/bus/i2c/drivers")
_EVERY_S: Final = 0.01

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


class Sampling:
    """Samples rails every 10 ms in the background of a block.

    Sampling ends when a monitor cannot be read any more; `PowerRail.joules` then raises the error.

    Args:
        sampled: The rails.
    """

    def __init__(self, sampled: list[PowerRail]) -> None:
        self._rails = sampled
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Sampling:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_EVERY_S):
            try:
                for rail in self._rails:
                    rail.sample()
            except OSError:
                return


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
    found: list[tuple[str, Watts]] = []
    for label in sorted(drivers.glob("ina3221/*/hwmon/hwmon*/in*_label")):
        channel = label.name.removeprefix("in").removesuffix("_label")
        voltage, current = label.with_name(f"in{channel}_input"), f"curr{channel}_input"
        if voltage.exists() and (label.parent / current).exists():

            def watts(voltage: Path = voltage, current: Path = label.parent / current) -> float:
                return _number(voltage) * _number(current) / 1e6

            found.append((_text(label), watts))
    return found


def _iio(drivers: Path) -> list[tuple[str, Watts]]:
    """Rails with a power in mW."""
    found: list[tuple[str, Watts]] = []
    for label in sorted(drivers.glob("ina3221x/*/iio:device*/rail_name_*")):
        power = label.with_name(f"in_power{label.name.removeprefix('rail_name_')}_input")
        if power.exists():

            def watts(power: Path = power) -> float:
                return _number(power) / 1e3

            found.append((_text(label), watts))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return file.name


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))
