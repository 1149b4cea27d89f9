"""Weight-only INT8."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from mosrt_calibration.graph import Topology
from mosrt_calibration.passes.corrections import fake_quantised
from mosrt_calibration.passes.weight_only import weight_only_int8
from tests.standins.quantizable import transformer

WAVES = np.random.default_rng(0).standard_normal((1, 4000)).astype(np.float32)


@pytest.fixture
def model() -> Any:
    return onnx.shape_inference.infer_shapes(transformer(width=64))


def test_they_are_those_that_rounding_gives_back(model: Any) -> None:
    topology = Topology(model)
    nodes = [name for name, node in topology.nodes.items() if topology.weighted(node)]
    found = weight_only_int8(model, nodes)
    onnx.checker.check_model(found, full_check=True)
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    large = []
    for tensor in expected.graph.initializer:
        readers = list(topology.consumers.get(tensor.name, []))
        if any(node.name in nodes for node in readers) and np.prod(tensor.dims) >= 4096:
            large.append(tensor.name)
            value = numpy_helper.to_array(tensor).astype(np.float64)
            transposed = len(tensor.dims) == 2 and readers[0].op_type == "MatMul"
            rounded = fake_quantised(value.T if transposed else value)
            rounded = (rounded.T if transposed else rounded).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rounded), tensor.name))
    assert len(large) == 7
    np.testing.assert_allclose(_run(found), _run(expected), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(_run(found), _run(model))
    kept = {t.name: t for t in found.graph.initializer}
    assert not kept.keys() & set(large)  # the floats are gone
    assert all(kept[f"{name}_bytes"].data_type == TensorProto.INT8 for name in large)
    assert found.ByteSize() < 0.35 * model.ByteSize()


def test_other_nodes_keep_theirs(model: Any) -> None:
    topology = Topology(model)
    one = next(name for name, node in topology.nodes.items() if node.op_type == "MatMul")
    found = weight_only_int8(model, [one])
    assert sum(t.data_type == TensorProto.INT8 for t in found.graph.initializer) == 1


def test_onnxruntime_folds_them(model: Any, tmp_path: Any) -> None:
    topology = Topology(model)
    nodes = [name for name, node in topology.nodes.items() if topology.weighted(node)]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(weight_only_int8(model, nodes).SerializeToString(), options)
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "Cast" not in kinds
    assert "MatMul" in kinds or "FusedMatMul" in kinds


def _run(model: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {model.graph.input[0].name: WAVES})[0]
