"""Seeded mutations of bytes and of JSON values."""

import copy
import random
from collections.abc import Sequence
from typing import Any

__all__ = ["mutated", "mutated_json"]

# Lengths and counts that programs get wrong.
_INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_LONG = (*_INTEGERS, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, 5e-324, 1e-9,
    float("nan"), float("inf"), "", "x", "../x", "/etc/passwd", "\x00", "\ud800", "a" * 100_000,
    [], {}, [[]], [None], {"": None}, "nan", "1e999", "C:\\x", "model.onnx/", ".", "..",
)  # fmt: skip


def mutated(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """`data` with one to six changes; parts of `others` may be put in."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if rng.random() < 0.2:
            _put_in(found, rng.choice(others), rng)
        else:
            rng.choice(_MUTATIONS)(found, rng)
    return bytes(found)


def _place(data: bytearray, rng: random.Random) -> int:
    """A position, more often one in the header."""
    if not data:
        return 0
    return rng.randrange(min(len(data), rng.choice((64, 512, len(data)))))


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _integer(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(_LONG) % (1 << 8 * size)
    order: Any = rng.choice(("little", "big"))
    at = _place(data, rng)
    data[at : at + size] = value.to_bytes(size, order)


def _delete(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 4, 16, 256))]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 16, 256)))


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    part = data[at : at + rng.choice((4, 64, 1024))]
    data[at:at] = part * rng.choice((1, 2, 8))


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _put_in(data: bytearray, other: bytes, rng: random.Random) -> None:
    """Puts all of `other` at an end, or a part of it anywhere."""
    kind = rng.random()
    if kind < 0.25:
        data += other
    elif kind < 0.5:
        data[:0] = other
    else:
        at, start = _place(data, rng), rng.randrange(len(other))
        data[at : at + rng.choice((0, 64))] = other[start : start + rng.choice((16, 256, 4096))]


def _fill(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    n = min(rng.choice((4, 64, 1024)), len(data) - at)
    data[at : at + n] = bytes([rng.choice((0, 0xFF, 0x7F))]) * n


_MUTATIONS = (_flip, _flip, _integer, _integer, _delete, _insert, _repeat, _truncate, _fill)


def mutated_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one to four hostile values, missing or unknown keys."""
    found = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 2, 4))):
        holder: Any = found
        key: Any = 0
        while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
            holder = holder[key]
            key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind = rng.random()
        if kind < 0.7 or holder is found:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
        elif kind < 0.85:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(("", "x", "version", str(key) + " "))] = rng.choice(_VALUES)
        else:
            holder.append(copy.deepcopy(holder[key]))
    return found[0]
