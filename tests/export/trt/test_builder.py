"""What the builder asks of TensorRT, and what it makes of its answers, on a stand-in.

The stand-in records calls and answers as it is told to; test_engine.py builds for real.
"""

import functools
import logging
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

import mosrt
from mosrt.backends.cuda import Cuda
from mosrt.backends.trt_module import TensorRt, find_tensorrt
from mosrt_export.errors import EngineError
from mosrt_export.trt.builder import BuildSettings, build_engine
from mosrt_export.trt.engines import target_of
from tests.fakes.cudart import FakeCudart
from tests.fakes.tensorrt import DataType, ILogger, Severity
from tests.standins.engine_graphs import X, Y, half

PROFILE = {"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))}


class FakeBuilderModule(types.ModuleType):
    """A module "tensorrt" that builds.

    Attributes:
        seen: What was asked for, by name.
        answers: What a call answers instead of what it would; an exception is raised.
        says: What it logs as an error at a call.
    """

    ComputeCapability: types.SimpleNamespace  # of TensorRT-RTX alone

    def __init__(self, name: str = "tensorrt", version: str = "10.3.0") -> None:
        super().__init__(name)
        self.__version__ = version
        self.__spec__ = ModuleSpec(name, None)
        self.ILogger = ILogger
        self.seen: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}
        self.says: dict[str, str] = {}
        self.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
        self.BuilderFlag = types.SimpleNamespace(TF32="tf32")
        self.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
        self.Builder = lambda logger: self.answer("Builder", _Builder(self, logger), logger)
        self.OnnxParser = functools.partial(_Parser, self)

    def answer(self, call: str, usual: Any, logger: ILogger | None = None) -> Any:
        if call in self.says and logger is not None:
            logger.log(Severity.ERROR, self.says[call])
        answer = self.answers.get(call, usual)
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Builder:
    def __init__(self, trt: FakeBuilderModule, logger: ILogger) -> None:
        self._trt = trt
        self._logger = logger

    def create_network(self, flags: int) -> Any:
        self._trt.seen["flags"] = flags
        x = types.SimpleNamespace(name="x", dtype=DataType.FLOAT, shape=[-1, 3, 16, 16])
        y = types.SimpleNamespace(name="y", dtype=DataType.FLOAT, shape=[-1, 8, 14, 14])
        network = types.SimpleNamespace(
            num_inputs=1, num_outputs=1, get_input=[x].__getitem__, get_output=[y].__getitem__
        )
        return self._trt.answer("create_network", network)

    def create_builder_config(self) -> Any:
        return self._trt.answer("create_builder_config", _Config(self._trt))

    def create_optimization_profile(self) -> Any:
        return types.SimpleNamespace(
            set_shape=lambda name, *shapes: self._trt.seen.update({name: shapes})
        )

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        assert network.num_inputs == 1
        assert isinstance(config, _Config)
        return self._trt.answer("build_serialized_network", b"engine", self._logger)


class _Config:
    builder_optimization_level = 3
    num_compute_capabilities = 0

    def __init__(self, trt: FakeBuilderModule) -> None:
        self._trt = trt
        trt.seen["config"] = self
        self.limits: dict[str, int] = {}
        self.cleared: list[str] = []
        self._timings: bytes | None = None

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool: str, n_bytes: int) -> None:
        self.limits[pool] = self._trt.answer("set_memory_pool_limit", n_bytes)

    def get_memory_pool_limit(self, pool: str) -> int:
        return self.limits[pool]

    def add_optimization_profile(self, profile: Any) -> int:
        assert profile is not None
        return int(self._trt.answer("add_optimization_profile", 0))

    def set_compute_capability(self, capability: str, index: int) -> bool:
        assert (capability, index, self.num_compute_capabilities) == ("current", 0, 1)
        return bool(self._trt.answer("set_compute_capability", True))

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, content: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._trt.seen.setdefault("timings", []).append(content)
        fits = not content.startswith(b"other")
        if fits:
            self._timings = content
        return fits

    def get_timing_cache(self) -> Any:
        if self._timings is None:
            return None
        timings = self._timings + b"+"
        return types.SimpleNamespace(serialize=lambda: timings)


class _Parser:
    def __init__(self, trt: FakeBuilderModule, network: Any, logger: ILogger) -> None:
        assert network is not None
        self._trt = trt
        self._logger = logger
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        assert Path(path).is_file()
        return bool(self._trt.answer("parse_from_file", True, self._logger))


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeBuilderModule:
    module = FakeBuilderModule()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return half(tmp_path / "half.onnx")


def make(
    graph: Path,
    *,
    tensorrt: TensorRt | None = None,
    settings: BuildSettings | None = None,
    timing: Path | None = None,
    has_gpu: bool = False,
) -> bytes:
    engine = build_engine(
        tensorrt or find_tensorrt(),
        graph,
        PROFILE,
        inputs=[X],
        outputs=[Y],
        settings=settings or BuildSettings(),
        timing=timing,
        has_gpu=has_gpu,
    )
    return bytes(engine)


