"""The native backend on stand-ins for CUDA and TensorRT; see fake_gpu.py."""

import gc
import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from mosrt.backends._cuda import Cuda
from mosrt.backends.trt import TrtBackend
from mosrt.backends.trt_lane import Lane
from mosrt.backends.trt_module import find_tensorrt
from mosrt.bundle import Bundle
from mosrt.embedded import find_bundle
from mosrt.engine_file import EngineFiles, EngineKey, Profile, Target, graph_digest
from mosrt.manifest import File, Member, TensorSpec, Variant
from tests.runtime.fake_gpu import FakeCudart, FakeTensorRt, Tensors, engine_bytes, expected

Array = npt.NDArray[Any]

INPUTS: Tensors = {"images": ("FLOAT", [-1, 3, 4]), "draws": ("INT64", [-1, 2])}
OUTPUTS: Tensors = {"mos": ("FLOAT", [-1, 5]), "features": ("FLOAT", [-1, 6])}
PROFILE: Profile = {
    "images": ((2, 3, 4), (4, 3, 4), (6, 3, 4)),
    "draws": ((2, 2), (4, 2), (6, 2)),
}
TARGET = Target(module="tensorrt", version="10.3.0", compute_capability="8.7")
_DTYPES = {"FLOAT": "float32", "INT64": "int64"}


def specs(tensors: Tensors, first: str = "batch", last: str = "samples") -> list[TensorSpec]:
    return [
        TensorSpec(
            name=name,
            dtype=_DTYPES[dtype],
            shape=tuple(
                size if size != -1 else first if i == 0 else last for i, size in enumerate(shape)
            ),
        )
        for name, (dtype, shape) in tensors.items()
    ]


def variant(n_members: int = 1) -> Variant:
    members = []
    for i in range(n_members):
        digest = hashlib.sha256(str(i).encode()).hexdigest()
        graph = File(path=f"model{i}.onnx", sha256=digest, bytes=1)
        members.append(Member(name=f"fold{i}", graph=graph))
    return Variant(opset=18, members=tuple(members))


def feeds(n: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.standard_normal((n, 3, 4)).astype(np.float32),
        "draws": rng.integers(0, 9, (n, 2)),
    }


class Machine:
    """A GPU, a TensorRT and a cache with engines."""

    def __init__(self, directory: Path) -> None:
        self.cudart = FakeCudart()
        self.trt = FakeTensorRt(self.cudart)
        self.files = EngineFiles(directory)

    def put(
        self,
        chosen: Variant,
        *,
        inputs: Tensors = INPUTS,
        outputs: Tensors = OUTPUTS,
        profile: Profile = PROFILE,
        target: Target = TARGET,
    ) -> list[Path]:
        """Engines of all networks of a variant."""
        content = engine_bytes(inputs, outputs, dict(profile))
        return [
            self.files.write(
                EngineKey(graph=graph_digest(member), target=target, profile=profile), content, {}
            )
            for member in chosen.members
        ]

    def open(
        self, chosen: Variant, *, inputs: Tensors = INPUTS, outputs: Tensors = OUTPUTS
    ) -> TrtBackend:
        return TrtBackend(
            Path("bundle"),
            chosen,
            inputs=specs(inputs),
            outputs=specs(outputs),
            files=self.files,
            cuda=Cuda(self.cudart),
        )


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


def check(backend: TrtBackend, given: dict[str, Array], names: tuple[str, ...] = ("mos",)) -> None:
    """The backend's answer, against the sum that the stand-in is told to make."""
    n = len(given["images"])
    found = backend.run(given, names)
    assert set(found) == set(names)
    for name in names:
        wanted = expected(given, (n, OUTPUTS[name][1][-1]))
        assert found[name].shape == (2, *wanted.shape)
        assert found[name].dtype == np.float32
        # A sum of a few float32 values, at most a hundred large.
        np.testing.assert_allclose(found[name], np.stack([wanted, wanted]), rtol=1e-5, atol=1e-4)


def test_runs_every_network(backend: TrtBackend) -> None:
    assert (backend.provider, backend.batch_size) == ("tensorrt", 4)
    check(backend, feeds(4), ("mos", "features"))
    check(backend, feeds(4, seed=1), ("features",))


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 12, 13, 20])
def test_batches_of_any_size(backend: TrtBackend, n: int) -> None:
    """Under the smallest they are filled up, over the largest split."""
    check(backend, feeds(n))
    check(backend, feeds(4))
    check(backend, feeds(n, seed=1))


