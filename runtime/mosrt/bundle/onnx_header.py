"""Reads nodes and constants of an ONNX file without the onnx package.

ONNX files are protocol buffers, whose fields are numbered as in onnx.proto. Only the fields that
must be known before an engine opens a graph are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mosrt.errors import BundleError

__all__ = ["Node", "Tensor", "read_graph"]

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_EXTERNAL: Final = 1

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
        return next((v for n, v in _fields(self.message) if n == 2 and isinstance(v, int)), 0)

    def all_zeros(self) -> bool:
        """Whether all values are zero.

        Raises:
            OSError: The external file cannot be read.
        """
        external: dict[str, str] = {}
        is_external = False
        for number, value in _fields(self.message):
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
        return not is_external or not any(_outside(self.directory, external))


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
    try:
        for graph in _all(memoryview(path.read_bytes()), 7):
            for node in _all(graph, 1):
                nodes.append(_node(node))
                for value in _constant(node):
                    constants[_text(node, 2)] = Tensor(value, path.parent)
            for initializer in _all(graph, 5):
                constants[_text(initializer, 8)] = Tensor(initializer, path.parent)
    except (IndexError, ValueError) as exc:
        raise BundleError(f"{path}: not an ONNX file, or damaged; export it again") from exc
    except OSError as exc:
        raise BundleError(f"{path}: cannot be read ({exc}); copy the bundle again") from exc
    return nodes, constants


def _node(message: memoryview) -> Node:
    integers = {}
    for attribute in _all(message, 5):
        for number, value in _fields(attribute):
            if number == 3 and isinstance(value, int):
                integers[_text(attribute, 1)] = value
    return Node(
        name=_text(message, 3),
        op_type=_text(message, 4),
        inputs=tuple(bytes(name).decode() for name in _all(message, 1)),
        integers=integers,
    )


def _constant(node: memoryview) -> Iterator[memoryview]:
    """Yields the tensor of a Constant node."""
    if _text(node, 4) == "Constant":
        for attribute in _all(node, 5):
            yield from _all(attribute, 5)


def _outside(directory: Path, entry: dict[str, str]) -> bytes:
    """The bytes of a tensor in an external file."""
    with (directory / entry["location"]).open("rb") as stream:
        stream.seek(int(entry.get("offset", 0)))
        return stream.read(int(entry.get("length", -1)))


def _all(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yields the values of a field of messages or strings."""
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _text(message: memoryview, wanted: int) -> str:
    """The first value of a string field; "" if there is none."""
    return next((bytes(value).decode() for value in _all(message, wanted)), "")


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        value: Value
        if kind == _VARINT:
            value, position = _varint(message, position)
        else:
            if kind == _BYTES:
                size, position = _varint(message, position)
            elif kind in (_FIXED32, _FIXED64):
                size = 4 if kind == _FIXED32 else 8
            else:
                raise ValueError(f"wire type {kind}")
            if position + size > len(message):
                raise ValueError("a field reaches beyond the end")
            value = message[position : position + size]
            position += size
        yield tag >> 3, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Decodes an integer of seven-bit groups, lowest first; returns it and its end."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
