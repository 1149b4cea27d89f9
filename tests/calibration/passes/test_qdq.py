"""Q/DQ graphs against those of ONNX Runtime's quantiser, on the same ranges."""

import logging
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode, add_infer_metadata

from mosrt_calibration.graph import WEIGHTED_OPS, Topology
from mosrt_calibration.passes.qdq import with_qdq
from mosrt_calibration.passes.qparams import rounded_weights, scales_for_bias, weight_scales
from mosrt_calibration.passes.targets import Targets
from mosrt_calibration.passes.weight_only import dynamic_matmul
from tests.standins.quantizable import (
    CHANNELS,
    SIZE,
    Network,
    convolutional,
    relu_chain,
    scale,
    transformer,
)

IMAGES = np.random.default_rng(0).random((4, 1, SIZE, SIZE), np.float32)
WAVES = np.random.default_rng(0).standard_normal((4, 4000)).astype(np.float32)


def mixed() -> onnx.ModelProto:
    """Every way a tensor is quantised: moved, scaled by constants, clipped, pooled, shared."""
    net = Network(3)
    x = net.conv("net.0", "images", 1, CHANNELS)
    x = net.node("net.0/Clip", [x, *(net.constant(n, v) for n, v in _limits().items())])
    x = net.node("net.1/MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    gain = net.constant("gain", np.linspace(-1, 2, CHANNELS, dtype=np.float32).reshape(-1, 1, 1))
    x = net.node("net.1/Mul", [x, gain])
    left = net.node("net.2/Relu", [net.conv("net.2", x, CHANNELS, CHANNELS)])
    right = net.conv("net.3", left, CHANNELS, CHANNELS)
    x = net.node("net.3/Concat", [left, right], axis=1)
    gate = net.conv(
        "net.4", net.node("net.4/GlobalAveragePool", [x]), 2 * CHANNELS, 2 * CHANNELS, 1
    )
    x = net.node("net.4/Mul", [x, net.node("net.4/Sigmoid", [gate])])
    x = net.conv("net.5", x, 2 * CHANNELS, CHANNELS)
    flat = net.node("net/Flatten", [net.node("net/GlobalAveragePool", [x])], axis=1)
    inputs = [flat, net.weights("net.6.weight", CHANNELS, CHANNELS)]
    bias = net.constant("net.6.bias", np.linspace(-1, 1, CHANNELS, dtype=np.float32))
    net.head(net.node("net.6/Gemm", [*inputs, bias]), CHANNELS)
    return net.model({"images": (1, SIZE, SIZE)})


def _limits() -> dict[str, NDArray[Any]]:
    return {"low": np.array(0.0, np.float32), "high": np.array(6.0, np.float32)}


def overflowing() -> onnx.ModelProto:
    """A bias that 32 bits cannot hold at the scale of its weights."""
    model = relu_chain()
    scale(model, "net.1.weight", 0, 1e-12, channel=2)
    scale(model, "net.1.bias", 0, 1e3, channel=2)
    return model


def _typed(model: onnx.ModelProto) -> Any:
    return onnx.shape_inference.infer_shapes(model)


def _spans(model: Any, feed: NDArray[np.float32], names: tuple[str, ...]) -> dict[str, Any]:
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    inner = [n for n in names if n not in {value.name for value in model.graph.input}]
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    session = onnxruntime.InferenceSession(probed.SerializeToString())
    source = model.graph.input[0].name
    values = dict(zip(inner, session.run(inner, {source: feed}), strict=True)) | {source: feed}
    return {name: (float(values[name].min()), float(values[name].max())) for name in names}


def _theirs(
    model: Any, spans: dict[str, Any], nodes: list[str], *, symmetric: bool, bits: int = 8
) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    add_infer_metadata(copy)
    options: dict[str, Any] = {"ActivationSymmetric": False}
    if symmetric:
        options = {
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED_OPS),
        }
    ranges = {n: (np.float32(low), np.float32(high)) for n, (low, high) in spans.items()}
    quantiser = QDQQuantizer(
        copy,
        True,
        bits == 7,
        QuantType.QInt8,
        QuantType.QInt8 if symmetric else QuantType.QUInt8,
        TensorsData(CalibrationMethod.MinMax, ranges),
        nodes,
        [],
        sorted({node.op_type for node in model.graph.node if node.name in nodes}),
        {"WeightSymmetric": True, "MatMulConstBOnly": True, **options},
    )
    logging.disable()
    try:
        quantiser.quantize_model()
    finally:
        logging.disable(logging.NOTSET)
    quantiser.model.topological_sort()
    return quantiser.model.model


