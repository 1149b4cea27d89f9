"""Checks that TensorRT works with this machine's GPU before a build takes minutes."""

from __future__ import annotations

from typing import Any

from mosrt.backends.trt_module import TensorRt
from mosrt_export.errors import EngineError

from .builder import UNSUPPORTED_GPU, create_network, target_this_gpu

__all__ = ["check_gpu"]


def check_gpu(tensorrt: TensorRt, compute_capability: str) -> None:
    """Builds and loads an engine of a single addition.

    Args:
        tensorrt: The TensorRT to check.
        compute_capability: Compute capability of the GPU, for the message.

    Raises:
        EngineError: The engine cannot be built or loaded on this GPU.
    """
    with tensorrt.log() as lines:
        try:
            served = _runs_here(tensorrt)
        # The bindings raise these for C++ exceptions and null pointers.
        except (RuntimeError, TypeError) as exc:
            lines.append(str(exc))
            served = False
    if not served:
        said = "\n  ".join(dict.fromkeys(lines)) or "it logged no reason"
        raise EngineError(
            f"{tensorrt} cannot run an engine on this GPU of compute capability "
            f"{compute_capability}; {UNSUPPORTED_GPU}\n  {said}"
        )


def _runs_here(tensorrt: TensorRt) -> bool:
    """Whether an engine can be built, loaded and given an execution context."""
    trt, logger = tensorrt.module, tensorrt.logger
    builder: Any = trt.Builder(logger)
    if builder is None:
        return False
    network: Any = create_network(trt, builder)
    config: Any = builder.create_builder_config()
    if network is None or config is None or not target_this_gpu(trt, config):
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
