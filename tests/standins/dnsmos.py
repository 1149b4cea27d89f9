"""ONNX stand-ins for the DNSMOS models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

P808_SHAPE = ("N", 900, 120)
P835_SHAPE = ("N", 144_160)


def dnsmos_model(path: Path, shape: Sequence[int | str], n_outputs: int) -> Path:
    """Writes a model that answers 1, 2, … n_outputs times the mean of its input."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    factors = np.arange(1, n_outputs + 1, dtype=np.float32)[None]
    nodes = [
        helper.make_node("Flatten", ["input_1"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "factors"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stand-in",
        [helper.make_tensor_value_info("input_1", kind, list(shape))],
        [helper.make_tensor_value_info("output", kind, ["N", n_outputs])],
        [onnx.numpy_helper.from_array(factors, "factors")],
    )
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
