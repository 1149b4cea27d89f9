"""Cuts recordings into chunks for the networks, and prepares the samples of each.

A recording of at most `window_samples` is one chunk, at its true length: norms span time, so that
padding would change every value. A longer one is cut into the fewest chunks that are short enough,
as equal as whole frames allow, so that memory stays bounded. Neighbours overlap by the receptive
field of one frame, so that every frame of the recording lies in exactly one chunk.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

import numpy as np

from mosrt._arrays import Float32Array

__all__ = ["chunk_bounds", "normalised", "zero_padded"]


_EPSILON: Final = 1e-7  # wav2vec 2.0's feature extractor, on the variance


def chunk_bounds(
    n_samples: int, *, window_samples: int, hop_samples: int, receptive_samples: int
) -> list[tuple[int, int]]:
    """First sample and one past the last of each chunk.

    Args:
        n_samples: Length of the recording, at least `receptive_samples`.
        window_samples: Length of the longest chunk.
        hop_samples: Samples from one frame to the next.
        receptive_samples: Samples that one frame depends on.
    """
    if n_samples <= window_samples:
        return [(0, n_samples)]
    n_frames = (n_samples - receptive_samples) // hop_samples + 1
    per_chunk = (window_samples - receptive_samples) // hop_samples + 1
    n_chunks = math.ceil(n_frames / per_chunk)
    bounds = [i * n_frames // n_chunks for i in range(n_chunks + 1)]
    return [
        (first * hop_samples, (last - 1) * hop_samples + receptive_samples)
        for first, last in pairwise(bounds)
    ]


def zero_padded(chunk: Float32Array, below_samples: int) -> tuple[Float32Array, bool]:
    """A recording (samples,) with as many zeros before it, if it has under `below_samples`.

    The published code of arXiv 2312.15616 does the same.

    Returns:
        The samples, and whether zeros were added.
    """
    if len(chunk) >= below_samples:
        return chunk, False
    return np.concatenate([np.zeros_like(chunk), chunk]), True


def normalised(chunk: Float32Array) -> Float32Array:
    """A chunk (samples,) at zero mean and unit variance, as wav2vec 2.0's extractor makes it."""
    centred = chunk - chunk.mean(dtype=np.float64)
    scale = 1.0 / np.sqrt(np.mean(np.square(centred)) + _EPSILON)
    scaled: Float32Array = (centred * scale).astype(np.float32)
    return scaled
