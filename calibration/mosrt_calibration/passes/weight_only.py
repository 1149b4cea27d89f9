"""Weights in bytes for nodes that compute in float: small files, and activations as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from onnx import TensorProto, helper, numpy_helper

from .graph import Topology, rebuilt
from .qparams import rounded_weights, weight_scales

__all__ = ["byte_weights"]

# Smaller ones save less than their scales and nodes cost.
_FEWEST: Final = 4096


def byte_weights(model: Any, nodes: Sequence[str]) -> Any:
    """Keeps constant weights as bytes with a scale per output; engines unfold them as they load.

    By Cast and Mul, which every engine folds into constants: ONNX Runtime keeps a DequantizeLinear
    of weights for its integer kernels, and would run it every time.

    Args:
        model: onnx.ModelProto, float32 where the nodes are; left as it is.
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
    made = type(node)()
    made.CopyFrom(node)
    made.input[1] = unfolded.get(node.input[1], node.input[1])
    return made
