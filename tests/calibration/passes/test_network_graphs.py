from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from mosrt_calibration.clips import Choice
from mosrt_calibration.graph import Topology, read_graph, write_graph
from mosrt_calibration.passes.corrections import fake_quantised
from mosrt_calibration.passes.fp16 import to_fp16
from mosrt_calibration.scoring import ModelUnderTest
from mosrt_calibration.search.network import Network, Scheme

PLAIN = Scheme(method="min-max")
SYMMETRIC = Scheme(method="min-max", symmetric=True)


def _network(tested: ModelUnderTest, choice: Choice, tmp_path: Path) -> Network:
    member = tested.reference.members[0]
    cache = tmp_path / "cache"
    return Network(tested, member, choice.calibration, cache=cache)


def _run(model: onnx.ModelProto, feed: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the runtime has it
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (name,) = (value.name for value in session.get_inputs())
    return session.run(["mos"], {name: feed})[0]


def _zero_points(model: onnx.ModelProto, op: str) -> dict[str, Any]:
    """Zero points of all nodes of a kind by the node's first input."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.input[0]: numpy_helper.to_array(constants[node.input[2]])
        for node in model.graph.node
        if node.op_type == op
    }


def test_cpu_graphs_have_unsigned_activations_and_signed_weights_per_channel(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    model = _network(conv_model, choice, tmp_path).int8(PLAIN, ())
    activations = _zero_points(model, "QuantizeLinear")
    assert len(activations) > 15
    assert {value.dtype for value in activations.values()} == {np.dtype(np.uint8)}
    assert any(value != 0 for value in activations.values())
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {n: t for n, t in constants.items() if n.endswith(".weight_quantized")}
    assert len(weights) == 9
    for name, tensor in weights.items():
        assert tensor.data_type == TensorProto.INT8
        scales = numpy_helper.to_array(constants[name.replace("_quantized", "_scale")])
        zeros = numpy_helper.to_array(constants[name.replace("_quantized", "_zero_point")])
        assert scales.shape == (tensor.dims[0],)  # one per output channel
        assert not zeros.any()
    head = next(node for node in model.graph.node if node.name == "head/Gemm")
    assert constants[head.input[1]].data_type == TensorProto.FLOAT
    feed = np.random.default_rng(0).random((2, 1, 16, 16), np.float32)
    original = onnx.load(conv_model.directory / "model.fold0.fp32.onnx")
    assert _run(model, feed) == pytest.approx(_run(original, feed), abs=0.2)


def test_tensorrt_graphs_have_zero_points_of_zero_only(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    model = _network(conv_model, choice, tmp_path).int8(SYMMETRIC, ())
    for op in ("QuantizeLinear", "DequantizeLinear"):
        found = _zero_points(model, op)
        assert len(found) >= 9
        for value in found.values():
            assert value.dtype == np.int8
            assert not value.any()
    # biases stay FP32, and outputs of convolutions are not quantised
    assert not [t for t in model.graph.initializer if t.data_type == TensorProto.INT32]
    fed = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert not {name for name in fed if "/Conv:" in name}


def test_rounded_weights_are_those_of_onnxruntime(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    model = _network(conv_model, choice, tmp_path).int8(SYMMETRIC, ())
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    original = Topology(read_graph(conv_model.directory / "model.fold0.fp32.onnx"))
    name = "net.blocks.1.first.weight"
    scale = constants[f"{name}_scale"].reshape(-1, 1, 1, 1)
    given_back = constants[f"{name}_quantized"].astype(np.float32) * scale
    assert given_back == pytest.approx(fake_quantised(original.value(name)), rel=1e-6)


def test_matmul_is_static_or_dynamic(
    transformer_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    network = _network(transformer_model, choice, tmp_path)
    assert network.has_matmul
    feed = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    expected = _run(onnx.load(transformer_model.directory / "model.fold0.fp32.onnx"), feed)
    for dynamic in (False, True):
        scheme = Scheme(method="min-max", dynamic_matmul=dynamic)
        model = network.int8(scheme, ())
        ops = [node.op_type for node in model.graph.node]
        assert ops.count("MatMulInteger") == (6 if dynamic else 0)
        assert ("DynamicQuantizeLinear" in ops) == dynamic
        assert "QuantizeLinear" in ops  # the convolution is static in any case
        quantised = [t for t in model.graph.initializer if t.name.endswith(".weight_quantized")]
        assert len(quantised) == 7
        assert _run(model, feed) == pytest.approx(expected, abs=0.2)


def test_blocks_kept_in_fp32_keep_their_weights(
    transformer_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    network = _network(transformer_model, choice, tmp_path)
    scheme = Scheme(method="min-max", dynamic_matmul=True)
    model = network.int8(scheme, ["net.layers.0"])
    quantised = {t.name for t in model.graph.initializer if t.name.endswith("_quantized")}
    assert quantised == {"net.frames.weight_quantized"}
    everything = network.int8(scheme, list(network.targets.parts))
    # graphs for CPUs have weight-only INT8 for large weights: those of the frames
    assert [n.op_type for n in everything.graph.node if not n.name.startswith("net.frames.w")] == [
        n.op_type for n in read_graph(network_graph(transformer_model)).graph.node
    ]
    assert [t.name for t in everything.graph.initializer if t.data_type == TensorProto.INT8] == [
        "net.frames.weight_bytes"
    ]


def network_graph(tested: ModelUnderTest) -> Path:
    return tested.directory / tested.reference.members[0].graph.path


def test_fp16_keeps_inputs_outputs_norms_softmax_and_scores_in_fp32(
    transformer_model: ModelUnderTest,
) -> None:
    model = to_fp16(read_graph(network_graph(transformer_model)))
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    checked = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*checked.graph.value_info, *checked.graph.input, *checked.graph.output)
    }
    kinds |= {tensor.name: tensor.data_type for tensor in checked.graph.initializer}
    by_precision: dict[int, set[str]] = {TensorProto.FLOAT: set(), TensorProto.FLOAT16: set()}
    for node in checked.graph.node:
        if node.op_type != "Cast":
            by_precision[kinds[node.input[0]]].add(node.name)
    full, half = by_precision[TensorProto.FLOAT], by_precision[TensorProto.FLOAT16]
    for name in ("norm/LayerNormalization", "middle/LayerNormalization"):
        assert f"net.layers.0.{name}" in full
    assert {"net.layers.0/Softmax", "net/ReduceMean", "head/Gemm"} <= full
    assert {"net.frames/Conv", "net.layers.0.q/MatMul", "net.layers.0.up/MatMul"} <= half
    feed = np.random.default_rng(0).standard_normal((2, 4000)).astype(np.float32)
    expected = _run(onnx.load(network_graph(transformer_model)), feed)
    # ten bits of mantissa, a dozen operations
    assert _run(model, feed) == pytest.approx(expected, abs=0.01)


def test_graphs_are_written_with_aligned_weights_beside_and_the_same_bytes(
    conv_model: ModelUnderTest, tmp_path: Path
) -> None:
    model = read_graph(network_graph(conv_model))
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        graph, weights = write_graph(model, tmp_path / name / "model.onnx")
        assert weights is not None
        written.append((graph.read_bytes(), weights.read_bytes()))
    assert written[0] == written[1]
    outer = onnx.load(graph, load_external_data=False)
    entries = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in outer.graph.initializer
        if tensor.external_data
    ]
    assert len(entries) == 8  # the stem, the biases and the head are small
    for entry in entries:
        assert entry["location"] == "model.onnx.data"
        assert int(entry["offset"]) % 64 == 0
    feed = np.random.default_rng(0).random((1, 1, 16, 16), np.float32)
    assert np.array_equal(
        onnxruntime.InferenceSession(graph).run(["mos"], {"images": feed})[0], _run(model, feed)
    )
