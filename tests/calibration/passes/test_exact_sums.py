"""INT8 products in the runtime's sessions, compared with integers that cannot overflow."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mosrt.backends import open_backend
from mosrt.bundle.manifest import File, Member, TensorSpec, Variant
from mosrt_calibration.passes.qdq import with_qdq
from mosrt_calibration.passes.weight_only import dynamic_matmul

N = 64
RNG = np.random.default_rng(0)
# Sums of two products of 255 and 127 do not fit into 16 bits; those of 255 and 64 just do.
WEIGHTS = np.where(RNG.random((N, N)) < 0.9, 1.0, -1.0).astype(np.float32)
FEED = np.where(RNG.random((1, N, 8)) < 0.9, 1.0, 0.0).astype(np.float32)
RANGES = {"x": (0.0, 1.0), "y": (-64.0, 64.0)}


def _model(op: str) -> Any:
    """x (1, N, 8) → y: a convolution over it, or a product of its transpose."""
    weights = WEIGHTS[:, :, np.newaxis] if op == "Conv" else WEIGHTS.T
    shape = ["batch", N, 8] if op == "Conv" else ["batch", 8, N]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], name=f"net/{op}")],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.ascontiguousarray(weights), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def _run(
    model: Any, feed: NDArray[np.float32], directory: Path, kind: str, provider: str
) -> NDArray[np.float32]:
    path = directory / "model.onnx"
    onnx.save(model, path)
    content = path.read_bytes()
    file = File(path=path.name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    shape = ("batch", *feed.shape[1:])
    backend = open_backend(
        directory,
        Variant(opset=18, members=(Member(name="net", graph=file),), kind=kind),
        inputs=(TensorSpec(name="x", dtype="float32", shape=shape),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=shape),),
        provider=provider,
        threads=1,
    )
    try:
        found: NDArray[np.float32] = backend.run({"x": feed}, ["y"])["y"][0]
        return found
    finally:
        backend.close()


# OpenVINO has no option for exact sums on CPUs without 8-bit dot products: 7 bits need none.
@pytest.mark.parametrize(
    ("bits", "provider"), [(8, "cpu"), (7, "cpu"), (7, "openvino-fp32")], ids=str
)
@pytest.mark.parametrize("kind", ["Conv", "MatMul", "dynamic MatMul"])
def test_sums_of_bytes_do_not_saturate(kind: str, bits: int, provider: str, tmp_path: Path) -> None:
    model = _model(kind.rsplit(" ", maxsplit=1)[-1])
    feed = FEED if kind == "Conv" else FEED.transpose(0, 2, 1).copy()
    name = model.graph.node[0].name
    quantised = (
        dynamic_matmul(model, [name], weight_bits=bits)
        if "dynamic" in kind
        else with_qdq(model, RANGES, [name], symmetric=False, weight_bits=bits)
    )
    found = _run(quantised, feed, tmp_path, f"qdq-u8s{bits}", provider)
    exact = np.einsum("oi,bit->bot", WEIGHTS.astype(np.int64), FEED.astype(np.int64))
    expected = exact if kind == "Conv" else exact.transpose(0, 2, 1)
    assert np.abs(expected).max() > 45  # of 64: far beyond 16 bits
    # Weights and inputs are exact in 8 bits; outputs are rounded to one of 256 levels.
    assert found == pytest.approx(expected, abs=128 / 255)
