"""Halves: two sessions of one large graph, prepared on two threads at once.

ONNX Runtime prepares a graph on one thread, UTMOSv2's for more than half a second. Its halves take
two thirds of that side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

__all__ = ["FIRST", "FORMAT", "SECOND", "Halves"]

FIRST: Final = "first.onnx"
SECOND: Final = "second.onnx"
# Counts up whenever cutting gives other files, so that a cache makes them again.
FORMAT: Final = 2


class Halves:
    """Two sessions as one: the second reads what the first gives.

    Args:
        first: An onnxruntime.InferenceSession.
        second: Another.
    """

    def __init__(self, first: Any, second: Any) -> None:
        self._first, self._second = first, second
        self._given = {tensor.name for tensor in first.get_outputs()}
        self._between = [t.name for t in second.get_inputs() if t.name in self._given]

    @classmethod
    def open(cls, directory: Path, session: Callable[[Path], Any], *, threads: int) -> Halves:
        """Both halves that `ort_cut.cut` left in a directory.

        Args:
            directory: Where they are.
            session: Opens one.
            threads: Threads to do so on.
        """
        paths = [directory / FIRST, directory / SECOND]
        with ThreadPoolExecutor(min(threads, len(paths))) as pool:
            first, second = pool.map(session, paths)
        return cls(first, second)

    def get_inputs(self) -> list[Any]:
        """What the two need of the caller."""
        found = {tensor.name: tensor for tensor in self._second.get_inputs()}
        found |= {tensor.name: tensor for tensor in self._first.get_inputs()}
        return [tensor for name, tensor in found.items() if name not in self._between]

    def get_outputs(self) -> list[Any]:
        """What the two give, what the first gives to the second included."""
        return [*self._first.get_outputs(), *self._second.get_outputs()]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """As onnxruntime.InferenceSession.run."""
        early = [name for name in outputs if name in self._given]
        found = _run(self._first, [*self._between, *early], feeds)
        late = [name for name in outputs if name not in self._given]
        if late:
            found |= _run(self._second, late, {**feeds, **found})
        return [found[name] for name in outputs]


def _run(session: Any, names: Sequence[str], feeds: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {tensor.name for tensor in session.get_inputs()}
    chosen = {name: value for name, value in feeds.items() if name in wanted}
    names = list(dict.fromkeys(names))
    return dict(zip(names, session.run(names, chosen), strict=True))
