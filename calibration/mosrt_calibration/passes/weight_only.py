"""INT8 weights without activation ranges: weight-only INT8 and dynamic MatMul."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from onnx import TensorProto, helper, numpy_helper

from mosrt_calibration.graph import Topology, copied, rebuilt

from .qparams import rounded_weights, stored, weight_scales

__all__ = ["dynamic_matmul", "weight_only_int8"]

# Fewer values save less than their scales and nodes cost.
FEWEST_VALUES: Final = 4096


def weight_only_int8(model: Any, nodes: Sequence[str]) -> Any:
    """Stores constant weights as INT8 with a scale per output channel; nodes compute in FP32.

    Cast and Mul dequantise them, because every engine folds these into constants as it loads the
    graph. ONNX Runtime would run a DequantizeLinear of weights on every call.

    Args:
        model: onnx.ModelProto whose given nodes are FP32; not changed.
        nodes: Names of nodes with constant weights.
    """
    topology = Topology(model)
    wanted = set(nodes)
    made: list[Any] = []
    constants: list[Any] = []
    unfolded: dict[str, str] = {}
    for node in model.graph.node:
        if node.name not in wanted:
            made.append(node)
            continue
        weights = node.input[1]
        value, axis = topology.value(weights), topology.output_axis(node)
        if weights not in unfolded and value.size >= FEWEST_VALUES:
            found, (scales, _) = rounded_weights(value, axis, weight_scales(value, axis))
            along = [1] * value.ndim
            along[axis] = -1
            integers, step, whole, result = (
                f"{weights}_{part}" for part in ("bytes", "step", "whole", "unfolded")
            )
            constants += [
                numpy_helper.from_array(found, integers),
                numpy_helper.from_array(scales.reshape(along), step),
            ]
            cast = f"{weights}/Cast"
            made += [
                helper.make_node("Cast", [integers], [whole], cast, to=TensorProto.FLOAT),
                helper.make_node("Mul", [whole, step], [result], f"{weights}/Mul"),
            ]
            unfolded[weights] = result
        made.append(copied(node))
        made[-1].input[1] = unfolded.get(weights, weights)
    return rebuilt(model, made, [*model.graph.initializer, *constants])


def dynamic_matmul(model: Any, nodes: Sequence[str], *, weight_bits: int = 8) -> Any:
    """Quantises MatMul dynamically: the scale of the input is computed on every run.

    Args:
        model: onnx.ModelProto whose given nodes are FP32; not changed.
        nodes: Names of MatMul nodes with constant weights, which are quantised per output channel.
        weight_bits: Bits of the weights, 8 or 7; see `qparams.weight_scales`.
    """
    topology = Topology(model)
    wanted = set(nodes)
    made: list[Any] = []
    constants: dict[str, Any] = {}
    scaled: set[str] = set()
    for node in model.graph.node:
        if node.name not in wanted:
            made.append(node)
            continue
        source, weights = node.input
        if source not in scaled:
            scaled.add(source)
            outputs = [f"{source}{end}" for end in ("_quantized", "_scale", "_zero_point")]
            name = f"{source}_QuantizeLinear"
            made.append(helper.make_node("DynamicQuantizeLinear", [source], outputs, name))
        if f"{weights}_quantized" not in constants:
            value, axis = topology.value(weights), topology.output_axis(node)
            found = rounded_weights(value, axis, weight_scales(value, axis, weight_bits))
            constants |= {tensor.name: tensor for tensor in stored(weights, *found)}
        made += _integer_product(node.name, source, weights, node.output[0])
    return rebuilt(model, made, [*model.graph.initializer, *constants.values()])


def _integer_product(name: str, source: str, weights: str, output: str) -> Iterator[Any]:
    """Product, cast, scales and scaling, which ONNX Runtime fuses into one node."""
    product, cast, scales = (f"{output}_{part}" for part in ("integer", "float", "scales"))
    quantized = [f"{tensor}_quantized" for tensor in (source, weights)]
    zero_points = [f"{tensor}_zero_point" for tensor in (source, weights)]
    yield helper.make_node(
        "MatMulInteger", [*quantized, *zero_points], [product], f"{name}_integer"
    )
    yield helper.make_node("Cast", [product], [cast], f"{name}_float", to=TensorProto.FLOAT)
    factors = [f"{source}_scale", f"{weights}_scale"]
    yield helper.make_node("Mul", factors, [scales], f"{name}_scales")
    yield helper.make_node("Mul", [cast, scales], [output], f"{name}_scaled")