def test_every_part_of_a_split_batch_is_full(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last views would be computed in other company than the first."""
    machine.put(variant())
    backend = machine.open(variant())
    seen: list[int] = []
    run = Lane.run

    def counts(lane: Lane, given: Any, names: Any) -> dict[str, Array]:
        seen.append(len(given["images"]))
        return run(lane, given, names)

    monkeypatch.setattr(Lane, "run", counts)
    backend.run(feeds(13), ["mos"])
    assert seen == [6, 6, 6]
    backend.close()


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


def test_an_engine_that_cannot_be_recorded_runs_without(
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


def test_ten_thousand_calls_leak_nothing(machine: Machine) -> None:
    machine.put(variant())
    backend = machine.open(variant())
    machine.cudart.silent = True
    given = [feeds(n, seed=n) for n in (4, 4, 4, 2)]  # graphs come and go
    for i in range(200):
        backend.run(given[i % 4], ["mos"])
    handles = +machine.cudart.live
    gc.collect()
    before = sys.getallocatedblocks()
    for i in range(10_000):
        backend.run(given[i % 4], ["mos"])
    gc.collect()
    # One small object kept per call would be ten thousand blocks.
    assert sys.getallocatedblocks() - before < 1_000
    assert +machine.cudart.live == handles
    backend.close()
    assert +machine.cudart.live == {}
    assert machine.trt.released == ["context", "engine", "runtime"]


def test_threads_share_two_contexts(machine: Machine) -> None:
    machine.put(variant(2))
    backend = machine.open(variant(2))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: check(backend, feeds(2 + i % 7, seed=i)), range(200)))
    assert 2 <= machine.trt.n_contexts <= 4  # of two networks
    backend.close()
    backend.close()
    assert +machine.cudart.live == {}
    with pytest.raises(RuntimeError, match="closed"):
        backend.run(feeds(4), ["mos"])


@pytest.mark.parametrize("kind", ["cudaMalloc", "cudaHostAlloc", "cudaEventCreateWithFlags"])
@pytest.mark.parametrize("nth", [1, 2])
def test_what_a_failed_start_took_is_given_back(machine: Machine, kind: str, nth: int) -> None:
    machine.put(variant(2))
    backend = machine.open(variant(2))
    machine.cudart.failures[kind, nth] = 2
    with pytest.raises(mosrt.ProviderError, match=f"{kind} failed.*close other programs"):
        backend.run(feeds(4), ["mos"])
    backend.close()
    assert +machine.cudart.live == {}
    assert machine.trt.released.count("engine") == machine.trt.released.count("runtime") == 2


def test_no_memory_for_a_second_context(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls then wait for the first, as if there were one thread."""
    machine.put(variant(2))
    backend = machine.open(variant(2))
    check(backend, feeds(4))
    synchronize = machine.cudart.cudaEventSynchronize
    refused = threading.Event()

    def busy(event: Any) -> int:
        # Until another thread has asked for a context of its own, or they might come one by one.
        assert refused.wait(60)
        return synchronize(event)

    def note(record: logging.LogRecord) -> bool:
        refused.set()
        return True

    monkeypatch.setattr(machine.cudart, "cudaEventSynchronize", busy, raising=False)
    monkeypatch.setattr(logging.getLogger("mosrt.backends.trt"), "filters", [note])
    for nth in range(1, 100):
        machine.cudart.failures["cudaMalloc", machine.cudart.calls.count("cudaMalloc") + nth] = 2
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: check(backend, feeds(2 + i % 7, seed=i)), range(100)))
    assert machine.trt.n_contexts - machine.trt.released.count("context") == 2
    assert "calls wait for each other" in caplog.text
    backend.close()
    assert +machine.cudart.live == {}


def test_everything_is_released_also_if_something_fails(machine: Machine) -> None:
    machine.put(variant())
    backend = machine.open(variant())
    backend.run(feeds(4), ["mos"])
    machine.cudart.failures["cudaFreeHost", 2] = 2
    with pytest.raises(mosrt.ProviderError, match="cudaFreeHost"):
        backend.close()
    assert +machine.cudart.live == {"host": 1}
    assert machine.trt.released == ["context", "engine", "runtime"]


def test_a_missing_stage_closes_those_before(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path))
    monkeypatch.setattr(Cuda, "open", lambda: Cuda(machine.cudart))
    machine.files = EngineFiles()
    encoder, *others = Bundle.open(find_bundle("nano-uncertainty")).variant("fp32").members
    machine.put(
        Variant(opset=18, members=(encoder,)),
        inputs={"waveform": ("FLOAT", [-1, -1])},
        outputs={"features": ("FLOAT", [-1, 128, -1]), "predictions": ("FLOAT", [-1, 12, -1, 128])},
        profile={"waveform": ((1, 945), (1, 945), (1, 320_000))},
    )
    with pytest.raises(mosrt.ProviderError, match=f"{others[0].graph.path}: no engine for"):
        mosrt.load("nano-uncertainty", provider="tensorrt")
    assert machine.trt.released == ["engine", "runtime"]


@pytest.mark.parametrize("failing", ["cudaMemcpyAsync", "cudaEventSynchronize"])
def test_a_failed_run_leaves_a_usable_lane(machine: Machine, failing: str) -> None:
    machine.put(variant(2))
    backend = machine.open(variant(2))
    check(backend, feeds(4))
    count = machine.cudart.calls.count(failing)
    machine.cudart.failures[failing, count + 2] = 2
    with pytest.raises(mosrt.ProviderError, match=failing):
        backend.run(feeds(4), ["mos"])
    check(backend, feeds(4, seed=3))
    backend.close()
    assert +machine.cudart.live == {}


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
    """As that of a model which runs several passes over it: nothing is split then."""
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


def test_types_are_not_converted(backend: TrtBackend) -> None:
    with pytest.raises(TypeError, match="float64"):
        backend.run({**feeds(4), "images": np.zeros((4, 3, 4))}, ["mos"])
    check(backend, feeds(4))


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
        (lambda path: path.write_bytes(b""), "does not start as an engine file"),
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
    key = EngineKey(graph=graph_digest(variant().members[0]), target=TARGET, profile=PROFILE)
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
            "takes images, draws, more, its header says images, draws",
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
        scores = scorer.score(noise, 16_000, domain="all")
    assert {score.provider for score in scores.values()} == {"tensorrt"}
    north, south, east = (score.views for score in scores.values())
    assert len(north) == 4  # two views, two networks
    # The stand-in's columns are once, twice and three times the same sum.
    np.testing.assert_allclose([south, east], [2 * np.array(north), 3 * np.array(north)], rtol=1e-6)
    assert +machine.cudart.live == {}


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


def test_a_missing_module_says_what_brings_it(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
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
    assert found.logger.listeners == []
