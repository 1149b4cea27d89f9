"""Probe: whether this TensorRT serves this machine's GPU, found out before minutes are spent."""

from __future__ import annotations

from typing import Any

from mosrt.backends.trt_module import TensorRt
from mosrt_export.errors import UNSERVED, EngineError

from .builder import aim_at_this_gpu, create_network

__all__ = ["check_gpu"]


def check_gpu(tensorrt: TensorRt, compute_capability: str) -> None:
    """Builds and loads an engine of a single addition.

    Args:
        tensorrt: What is to build and run engines.
        compute_capability: The GPU's, for the message.

    Raises:
        EngineError: The engine cannot be built, or not be loaded on this GPU.
    """
    with tensorrt.log() as lines:
        try:
            served = _runs_here(tensorrt)
        # What the bindings raise for a C++ exception and a null pointer.
        except (RuntimeError, TypeError) as exc:
            lines.append(str(exc))
            served = False
    if not served:
        said = "\n  ".join(dict.fromkeys(lines)) or "it does not say why"
        raise EngineError(
            f"{tensorrt} runs no engine on this GPU of compute capability {compute_capability}; "
            f"{UNSERVED}\n  {said}"
        )


def _runs_here(tensorrt: TensorRt) -> bool:
    """Whether an engine could be built, loaded and given a context."""
    trt, logger = tensorrt.module, tensorrt.logger
    builder: Any = trt.Builder(logger)
    if builder is None:
        return False
    network: Any = create_network(trt, builder)
    config: Any = builder.create_builder_config()
    if network is None or config is None or not aim_at_this_gpu(trt, config):
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
