"""Dynamic graphs: MatMul in bytes that scales its input at every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from onnx import TensorProto, helper

from .graph import Topology, rebuilt
from .qparams import rounded_weights, stored, weight_scales

__all__ = ["dynamic_matmul"]


def dynamic_matmul(model: Any, nodes: Sequence[str], *, weight_bits: int = 8) -> Any:
    """MatMul in bytes with weights per channel, activations scaled as they come at every run.

    Args:
        model: onnx.ModelProto, float32 where the nodes are; left as it is.
        nodes: Names of MatMul nodes with constant weights.
        weight_bits: Of weights, 8 or 7; see `mosrt_calibration.passes.qparams.weight_scales`.
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
    """The nodes that ONNX Runtime makes one of: product, cast, scales, scaling."""
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
