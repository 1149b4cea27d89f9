"""Says where in a recording there is speech, and where crops can start that have enough of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._arrays import BoolArray, FloatArray, IntArray

__all__ = ["SpeechMask", "StartRanges"]


@dataclass(frozen=True, slots=True, eq=False)
class StartRanges:
    """Ranges of samples at which a crop may start.

    Attributes:
        ranges: First and last start of each range, (n, 2) int64, in order of time.
    """

    ranges: IntArray

    @classmethod
    def all_up_to(cls, last: int) -> StartRanges:
        """Every start up to `last`."""
        return cls(np.array([[0, last]], np.int64))

    @property
    def length(self) -> int:
        """Distance from the first start to the last, without the gaps between ranges."""
        return int((self.ranges[:, 1] - self.ranges[:, 0]).sum())

    def at(self, places: FloatArray | IntArray) -> IntArray:
        """The starts (n,) int64 at distances (n,) from the first one, gaps not counted."""
        whole = places.astype(np.int64)
        ends = np.cumsum(self.ranges[:, 1] - self.ranges[:, 0])
        number = np.searchsorted(ends[:-1], whole, side="left")
        starts: IntArray = whole + (self.ranges[:, 1] - ends)[number]
        return starts


@dataclass(frozen=True, slots=True, eq=False)
class SpeechMask:
    """Which frames of a recording are speech.

    Attributes:
        frames: True for frames with speech, (frames,) bool.
        frame_samples: Length of a frame in samples.
        min_share: Share of a crop's frames that has to be speech.
    """

    frames: BoolArray
    frame_samples: int
    min_share: float

    def span(self, margin_frames: int) -> tuple[int, int]:
        """First sample of speech and one past the last, with a margin; of all without speech."""
        found = np.flatnonzero(self.frames)
        if not found.size:
            return 0, len(self.frames) * self.frame_samples
        first = max(int(found[0]) - margin_frames, 0)
        last = min(int(found[-1]) + 1 + margin_frames, len(self.frames))
        return first * self.frame_samples, last * self.frame_samples

    def cut(self, first: int, last: int) -> SpeechMask:
        """The mask of a part of the recording that begins with a frame, in samples."""
        frames = slice(first // self.frame_samples, -(-last // self.frame_samples))
        return SpeechMask(self.frames[frames], self.frame_samples, self.min_share)

    def starts(self, crop_samples: int, last: int) -> StartRanges:
        """Where a crop can start, up to `last`, and have its share of speech.

        If no crop has that much, those that have most. A range ends where a frame begins, so that
        a crop may have one frame of speech less.
        """
        n_frames = max(1, round(crop_samples / self.frame_samples))
        if len(self.frames) <= n_frames:
            return StartRanges.all_up_to(last)
        counts = np.concatenate([[0], np.cumsum(self.frames)])
        first = np.arange(-(-last // self.frame_samples) + 1)
        ends = np.minimum(first + n_frames, len(self.frames))
        shares = (counts[ends] - counts[np.minimum(first, ends)]) / n_frames
        enough = shares >= min(self.min_share, float(shares.max()))
        edges = np.flatnonzero(np.diff(enough, prepend=False, append=False)).reshape(-1, 2)
        edges[:, 1] -= 1
        return StartRanges(np.minimum(edges * self.frame_samples, last))
