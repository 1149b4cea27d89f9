"""Energy counters on files and a library that the tests make."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from mosrt_bench.energy import Nvml, Rapl, counters, energy


def zone(folder: Path, name: str, microjoules: int) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text("package-0\n")
    (path / "max_energy_range_uj").write_text("1000000\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path


def test_rapl_counts_beyond_its_range(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", 900_000)
    counter = Rapl(path)
    assert counter.name == "RAPL package-0"
    assert counter.joules() == pytest.approx(0.9)
    (path / "energy_uj").write_text("100000\n")
    assert counter.joules() == pytest.approx(1.1)


def test_whole_packages_only_and_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    zone(tmp_path, "intel-rapl:0", 1)
    zone(tmp_path, "intel-rapl:0:0", 1)  # the cores alone: counted in the package
    found, notes = counters(tmp_path)
    assert [counter.name for counter in found] == ["RAPL package-0"]
    assert notes == ["energy of GPUs: NVIDIA's management library is not here"]
    found, notes = counters(tmp_path / "none")
    assert found == []
    assert notes[0] == "energy of the processor: no RAPL counters on this machine"


class Library:
    """NVML with one GPU that has taken 5 J more at each question."""

    def __init__(self) -> None:
        self.millijoules = 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, _: Any) -> int:  # noqa: N802
        return 0 if index == 0 else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, _: Any, value: Any) -> int:  # noqa: N802
        self.millijoules += 5_000
        ctypes.cast(value, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.millijoules
        return 0


def test_nvml_counts_in_millijoules() -> None:
    counter = Nvml(0, Library())
    assert counter.joules() == 10.0
    with pytest.raises(OSError, match="no GPU 1"):
        Nvml(1, Library())


def test_energy_is_per_score() -> None:
    class Steady:
        name = "steady"

        def __init__(self) -> None:
            self.used = 0.0

        def joules(self) -> float:
            return self.used

    meter, clock = Steady(), [0.0]

    def score() -> None:
        meter.used += 3.0
        clock[0] += 0.5

    (row,) = energy({"a": score}, [meter], seconds=2.0, now=lambda: clock[0])
    assert row == {"contestant": "a", "part": "steady", "joules": 3.0, "watts": 6.0, "runs": 4}
    assert energy({"a": score}, []) == []
