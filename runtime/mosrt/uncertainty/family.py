"""Uncertainty families: from a recording to one figure per measure and row.

The recording goes in at its true length, since norms span time and padding would change every
value; long ones are cut into parts. Each family turns a part into logits, and those into one figure
per measure and row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mosrt.backends import Backend
from mosrt.bundle.uncertainty_spec import UncertaintySpec

__all__ = ["Listener", "Rows", "Stages", "lengthened", "normalised", "run"]

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Stages = Mapping[str, Backend]

_EPSILON: Final = 1e-7  # wav2vec 2.0's feature extractor, on the variance


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Measures of the rows of one layout of one piece.

    Attributes:
        values: (4, rows), in the order of `mosrt.uncertainty.measures.MEASURES`.
        frames: Feature frame of the piece that each row is about, (rows,), or None if rows are not
            about single frames.
        horizons: Frames from each row's context to what it predicts, (rows,), or None if the model
            does not predict ahead.
    """

    values: FloatArray
    frames: IntArray | None = None
    horizons: IntArray | None = None


class Listener(Protocol):
    """Hears a piece of a recording."""

    def features(self, piece: Float32Array) -> dict[str, Float32Array]:
        """What the first graph gives for a piece (samples,), (frames, size) by name."""
        ...

    def hear(self, piece: Float32Array, number: int) -> dict[str, Rows]:
        """Measures by layout of a piece (samples,), the `number`th of its recording."""
        ...


def lengthened(piece: Float32Array, spec: UncertaintySpec) -> tuple[Float32Array, bool]:
    """A whole recording with the published code's zeros in front if it is very short.

    Returns:
        The samples, and whether zeros were added.
    """
    if len(piece) >= spec.zero_pad_below_samples:
        return piece, False
    return np.concatenate([np.zeros_like(piece), piece]), True


def normalised(piece: Float32Array) -> Float32Array:
    """A piece (samples,) at zero mean and unit variance, as wav2vec 2.0's extractor makes it."""
    centred = piece - piece.mean(dtype=np.float64)
    scale = 1.0 / np.sqrt(np.mean(np.square(centred)) + _EPSILON)
    scaled: Float32Array = (centred * scale).astype(np.float32)
    return scaled


def run(stage: Backend, feeds: Mapping[str, Array], output: str) -> Float32Array:
    """One output of a stage's only network, (batch, ...)."""
    found: Float32Array = stage.run(feeds, [output])[output][0]
    return found