def test_precision_is_in_the_graph(trt: FakeBuilderModule, graph: Path) -> None:
    settings = BuildSettings(level=5, workspace_bytes=1 << 30)
    assert make(graph, settings=settings) == b"engine"
    config = trt.seen["config"]
    assert trt.seen["flags"] == 1 << 1
    assert config.cleared == ["tf32"]
    assert config.builder_optimization_level == 5
    assert config.limits == {"workspace": 1 << 30}
    assert trt.seen["x"] == PROFILE["x"]


def test_engines_are_for_the_gpu_that_is_here(trt: FakeBuilderModule, graph: Path) -> None:
    """TensorRT-RTX would else build for many cards, but for none of Turing's."""
    make(graph, has_gpu=True)  # full TensorRT needs no word about it
    trt.ComputeCapability = types.SimpleNamespace(CURRENT="current")
    make(graph)
    assert trt.seen["config"].num_compute_capabilities == 0
    make(graph, has_gpu=True)
    assert trt.seen["config"].num_compute_capabilities == 1
    trt.answers["set_compute_capability"] = False
    with pytest.raises(EngineError, match="could not build for this GPU"):
        make(graph, has_gpu=True)


def test_version_11_is_always_strongly_typed(trt: FakeBuilderModule, graph: Path) -> None:
    trt.__version__ = "11.4.0"
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace()
    make(graph)
    assert trt.seen["flags"] == 0


def test_timings_are_kept_and_used_again(
    trt: FakeBuilderModule, graph: Path, tmp_path: Path
) -> None:
    timing = tmp_path / "folder" / "gpu.timing"
    for content in (b"+", b"++"):
        make(graph, timing=timing)
        assert timing.read_bytes() == content
    timing.write_bytes(b"other GPU")
    make(graph, timing=timing)
    assert trt.seen["timings"] == [b"", b"+", b"other GPU", b""]
    assert timing.read_bytes() == b"+"


def test_rtx_has_no_timings(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its timing cache is deprecated and does nothing."""
    modules = sys.modules
    monkeypatch.setitem(modules, "tensorrt", None)
    rtx = FakeBuilderModule("tensorrt_rtx", "1.7.1.116")
    monkeypatch.setitem(modules, "tensorrt_rtx", rtx)
    make(graph, timing=tmp_path / "timing")
    assert "timings" not in rtx.seen
    assert not (tmp_path / "timing").exists()


@pytest.mark.parametrize(
    ("call", "answer", "words"),
    [
        ("Builder", None, "TensorRT 10.3.0 could not start"),
        ("Builder", TypeError("factory function returned nullptr"), "stopped .*nullptr"),
        ("create_network", None, "could not make a network"),
        ("create_builder_config", None, "could not make a configuration"),
        ("set_memory_pool_limit", 5, "could not take a workspace of 100 bytes"),
        ("add_optimization_profile", -1, "could not take the shapes"),
        ("parse_from_file", False, "could not read the graph"),
        ("build_serialized_network", None, "could not build an engine; it logged no reason"),
        ("build_serialized_network", RuntimeError("C++ threw"), "stopped .C.. threw"),
    ],
)
def test_every_answer_is_looked_at(
    trt: FakeBuilderModule, graph: Path, call: str, answer: object, words: str
) -> None:
    trt.answers[call] = answer
    with pytest.raises(EngineError, match=words):
        make(graph, settings=BuildSettings(workspace_bytes=100))


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 9 bytes.)", "lower --max-batch"),
        ("Error Code 1: Cuda Runtime (out of memory)", "lower --max-batch"),
        ("Target GPU SM 90 is not supported by this TensorRT release.", "GeForce and RTX cards"),
        ("Unsupported compute capability 9.0", "does not support this GPU"),
        ("CUDA initialization failure with error: 35", "a driver as new as"),
        ("Something else", "Something else"),
    ],
)
def test_the_log_and_a_cure_are_in_the_error(
    trt: FakeBuilderModule, graph: Path, line: str, cure: str
) -> None:
    trt.answers["build_serialized_network"] = None
    trt.says["build_serialized_network"] = line
    with pytest.raises(EngineError) as caught:
        make(graph)
    assert line in str(caught.value)
    assert cure in str(caught.value)
    assert str(graph) in str(caught.value)


def test_mosrts_own_errors_pass(
    trt: FakeBuilderModule, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with caplog.at_level(logging.INFO), pytest.raises(mosrt.ProviderError, match="MOSRT_CACHE"):
        make(graph, timing=blocked / "timing")
    assert trt.seen["timings"] == [b""]


@pytest.mark.usefixtures("trt")
def test_the_target_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = FakeCudart(capability=(11, 0))
    monkeypatch.setattr(Cuda, "open", lambda: Cuda(cudart))
    assert target_of(find_tensorrt()).compute_capability == "11.0"
    cudart.devices = 0
    # Full TensorRT times kernels on the GPU; TensorRT-RTX compiles for all it lists.
    with pytest.raises(EngineError, match="builds on the GPU that runs the engine"):
        target_of(find_tensorrt())
    modules = sys.modules
    monkeypatch.setitem(modules, "tensorrt", None)
    monkeypatch.setitem(modules, "tensorrt_rtx", FakeBuilderModule("tensorrt_rtx", "1.7.1.116"))
    assert target_of(find_tensorrt()).compute_capability == "none"
