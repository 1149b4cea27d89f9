"""Guards: what can be wrong with a recording, and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["FATAL_FLAGS", "FLAGS", "BadAudioPolicy", "LevelMeter"]

BadAudioPolicy = Literal["warn", "nan", "error"]

# Flags of recordings that no model can score.
FATAL_FLAGS: Final[dict[str, str]] = {
    "empty": "it has no samples",
    "too-short": "it is shorter than 0.1 s",
    "non-finite": "it has samples that are nan or infinite",
    "bad-array": "it is no waveform: (samples,) or (channels, samples) of float or int16/int32",
    "bad-rate": "its sampling rate is not between 4 kHz and 192 kHz",
    "unreadable": "it cannot be read as audio",
}
# Flags of recordings whose score may mean little.
FLAGS: Final[dict[str, str]] = {
    **FATAL_FLAGS,
    "silent": "its level is below -60 dBFS",
    "constant": "all its samples are equal",
    "clipped": "more than 1 % of its samples are at full scale",
    "mostly-silent": "more than 80 % of it is below -60 dBFS",
    "truncated": "the file ends before its header says so",
    "padded": "it is so short that the model heard zeros before it",
    "quiet": "no sample exceeds 0.1, so silence removal left it as it is",
}

_SILENCE_DB: Final = -60.0
_FULL_SCALE: Final = 0.99
_CLIPPED_SHARE: Final = 0.01
_SILENT_SHARE: Final = 0.8
MIN_DURATION_S: Final = 0.1
MIN_RATE_HZ: Final = 4_000
MAX_RATE_HZ: Final = 192_000


@dataclass(slots=True)
class LevelMeter:
    """Running level statistics of a recording, at its own rate and before any processing.

    Attributes:
        n_samples: Samples per channel seen.
        finite: Whether all were finite.
    """

    n_samples: int = 0
    finite: bool = True
    _energy: float = 0.0
    _lowest: float = np.inf
    _highest: float = -np.inf
    _n_values: int = 0
    _n_full_scale: int = 0
    _n_frames: int = 0
    _n_silent_frames: int = 0

    def add(
        self, block: npt.NDArray[np.float32], mono: npt.NDArray[np.float32], frame_samples: int
    ) -> None:
        """Takes in a block.

        Args:
            block: The block's samples, (samples, channels).
            mono: Their downmix, (samples,).
            frame_samples: Length of the frames that count as silent or not.
        """
        lowest, highest = float(mono.min()), float(mono.max())
        self.n_samples += len(mono)
        # Sums of finite values may overflow, and infinities may cancel in the downmix.
        self.finite = self.finite and bool(np.isfinite(block).all())
        if not self.finite:
            return
        self._lowest = min(self._lowest, lowest)
        self._highest = max(self._highest, highest)
        self._n_values += block.size
        self._n_full_scale += int(np.count_nonzero(np.abs(block) >= _FULL_SCALE))
        squares = np.square(mono, dtype=np.float64)
        self._energy += float(squares.sum())
        whole = len(mono) // frame_samples * frame_samples
        if whole:
            power = squares[:whole].reshape(-1, frame_samples).mean(axis=1)
            self._n_frames += len(power)
            self._n_silent_frames += int(np.count_nonzero(power < 10 ** (_SILENCE_DB / 10)))

    def flags(self, sample_rate_hz: int, min_duration_s: float = MIN_DURATION_S) -> tuple[str, ...]:
        """The guards that the recording trips, the fatal one alone if there is one."""
        if not self.n_samples:
            return ("empty",)
        if not self.finite:
            return ("non-finite",)
        if self.n_samples < min_duration_s * sample_rate_hz:
            return ("too-short",)
        flags = []
        silent = self._energy / self.n_samples < 10 ** (_SILENCE_DB / 10)
        if self._lowest == self._highest:
            flags.append("constant")
        if silent:
            flags.append("silent")
        elif self._n_silent_frames > _SILENT_SHARE * max(self._n_frames, 1):
            flags.append("mostly-silent")
        if self._n_full_scale > _CLIPPED_SHARE * self._n_values:
            flags.append("clipped")
        return tuple(flags)
