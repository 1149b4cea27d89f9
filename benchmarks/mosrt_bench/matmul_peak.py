"""The machine's arithmetic peak: large matrix products, by the kind of number.

What a network could run at if all of it were such products. Needs the extra `export`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from mosrt.host.cpu import CpuFeatures

__all__ = ["peaks_gflops"]

_REPEATS: Final = 5


def peaks_gflops(*, threads: int, size: int = 2048) -> dict[str, float]:
    """Most 1e9 operations per second in products of square matrices.

    Args:
        threads: Threads to use.
        size: Rows and columns; a product is 2 size**3 operations.

    Returns:
        By number: "fp32" and, where the CPU computes with it, "bf16" by torch (oneDNN); "int8",
        U8S8, by ONNX Runtime.
    """
    torch.set_num_threads(threads)
    floats = torch.rand(size, size)
    peaks = {
        "fp32": _best(lambda: torch.mm(floats, floats), size),
        "int8": _best(_int8_product(threads, size), size),
    }
    if CpuFeatures.read().bf16 is not None:  # elsewhere a product takes a minute
        bf16 = floats.bfloat16()
        peaks["bf16"] = _best(lambda: torch.mm(bf16, bf16), size)
    return peaks


def _int8_product(threads: int, size: int) -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (size, size), np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info("c", TensorProto.INT32, [size, size])],
        [onnx.numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"a": rng.integers(0, 256, (size, size), np.uint8)}
    return lambda: session.run(None, feed)


def _best(product: Callable[[], Any], size: int) -> float:
    product()  # threads start and weights are packed here
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - started)
    return float(2e-9 * size**3 / min(seconds))
