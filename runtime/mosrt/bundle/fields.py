"""Reads typed fields from the JSON objects of a manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from mosrt.errors import BundleError

__all__ = ["Fields"]

_T = TypeVar("_T")


class Fields:
    """Typed access to a JSON object; a wrong value is a BundleError that names the field."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping):
            raise BundleError(f"manifest.json: {where} must be an object, not {_kind(value)}")
        self._value = value
        self._where = where

    def get(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        """Field `name`, which must have type `kind`; an integer is accepted for a float."""
        if name not in self._value and default is not None:
            return default
        value = self._value.get(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise BundleError(
                f"manifest.json: {self.path(name)} must be {kind.__name__}, not {_kind(value)}"
            )
        return value

    def positive(self, name: str) -> int:
        """An integer above zero."""
        value = self.get(name, int)
        if value <= 0:
            raise BundleError(f"manifest.json: {self.path(name)} must be positive, not {value}")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise BundleError(f"manifest.json: {self.path(name)} must hold strings only")
        return tuple(values)

    def optional(self, name: str) -> object | None:
        """The value of field `name`, or None if it is missing."""
        return self._value.get(name)

    def section(self, name: str, parse: Callable[[object, str], _T]) -> _T | None:
        """Field `name` parsed by a `from_dict`, or None if it is missing."""
        value = self._value.get(name)
        return None if value is None else parse(value, self.path(name))

    def path(self, name: str) -> str:
        """The full name of a field, from the top of the manifest."""
        return f"{self._where}.{name}" if self._where else name


def _kind(value: object) -> str:
    return "missing" if value is None else type(value).__name__
