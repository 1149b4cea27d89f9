"""Integer graphs: Q/DQ pairs and dynamic MatMul by ONNX Runtime's quantisers, on our ranges."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode

from .graph import WEIGHTED_OPS

__all__ = ["dynamic_matmul", "qdq_s8s8", "qdq_u8s8"]

Ranges = Mapping[str, tuple[float, float]]


def qdq_u8s8(model: Any, ranges: Ranges, nodes: Sequence[str]) -> Any:
    """Q/DQ for CPUs: unsigned asymmetric activations, signed weights per channel, int32 biases.

    Args:
        model: Float32 onnx.ModelProto; left as it is.
        ranges: Lowest and highest value of every activation that the nodes read or make.
        nodes: Names of the nodes to quantise, weighted or not.
    """
    return _static(model, ranges, nodes, QuantType.QUInt8, {"ActivationSymmetric": False})


def qdq_s8s8(model: Any, ranges: Ranges, nodes: Sequence[str]) -> Any:
    """Q/DQ for TensorRT: signed and symmetric throughout, so that every zero point is zero.

    Only what weighted nodes read is quantised: TensorRT decides itself where bytes go on, and it
    takes biases as floats.

    Args:
        model: Float32 onnx.ModelProto; left as it is.
        ranges: Lowest and highest value of every activation that the nodes read.
        nodes: Names of the weighted nodes to quantise.
    """
    options = {
        "ActivationSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(WEIGHTED_OPS),
    }
    return _static(model, ranges, nodes, QuantType.QInt8, options)


def dynamic_matmul(model: Any, nodes: Sequence[str]) -> Any:
    """MatMul in bytes with weights per channel, activations scaled as they come at every run.

    Args:
        model: onnx.ModelProto, float32 where the nodes are; left as it is.
        nodes: Names of MatMul nodes with constant weights.
    """
    copy = _copy(model)
    if not nodes:
        return copy
    with _quiet():
        quantiser = ONNXQuantizer(
            copy,
            True,  # per channel
            False,  # all eight bits of the weights
            QuantizationMode.IntegerOps,
            False,  # not static
            QuantType.QInt8,
            QuantType.QUInt8,
            None,
            list(nodes),
            [],
            ["MatMul"],
            {"MatMulConstBOnly": True},
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()
    return quantiser.model.model


def _static(
    model: Any, ranges: Ranges, nodes: Sequence[str], activation: Any, options: dict[str, Any]
) -> Any:
    copy = _copy(model)
    if not nodes:  # the quantiser would take none for all
        return copy
    tensors = TensorsData(
        CalibrationMethod.MinMax,
        {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()},
    )
    with _quiet():
        quantiser = QDQQuantizer(
            copy,
            True,  # per channel
            False,  # all eight bits of the weights
            QuantType.QInt8,
            activation,
            tensors,
            list(nodes),
            [],
            _op_types(copy, nodes),
            {"WeightSymmetric": True, "MatMulConstBOnly": True, **options},
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()
    return quantiser.model.model


def _op_types(model: Any, nodes: Collection[str]) -> list[str]:
    wanted = set(nodes)
    return sorted({node.op_type for node in model.graph.node if node.name in wanted})


def _copy(model: Any) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the quantisers' remarks, which go to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
