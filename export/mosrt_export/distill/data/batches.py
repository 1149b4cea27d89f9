"""Reads the clips, labels and hints of a data set in batches."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mosrt._arrays import Float32Array, FloatArray, IntArray

from .clips import RUNGS
from .dataset import HINTS, TEST_PARTS, WAVEFORMS, Data, DatasetError, as_float

__all__ = ["Dataset", "clean_waveforms"]

_LABEL_BINS: Final = 24


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a student is trained on: clips, then ladders.

    Attributes:
        waveforms: Memory-mapped clips of each chunk, (clips, CLIP_SAMPLES) int16.
        hints: Memory-mapped frames of a teacher of each chunk, (clips, HINT_FRAMES, size) float16,
            or none.
        labels: Labels (clips, domains) float32, nan where unknown.
        ladders: Numbers of the clips of ladders (ladders, RUNGS), the least degraded first.
    """

    waveforms: Sequence[NDArray[np.int16]]
    hints: Sequence[NDArray[np.float16]]
    labels: Float32Array
    ladders: IntArray

    @classmethod
    def of(cls, data: Data) -> Dataset:
        """Reads what `Data.make` has made."""
        chunks = [chunk for chunk in data.chunks() if chunk[0] not in TEST_PARTS]
        waveforms, hints = (
            [np.load(data.path(*chunk, suffix), mmap_mode="r") for chunk in used]
            for suffix, used in ((WAVEFORMS, chunks), (HINTS, chunks if data.hint_teacher else []))
        )
        labels = np.concatenate([data.labels(*chunk) for chunk in chunks])
        n_single = data.recipe.chunk_clips * sum(part == "clips" for part, _ in chunks)
        return cls(waveforms, hints, labels, np.arange(n_single, len(labels)).reshape(-1, RUNGS))

    @property
    def n_single(self) -> int:
        """Number of clips that are in no ladder."""
        return len(self.labels) - self.ladders.size

    def sha256(self) -> str:
        """Returns the SHA-256 of all labels, which tells data sets apart."""
        return hashlib.sha256(self.labels.tobytes()).hexdigest()

    def groups(self, chosen: IntArray) -> IntArray:
        """Returns a number per clip (clips,), which is the same for all clips of a ladder."""
        n = self.n_single
        return np.where(chosen < n, chosen, n + (chosen - n) // RUNGS)

    def sampling_shares(self) -> FloatArray:
        """Returns the probability of each single clip (clips,), larger where its label is rare.

        It goes with 1 / √(frequency of the first label). Good synthetic speech is at the top of the
        scale, where there are few clips; the square root limits overfitting to their labels.
        """
        first = self.labels[: self.n_single, 0]
        counts, edges = np.histogram(first[np.isfinite(first)], bins=_LABEL_BINS)
        where = np.clip(np.digitize(first, edges) - 1, 0, _LABEL_BINS - 1)
        weights = 1 / np.sqrt(np.maximum(counts[where], 1))
        return np.asarray(weights / weights.sum(), np.float64)

    def waveform_batch(self, chosen: IntArray) -> Float32Array:
        """Returns clips (clips, CLIP_SAMPLES)."""
        return as_float(_rows(self.waveforms, chosen))

    def hint_batch(self, chosen: IntArray) -> Float32Array | None:
        """Returns a teacher's frames (clips, size, HINT_FRAMES), or None without such a teacher.

        Clips that the teacher does not score have nan.
        Each value has a mean of 0 and a standard deviation of 1 over clips and time.
        """
        if not self.hints:
            return None
        mean, deviation = self._hint_statistics
        frames = (_rows(self.hints, chosen).astype(np.float32) - mean) / deviation
        return np.ascontiguousarray(frames.transpose(0, 2, 1))

    @functools.cached_property
    def _hint_statistics(self) -> tuple[Float32Array, Float32Array]:
        some = np.concatenate(
            [
                np.asarray(chunk[:: max(1, len(chunk) // 4)], np.float32)
                for chunk in self.hints[:100]
            ]
        )
        mean, deviation = np.nanmean(some, axis=(0, 1)), np.nanstd(some, axis=(0, 1))
        return mean.astype(np.float32), (deviation + 1e-3).astype(np.float32)


def _rows(chunks: Sequence[NDArray[Any]], chosen: IntArray) -> NDArray[Any]:
    size = len(chunks[0])
    return np.stack([chunks[i // size][i % size] for i in chosen])


def clean_waveforms(folder: Path) -> NDArray[np.int16]:
    """Returns the clean clips (clips, CLIP_SAMPLES) of speakers whose folder is in no other.

    Raises DatasetError if there are none.
    """
    found = []
    for path in sorted(folder.glob("clips-*.npz")):
        with np.load(path) as arrays:
            notes = [note.split("|") for note in arrays["notes"].tolist()]
        rows = [
            i
            for i, (speaker, treatment, _) in enumerate(notes)
            if treatment == "clean" and "/" not in speaker
        ]
        found.append(np.load(path.with_name(path.stem + WAVEFORMS), mmap_mode="r")[rows])
    if not sum(map(len, found)):
        raise DatasetError(f"{folder}: no clean clips of recordings; run `mosrt distill` first")
    return np.concatenate(found)
