"""Reads, writes and queries ONNX graphs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper, shape_inference

from mosrt._arrays import Array

__all__ = [
    "WEIGHTED_OPS",
    "Topology",
    "attribute",
    "copied",
    "deduplicate_constants",
    "fetched",
    "read_graph",
    "rebuilt",
    "replace_value",
    "value_of",
    "write_graph",
]

WEIGHTED_OPS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INLINE_BYTES: Final = 1024
_ALIGNMENT_BYTES: Final = 64
_PAGE_BYTES: Final = 4096


def read_graph(path: Path) -> Any:
    """Reads a graph and infers the type of every tensor. External weights are not loaded.

    The model stays small, so that copies are inexpensive: it refers to its weights file, which
    `value_of` and `write_graph` read.

    Args:
        path: The graph. Its weights file, if it has one, must stay where it is.

    Returns:
        An onnx.ModelProto whose nodes all have names.
    """
    model = shape_inference.infer_shapes(onnx.load(path, load_external_data=False), data_prop=True)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(path.parent.resolve() / entry.value)
    _convert_half_weights(model.graph)
    _name_nodes(model)
    return model


def value_of(tensor: Any) -> Array:
    """The value of a constant tensor. External data is memory-mapped."""
    if not external_data_helper.uses_external_data(tensor):
        found: Array = numpy_helper.to_array(tensor)
        return found
    info = external_data_helper.ExternalDataInfo(tensor)
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    if 0 in shape:
        return np.zeros(shape, kind)
    return np.asarray(np.memmap(info.location, kind, "r", info.offset or 0, shape))


def copied(message: Any) -> Any:
    """A copy of a protobuf message, such as a model or a node."""
    made = type(message)()
    made.CopyFrom(message)
    return made


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default` if the node does not have it."""
    found = (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)
    return next(found, default)


def fetched(model: Any) -> Any:
    """A copy of a model with all weights inside."""
    copy = copied(model)
    for tensor in copy.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            replace_value(tensor, value_of(tensor))
    return copy


def _convert_half_weights(graph: Any) -> None:
    """Makes constants of type float16 that are only cast to float32 constants of type float32."""
    uses = Counter(name for node in graph.node for name in node.input)
    halves = {
        each.name: each
        for each in graph.initializer
        if each.data_type == TensorProto.FLOAT16 and uses[each.name] == 1
    }
    for node in [each for each in graph.node if each.op_type == "Cast"]:
        half = halves.get(node.input[0])
        if half is not None and attribute(node, "to", 0) == TensorProto.FLOAT:
            replace_value(half, value_of(half).astype(np.float32))
            half.name = node.output[0]
            graph.node.remove(node)


def _name_nodes(model: Any) -> None:
    """Gives every node a unique name."""
    taken, seen = {node.name for node in model.graph.node}, {""}
    for i, node in enumerate(model.graph.node):
        if node.name in seen:
            name = f"{node.op_type}_{i}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def write_graph(model: Any, path: Path) -> tuple[Path, Path | None]:
    """Writes a graph, with tensors of 1 KiB and more in one file beside it.

    The same model always gives the same bytes. Tensors of a page or more start on a page and the
    others on a cache line, so that a runtime can map the file.

    Args:
        model: An onnx.ModelProto; not changed.
        path: `<stem>.onnx`; the weights go to `<stem>.onnx.data`.

    Returns:
        Path of the graph, and path of the weights or None if there is no such file.
    """
    outer = copied(model)
    del outer.metadata_props[:]
    weights = path.with_name(f"{path.name}.data")
    with weights.open("wb") as sink:
        for tensor in outer.graph.initializer:
            value = value_of(tensor)
            if value.nbytes < _INLINE_BYTES:
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
                continue
            alignment = _PAGE_BYTES if value.nbytes >= _PAGE_BYTES else _ALIGNMENT_BYTES
            sink.write(b"\0" * (-sink.tell() % alignment))
            offset = sink.tell()
            sink.write(value.tobytes())
            kept = onnx.TensorProto(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=b"0"
            )
            external_data_helper.set_external_data(
                kept, location=weights.name, offset=offset, length=value.nbytes
            )
            kept.ClearField("raw_data")
            tensor.CopyFrom(kept)
        empty = sink.tell() == 0
    path.write_bytes(outer.SerializeToString(deterministic=True))
    if empty:
        weights.unlink()
        return path, None
    return path, weights


