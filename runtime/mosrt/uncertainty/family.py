"""The interface of a model family: from a chunk of a recording to measures of rows of logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mosrt._arrays import Array, Float32Array, FloatArray, IntArray
from mosrt.backends import Backend

__all__ = ["ModelFamily", "Rows", "Stages", "run"]

Stages = Mapping[str, Backend]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Measures of the rows of one layout in one chunk.

    Attributes:
        values: (4, rows), in the order of `mosrt.uncertainty.measures.MEASURES`.
        frames: Feature frame of the chunk that each row is about, (rows,), or None if rows are not
            about single frames.
        horizons: Frames from each row's context to what it predicts, (rows,), or None if the model
            does not predict ahead.
    """

    values: FloatArray
    frames: IntArray | None = None
    horizons: IntArray | None = None


class ModelFamily(Protocol):
    """Measures how uncertain a model is about a chunk."""

    def features(self, chunk: Float32Array) -> dict[str, Float32Array]:
        """Outputs of the first graph for a chunk (samples,), (frames, size) by name."""
        ...

    def measure(self, chunk: Float32Array, number: int) -> dict[str, Rows]:
        """Measures by layout of a chunk (samples,), the `number`th of its recording."""
        ...


def run(stage: Backend, feeds: Mapping[str, Array], output: str) -> Float32Array:
    """One output of a stage's only network, (batch, ...)."""
    found: Float32Array = stage.run(feeds, [output])[output][0]
    return found
