"""Reads nodes and constants of an ONNX file without the onnx package.

ONNX files are protocol buffers, whose fields are numbered as in onnx.proto. Only the fields that
must be known before an engine opens a graph are read.
"""

from __future__ import annotations

import mmap
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mosrt.errors import BundleError, os_errors_as

__all__ = ["Node", "Tensor", "check_external_data", "read_graph"]

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_EXTERNAL: Final = 1

_MAX_VARINT_BYTES: Final = 10
# The fields of each kind of message that may contain a tensor: their numbers, and their own kinds.
_CONTENTS: Final = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_LOCATION: Final = b"location"
# An operator that holds a graph compiled for some hardware, or names the file of one.
_COMPILED: Final = b"EPContext"
# Most nodes of a graph after its functions are inlined, which engines do without a limit.
_MAX_NODES: Final = 1_000_000
_MAX_FUNCTIONS: Final = 256

Value = int | memoryview


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant of a graph, not decoded.

    Attributes:
        message: The constant's `TensorProto`.
        directory: Directory of the graph, for data in an external file.
    """

    message: memoryview
    directory: Path

    @property
    def data_type(self) -> int:
        """The constant's type, a value of `TensorProto.DataType`."""
        return next((v for n, v, _ in _fields(self.message) if n == 2 and isinstance(v, int)), 0)

    def all_zeros(self) -> bool:
        """Whether all values are zero.

        Raises:
            OSError: The external file cannot be read.
        """
        external: dict[str, str] = {}
        is_external = False
        for number, value, _ in _fields(self.message):
            if number == 14:
                is_external = value == _EXTERNAL
            elif number == 13 and isinstance(value, memoryview):
                external[_text(value, 1)] = _text(value, 2)
            # Floats, 32-bit and 64-bit integers, doubles, unsigned integers or raw bytes: in all
            # these encodings zeros, and only zeros, are zero bytes.
            elif number in (4, 5, 7, 9, 10, 11) and (
                value != 0 if isinstance(value, int) else any(value)
            ):
                return False
        if not is_external:
            return True
        with (self.directory / external["location"]).open("rb") as stream:
            stream.seek(int(external.get("offset", 0)))
            return not any(stream.read(int(external.get("length", -1))))


@dataclass(frozen=True, slots=True)
class Node:
    """A node: names of its inputs, and its integer attributes."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    integers: dict[str, int]


def read_graph(path: Path) -> tuple[list[Node], dict[str, Tensor]]:
    """Nodes in order, and constants (initialisers and outputs of Constant) by name.

    Raises:
        BundleError: The file cannot be read or is not an ONNX file.
    """
    nodes: list[Node] = []
    constants: dict[str, Tensor] = {}
    with _reading(path):
        for graph in _all(memoryview(path.read_bytes()), 7):
            for node in _all(graph, 1):
                nodes.append(_node(node))
                if nodes[-1].op_type == "Constant":
                    for value in (each for attr in _all(node, 5) for each in _all(attr, 5)):
                        constants[_text(node, 2)] = Tensor(value, path.parent)
            for initializer in _all(graph, 5):
                constants[_text(initializer, 8)] = Tensor(initializer, path.parent)
    return nodes, constants


def check_external_data(path: Path, weights: Path | None) -> None:
    """Refuses a graph that reads any other file than its weights.

    Every tensor of the file is checked: initialisers, also sparse ones, and attributes of nodes, in
    subgraphs and functions too. Messages without an external location are not read.

    Args:
        path: The graph.
        weights: The only file that its tensors may lie in, in or below the graph's directory.

    Raises:
        BundleError: The graph names another file, or data beyond the end of its weights; or a file
            cannot be read, or is not an ONNX file.
    """
    allowed, n_bytes = None, 0
    with _reading(path):
        if weights is not None:
            n_bytes = weights.stat().st_size
            if weights.is_relative_to(path.parent):
                allowed = weights.relative_to(path.parent).as_posix().encode()
        for entry in _external_entries(path):
            places = {value for key, value in entry if key == _LOCATION}
            if places - {allowed}:
                place = next(iter(places - {allowed}))[:200].decode(errors="replace")
                raise BundleError(
                    f"{path}: its weights are in {place!r}, which the manifest does not list for "
                    "it; get the bundle from a source you trust"
                )
            spans = [int(value) for key, value in entry if key in (b"offset", b"length")]
            if min(spans, default=0) < 0 or sum(spans) > n_bytes:
                raise BundleError(
                    f"{path}: reads {weights} beyond its end; copy or export the bundle again"
                )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong while an ONNX file is read into a BundleError."""
    try:
        with os_errors_as(BundleError, f"{path}: cannot be read", "copy the bundle again"):
            yield
    except BundleError:
        raise
    except (IndexError, ValueError) as exc:
        raise BundleError(f"{path}: not an ONNX file, or damaged; export it again") from exc


