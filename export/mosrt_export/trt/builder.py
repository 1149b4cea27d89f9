"""Builder: one graph through TensorRT's parser and builder.

The same calls serve TensorRT 10.3 to 11 and TensorRT-RTX. Networks are strongly typed: precision is
what the graph says, and no flag changes it. TensorRT reports most failures by returning None, False
or -1 and logging a line, so every result is looked at, and the lines are in the error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mosrt.backends.engine_file import Profile, replacing_in_cache
from mosrt.backends.trt import check_tensors
from mosrt.backends.trt_module import TensorRt, dtype_name
from mosrt.bundle.manifest import TensorSpec
from mosrt_export.errors import UNSERVED, EngineError

from .qdq_check import check_zero_points

__all__ = ["BuildSettings", "aim_at_this_gpu", "build_engine", "create_network"]

_MAX_LINES: Final = 12
# Where TensorRT-RTX has one it does nothing.
_TIMED_MODULE: Final = "tensorrt"
# What else fails has nothing to do with a GPU, though without one the log is full of it.
_ON_THE_GPU: Final = ("start", "build for this GPU", "build an engine")
_CURES: Final = (
    (
        r"out ?of ?memory|insufficient (?:\w+ )?memory|memoryallocation|failed to allocate",
        "there is not enough memory: close other programs, or lower --max-batch, --max-seconds or "
        "--workspace-gib",
    ),
    (
        r"compute capability|unsupported (?:sm|gpu|device)|sm ?\d+ is not|no kernel image",
        UNSERVED,
    ),
    (
        r"cuda(?: initialization)? (?:error|failure)|cudaerror|no cuda-capable|driver version",
        "is there an NVIDIA GPU, with a driver as new as this TensorRT's CUDA?",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How hard TensorRT tries.

    Attributes:
        level: Builder optimisation level, 0 (quick to build) to 5 (quick to run).
        workspace_bytes: Memory that an engine may use beside weights and activations, None for as
            much as there is.
    """

    level: int = 3
    workspace_bytes: int | None = None


def build_engine(
    tensorrt: TensorRt,
    graph: Path,
    profile: Profile,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    settings: BuildSettings,
    timing: Path | None = None,
    has_gpu: bool = False,
) -> Any:
    """Builds an engine.

    Args:
        tensorrt: What builds it.
        graph: The ONNX file, its weights in it or beside it.
        profile: The shapes that it is to take.
        inputs: Inputs that the graph must have.
        outputs: Outputs that the graph must have.
        settings: How hard to try.
        timing: File of kernel timings of earlier builds on this machine, used and added to where
            this TensorRT has such a thing.
        has_gpu: Whether there is a GPU here, which the engine then is for.

    Returns:
        The serialised engine, an object with the buffer protocol.

    Raises:
        EngineError: The graph or the machine does not suit TensorRT.
        BundleError: The graph is not what the manifest says.
        ProviderError: `timing` cannot be written.
    """
    check_zero_points(graph)
    with tensorrt.log() as lines:
        build = _Build(tensorrt, graph, lines)
        try:
            build.parse()
            build.check(inputs, outputs)
            config = build.configure(profile, settings, has_gpu=has_gpu)
            kernels = timing if tensorrt.name == _TIMED_MODULE else None
            if kernels is not None:
                build.use_timings(config, kernels)
            engine = build.build(config)
            if kernels is not None:
                _keep_timings(config, kernels)
        # What the bindings raise for a C++ exception, a null pointer and a value out of range.
        except (RuntimeError, TypeError, ValueError) as exc:
            if isinstance(exc, EngineError) or not _from_bindings(exc):
                raise
            raise build.error(f"stopped ({exc})") from exc
    return engine


def create_network(trt: Any, builder: Any) -> Any:
    """An empty network whose tensors have the types that they are given, and no others."""
    flags = 0
    # Networks are always strongly typed from version 11 on, where the flag may be gone.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if flag is not None:
        flags = 1 << int(flag)
    return builder.create_network(flags)


def aim_at_this_gpu(trt: Any, config: Any) -> bool:
    """Makes an engine one for the GPU that is here; tells whether that could be done.

    TensorRT-RTX builds for all cards from Ampere on unless it is told otherwise, and for none of
    Turing's. Full TensorRT knows nothing but this GPU.
    """
    capabilities = getattr(trt, "ComputeCapability", None)
    if capabilities is None:
        return True
    config.num_compute_capabilities = 1
    return bool(config.set_compute_capability(capabilities.CURRENT, 0))


def _from_bindings(exc: Exception) -> bool:
    """Whether an exception is none of mosrt's own."""
    return not type(exc).__module__.startswith("mosrt")


