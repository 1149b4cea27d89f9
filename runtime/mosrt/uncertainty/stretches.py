"""Stretches: how a long recording is cut so that memory stays bounded.

A recording of at most `window_samples` is heard in one piece, at its true length. A longer one is
cut into the fewest pieces that are short enough, as equal as whole frames allow. Neighbours
overlap by what one frame hears, so that every frame of the whole lies in exactly one piece.
"""

from __future__ import annotations

import math
from itertools import pairwise

__all__ = ["stretches"]


def stretches(
    n_samples: int, *, window_samples: int, hop_samples: int, receptive_samples: int
) -> list[tuple[int, int]]:
    """First sample and one past the last of each piece.

    Args:
        n_samples: Length of the recording, at least `receptive_samples`.
        window_samples: Longest piece.
        hop_samples: Samples from one frame to the next.
        receptive_samples: Samples that one frame hears.
    """
    if n_samples <= window_samples:
        return [(0, n_samples)]
    n_frames = (n_samples - receptive_samples) // hop_samples + 1
    per_piece = (window_samples - receptive_samples) // hop_samples + 1
    pieces = math.ceil(n_frames / per_piece)
    bounds = [i * n_frames // pieces for i in range(pieces + 1)]
    return [
        (first * hop_samples, (last - 1) * hop_samples + receptive_samples)
        for first, last in pairwise(bounds)
    ]
