"""Cutting: one ONNX file becomes two that hand little over; see `mosrt.backends.ort_halves`.

protobuf reads and writes the files (ONNX Runtime needs it, too); the package onnx is not asked for,
which is larger than all that runs here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from .ort_halves import FIRST, SECOND

__all__ = ["cut"]

# What handing one more tensor over may cost, as a part of the whole graph.
_COST_OF_A_TENSOR: Final = 0.01
_LARGEST_HALF: Final = 0.75
# The part of ONNX's schema (onnx.proto, IR version 3 and up) that cutting needs: field numbers by
# message. What else there is in a message stays in it, unread.
_SCHEMA: Final[Mapping[str, Mapping[str, tuple[int, str]]]] = {
    "Model": {"graph": (7, "Graph")},
    "Graph": {
        "node": (1, "Node*"),
        "initializer": (5, "Tensor*"),
        "input": (11, "Value*"),
        "output": (12, "Value*"),
        "value_info": (13, "Value*"),
    },
    "Node": {"input": (1, "string*"), "output": (2, "string*"), "attribute": (5, "Attribute*")},
    "Attribute": {"g": (6, "Graph"), "graphs": (11, "Graph*")},
    "Tensor": {"name": (8, "string"), "raw_data": (9, "bytes"), "external_data": (13, "Entry*")},
    "Entry": {"key": (1, "string"), "value": (2, "string")},
    "Value": {"name": (1, "string")},
}


def cut(graph: Path) -> bool:
    """Replaces a graph by two, where that can be done by handing little over.

    They stay beside what the graph keeps its weights in.

    Args:
        graph: An ONNX file whose nodes are in the order they run in.

    Returns:
        Whether it was; else it is left as it is.
    """
    model = _messages()["Model"].FromString(graph.read_bytes())
    nodes = model.graph.node
    if any(a.HasField("g") or a.graphs for node in nodes for a in node.attribute):
        return False  # graphs inside nodes read tensors that the nodes do not name
    place = _best(model.graph)
    if place is None:
        return False
    outputs = {value.name for value in model.graph.output}
    typed = {v.name: v for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    # These have types, too, but must not become inputs: weights that may be given are not packed.
    weights = {tensor.name for tensor in model.graph.initializer}
    for name, mine, others in (
        (FIRST, nodes[: place.index], nodes[place.index :]),
        (SECOND, nodes[place.index :], ()),
    ):
        made = {tensor for node in mine for tensor in node.output if tensor}
        read = {tensor for node in mine for tensor in node.input if tensor}
        needed = outputs | {tensor for node in others for tensor in node.input}
        half = _messages()["Model"]()
        half.CopyFrom(model)
        for field, kept in (
            ("node", mine),
            ("initializer", [t for t in model.graph.initializer if t.name in read]),
            ("input", [v for n, v in typed.items() if n in read - made - weights]),
            ("output", [v for n, v in typed.items() if n in made & needed]),
            ("value_info", ()),  # ONNX Runtime infers them itself
        ):
            half.graph.ClearField(field)
            getattr(half.graph, field).extend(kept)
        (graph.parent / name).write_bytes(half.SerializeToString(deterministic=True))
    graph.unlink()
    return True


@dataclass(frozen=True, slots=True)
class _Place:
    """Between two nodes of a graph.

    Attributes:
        index: Of the node behind it.
        cost: How bad it is to cut here: the larger half as a part of the whole, and a bit more for
            each tensor that goes over.
    """

    index: int
    cost: float


def _best(graph: Any) -> _Place | None:
    """The best place to cut a graph at."""
    found = min(_places(graph), key=lambda place: place.cost, default=None)
    return None if found is None or found.cost > _LARGEST_HALF else found


def _places(graph: Any) -> Iterator[_Place]:
    """Where a graph can be cut: what goes over must be of known type."""
    typed = {value.name for value in graph.value_info}
    n_bytes = {tensor.name: _n_bytes(tensor) for tensor in graph.initializer}
    all_bytes = max(1, sum(n_bytes.values()))
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    open_until: dict[str, int] = {}
    seen_bytes = 0
    for i, node in enumerate(graph.node[:-1]):
        seen_bytes += sum(n_bytes.pop(name, 0) for name in node.input)
        open_until |= {name: last[name] for name in node.output if name in last}
        open_until = {name: end for name, end in open_until.items() if end > i}
        if open_until.keys() <= typed:
            # To prepare a graph takes as long for its nodes as for its weights, about.
            share = ((i + 1) / len(graph.node) + seen_bytes / all_bytes) / 2
            cost = max(share, 1 - share) + _COST_OF_A_TENSOR * len(open_until)
            yield _Place(i + 1, cost)


def _n_bytes(tensor: Any) -> int:
    outside = (int(entry.value) for entry in tensor.external_data if entry.key == "length")
    return next(outside, len(tensor.raw_data))


@functools.cache
def _messages() -> dict[str, Any]:
    """Classes of the messages of `_SCHEMA`."""
    package = "mosrt.onnx_outline"
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package)
    for title, fields in _SCHEMA.items():
        message = file.message_type.add(name=title)
        for name, (number, kind) in fields.items():
            one = kind.rstrip("*")
            field = message.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            if one in _SCHEMA:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{package}.{one}"
            else:
                field.type = kinds.TYPE_BYTES if one == "bytes" else kinds.TYPE_STRING
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        title: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{title}"))
        for title in _SCHEMA
    }
