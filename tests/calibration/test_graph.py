from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mosrt_calibration.clips import Choice
from mosrt_calibration.graph import deduplicate_constants, read_graph
from mosrt_calibration.scoring import ModelUnderTest
from mosrt_calibration.search.network import Network, Scheme
from tests.standins.quantizable import SIZE


def test_equal_constants_are_read_once_and_others_stay() -> None:
    values: dict[str, Any] = {
        "a": np.array([1.0, 2.0], np.float32),
        "b": np.array([1.0, 2.0], np.float32),
        "other_value": np.array([1.0, 3.0], np.float32),
        "other_kind": np.array([1.0, 2.0], np.float64),
        "bytes": np.array([0, 0], np.int8),
        "bytes_too": np.array([0, 0], np.int8),
        "other_shape": np.array([[1.0, 2.0]], np.float32),
        "large": np.ones((40, 40), np.float32),
        "large_too": np.ones((40, 40), np.float32),
    }
    nodes = [
        helper.make_node("Identity", [name], [f"{name}_out"], f"node/{name}") for name in values
    ]
    outputs = [
        helper.make_tensor_value_info(
            f"{name}_out", helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape)
        )
        for name, value in values.items()
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "constants", [], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    shared = deduplicate_constants(model)
    kept = [tensor.name for tensor in shared.graph.initializer]
    assert kept == [name for name in values if name != "b"]
    found = dict(zip(values, _run(shared), strict=True))
    for name, value in values.items():
        assert np.array_equal(found[name], value)
    assert list(model.graph.node[1].input) == ["b"]  # it is left as it was


def test_integer_graphs_share_their_zero_points(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = conv_model.reference.members[0]
    made = []
    for share in (True, False):
        if not share:
            monkeypatch.setattr(
                "mosrt_calibration.search.network.deduplicate_constants", lambda model: model
            )
        network = Network(conv_model, member, choice.calibration, cache=tmp_path / "cache")
        made.append(network.int8(Scheme(method="min-max"), ()))
    n_shared, n_plain = (len(model.graph.initializer) for model in made)
    assert n_shared < 0.9 * n_plain
    images = np.random.default_rng(0).standard_normal((2, 1, SIZE, SIZE)).astype(np.float32)
    (shared,), (plain,) = (_run(model, images=images) for model in made)
    assert np.array_equal(shared, plain)


def _run(model: Any, **feeds: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return list(session.run(None, feeds))


def test_half_weights_that_are_only_cast_become_float32(tmp_path: Path) -> None:
    """One that another node reads, too, stays as it is."""
    cast = {"to": TensorProto.FLOAT}
    nodes = [
        helper.make_node("Cast", ["once"], ["a"], **cast),
        helper.make_node("Cast", ["twice"], ["b"], **cast),
        helper.make_node("Cast", ["twice"], ["c"], **cast),
        helper.make_node("Sum", ["a", "b", "c"], ["sum"]),
    ]
    halves = [
        numpy_helper.from_array(np.array([value], np.float16), name)
        for name, value in (("once", 1), ("twice", 2))
    ]
    found = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "halves", [], [found], halves)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "a.onnx")
    read = read_graph(tmp_path / "a.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in read.graph.initializer}
    assert kinds == {"a": TensorProto.FLOAT, "twice": TensorProto.FLOAT16}
    session = onnxruntime.InferenceSession(read.SerializeToString())
    assert session.run(None, {})[0].tolist() == [5]
