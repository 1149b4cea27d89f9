"""Finding TensorRT's module and a GPU, and the errors where one is missing."""

import sys
from pathlib import Path

import pytest

import mosrt
from mosrt.backends.trt_module import find_tensorrt
from tests.fakes.tensorrt import FakeTensorRt
from tests.fakes.trt_machine import Machine, variant


def test_without_a_gpu_there_is_no_silent_cpu_run(machine: Machine) -> None:
    machine.put(variant())
    machine.cudart.devices = 0
    with pytest.raises(mosrt.ProviderError, match="no NVIDIA GPU"):
        machine.open(variant())


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1"])
def test_old_versions_are_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    machine.trt.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)  # as if it were not installed
    with pytest.raises(mosrt.ProviderError, match=f"{version} is older than 10.3.*tensorrt_rtx: "):
        find_tensorrt()


def test_a_missing_module_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(mosrt.ProviderError, match="JetPack 6.2.*pip install tensorrt"):
        mosrt.load(tiny, provider="tensorrt")
    with pytest.raises(mosrt.ProviderError, match="JetPack"):
        mosrt.load("nano-uncertainty", provider="tensorrt")


def test_rtx_is_the_second_choice(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = FakeTensorRt(machine.cudart, "1.7.1.116", "tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    assert str(find_tensorrt()) == "TensorRT 10.3.0"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert str(find_tensorrt()) == "TensorRT-RTX 1.7.1.116"


def test_the_log_collects_warnings_of_this_block_only(machine: Machine) -> None:
    found = find_tensorrt()
    severity = machine.trt.ILogger.Severity
    with found.log() as outer:
        found.logger.log(severity.WARNING, " one\n")
        with found.log() as inner:
            found.logger.log(severity.ERROR, "two")
            found.logger.log(severity.INFO, "chatter")
        found.logger.log(severity.ERROR, "three")
    assert (outer, inner) == (["one", "two", "three"], ["two"])
    assert found.logger.listeners == {}
