"""Small graphs that engines are built of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mosrt.backends.trt_module import TensorRt
from mosrt.bundle.manifest import TensorSpec
from mosrt_export.trt.builder import BuildSettings, build_engine
from mosrt_export.trt.shapes import profile_of

QUICK = BuildSettings(level=0, workspace_bytes=1 << 28)
X = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 16, 16))
Y = TensorSpec(name="y", dtype="float32", shape=("batch", 8, 14, 14))
BATCHES = {"batch": (1, 2, 4)}


def save(path: Path, nodes: Sequence[Any], constants: Sequence[Any], y: Sequence[Any]) -> Path:
    """A graph from x (batch, 3, 16, 16) to y."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def quantised(path: Path, zero_point: Any, *, constant_node: bool = False) -> Path:
    """A convolution of 8 bits, with a zero point of the activations."""
    weights = np.random.default_rng(0).integers(-127, 127, (8, 3, 3, 3)).astype(np.int8)
    zero_points = {"x_zero": np.asarray(zero_point), "w_zero": np.zeros(8, np.int8)}
    scales = {"x_scale": np.float32(0.02), "w_scale": np.full(8, 0.01, np.float32)}
    constants = {"w": weights, **zero_points, **scales}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x8"], name="conv/in/q"),
        helper.make_node("DequantizeLinear", ["x8", "x_scale", "x_zero"], ["xf"], name="conv/in/d"),
        helper.make_node(
            "DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], name="conv/w/d", axis=0
        ),
        helper.make_node("Conv", ["xf", "wf"], ["y"], name="conv"),
    ]
    if constant_node:
        value = numpy_helper.from_array(constants.pop("x_zero"))
        nodes.insert(0, helper.make_node("Constant", [], ["x_zero"], value=value))
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    return save(path, nodes, tensors, ["batch", 8, 14, 14])


def half(path: Path) -> Path:
    """A convolution in float16 between float32 ends."""
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["xh", "w"], ["yh"], name="conv"),
        helper.make_node("Cast", ["yh"], ["y"], to=TensorProto.FLOAT),
    ]
    return save(path, nodes, [numpy_helper.from_array(weights, "w")], ["batch", 8, 14, 14])


def built(
    tensorrt: TensorRt, path: Path, *, y: TensorSpec = Y, settings: BuildSettings = QUICK
) -> int:
    """Size of the engine of a small graph."""
    engine = build_engine(
        tensorrt, path, profile_of([X], BATCHES), inputs=[X], outputs=[y], settings=settings
    )
    return int(engine.nbytes)
