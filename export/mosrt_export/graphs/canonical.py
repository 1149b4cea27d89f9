"""Rewrites exported graphs: readable names, fast operators, nothing about the exporting machine."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx_ir as ir

__all__ = ["BATCH", "canonicalise"]

BATCH = "batch"
_SCOPES = "pkg.torch.onnx.name_scopes"


def canonicalise(
    model: ir.Model,
    *,
    name: str,
    producer: str,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
) -> None:
    """Rewrites a freshly exported model in place.

    Args:
        model: The output of torch's exporter.
        name: Name of the graph.
        producer: Name and version of the exporter.
        shapes: Shape of every input and output, with names for dynamic dimensions. By default the
            batch is the only dynamic dimension.
    """
    _use_global_pooling(model.graph)
    _name_nodes(model.graph)
    _name_values(model.graph)
    if shapes is None:
        _name_batch(model.graph)
    else:
        _name_dimensions(model.graph, shapes)
    _forget_origin(model, name, producer)


def _use_global_pooling(graph: ir.Graph) -> None:
    """Replaces means over an image by GlobalAveragePool, which runs in a blocked layout."""
    for node in list(graph):
        if node.op_type != "ReduceMean" or node.attributes.get_int("keepdims", 1) != 1:
            continue
        source, axes = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
        if source is None or source.shape is None or axes is None or axes.const_value is None:
            continue
        rank = len(source.shape)
        if rank == 4 and sorted(int(a) % rank for a in axes.const_value.numpy()) == [2, 3]:
            pool = ir.Node(
                "", "GlobalAveragePool", [source], metadata_props=dict(node.metadata_props)
            )
            pool.outputs[0].shape, pool.outputs[0].type = (
                node.outputs[0].shape,
                node.outputs[0].type,
            )
            ir.convenience.replace_nodes_and_values(
                graph, node, [node], [pool], node.outputs, pool.outputs
            )


def _name_nodes(graph: ir.Graph) -> None:
    """Names nodes after the module they come from, e.g. "ssl.…layers.3.attention.q_proj/MatMul"."""
    seen: Counter[str] = Counter()
    for node in graph:
        label = f"{_scope(node)}/{node.op_type}".lstrip("/")
        seen[label] += 1
        node.name = label if seen[label] == 1 else f"{label}_{seen[label]}"


def _scope(node: ir.Node) -> str:
    """Dotted name of the module a node was traced in, or "" if the exporter added the node."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (SyntaxError, ValueError):
        return ""
    return str(scopes[-2]) if len(scopes) >= 2 else ""


def _name_values(graph: ir.Graph) -> None:
    """Names tensors after the node that computes them, constants after their first reader."""
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for i, value in enumerate(node.outputs):
            if value.name not in kept:
                value.name = f"{node.name}:{i}"
    constants: dict[int, ir.Value] = {}
    for node in graph:
        for i, read in enumerate(node.inputs):
            if read is not None and read.is_initializer() and id(read) not in constants:
                constants[id(read)] = read
                if (read.name or "").startswith("val_"):
                    read.name = f"{node.name}:in{i}"
    # In the order of first use, which drops unused constants.
    graph.initializers.clear()
    for read in constants.values():
        graph.initializers.add(read)


def _name_batch(graph: ir.Graph) -> None:
    """Names the dynamic dimension "batch" wherever it appears, as in "2*batch".

    Intermediate shapes are kept, because ONNX Runtime fuses more where it knows them.
    """
    symbol = next(dim for value in graph.inputs for dim in value.shape or () if not _static(dim))
    values = (value for node in graph for value in node.outputs)
    for value in (*graph.inputs, *values):
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    dim if _static(dim) else ir.SymbolicDim(str(dim).replace(str(symbol), BATCH))
                    for dim in value.shape
                ]
            )


def _name_dimensions(graph: ir.Graph, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Names the dimensions of inputs and outputs.

    Intermediate shapes are dropped where they depend on lengths, whose symbols have no names.
    """
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(list(shapes[value.name or ""]))
    outputs = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            known = value.shape is None or all(_static(dim) for dim in value.shape)
            if value not in outputs and not known:
                value.shape = None


def _static(dim: object) -> bool:
    return isinstance(dim, int)


def _forget_origin(model: ir.Model, name: str, producer: str) -> None:
    """Removes stack traces, file names and versions."""
    graph = model.graph
    model.producer_name, _, model.producer_version = producer.partition(" ")
    model.doc_string = model.domain = None
    model.metadata_props.clear()
    graph.name = name
    computed = (value for node in graph for value in node.outputs)
    constants = graph.initializers.values()
    for part in (graph, *graph, *computed, *graph.inputs, *graph.outputs, *constants):
        part.doc_string = None
        part.metadata_props.clear()
