"""A machine with stand-ins for CUDA and TensorRT, and a backend on it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mosrt.backends.trt import TrtBackend
from tests.fakes.trt_machine import Machine, variant


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", made.trt)
    return made


@pytest.fixture
def backend(machine: Machine) -> Iterator[TrtBackend]:
    machine.put(variant(2))
    opened = machine.open(variant(2))
    yield opened
    opened.close()
