"""Engines that the TensorRT backend accepts, and those that it refuses."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import mosrt
from mosrt.backends.engine_file import EngineKey, Target
from mosrt.bundle.manifest import Variant
from tests.fakes.tensorrt import Tensors
from tests.fakes.trt_machine import (
    INPUTS,
    OUTPUTS,
    PROFILE,
    TARGET,
    Machine,
    variant,
)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def scribble(path: Path) -> None:
    path.write_bytes(b"mosrt engine 1\n{}\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "no engine for tensorrt 10.3.0 and a GPU of compute capability 8.7"),
        (shorten, r"it has \d+ of \d+ bytes"),
        (flip, "SHA-256"),
        (scribble, "header is damaged"),
        (lambda path: path.write_bytes(b""), "not an engine file"),
    ],
)
def test_damaged_engines_are_refused(
    machine: Machine, damage: Callable[[Path], object], words: str
) -> None:
    damage(machine.put(variant())[0])
    with pytest.raises(mosrt.ProviderError, match=f"{words}.*`mosrt build`"):
        machine.open(variant())
    assert machine.trt.released == []


@pytest.mark.parametrize(
    "target",
    [
        Target(module="tensorrt", version="10.4.0", compute_capability="8.7"),
        Target(module="tensorrt", version="10.3.0", compute_capability="8.9"),
        Target(module="tensorrt_rtx", version="10.3.0", compute_capability="8.7"),
        Target(module="tensorrt", version="10.3.0", compute_capability="none"),
    ],
)
def test_engines_of_other_machines_are_refused(machine: Machine, target: Target) -> None:
    (foreign,) = machine.put(variant(), target=target)
    with pytest.raises(mosrt.ProviderError, match=f"there are {foreign.name}"):
        machine.open(variant())
    # Nor does it help to give it the right name.
    (own,) = machine.put(variant())
    foreign.replace(own)
    with pytest.raises(mosrt.ProviderError, match="it was built for"):
        machine.open(variant())


def test_the_engine_built_last_is_taken(machine: Machine) -> None:
    (older,) = machine.put(variant())
    (newer,) = machine.put(
        variant(), profile={"images": ((1, 3, 4), (1, 3, 4), (1, 3, 4)), "draws": ((1, 2),) * 3}
    )
    os.utime(older, ns=(0, 0))
    backend = machine.open(variant())
    assert backend.batch_size == 1
    backend.close()
    os.utime(newer, ns=(0, -1))
    backend = machine.open(variant())
    assert backend.batch_size == 4
    backend.close()


def test_an_engine_that_does_not_load(machine: Machine) -> None:
    key = EngineKey(graph=variant().members[0].sha256, target=TARGET, profile=PROFILE)
    machine.files.write(key, b"no engine", {})
    with pytest.raises(mosrt.ProviderError, match="magicTag failed"):
        machine.open(variant())


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ({**INPUTS, "draws": ("FLOAT", [-1, 2])}, OUTPUTS, "input 'draws' is .'float32'"),
        ({**INPUTS, "images": ("FLOAT", [-1, 3, 5])}, OUTPUTS, "input 'images'"),
        (INPUTS, {"mos": ("FLOAT", [-1, 5])}, "output 'features' is None"),
        (INPUTS, {**OUTPUTS, "mos": ("HALF", [-1, 5])}, "output 'mos' is .'float16'"),
        (
            {**INPUTS, "more": ("FLOAT", [-1, 3])},
            OUTPUTS,
            "takes images, draws, more, but its header says images, draws",
        ),
    ],
)
def test_engines_must_be_what_the_manifest_says(
    machine: Machine, inputs: Tensors, outputs: Tensors, words: str
) -> None:
    machine.put(variant(2), inputs=inputs, outputs=outputs)
    with pytest.raises(mosrt.BundleError, match=words):
        machine.open(variant(2))
    gc.collect()  # the traceback of an error refers to what it passed through
    assert machine.cudart.live == {}


def test_networks_must_take_the_same_shapes(machine: Machine) -> None:
    machine.put(variant(2))
    machine.put(
        Variant(opset=18, members=variant(2).members[1:]),
        profile={name: (small, small, large) for name, (small, _, large) in PROFILE.items()},
    )
    with pytest.raises(mosrt.ProviderError, match="built for different shapes"):
        machine.open(variant(2))
