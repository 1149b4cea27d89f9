"""The TensorRT backend on stand-ins for CUDA and TensorRT (tests/fakes)."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from mosrt.backends.cuda import Cuda
from mosrt.backends.engine_file import EngineFiles, Profile
from mosrt.backends.trt import TrtBackend
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.manifest import TensorSpec
from tests.fakes.tensorrt import Tensors, expected
from tests.fakes.trt_machine import Machine, check, feeds, variant

Array = npt.NDArray[Any]


def test_runs_every_network(backend: TrtBackend) -> None:
    assert (backend.provider, backend.batch_size) == ("tensorrt", 4)
    check(backend, feeds(4), ("mos", "features"))
    check(backend, feeds(4, seed=1), ("features",))


@pytest.mark.parametrize("n", [2, 3, 6])
def test_batches_of_any_size_that_the_engine_takes(backend: TrtBackend, n: int) -> None:
    check(backend, feeds(n))
    check(backend, feeds(4))
    check(backend, feeds(n, seed=1))
    with pytest.raises(mosrt.ProviderError, match=r"\(7, 3, 4\).*\(6, 3, 4\).*--max-batch"):
        backend.run(feeds(7), ["mos"])


def test_order_of_calls(machine: Machine) -> None:
    machine.put(variant())
    backend = machine.open(variant())
    assert machine.trt.n_contexts == 0  # memory is taken when it is needed
    backend.run(feeds(4), ["mos"])
    machine.cudart.calls.clear()
    backend.run(feeds(4), ["mos"])
    singly = ["cudaMemcpyAsync"] * 3  # two inputs, one output
    wait = ["cudaEventRecord", "cudaEventSynchronize"]
    assert machine.cudart.calls == singly + wait
    machine.cudart.calls.clear()
    backend.run(feeds(4), ["mos"])
    recording = ["cudaStreamBeginCapture", *singly, "cudaStreamEndCapture"]
    made = ["cudaGraphInstantiateWithFlags", "cudaGraphDestroy"]
    assert machine.cudart.calls == [*recording, *made, "cudaGraphLaunch", *wait]
    machine.cudart.calls.clear()
    backend.run(feeds(4), ["mos"])
    assert machine.cudart.calls == ["cudaGraphLaunch", *wait]
    machine.cudart.calls.clear()
    backend.run(feeds(5), ["mos"])  # the graph is of another shape
    assert machine.cudart.calls == ["cudaGraphExecDestroy", *singly, *wait]
    machine.cudart.calls.clear()
    backend.close()
    assert machine.cudart.calls == [
        *["cudaFreeHost", "cudaFree"] * 4,
        "cudaEventDestroy",
        "cudaStreamDestroy",
    ]
    assert machine.trt.released == ["context", "engine", "runtime"]


def test_graphs_give_the_same_numbers(backend: TrtBackend) -> None:
    for i in range(6):
        check(backend, feeds(4, seed=i), ("mos", "features"))
    for i in range(6):
        check(backend, feeds(4, seed=i), ("features",))
    for i in range(12):
        check(backend, feeds(2 + i % 3, seed=i))


def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    machine: Machine, backend: TrtBackend, caplog: pytest.LogCaptureFixture
) -> None:
    machine.trt.refuse_recording = True
    with caplog.at_level(logging.INFO):
        for i in range(5):
            check(backend, feeds(4, seed=i))
    assert machine.cudart.calls.count("cudaStreamBeginCapture") == 2  # once per network
    assert "not permitted while capturing" in caplog.text
    assert machine.cudart.live["graph"] == machine.cudart.live["template"] == 0


def test_results_belong_to_the_caller(backend: TrtBackend) -> None:
    given = feeds(4)
    first = backend.run(given, ["mos"])["mos"]
    kept = first.copy()
    given["images"][...] = np.nan  # and so do the feeds
    backend.run(feeds(4, seed=1), ["mos"])
    np.testing.assert_array_equal(first, kept)
    first[...] = 0
    check(backend, feeds(4, seed=2))


def test_lengths_that_vary(machine: Machine) -> None:
    inputs: Tensors = {"waveform": ("FLOAT", [-1, -1])}
    outputs: Tensors = {"features": ("FLOAT", [-1, -1])}
    machine.put(
        variant(), inputs=inputs, outputs=outputs, profile={"waveform": ((1, 5), (1, 9), (1, 40))}
    )
    backend = machine.open(variant(), inputs=inputs, outputs=outputs)
    for n in (5, 40, 7, 7, 7, 7, 12):
        given = {"waveform": np.arange(n, dtype=np.float32)[np.newaxis]}
        found = backend.run(given, ["features"])["features"]
        np.testing.assert_array_equal(found[0], expected(given, (1, n)))
    with pytest.raises(mosrt.ProviderError, match=r"\(1, 41\).*\(1, 5\) to \(1, 40\).*max-seconds"):
        backend.run({"waveform": np.zeros((1, 41), np.float32)}, ["features"])
    backend.close()


def test_a_graph_may_take_one_recording_only(machine: Machine) -> None:
    """A model that runs several passes over one recording has such a graph."""
    inputs: Tensors = {"features": ("FLOAT", [1, -1, 3]), "keep": ("FLOAT", [-1, -1, 3])}
    outputs: Tensors = {"logits": ("FLOAT", [-1, -1, 3])}
    profile: Profile = {
        "features": ((1, 2, 3), (1, 4, 3), (1, 9, 3)),
        "keep": ((1, 2, 3), (5, 4, 3), (5, 9, 3)),
    }
    machine.put(variant(), inputs=inputs, outputs=outputs, profile=profile)
    backend = TrtBackend(
        Path("bundle"),
        variant(),
        inputs=[
            TensorSpec(name="features", dtype="float32", shape=("batch", "frames", 3)),
            TensorSpec(name="keep", dtype="float32", shape=("passes", "frames", 3)),
        ],
        outputs=[TensorSpec(name="logits", dtype="float32", shape=("passes", "frames", 3))],
        files=machine.files,
        cuda=Cuda(machine.cudart),
    )
    assert backend.batch_size == 1
    given = {"features": np.ones((1, 4, 3), np.float32), "keep": np.ones((5, 4, 3), np.float32)}
    with pytest.raises(mosrt.ProviderError, match=r"'keep' is \(6, 4, 3\)"):
        backend.run({**given, "keep": np.ones((6, 4, 3), np.float32)}, ["logits"])
    backend.close()


def test_dtypes_are_not_converted(backend: TrtBackend) -> None:
    with pytest.raises(TypeError, match="float64"):
        backend.run({**feeds(4), "images": np.zeros((4, 3, 4))}, ["mos"])
    check(backend, feeds(4))


def test_a_model_on_tensorrt(
    machine: Machine, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Through mosrt.load, every network and view."""
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path))
    monkeypatch.setattr(Cuda, "open", lambda: Cuda(machine.cudart))
    machine.files = EngineFiles()
    bundle = Bundle.open(tiny)
    sizes = {"images": (8, 512, 512), "waveform": (48_000,)}
    machine.put(
        bundle.variant("fp32"),
        inputs={name: ("FLOAT", [-1, *size]) for name, size in sizes.items()},
        outputs={
            tensor.name: ("FLOAT", [-1, *[int(size) for size in tensor.shape[1:]]])
            for tensor in bundle.manifest.outputs
        },
        profile={name: ((1, *size), (2, *size), (2, *size)) for name, size in sizes.items()},
    )
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    with mosrt.load(tiny, provider="tensorrt", threads=1) as scorer:
        scores = [scorer.score(noise, 16_000, domain=domain) for domain in scorer.domains]
    assert {score.provider for score in scores} == {"tensorrt"}
    north, south, east = (score.views for score in scores)
    assert len(north) == 4  # two views, two networks
    # The stand-in's columns are once, twice and three times the same sum.
    np.testing.assert_allclose([south, east], [2 * np.array(north), 3 * np.array(north)], rtol=1e-6)
    assert +machine.cudart.live == {}
