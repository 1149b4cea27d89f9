"""Protocol buffers as text, as far as configurations of Triton need it.

The format is described at protobuf.dev under "Text Format Language Specification". Writing it here
spares the command the protobuf package; the tests read it back with that, against Triton's schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Word", "to_text"]


class Word(str):
    """A value of an enumeration, which stands without quotes."""

    __slots__ = ()


def to_text(message: Mapping[str, Any]) -> str:
    """A message as text.

    Args:
        message: Fields by name: integers, truth values, strings, `Word`s, messages, and sequences
            of those for repeated fields. A map is a sequence of messages of "key" and "value".
    """
    return "".join(f"{line}\n" for line in _lines(message))


def _lines(message: Mapping[str, Any]) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield f"{name} {{"
            yield from (f"  {line}" for line in _lines(value))
            yield "}"
        elif isinstance(value, str) or not isinstance(value, Sequence):
            yield f"{name}: {_scalar(value)}"
        elif value and isinstance(value[0], Mapping):
            for each in value:
                yield from _lines({name: each})
        else:
            yield f"{name}: [{', '.join(_scalar(each) for each in value)}]"


def _scalar(value: str | int) -> str:
    if isinstance(value, Word):
        return value
    # The escapes of JSON strings are among those of this format; letters stay as they are.
    return json.dumps(value, ensure_ascii=False)
