"""Reads the JSON of a manifest into dataclasses, whose annotations say what each field may hold."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from mosrt.errors import BundleError

__all__ = ["Range", "Section", "manifest_error", "parse"]

_T = TypeVar("_T")
_MAX_CHARACTERS: Final = 1000
_NO_TEXT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control codes, half characters


class Range(NamedTuple):
    """Bounds of a number, or of the number of items in a list or object."""

    least: float
    most: float


# Numbers that nothing real comes near, but that fit into every integer type.
_INTEGERS: Final = Range(1, 1_000_000)
_NUMBERS: Final = Range(-1e9, 1e9)
_ITEMS: Final = Range(0, 100_000)


class Section:
    """A part of the manifest; subclasses are dataclasses, and `parse` reads them.

    An annotation is a section, str, bool, int, float, a tuple or mapping of these, a union with
    None, or Any; `Annotated` adds a `Range` other than the usual one, by which an int is positive.
    A field with a default may be missing or null.
    """

    __slots__ = ()

    def check(self, where: str) -> None:
        """Raises BundleError when fields that are each well formed contradict one another."""


def manifest_error(text: str) -> BundleError:
    """The error for a manifest of which `text` is true."""
    return BundleError(f"manifest.json: {text}")


def parse(value: object, kind: type[_T], where: str) -> _T:
    """A JSON value, found at `where` in the manifest, as a `Section` or what its fields may be.

    Raises:
        BundleError: The value is wrong; the message names the field.
    """
    found: _T = _parse(value, kind, where)
    return found


def _parse(value: object, kind: Any, where: str) -> Any:
    bounds: Range | None = None
    if get_origin(kind) is Annotated:
        kind, bounds = get_args(kind)
    origin, args = get_origin(kind), get_args(kind)
    if value is None and type(None) in args:
        return None
    if origin in (tuple, Mapping):
        members = _expected(value, list if origin is tuple else Mapping, where)
        _check_range(len(members), bounds or _ITEMS, f"{where}: number of items")
        if origin is tuple:
            return tuple(_parse(each, args[0], f"{where}[{i}]") for i, each in enumerate(members))
        return {
            _text(name, f"a name in {where}"): _parse(each, args[1], f"{where}.{name}")
            for name, each in members.items()
        }
    if origin is not None:  # a union
        others = [each for each in args if each is not type(None)]
        return _parse(value, str if str in others and isinstance(value, str) else others[0], where)
    if isinstance(kind, type) and issubclass(kind, Section):
        return _section(value, kind, where)
    return value if kind is Any else _scalar(value, kind, where, bounds)


def _scalar(value: object, kind: type[Any], where: str, bounds: Range | None) -> Any:
    if kind is float and type(value) is int:
        # A float may not hold a larger one, and nothing that large is in any range.
        value = float(value) if abs(value) <= 2**53 else math.inf
    found = _expected(value, kind, where)
    if kind is str:
        return _text(found, where)
    if kind is not bool:
        _check_range(found, bounds or (_INTEGERS if kind is int else _NUMBERS), where)
    return found


def _section(value: object, kind: Any, where: str) -> Any:
    members = _expected(value, Mapping, where)
    hints = _hints(kind)
    values = {}
    for each in dataclasses.fields(kind):
        given = members.get(each.name)
        no_default = each.default is each.default_factory is dataclasses.MISSING
        if given is not None or no_default:
            path = f"{where}.{each.name}" if where else each.name
            values[each.name] = _parse(given, hints[each.name], path)
    section = kind(**values)
    section.check(where)
    return section


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _expected(value: object, kind: type[Any], where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = "an object" if kind is Mapping else kind.__name__
        found = "missing" if value is None else type(value).__name__
        raise manifest_error(f"{where} must be {wanted}, not {found}")
    return value


def _check_range(value: float, bounds: Range, where: str) -> None:
    if not bounds.least <= value <= bounds.most:
        large = isinstance(value, int) and abs(value) > 10**30
        shown = "a number of many digits" if large else value
        raise manifest_error(f"{where} must be from {bounds.least} to {bounds.most}, not {shown}")


def _text(value: str, where: str) -> str:
    if len(value) > _MAX_CHARACTERS or _NO_TEXT.search(value):
        raise manifest_error(
            f"{where} must be at most {_MAX_CHARACTERS} characters without control characters"
        )
    return value