class Topology:
    """Producer and consumers of each tensor of a graph, as it is when this is made.

    Attributes:
        nodes: Nodes by name, in the order of the graph.
        producer: The node that makes a tensor, by name of the tensor.
        consumers: The nodes that read a tensor, by name of the tensor.
        initializers: Constant tensors (onnx.TensorProto) by name.
        outputs: Names of the graph's outputs.
        values: Types and shapes (onnx.ValueInfoProto) of tensors that are not constant, by name.
    """

    def __init__(self, model: Any) -> None:
        graph = model.graph
        self.nodes: dict[str, Any] = {node.name: node for node in graph.node}
        self.producer: dict[str, Any] = {}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.consumers[name].append(node)
            for name in node.output:
                self.producer[name] = node
        self.initializers: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.values: dict[str, Any] = {
            value.name: value for value in (*graph.value_info, *graph.input, *graph.output)
        }

    def weighted(self, node: Any) -> bool:
        """Whether a node multiplies by constant weights."""
        return node.op_type in WEIGHTED_OPS and node.input[1] in self.initializers

    def value(self, name: str) -> Array:
        """The value of a constant tensor."""
        return value_of(self.initializers[name])

    def output_axis(self, node: Any) -> int:
        """Output axis of a node's constant weights."""
        if node.op_type == "MatMul":
            return max(0, len(self.initializers[node.input[1]].dims) - 1)
        if node.op_type == "ConvTranspose":
            return 1
        return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1

    def is_float_activation(self, name: str) -> bool:
        """Whether a tensor is FP32 and not a constant."""
        return (
            name in self.values
            and name not in self.initializers
            and self.values[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        )

    def only_reader(self, name: str) -> Any | None:
        """The only node that reads a tensor; None if there are several or it is a graph output."""
        readers = self.consumers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def before(self, nodes: Iterable[str]) -> set[str]:
        """Names of all nodes that some nodes depend on, and of those nodes."""
        return self._reached(nodes, self._makers)

    def after(self, nodes: Iterable[str]) -> set[str]:
        """Names of all nodes that depend on some nodes, and of those nodes."""
        return self._reached(nodes, self._readers)

    def neighbours(self, nodes: Iterable[str]) -> set[str]:
        """Names of the nodes that make what some nodes read, or read what they make."""
        return {
            near.name
            for name in nodes
            for step in (self._makers, self._readers)
            for near in step(self.nodes[name])
        }

    def _makers(self, node: Any) -> list[Any]:
        return [self.producer[name] for name in node.input if name in self.producer]

    def _readers(self, node: Any) -> list[Any]:
        return [reader for name in node.output for reader in self.consumers[name]]

    def _reached(self, nodes: Iterable[str], step: Callable[[Any], list[Any]]) -> set[str]:
        found: set[str] = set()
        pending = list(nodes)
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending += [node.name for node in step(self.nodes[name])]
        return found


def rebuilt(model: Any, nodes: Iterable[Any], constants: Iterable[Any]) -> Any:
    """A model with the given nodes, and those of the given constants that they read."""
    nodes, old = list(nodes), model.graph
    read = {name for node in nodes for name in node.input} | {value.name for value in old.output}
    made = {name for node in nodes for name in node.output}
    graph = onnx.helper.make_graph(
        nodes,
        old.name,
        old.input,
        old.output,
        initializer=[tensor for tensor in constants if tensor.name in read],
        value_info=[value for value in old.value_info if value.name in made],
    )
    return onnx.helper.make_model(
        graph, ir_version=model.ir_version, opset_imports=model.opset_import
    )


def replace_value(tensor: Any, value: Array) -> None:
    """Replaces the value of a constant tensor of a model."""
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))


# Larger constants are hardly ever equal, and comparing them takes time.
_MOST_BYTES: Final = 1024


def deduplicate_constants(model: Any) -> Any:
    """A graph in which small constants of the same value are one constant.

    Most zero points of Q/DQ pairs are equal. Engines prepare every constant as they load a graph,
    and zero points are a quarter of the constants of a network with hundreds of layers. INT8
    constants are not merged: where ONNX Runtime makes weights unsigned to add exactly, it cannot
    do so for a zero point that several weights share.

    Args:
        model: onnx.ModelProto; not changed.
    """
    first: dict[bytes, str] = {}
    instead: dict[str, str] = {}
    kept = []
    for tensor in model.graph.initializer:
        inside = not external_data_helper.uses_external_data(tensor)
        if inside and tensor.ByteSize() < _MOST_BYTES and tensor.data_type != TensorProto.INT8:
            value = copied(tensor)
            value.ClearField("name")
            name = first.setdefault(value.SerializeToString(deterministic=True), tensor.name)
            if name != tensor.name:
                instead[tensor.name] = name
                continue
        kept.append(tensor)
    nodes = [copied(node) for node in model.graph.node]
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = instead.get(name, name)
    return rebuilt(model, nodes, kept)
