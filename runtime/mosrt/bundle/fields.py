"""Reads typed fields from the JSON objects of a manifest."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from mosrt.errors import BundleError

__all__ = ["Fields"]

_T = TypeVar("_T")
# A number that nothing real comes near, but that fits into every integer type.
_MOST: Final = 1_000_000
_MAX_ITEMS: Final = 100_000
_MAX_CHARACTERS: Final = 1000
_NO_TEXT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control codes, half characters


class Fields:
    """Typed access to a JSON object; a wrong value is a BundleError that names the field."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise BundleError(f"manifest.json: {where} must be an object, not {_kind(value)}")
        self._value = value
        self._where = where

    def get(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        """Field `name`, which must have type `kind`, and no absurd length."""
        if name not in self._value and default is not None:
            return default
        value = self._value.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BundleError(
                f"manifest.json: {self.path(name)} must be {kind.__name__}, not {_kind(value)}"
            )
        if isinstance(value, str):
            self._check_text(name, value)
        if isinstance(value, list) and len(value) > _MAX_ITEMS:
            raise BundleError(
                f"manifest.json: {self.path(name)} has {len(value)} items, more than {_MAX_ITEMS}"
            )
        return value

    def positive(self, name: str, most: int = _MOST) -> int:
        """An integer from 1 to `most`."""
        return self.integer(name, 1, most)

    def integer(self, name: str, least: int, most: int) -> int:
        """An integer from `least` to `most`."""
        value = self.get(name, int)
        if value < least:
            wanted = "positive" if least == 1 else f"from {least} to {most}"
            raise BundleError(f"manifest.json: {self.path(name)} must be {wanted}, not {value}")
        if value > most:
            shown = value if value < 10**30 else "a number of many digits"
            raise BundleError(
                f"manifest.json: {self.path(name)} must be at most {most}, not {shown}"
            )
        return value

    def number(self, name: str, least: float = -1e9, most: float = 1e9) -> float:
        """A number from `least` to `most`, which is finite; an integer is accepted for a float."""
        value = self._value.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            value = self.get(name, float)
        elif abs(value) > 2**53:  # a float may not hold it
            value = math.inf if value > 0 else -math.inf
        if not least <= value <= most:
            raise BundleError(
                f"manifest.json: {self.path(name)} must be from {least} to {most}, not {value}"
            )
        return float(value)

    def items(self) -> tuple[tuple[str, object], ...]:
        """The names and values of the object itself."""
        for name in self._value:
            self._check_text(ascii(name[:20]), name)
        return tuple(self._value.items())

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise BundleError(f"manifest.json: {self.path(name)} must hold strings only")
        for value in values:
            self._check_text(name, value)
        return tuple(values)

    def optional(self, name: str) -> object | None:
        """The value of field `name`, or None if it is missing."""
        return self._value.get(name)

    def section(self, name: str, parse: Callable[[object, str], _T]) -> _T | None:
        """Field `name` parsed by a `from_dict`, or None if it is missing."""
        value = self._value.get(name)
        return None if value is None else parse(value, self.path(name))

    def _check_text(self, name: str, value: str) -> None:
        if len(value) > _MAX_CHARACTERS or _NO_TEXT.search(value):
            raise BundleError(
                f"manifest.json: {self.path(name)} must be at most {_MAX_CHARACTERS} characters "
                "without control characters"
            )

    def path(self, name: str) -> str:
        """The full name of a field, from the top of the manifest."""
        return f"{self._where}.{name}" if self._where else name


def _kind(value: object) -> str:
    return "missing" if value is None else type(value).__name__
