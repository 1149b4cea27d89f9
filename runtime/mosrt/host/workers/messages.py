"""Sends Python objects through a socket to a process of the same user and program."""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any, Final

__all__ = ["receive", "send"]

_HEAD: Final = struct.Struct("<QI")
_SIZE: Final = struct.Struct("<Q")


def send(to: socket.socket, value: Any) -> None:
    """Sends an object. Arrays are sent as they lie in memory.

    Raises:
        OSError: The other side is gone.
    """
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raws = [buffer.raw() for buffer in buffers]
    sizes = b"".join(_SIZE.pack(raw.nbytes) for raw in raws)
    to.sendall(_HEAD.pack(len(body), len(raws)) + sizes + body)
    for raw in raws:
        to.sendall(raw)


def receive(source: socket.socket) -> Any:
    """Receives an object.

    Raises:
        EOFError: The other side has closed.
        OSError: The other side is gone.
    """
    length, count = _HEAD.unpack(_exactly(source, _HEAD.size))
    sizes = [size for (size,) in _SIZE.iter_unpack(_exactly(source, count * _SIZE.size))]
    body = _exactly(source, length)
    # The other side is this program, at the other end of a socket that nobody else has.
    return pickle.loads(body, buffers=[_exactly(source, size) for size in sizes])  # noqa: S301


def _exactly(source: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    rest = memoryview(data)
    while rest:
        read = source.recv_into(rest)
        if not read:
            raise EOFError
        rest = rest[read:]
    return data
