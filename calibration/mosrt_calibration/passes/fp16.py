"""Converts a graph to FP16, except where range or precision needs FP32."""

from __future__ import annotations

from typing import Any, Final

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from mosrt_calibration.graph import Topology, attribute, copied, fetched

from .targets import front_end, heads

__all__ = ["to_fp16"]

_NORMS: Final = frozenset({
    "BatchNormalization", "Exp", "GlobalAveragePool", "GroupNormalization", "InstanceNormalization",
    "LayerNormalization", "Log", "LogSoftmax", "Pow", "Reciprocal", "ReduceL2", "ReduceMean",
    "ReduceSum", "ReduceSumSquare", "Softmax", "Sqrt",
})  # fmt: skip
_ARITHMETIC: Final = ("Add", "Div", "Mul", "Sub")


def to_fp16(model: Any) -> Any:
    """An FP16 graph whose inputs and outputs stay FP32.

    Norms and softmax stay FP32, whether they are one operator or several: arithmetic next to a
    mean, a root or a reciprocal counts as part of them. The heads, which compute scores and
    logits, all nodes after them, and a front end in the graph stay FP32 as well.

    Args:
        model: FP32 onnx.ModelProto; not changed.
    """
    copy = fetched(model)
    topology = Topology(copy)
    in_front = front_end(topology)
    kept = topology.after(heads(topology)) | _norms(topology) | in_front
    half = convert_float_to_float16(
        copy,
        keep_io_types=True,
        disable_shape_infer=True,  # done by read_graph
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_NORMS],
        node_block_list=sorted(kept),
    )
    _drop_round_trips(half, in_front, Topology(model))
    return half


def _drop_round_trips(model: Any, nodes: set[str], before: Topology) -> None:
    """Removes casts to FP16 and back between FP32 nodes, in place.

    The converter puts both casts on every edge between two FP32 nodes, and one behind constants,
    which it rounds to FP16 if an FP16 node reads them as well.

    Args:
        model: The converted graph.
        nodes: Names of its FP32 nodes.
        before: The FP32 graph.
    """
    graph = model.graph
    full = onnx.TensorProto.FLOAT
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for i, name in enumerate(node.input if node.name in nodes else ()):
            if name not in casts or attribute(casts[name], "to", full) != full:
                continue
            source = casts[name].input[0]
            if source in casts:
                node.input[i] = casts[source].input[0]
            elif kinds.get(source) == full:
                node.input[i] = source
            elif source in kinds:
                node.input[i] = f"{source}_float32"
                if node.input[i] not in kinds:
                    constant = copied(before.initializers[source])
                    constant.name = node.input[i]
                    graph.initializer.append(constant)
                    kinds[constant.name] = full
    while True:
        read = {name for node in graph.node for name in node.input}
        read |= {value.name for value in graph.output}
        unread = [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in read]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)


def _norms(topology: Topology) -> set[str]:
    """Arithmetic nodes next to a reduction, a root or a reciprocal."""
    norms = {name for name, node in topology.nodes.items() if node.op_type in _NORMS}
    neighbours = topology.neighbours(norms)
    return {name for name in neighbours if topology.nodes[name].op_type in _ARITHMETIC}
