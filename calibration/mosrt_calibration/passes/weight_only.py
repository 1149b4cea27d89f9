"""INT8 weights without activation ranges: weight-only INT8 and dynamic MatMul."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from onnx import TensorProto, helper, numpy_helper

from mosrt_calibration.graph import Topology, copied, rebuilt

from .qparams import rounded_weights, stored, weight_scales

__all__ = ["dynamic_matmul", "weight_only_int8"]

# Fewer values save less than their scales and nodes cost.
_FEWEST: Final = 4096


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
        weights = node.input[1] if node.name in wanted else ""
        if weights and weights not in unfolded:
            value, axis = topology.value(weights), topology.output_axis(node)
            if value.size >= _FEWEST:
                found, (scales, _) = rounded_weights(value, axis, weight_scales(value, axis))
                along = [1] * value.ndim
                along[axis] = -1
                constants += [
                    numpy_helper.from_array(found, f"{weights}_bytes"),
                    numpy_helper.from_array(scales.reshape(along), f"{weights}_step"),
                ]
                made += _unfolding(weights)
                unfolded[weights] = f"{weights}_unfolded"
        made.append(_rewired(node, unfolded) if weights else node)
    return rebuilt(model, made, [*model.graph.initializer, *constants])


def _unfolding(weights: str) -> list[Any]:
    whole = f"{weights}_whole"
    return [
        helper.make_node(
            "Cast", [f"{weights}_bytes"], [whole], f"{weights}/Cast", to=TensorProto.FLOAT
        ),
        helper.make_node(
            "Mul", [whole, f"{weights}_step"], [f"{weights}_unfolded"], f"{weights}/Mul"
        ),
    ]


def _rewired(node: Any, unfolded: dict[str, str]) -> Any:
    made = copied(node)
    made.input[1] = unfolded.get(node.input[1], node.input[1])
    return made


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
