"""Builds a TensorRT engine of one ONNX graph, and checks first whether that can succeed.

The same calls work with TensorRT 10.3 to 11 and TensorRT-RTX. Networks are strongly typed: the
graph defines the precision, and no flag changes it. TensorRT reports most failures by returning
None, False or -1 and logging a message, so every result is checked, and errors quote the log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mosrt.backends.base import check_tensors
from mosrt.backends.engine_file import Profile, replacing_in_cache
from mosrt.backends.trt_module import TensorRt, dtype_name
from mosrt.bundle.manifest import TensorSpec
from mosrt.bundle.onnx_header import Node, Tensor, read_graph
from mosrt.errors import os_errors_as
from mosrt_export.errors import EngineError

__all__ = ["BuildSettings", "build_engine", "check_gpu", "check_zero_points"]

_UNSUPPORTED_GPU: Final = (
    "this TensorRT does not support this GPU: TensorRT-RTX is for GeForce and RTX cards, other "
    "GPUs need the full TensorRT, and old GPUs an old version of it"
)

_MAX_LINES: Final = 12
# TensorRT-RTX has no effective timing cache.
_TIMED_MODULE: Final = "tensorrt"
# Only these failures depend on the GPU; without one, the log mentions it at every failure.
_ON_THE_GPU: Final = ("start", "build for this GPU", "build an engine")
_CURES: Final = (
    (
        r"out ?of ?memory|insufficient (?:\w+ )?memory|memoryallocation|failed to allocate",
        "there is not enough memory: close other programs, or lower --max-batch, --max-seconds or "
        "--workspace-gib",
    ),
    (
        r"compute capability|unsupported (?:sm|gpu|device)|sm ?\d+ is not|no kernel image",
        _UNSUPPORTED_GPU,
    ),
    (
        r"cuda(?: initialization)? (?:error|failure)|cudaerror|no cuda-capable|driver version",
        "is there an NVIDIA GPU, with a driver as new as this TensorRT's CUDA?",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """Settings of TensorRT's builder.

    Attributes:
        level: Builder optimisation level, 0 (quick to build) to 5 (quick to run).
        workspace_bytes: Memory that an engine may use besides weights and activations; None for no
            limit.
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
    """Builds an engine of an ONNX file, which must have these inputs and outputs.

    With `has_gpu`, the engine is for the GPU of this machine. `timing` is a file of kernel timings
    of earlier builds on this machine; it is used and extended if this TensorRT has a timing cache.

    Returns:
        The serialised engine, an object with the buffer protocol.

    Raises:
        EngineError: TensorRT cannot build the graph, or not on this machine.
        BundleError: The graph differs from the manifest.
        ProviderError: `timing` cannot be written.
    """
    check_zero_points(graph)
    with tensorrt.log() as lines:
        build = _Build(tensorrt, graph, lines)
        try:
            build.parse()
            build.check(inputs, outputs)
            config = build.configure(profile, settings, has_gpu=has_gpu)
            if timing is None or tensorrt.name != _TIMED_MODULE:
                engine = build.build(config)
            else:
                build.use_timings(config, timing)
                engine = build.build(config)
                _keep_timings(config, timing)
        # The bindings raise these for C++ exceptions, null pointers and values out of range.
        except (RuntimeError, TypeError, ValueError) as exc:
            if type(exc).__module__.startswith("mosrt"):  # not from the bindings
                raise
            raise build.error(f"stopped ({exc})") from exc
    return engine


def _create_network(trt: Any, builder: Any) -> Any:
    """Creates an empty, strongly typed network."""
    # From version 11 on networks are always strongly typed, and the flag may be gone.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def _target_this_gpu(trt: Any, config: Any) -> bool:
    """Configures a build for the GPU of this machine; returns whether that succeeded.

    By default TensorRT-RTX builds for all cards from Ampere on, and for none of Turing's. The full
    TensorRT always builds for this GPU.
    """
    capabilities = getattr(trt, "ComputeCapability", None)
    if capabilities is None:
        return True
    config.num_compute_capabilities = 1
    return bool(config.set_compute_capability(capabilities.CURRENT, 0))


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
        self._network = self._made(_create_network(trt, self._builder), "make a network")
        # The parser must outlive the build, because it owns constants of the network.
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
        # On by default, it would reduce the precision of float32 graphs.
        config.clear_flag(trt.BuilderFlag.TF32)
        if has_gpu and not _target_this_gpu(trt, config):
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
        """Loads the timings of earlier builds, or starts an empty cache."""
        before = path.read_bytes() if path.exists() else b""
        for content in (before, b""):
            cache = config.create_timing_cache(content)
            # A cache of another version or GPU is refused; then an empty one is used.
            if cache is not None and config.set_timing_cache(cache, False):
                return
        raise self.error("take a timing cache")

    def build(self, config: Any) -> Any:
        """The serialised engine."""
        engine = self._builder.build_serialized_network(self._network, config)
        return self._made(engine, "build an engine")

    def error(self, what: str) -> EngineError:
        """An error that says what failed, what helps, and what TensorRT logged."""
        # Messages often occur twice, from the parser and from the functions it calls.
        text = "\n  ".join(list(dict.fromkeys(self._lines))[-_MAX_LINES:])
        cures = _CURES if what in _ON_THE_GPU else ()
        cure = next((cure for pattern, cure in cures if re.search(pattern, text, re.I)), "")
        return EngineError(
            f"{self._graph}: {self._tensorrt} could not {what}"
            + (f"; {cure}" if cure else "")
            + (f"\n  {text}" if text else "; it logged no reason")
        )

    def _parse_error(self) -> EngineError:
        """The parser's first error, with the node that it names."""
        if self._parser.num_errors == 0:
            return self.error("read the graph")
        first = self._parser.get_error(0)
        node, operator = first.node_name(), first.node_operator()
        if "UNSUPPORTED" not in first.code().name or not operator:
            about = f" at node {node!r} ({operator})" if operator else ""
            return self.error(f"read the graph{about}")
        return self.error(
            f"run node {node!r}: it does not support this use of {operator}; choose another "
            "variant, upgrade TensorRT, or use provider 'cuda', which supports every "
            "operator"
        )

    def _made(self, value: Any, what: str) -> Any:
        """Returns a value of TensorRT unless it is None."""
        if value is None:
            raise self.error(what)
        return value


