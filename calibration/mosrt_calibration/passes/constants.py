"""Sharing: small constants of a graph that are equal, once."""

from __future__ import annotations

from typing import Any, Final

import onnx
from onnx import TensorProto, external_data_helper

from .graph import rebuilt

__all__ = ["share_constants"]

# Weights are hardly ever equal, and to compare them takes time.
_MOST_BYTES: Final = 1024


def share_constants(model: Any) -> Any:
    """A graph whose nodes read one constant where they read several of the same value.

    Zero points of Q/DQ pairs mostly are: engines prepare every constant of a graph as they load it,
    and of a network of hundreds of layers these are a quarter. Signed bytes stay several: ONNX
    Runtime, asked for exact sums, makes weights unsigned, and cannot do so to the zero point that
    other weights have, too.

    Args:
        model: onnx.ModelProto; left as it is.
    """
    first: dict[bytes, str] = {}
    instead: dict[str, str] = {}
    kept = []
    for tensor in model.graph.initializer:
        inside = not external_data_helper.uses_external_data(tensor)
        if inside and tensor.ByteSize() < _MOST_BYTES and tensor.data_type != TensorProto.INT8:
            value = onnx.TensorProto()
            value.CopyFrom(tensor)
            value.ClearField("name")
            name = first.setdefault(value.SerializeToString(deterministic=True), tensor.name)
            if name != tensor.name:
                instead[tensor.name] = name
                continue
        kept.append(tensor)
    nodes = []
    for node in model.graph.node:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for i, name in enumerate(node.input):
            made.input[i] = instead.get(name, name)
        nodes.append(made)
    return rebuilt(model, nodes, kept)