def _external_entries(path: Path) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yields the description of each tensor's external data, keys and values in order."""
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    if re.search(_COMPILED, mapped):
        raise BundleError(
            f"{path}: holds a graph that is compiled for some hardware; export it again"
        )
    _check_functions(path, memoryview(mapped))
    # The key of each location stands in the file as text. Messages without one are skipped.
    marks = [*(found.start() for found in re.finditer(_LOCATION, mapped)), len(mapped)]

    def has_mark(_kind: str, start: int, length: int) -> bool:
        return marks[bisect_left(marks, start)] < start + length

    for kind, message in _messages("model", memoryview(mapped), has_mark):
        if kind == "tensor":
            yield [pair for entry in _all(message, 13) for pair in _entry(entry)]


def _check_functions(path: Path, model: memoryview) -> None:
    """Raises BundleError if functions call themselves, or become too large once they are inlined.

    Some versions of ONNX Runtime crash on these, and others take all memory.
    """
    bodies = {(_text(each, 10), _text(each, 1)): each for each in _all(model, 25)}
    if not bodies:
        return
    calls = {
        name: Counter(call if call in bodies else None for call in _calls(body, "function"))
        for name, body in list(bodies.items())[:_MAX_FUNCTIONS]
    }
    sizes: dict[tuple[str, str] | None, int] = {None: 1}  # in nodes; None stands for operators
    for _ in calls:  # each round finds one more size at least, unless functions call themselves
        for name, inner in calls.items():
            if name not in sizes and inner.keys() <= sizes.keys():
                sizes[name] = min(sum(n * sizes[call] for call, n in inner.items()), _MAX_NODES)
        if len(sizes) > len(calls):
            break
    graphs = (call for graph in _all(model, 7) for call in _calls(graph, "graph"))
    if len(sizes) <= len(bodies) or sum(sizes.get(call, 1) for call in graphs) >= _MAX_NODES:
        raise BundleError(
            f"{path}: its functions call themselves, are more than {_MAX_FUNCTIONS}, or make a "
            f"graph of more than {_MAX_NODES} nodes; get the bundle from a source you trust"
        )


def _calls(message: memoryview, kind: str) -> Iterator[tuple[str, str]]:
    """Yields the operator, domain and name, of each node in a function or graph, however deep."""
    for inner, each in _messages(kind, message, lambda k, *_: k in ("node", "attribute", "graph")):
        if inner == "node":
            yield _text(each, 7), _text(each, 4)


def _messages(
    kind: str, message: memoryview, wanted: Callable[[str, int, int], bool]
) -> Iterator[tuple[str, memoryview]]:
    """Yields a message and the `wanted` ones in it, by kind, start and length, with their kinds."""
    todo = [(kind, 0, message)]
    while todo:
        kind, start, message = todo.pop()
        yield kind, message
        contents = _CONTENTS[kind]
        for number, value, position in _fields(message) if contents else ():
            inner, first = contents.get(number), start + position
            if inner and isinstance(value, memoryview) and wanted(inner, first, len(value)):
                todo.append((inner, first, value))


def _entry(message: memoryview) -> list[tuple[bytes, bytes]]:
    """Key and value of a `StringStringEntryProto`; all combinations if either is repeated."""
    found: dict[int, list[bytes]] = {1: [], 2: []}
    for number, value, _ in _fields(message):
        if number in found and isinstance(value, memoryview):
            found[number].append(bytes(value))
    return [(key, text) for key in found[1] or [b""] for text in found[2] or [b""]]


def _node(message: memoryview) -> Node:
    integers = {}
    for attribute in _all(message, 5):
        for number, value, _ in _fields(attribute):
            if number == 3 and isinstance(value, int):
                integers[_text(attribute, 1)] = value
    return Node(
        name=_text(message, 3),
        op_type=_text(message, 4),
        inputs=tuple(bytes(name).decode() for name in _all(message, 1)),
        integers=integers,
    )


def _all(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yields the values of a field of messages or strings."""
    for number, value, _ in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _text(message: memoryview, wanted: int) -> str:
    """The first value of a string field; "" if there is none."""
    return next((bytes(value).decode() for value in _all(message, wanted)), "")


def _fields(message: memoryview) -> Iterator[tuple[int, Value, int]]:
    """Yields number, value and position of each field."""
    position, end = 0, len(message)
    while position < end:
        tag = message[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = _varint(message, position)
        kind = tag & 7
        value: Value
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value, position
            continue
        if kind == _BYTES:
            size = message[position]
            if size < 0x80:
                position += 1
            else:
                size, position = _varint(message, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        # Other readers keep the last 32 bits of a larger tag, and would see another field.
        if tag >> 32 or position + size > end:
            raise ValueError("a field reaches beyond the end")
        yield tag >> 3, message[position : position + size], position
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Decodes an integer of seven-bit groups, lowest first; returns it and its end."""
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number without an end")
