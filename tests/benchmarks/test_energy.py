"""Energy counters, and GPUs' memory, on files and a library that the tests make."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import pytest

from mosrt_bench.energy import Counter, PowerRail, energy, gpus, packages, rails
from mosrt_bench.worker.device import Nvml, UsedBytes, device_memory, memory_peak
from tests.conftest import HANG_S


def zone(folder: Path, name: str, microjoules: int) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text("package-0\n")
    (path / "max_energy_range_uj").write_text("1000000\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path


def test_rapl_counts_beyond_its_range(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", 900_000)
    (counter,), _ = packages(tmp_path)
    assert counter.name == "RAPL package-0"
    assert counter.joules() == pytest.approx(0.9)
    clock = [0.0]

    def score() -> None:
        (path / "energy_uj").write_text("100000\n")
        clock[0] += 2.0

    (row,) = energy("a", score, [counter], now=lambda: clock[0])
    assert row["joules"] == pytest.approx(0.2)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)


@pytest.mark.usefixtures("no_library")
def test_whole_packages_only_and_what_is_missing_is_said(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 1)
    zone(tmp_path, "intel-rapl:0:0", 1)  # the cores alone: counted in the package
    found, notes = packages(tmp_path)
    assert [counter.name for counter in found] == ["RAPL package-0"]
    assert notes == []
    none = tmp_path / "none"
    assert packages(none) == ([], ["energy of the processor: no RAPL counters on this machine"])
    assert gpus() == ([], ["energy of GPUs: NVIDIA's management library is not here"])
    no_rails = "energy of a Jetson's rails: no INA3221 monitors on this machine"
    assert rails(none) == ([], [no_rails])
    used_bytes, notes = device_memory()
    assert used_bytes is None
    assert notes == ["device memory: NVIDIA's management library is not here"]


class Library:
    """NVML with two GPUs, of which the second counts no energy; 5 J more at each question."""

    def __init__(self, used_bytes: int = 0, *, shared: bool = False) -> None:
        self.millijoules = 0
        self.used_bytes = used_bytes
        self.shared = shared

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        ctypes.cast(count, ctypes.POINTER(ctypes.c_uint))[0] = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:  # noqa: N802
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = 100 + index
        return 0 if index < 2 else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:  # noqa: N802
        self.millijoules += 5_000
        ctypes.cast(value, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.millijoules
        return 0 if handle.value == 100 else 3

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:  # noqa: N802
        # nvmlMemory_t: total, free, used
        fields = ctypes.cast(memory, ctypes.POINTER(ctypes.c_ulonglong))
        used = self.used_bytes if handle.value == 100 else 1_000_000
        fields[0], fields[1], fields[2] = 80_000_000_000, 80_000_000_000 - used, used
        return 3 if self.shared else 0


def test_nvml_counts_in_millijoules() -> None:
    library = Library()
    (counter,), notes = gpus(library)
    assert notes == ["energy of GPUs: GPU 1 does not count its energy"]
    library.millijoules = 5_000
    assert (counter.name, counter.joules()) == ("GPU 0", 10.0)
    with pytest.raises(OSError, match="no GPU 2"):
        Nvml(library).joules(2)


def test_device_memory_is_that_of_all_gpus() -> None:
    library = Library(3_000_000)
    used_bytes, notes = device_memory(Nvml(library))
    assert used_bytes is not None
    assert (used_bytes(), notes) == (4_000_000, [])
    seen = threading.Event()

    def watched(used_bytes: UsedBytes = used_bytes) -> int:
        used = used_bytes()
        if used == 54_000_000:
            seen.set()
        return used

    with memory_peak(watched) as peak_mb:
        library.used_bytes = 53_000_000
        assert seen.wait(HANG_S)
        library.used_bytes = 3_000_000
    assert peak_mb() == 50.0
    used_bytes, notes = device_memory(Nvml(Library(shared=True)))
    assert (used_bytes, notes) == (None, ["device memory: GPU 0 does not tell its memory"])


def orin(folder: Path) -> Path:
    """The monitor of a Jetson Orin as JetPack 6 shows it: three rails, and their sum."""
    hwmon = folder / "ina3221" / "1-0040" / "hwmon" / "hwmon3"
    hwmon.mkdir(parents=True)
    for channel, (label, millivolts, milliamperes) in enumerate(
        [("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 4900, 300)], 1
    ):
        (hwmon / f"in{channel}_label").write_text(f"{label}\n")
        (hwmon / f"in{channel}_input").write_text(f"{millivolts}\n")
        (hwmon / f"curr{channel}_input").write_text(f"{milliamperes}\n")
    (hwmon / "in7_label").write_text("sum of shunt voltages\n")
    (hwmon / "in7_input").write_text("9\n")
    return hwmon


def test_rails_of_a_jetson(tmp_path: Path) -> None:
    hwmon = orin(tmp_path)
    clock = [0.0]
    found, notes = rails(tmp_path, now=lambda: clock[0])
    assert [rail.name for rail in found] == [
        "rail VDD_IN", "rail VDD_CPU_GPU_CV", "rail VDD_SOC"
    ]  # fmt: skip
    assert notes == []

    def score() -> None:
        clock[0] += 0.5

    # 10 W, 2 W and 1.47 W, for half a second per score
    rows = energy("a", score, found, seconds=2.0, now=lambda: clock[0])
    assert [row["watts"] for row in rows] == pytest.approx([10.0, 2.0, 1.47])
    assert [row["joules"] for row in rows] == pytest.approx([5.0, 1.0, 0.735])
    (hwmon / "curr2_input").unlink()
    (hwmon / "in3_input").write_text("")
    found, notes = rails(tmp_path)
    assert [rail.name for rail in found] == ["rail VDD_IN"]
    assert len(notes) == 1
    assert notes[0].startswith("energy of rail VDD_SOC: ")


def test_rails_of_an_older_jetson(tmp_path: Path) -> None:
    device = tmp_path / "ina3221x" / "1-0040" / "iio:device0"
    device.mkdir(parents=True)
    (device / "rail_name_0").write_text("POM_5V_IN\n")
    (device / "in_power0_input").write_text("4500\n")
    (rail,), _ = rails(tmp_path)
    assert rail.name == "rail POM_5V_IN"
    clock = [0.0]
    power = PowerRail(lambda: 4.5 if clock[0] < 2 else 1.5, now=lambda: clock[0])
    clock[0] = 1.0
    power.joules()
    clock[0] = 2.0
    # a second at 4.5 W, and one from there to 1.5 W
    assert power.joules() == pytest.approx(4.5 + 3.0)


def test_energy_is_per_score() -> None:
    used, clock = [0.0], [0.0]
    meter = Counter(name="steady", joules=lambda: used[0])

    def score() -> None:
        used[0] += 3.0
        clock[0] += 0.5

    (row,) = energy("a", score, [meter], seconds=2.0, now=lambda: clock[0])
    assert row == {"contestant": "a", "part": "steady", "joules": 3.0, "watts": 6.0, "runs": 4}
    assert energy("a", score, []) == []