def _run(model: Any, feed: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: NDArray[np.float32] = session.run(None, {model.graph.input[0].name: feed})[0]
    return found


def _constants(model: Any) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def _kinds(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


_MODELS = (convolutional, relu_chain, mixed, transformer)


# Symmetric graphs have no integer biases, for which theirs make room all the same. With weights of
# 7 bits theirs have so few for other constants, too, which nothing adds up.
@pytest.mark.parametrize(
    ("make", "symmetric", "bits"),
    [
        *((make, False, 8) for make in (*_MODELS, overflowing)),
        *((make, False, 7) for make in _MODELS if make is not mixed),
        *((make, True, 8) for make in _MODELS),
    ],
)
def test_graphs_are_those_of_onnxruntime(make: Any, symmetric: bool, bits: int) -> None:
    model = _typed(make())
    feed = IMAGES if model.graph.input[0].name == "images" else WAVES
    topology = Topology(model)
    targets = Targets.of(topology)
    spans = _spans(model, feed, targets.tensors(topology))
    nodes = [*targets.weighted, *(() if symmetric else targets.between)]
    if symmetric:
        ours = with_qdq(model, spans, nodes, symmetric=True)
    else:
        ours = with_qdq(model, spans, nodes, symmetric=False, weight_bits=bits)
    theirs = _theirs(model, spans, nodes, symmetric=symmetric, bits=bits)
    onnx.checker.check_model(ours, full_check=True)
    assert _kinds(ours) == _kinds(theirs)
    assert _kinds(ours)["QuantizeLinear"] >= 3
    found, expected = _constants(ours), _constants(theirs)
    shared = found.keys() & expected.keys()
    assert {n for n in expected if n.endswith(("_quantized", "_scale"))} - shared == {
        n
        for n in expected
        if n.endswith("_quantized_scale")  # biases, which they name twice
    }
    for name in shared:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        assert found[name].dtype == expected[name].dtype
    np.testing.assert_array_equal(_run(ours, feed), _run(theirs, feed))


def test_blocks_in_fp32_read_dequantised_inputs() -> None:
    model = _typed(convolutional())
    topology = Topology(model)
    targets = Targets.of(topology)
    spans = _spans(model, IMAGES, targets.tensors(topology))
    left = targets.only(topology, targets.weighted[2:5], list(targets.parts)[3:])
    nodes = [*left.weighted, *left.between]
    ours = with_qdq(model, spans, nodes, symmetric=False)
    theirs = _theirs(model, spans, nodes, symmetric=False)
    assert 0 < _kinds(ours)["QuantizeLinear"] < len(spans)
    np.testing.assert_array_equal(_run(ours, IMAGES), _run(theirs, IMAGES))


def test_dynamic_graphs_are_those_of_onnxruntime() -> None:
    model = _typed(transformer())
    topology = Topology(model)
    nodes = [n for n in Targets.of(topology).weighted if topology.nodes[n].op_type == "MatMul"]
    ours = dynamic_matmul(model, nodes)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    add_infer_metadata(copy)
    quantiser = ONNXQuantizer(
        copy,
        True,
        False,
        QuantizationMode.IntegerOps,
        False,
        QuantType.QInt8,
        QuantType.QUInt8,
        None,
        nodes,
        [],
        ["MatMul"],
        {"MatMulConstBOnly": True},
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    theirs = quantiser.model.model
    onnx.checker.check_model(ours, full_check=True)
    for op in ("DynamicQuantizeLinear", "MatMulInteger", "Cast"):
        assert _kinds(ours)[op] == _kinds(theirs)[op] > 0
    found, expected = _constants(ours), _constants(theirs)
    for name in found.keys() & expected.keys():
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    # Theirs takes the head's Gemm apart, too.
    np.testing.assert_allclose(_run(ours, WAVES), _run(theirs, WAVES), rtol=1e-5)


def test_a_bias_fits_into_32_bits() -> None:
    bias = np.array([1.0, 1e6, -1e6, 0.0], np.float32)
    scales = np.array([1e-3, 1e-9, 1e-9, 1e-9], np.float32)
    found = scales_for_bias(bias, np.array(1e-3, np.float32), scales)
    assert found[[0, 3]].tolist() == scales[[0, 3]].tolist()
    integers = np.abs(bias[1:3] / (found[1:3].astype(np.float64) * 1e-3))
    assert (integers < 2**31).all()
    assert (integers > 2**30).all()  # and not much larger than it has to be


def test_weights_of_zero_have_a_scale() -> None:
    value = np.zeros((2, 3), np.float32)
    value[1] = [1.0, -2.0, 0.5]
    rounded, (scales, zero_points) = rounded_weights(value, 0, weight_scales(value, 0))
    assert scales[0] == 1.0
    assert rounded.tolist() == [[0, 0, 0], [64, -127, 32]]
    assert not zero_points.any()
