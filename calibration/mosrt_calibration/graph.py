"""Graphs: reading with shapes, writing with weights beside, and who makes and reads what."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, numpy_helper, shape_inference

__all__ = [
    "Topology",
    "deduplicate_constants",
    "digest",
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
    """Reads a graph, and infers the type of every tensor; weights beside it are left there.

    A model of any size is a small thing to copy and to change then: it names the place of its
    weights, and `value_of` and `write_graph` fetch them.

    Args:
        path: The graph; weights may lie in a file beside it, which has to stay.

    Returns:
        An onnx.ModelProto whose nodes all have names.
    """
    model = shape_inference.infer_shapes(onnx.load(path, load_external_data=False), data_prop=True)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(path.parent.resolve() / entry.value)
    _name_nodes(model)
    return model


def value_of(tensor: Any) -> NDArray[Any]:
    """A constant tensor's value; one that lies in a file is mapped, not read."""
    if not external_data_helper.uses_external_data(tensor):
        found: NDArray[Any] = numpy_helper.to_array(tensor)
        return found
    entries = {entry.key: entry.value for entry in tensor.external_data}
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    if 0 in shape:
        return np.zeros(shape, kind)
    offset = int(entries.get("offset", 0))
    mapped = np.memmap(entries["location"], kind, "r", offset, (math.prod(shape),))
    return np.asarray(mapped).reshape(shape)


def fetched(model: Any) -> Any:
    """A copy of a model that has all weights inside, for tools that want them there."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            replace_value(tensor, value_of(tensor))
    return copy


def _name_nodes(model: Any) -> None:
    """Gives a name to every node that has none, or another one's."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for i, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{i}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def write_graph(model: Any, path: Path) -> tuple[Path, Path | None]:
    """Writes a graph, and its large tensors to one file beside it; the same model, the same bytes.

    Every large tensor starts on a page and every other one on a cache line, so that a runtime can
    map the file.

    Args:
        model: An onnx.ModelProto with its weights; left as it is.
        path: `<stem>.onnx`; the weights go to `<stem>.onnx.data`.

    Returns:
        The graph's path and the weights' path, None if all of them are small.
    """
    outer = onnx.ModelProto()
    outer.CopyFrom(model)
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


def digest(paths: Iterable[Path | None]) -> str:
    """SHA-256 in hex of some files one after the other."""
    sha256 = hashlib.sha256()
    for path in paths:
        if path is not None:
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    sha256.update(chunk)
    return sha256.hexdigest()


class Topology:
    """Who makes and who reads each tensor of a graph. It does not notice later changes.

    Attributes:
        nodes: By name, in order; `read_graph` sees to it that all have names.
        producer: The node that makes a tensor, by the tensor's name.
        consumers: The nodes that read a tensor, by the tensor's name.
        initializers: Constant tensors (onnx.TensorProto) by name.
        outputs: Names of the graph's outputs.
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
        self._types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.input, *graph.output)
        }

    def weighted(self, node: Any) -> bool:
        """Whether a node multiplies by constant weights: what INT8 makes small and fast."""
        return node.op_type in WEIGHTED_OPS and node.input[1] in self.initializers

    def value(self, name: str) -> NDArray[Any]:
        """A constant tensor's value."""
        return value_of(self.initializers[name])

    def output_axis(self, node: Any) -> int:
        """Axis of a node's constant weights that its outputs are on."""
        if node.op_type == "MatMul":
            return max(0, len(self.initializers[node.input[1]].dims) - 1)
        if node.op_type == "ConvTranspose":
            return 1
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return 0 if node.op_type == "Conv" or transposed else 1

    def is_float_activation(self, name: str) -> bool:
        """Whether a tensor is float32 and depends on the input."""
        return (
            bool(name)
            and name not in self.initializers
            and self._types.get(name) == onnx.TensorProto.FLOAT
        )

    def only_reader(self, name: str) -> Any | None:
        """The node that reads a tensor, if it is the only one and the tensor is no output."""
        readers = self.consumers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def before(self, nodes: Iterable[str]) -> set[str]:
        """Names of all nodes that some nodes depend on, themselves included."""
        found: set[str] = set()
        pending = list(nodes)
        while pending:
            name = pending.pop()
            if name in found:
                continue
            found.add(name)
            read = self.nodes[name].input
            pending += [self.producer[tensor].name for tensor in read if tensor in self.producer]
        return found

    def after(self, nodes: Iterable[str]) -> set[str]:
        """Names of all nodes that depend on some nodes, themselves included."""
        found: set[str] = set()
        pending = list(nodes)
        while pending:
            name = pending.pop()
            if name in found:
                continue
            found.add(name)
            for tensor in self.nodes[name].output:
                pending.extend(node.name for node in self.consumers[tensor])
        return found


def rebuilt(model: Any, nodes: Iterable[Any], constants: Iterable[Any]) -> Any:
    """A model with other nodes, and of some constants those that they read."""
    graph = onnx.GraphProto(name=model.graph.name)
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    graph.initializer.extend(tensor for tensor in constants if tensor.name in read)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    present = {name for node in graph.node for name in node.output}
    graph.value_info.extend(value for value in model.graph.value_info if value.name in present)
    made = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    made.opset_import.extend(model.opset_import)
    return made


def replace_value(tensor: Any, value: NDArray[Any]) -> None:
    """Gives a constant tensor of a model another value of the same shape."""
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))


# Weights are hardly ever equal, and to compare them takes time.
_MOST_BYTES: Final = 1024


def deduplicate_constants(model: Any) -> Any:
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
