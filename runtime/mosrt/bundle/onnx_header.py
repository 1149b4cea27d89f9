"""Reads nodes and constants of an ONNX file without the onnx package.

ONNX files are protocol buffers: numbered fields with values, numbered as in onnx.proto. The few
fields read here are what must be known of a graph before an engine opens it.
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
    """A constant, as it stands in the file.

    Attributes:
        message: Its `TensorProto`.
        directory: Where the graph is, for data in a file beside it.
    """

    message: memoryview
    directory: Path

    @property
    def data_type(self) -> int:
        """Its type, as a number of `TensorProto.DataType`."""
        return next((v for n, v in _fields(self.message) if n == 2 and isinstance(v, int)), 0)

    def all_zeros(self) -> bool:
        """Whether it holds nothing but zeros.

        Raises:
            OSError: Its file cannot be read.
        """
        external: dict[str, str] = {}
        is_external = False
        for number, value in _fields(self.message):
            if number == 14:
                is_external = value == _EXTERNAL
            elif number == 13 and isinstance(value, memoryview):
                external[_text(value, 1)] = _text(value, 2)
            # Floats, 32-bit and 64-bit integers, doubles, unsigned ones, or raw bytes: in all
            # encodings zeros give zero bytes, and nothing else does.
            elif number in (4, 5, 7, 9, 10, 11) and (
                value != 0 if isinstance(value, int) else any(value)
            ):
                return False
        return not is_external or not any(_outside(self.directory, external))


@dataclass(frozen=True, slots=True)
class Node:
    """An operation: its inputs by name, and its attributes that are integers."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    integers: dict[str, int]


def read_graph(path: Path) -> tuple[list[Node], dict[str, Tensor]]:
    """Nodes in order, and constants (initialisers and outputs of Constant) by name.

    Raises:
        BundleError: It is no ONNX file.
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
        raise BundleError(f"{path}: is no ONNX file, or a damaged one; export it again") from exc
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
    """The tensor that a Constant holds."""
    if _text(node, 4) == "Constant":
        for attribute in _all(node, 5):
            yield from _all(attribute, 5)


def _outside(directory: Path, entry: dict[str, str]) -> bytes:
    """The bytes of a tensor that lies in a file beside the graph."""
    with (directory / entry["location"]).open("rb") as stream:
        stream.seek(int(entry.get("offset", 0)))
        return stream.read(int(entry.get("length", -1)))


def _all(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Values of a field that holds messages or strings."""
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _text(message: memoryview, wanted: int) -> str:
    """A field that holds a string, the first if there are several; "" if there is none."""
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
    """An integer in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