def _keep_timings(config: Any, path: Path) -> None:
    """Writes the timings of this build and earlier ones."""
    cache = config.get_timing_cache()
    if cache is not None:
        with replacing_in_cache(path) as stream, memoryview(cache.serialize()) as content:
            stream.write(content)


def check_gpu(tensorrt: TensorRt, compute_capability: str) -> None:
    """Builds and loads an engine of a single addition.

    Raises:
        EngineError: The engine cannot be built or loaded on this GPU of `compute_capability`.
    """
    served = False
    with tensorrt.log() as lines:
        try:
            served = _runs_here(tensorrt)
        # The bindings raise these for C++ exceptions and null pointers.
        except (RuntimeError, TypeError) as exc:
            lines.append(str(exc))
    if not served:
        said = "\n  ".join(dict.fromkeys(lines)) or "it logged no reason"
        raise EngineError(
            f"{tensorrt} cannot run an engine on this GPU of compute capability "
            f"{compute_capability}; {_UNSUPPORTED_GPU}\n  {said}"
        )


def _runs_here(tensorrt: TensorRt) -> bool:
    """Whether an engine can be built, loaded and given an execution context."""
    trt, logger = tensorrt.module, tensorrt.logger
    builder: Any = trt.Builder(logger)
    if builder is None:
        return False
    network, config = _create_network(trt, builder), builder.create_builder_config()
    if network is None or config is None or not _target_this_gpu(trt, config):
        return False
    x = network.add_input("x", trt.DataType.FLOAT, (1,))
    total = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM)
    network.mark_output(total.get_output(0))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return False
    with memoryview(engine) as content:
        loaded: Any = trt.Runtime(logger).deserialize_cuda_engine(content)
    return loaded is not None and loaded.create_execution_context() is not None


# Numbers of TensorProto.DataType.
_INT32: Final = 6
_UNSIGNED_OR_WIDE: Final = {2: "uint8", 4: "uint16", 5: "int16", _INT32: "int32", 21: "uint4"}
_QUANTIZE: Final = "QuantizeLinear"
_DEQUANTIZE: Final = "DequantizeLinear"


def check_zero_points(path: Path) -> None:
    """Refuses a graph with quantisation that TensorRT does not support.

    Raises:
        EngineError: A node is quantised to an unsigned type or has a zero point other than 0, or
            constants cannot be read.
        BundleError: The file is not an ONNX file.
    """
    nodes, constants = read_graph(path)
    for node in (each for each in nodes if each.op_type in (_QUANTIZE, _DEQUANTIZE)):
        cure = "copy the bundle again"
        with os_errors_as(EngineError, f"{path}: its constants cannot be read", cure):
            reason = _reason(node, constants)
        if reason is not None:
            raise EngineError(
                f"{path}: node {node.name!r} ({node.op_type}) {reason}, but TensorRT supports "
                "symmetric int8 only (all zero points 0); this may be a variant for CPUs: choose "
                "--variant int8-trt, or make one with `mosrt quantize`"
            )


def _reason(node: Node, constants: dict[str, Tensor]) -> str | None:
    """The problem with a node's zero point, or None."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        unsigned = node.op_type == _QUANTIZE and node.integers.get("output_dtype", 0) in (0, 2)
        return "has no zero point, which means uint8" if unsigned else None
    tensor = constants.get(name)
    if tensor is None:
        return "has a zero point that is computed"
    # Biases have 32 bits and are only dequantised.
    if tensor.data_type == _INT32 and node.op_type == _DEQUANTIZE and tensor.all_zeros():
        return None
    if tensor.data_type in _UNSIGNED_OR_WIDE:
        return f"is of type {_UNSIGNED_OR_WIDE[tensor.data_type]}"
    return None if tensor.all_zeros() else "has a zero point other than 0"
