"""Microphones: images as other microphones would have heard the same speech."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from .images import MEL

__all__ = ["other_microphones"]

_KNOTS: Final = 7
_DEVIATION_DB: Final = 3.0
_SHARE: Final = 0.7


def other_microphones(
    images: torch.Tensor, speeches: NDArray[np.int64], rng: np.random.Generator
) -> torch.Tensor:
    """Images with a smooth random frequency response added to most of them.

    Args:
        images: (clips, windows, mels, frames) float32, from 0, so many dB below the loudest, to 1.
        speeches: (clips,), equal where clips are of the same speech: they get the same microphone,
            so that what differs between them stays what it was.
        rng: Source of the responses: knots of 3 dB standard deviation, straight lines in between.

    Returns:
        Images of the same shape, again with the loudest at 1.
    """
    different, which = np.unique(speeches, return_inverse=True)
    knots = rng.normal(0, _DEVIATION_DB / MEL.floor_db, (len(different), _KNOTS))
    knots *= rng.random((len(different), 1)) < _SHARE
    at = np.linspace(0, 1, images.shape[2])
    curves = np.stack([np.interp(at, np.linspace(0, 1, _KNOTS), row) for row in knots])
    shifted = images + torch.from_numpy(curves[which].astype(np.float32))[:, None, :, None]
    loudest = shifted.amax(dim=(2, 3), keepdim=True)
    return (shifted + (1 - loudest)).clamp_(0, 1)
