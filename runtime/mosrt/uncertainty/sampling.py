"""Random inputs from a seed, the same on every machine and with every version of NumPy.

Only raw bits of PCG64 are used: NumPy never changes that stream, but may change distributions.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from mosrt._arrays import Float32Array, IntArray

__all__ = ["SeededSampler"]

_TWO_32: Final = 2**32


class SeededSampler:
    """A stream of random numbers for one chunk of a recording.

    Args:
        seed: From the manifest.
        chunk: Number of the chunk, so that each has a stream of its own.
    """

    def __init__(self, seed: int, chunk: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence([seed, chunk]))

    def integers(self, bound: int, shape: tuple[int, ...]) -> IntArray:
        """Integers from 0 to bound - 1, `bound` at most 2**31; biased by at most bound / 2**32."""
        return ((self._words(shape) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)

    def keep(self, probability: float, shape: tuple[int, ...]) -> Float32Array:
        """Dropout as a factor: 0 with `probability`, else 1 / (1 - probability); float32."""
        kept = self._words(shape) >= np.uint64(round(probability * _TWO_32))
        return kept * np.float32(1.0 / (1.0 - probability) if probability < 1.0 else 0.0)

    def negatives(self, n_negatives: int, n_frames: int) -> IntArray:
        """Distractor frames for wav2vec v1 as the published model samples them, of two or more.

        Integers below n_frames - 1, then 1 is added where they reach the frame's own index; but
        the published model counts own indices frame by frame and stores distractors copy by copy,
        so that a distractor can be the frame itself. That is kept.

        Returns:
            (n_negatives, n_frames) int64, from 0 to n_frames - 1.
        """
        sampled = self.integers(n_frames - 1, (n_negatives * n_frames,))
        own = np.arange(n_frames).repeat(n_negatives)
        sampled[sampled >= own] += 1
        return sampled.reshape(n_negatives, n_frames)

    def spans(self, probability: float, span_frames: int, n_frames: int) -> Float32Array:
        """Masked frames: spans at random starts, as many as cover `probability` of the frames.

        Starts differ from one another and spans may overlap, as in wav2vec 2.0 (arXiv 2006.11477);
        there is at least one span, and at least one frame stays unmasked.

        Returns:
            (n_frames,) float32, 1 where masked.
        """
        length = min(span_frames, max(1, n_frames - 1))
        room = n_frames - length + 1
        count = min(max(1, round(probability * n_frames / span_frames)), room)
        masked = np.zeros(n_frames, np.float32)
        for start in self.order(room)[:count].tolist():
            masked[start : start + length] = 1.0
        if masked.all() and n_frames > 1:
            masked[self.integers(n_frames, (1,))] = 0.0
        return masked

    def order(self, n: int) -> IntArray:
        """The integers from 0 to n - 1 in random order, (n,) int64."""
        return np.argsort(self._words((n,)), kind="stable").astype(np.int64)

    def _words(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint64]:
        """Integers from 0 to 2**32 - 1, the halves of raw 64-bit words in a fixed order."""
        n = int(np.prod(shape, dtype=np.int64))
        raw = self._bits.random_raw((n + 1) // 2)
        words = np.stack([raw & np.uint64(_TWO_32 - 1), raw >> np.uint64(32)], axis=1)
        return words.ravel()[:n].reshape(shape)