class _Build:
    """One run of the builder."""

    def __init__(self, tensorrt: TensorRt, graph: Path, lines: list[str]) -> None:
        self._tensorrt = tensorrt
        self._graph = graph
        self._lines = lines

    def parse(self) -> None:
        """Reads the graph into a network."""
        trt, logger = self._tensorrt.module, self._tensorrt.logger
        self._builder = self._made(trt.Builder(logger), "start")
        self._network = self._made(create_network(trt, self._builder), "make a network")
        # Parsers must outlive the network's build: they own constants that it refers to.
        self._parser = self._made(trt.OnnxParser(self._network, logger), "make a parser")
        if not self._parser.parse_from_file(str(self._graph)):
            raise self._parse_error()

    def check(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Raises BundleError unless the network has the manifest's inputs and outputs."""
        network = self._network
        for kind, wanted, present in (
            ("input", inputs, [network.get_input(i) for i in range(network.num_inputs)]),
            ("output", outputs, [network.get_output(i) for i in range(network.num_outputs)]),
        ):
            found = {
                tensor.name: (dtype_name(tensor.dtype), tuple(tensor.shape)) for tensor in present
            }
            check_tensors(f"{self._graph}: the graph's {kind}", wanted, found)

    def configure(self, profile: Profile, settings: BuildSettings, *, has_gpu: bool) -> Any:
        """A builder configuration."""
        trt = self._tensorrt.module
        config = self._made(self._builder.create_builder_config(), "make a configuration")
        # On by default; it would make float32 graphs something else than float32.
        config.clear_flag(trt.BuilderFlag.TF32)
        if has_gpu and not aim_at_this_gpu(trt, config):
            raise self.error("build for this GPU")
        config.builder_optimization_level = settings.level
        if config.builder_optimization_level != settings.level:
            raise self.error(f"take optimisation level {settings.level}")
        if settings.workspace_bytes is not None:
            pool = trt.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(pool, settings.workspace_bytes)
            if config.get_memory_pool_limit(pool) != settings.workspace_bytes:
                raise self.error(f"take a workspace of {settings.workspace_bytes} bytes")
        shapes = self._made(self._builder.create_optimization_profile(), "make a profile")
        for name, (smallest, usual, largest) in profile.items():
            shapes.set_shape(name, smallest, usual, largest)
        if config.add_optimization_profile(shapes) < 0:
            raise self.error(f"take the shapes {dict(profile)}")
        return config

    def use_timings(self, config: Any, path: Path) -> None:
        """Hands over the timings of earlier builds, or an empty cache for those of this one."""
        before = path.read_bytes() if path.exists() else b""
        for content in (before, b""):
            cache = config.create_timing_cache(content)
            # One of another version or GPU is refused, and begun anew.
            if cache is not None and config.set_timing_cache(cache, False):
                return
        raise self.error("take a timing cache")

    def build(self, config: Any) -> Any:
        """The serialised engine."""
        return self._made(
            self._builder.build_serialized_network(self._network, config), "build an engine"
        )

    def error(self, what: str) -> EngineError:
        """An error that says what failed, in TensorRT's words, and what helps."""
        # Lines often come twice, from the parser and from what it calls.
        said = list(dict.fromkeys(self._lines))[-_MAX_LINES:]
        text = "\n  ".join(said)
        cures = _CURES if what in _ON_THE_GPU else ()
        cure = next((cure for pattern, cure in cures if re.search(pattern, text, re.I)), "")
        return EngineError(
            f"{self._graph}: {self._tensorrt} could not {what}"
            + (f"; {cure}" if cure else "")
            + (f"\n  {text}" if text else "; it does not say why")
        )

    def _parse_error(self) -> EngineError:
        """The parser's first error, with the node that it is about."""
        if self._parser.num_errors == 0:
            return self.error("read the graph")
        first = self._parser.get_error(0)
        node, operator = first.node_name(), first.node_operator()
        if "UNSUPPORTED" not in first.code().name or not operator:
            about = f" at node {node!r} ({operator})" if operator else ""
            return self.error(f"read the graph{about}")
        return self.error(
            f"run node {node!r}: it has no {operator}, or not as it is used there; choose another "
            "variant, upgrade TensorRT, or run the bundle with provider 'cuda', which has every "
            "operator"
        )

    def _made(self, value: Any, what: str) -> Any:
        """A value that TensorRT gave, unless it gave none."""
        if value is None:
            raise self.error(what)
        return value


def _keep_timings(config: Any, path: Path) -> None:
    """Writes the timings of this build and those before."""
    cache = config.get_timing_cache()
    if cache is not None:
        with replacing_in_cache(path) as stream, memoryview(cache.serialize()) as content:
            stream.write(content)
