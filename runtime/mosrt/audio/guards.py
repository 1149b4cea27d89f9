"""Detects what is wrong with a recording: guards, and the level statistics behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["FATAL_FLAGS", "FLAGS", "BadAudioPolicy", "LevelMeter"]

BadAudioPolicy = Literal["warn", "nan", "error"]

# Guards that refuse a recording, with the reason.
FATAL_FLAGS: Final[dict[str, str]] = {
    "empty": "it has no samples",
    "too-short": "it is shorter than 0.1 s",
    "non-finite": "it has samples that are nan or infinite",
    "bad-array": "it is not (samples,) or (channels, samples) of float32, float64, int16 or int32",
    "bad-rate": "its sampling rate is not between 4 kHz and 192 kHz",
    "unreadable": "it cannot be read as audio",
}
# All guards; those that are not fatal mark a score that may be unreliable.
FLAGS: Final[dict[str, str]] = {
    **FATAL_FLAGS,
    "silent": "its level is below -60 dBFS",
    "constant": "all of its samples are equal",
    "clipped": "more than 1 % of its samples are at full scale",
    "mostly-silent": "more than 80 % of it is below -60 dBFS",
    "truncated": "the file ends before the length in its header",
    "padded": "it is so short that zeros were added before it",
    "quiet": "no sample exceeds 0.1, so silence removal changed nothing",
}

_SILENCE_DB: Final = -60.0
_FULL_SCALE: Final = 0.99
_CLIPPED_FRACTION: Final = 0.01
_SILENT_FRACTION: Final = 0.8
MIN_DURATION_S: Final = 0.1
MIN_RATE_HZ: Final = 4_000
MAX_RATE_HZ: Final = 192_000


@dataclass(slots=True)
class LevelMeter:
    """Running level statistics of a recording, at its own sampling rate, before processing.

    Attributes:
        n_samples: Number of samples per channel so far.
        finite: Whether all samples so far are finite.
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
        """Adds a block.

        Args:
            block: Samples (samples, channels) float32.
            mono: The block's downmix, (samples,) float32.
            frame_samples: Length in samples of the frames that are judged silent or not.
        """
        lowest, highest = float(mono.min()), float(mono.max())
        self.n_samples += len(mono)
        # Checked before the downmix, where sums may overflow and infinities may cancel.
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
        """The guards that apply to the recording; a fatal one is returned alone."""
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
        elif self._n_silent_frames > _SILENT_FRACTION * max(self._n_frames, 1):
            flags.append("mostly-silent")
        if self._n_full_scale > _CLIPPED_FRACTION * self._n_values:
            flags.append("clipped")
        return tuple(flags)
