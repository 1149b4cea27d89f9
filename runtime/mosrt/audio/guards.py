"""Detects what is wrong with a recording: guards, and the level statistics behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["FATAL_FLAGS", "FLAGS", "TOO_LOUD", "BadAudioPolicy", "LevelMeter"]

BadAudioPolicy = Literal["warn", "nan", "error"]

# Guards that refuse a recording, with what is wrong.
FATAL_FLAGS: Final[dict[str, str]] = {
    "empty": "it has no samples",
    "too-short": "it is shorter than 0.1 s",
    "non-finite": "it has samples that are nan or infinite",
    "out-of-range": "it has samples beyond 1e10; full scale is 1",
    "bad-array": "it is not (samples,) or (channels, samples) of float32, float64, int16 or int32",
    "bad-rate": "its sampling rate is not between 4 kHz and 192 kHz",
    "unreadable": "it cannot be read as audio",
}
# All guards. Those that are not fatal mark a score that may be unreliable.
FLAGS: Final[dict[str, str]] = {
    **FATAL_FLAGS,
    "silent": "its level is below -60 dBFS",
    "channels-cancel": "its channels cancel each other, as if one were inverted",
    "constant": "all of its samples are equal",
    "clipped": "more than 1 % of its samples are at full scale",
    "over-full-scale": "it has samples beyond 4; full scale is 1",
    "dc-offset": "its mean is over 0.3 % of full scale and over a tenth of its RMS level",
    "mostly-silent": "more than 80 % of it is below -60 dBFS",
    "long-silence": "one silence takes over 10 s, or over 2 s and a fifth of it",
    "truncated": "the file ends before the length in its header",
    "unread": "more follows the audio that could be read",
    "padded": "it is so short that zeros were put before it",
    "quiet": "no sample exceeds 0.1, so silence removal changed nothing",
}

TOO_LOUD: Final = "over-full-scale"
"""The flag of recordings for which a model may give nan."""

_SILENCE_POWER: Final = 10 ** (-60.0 / 10)
_FULL_SCALE: Final = 0.99
_CLIPPED_FRACTION: Final = 0.01
_SILENT_FRACTION: Final = 0.8
# Lossy coding and resampling overshoot full scale, but not by 12 dB.
_LOUDEST: Final = 4.0
# More than 32-bit integers that were not scaled to [-1, 1], and less than what overflows in models.
_ABSURD: Final = 1e10
_DC_OFFSET, _DC_FRACTION = 0.003, 0.1
# Channels cancel if the power of their mean is below this share of what it would be if they were
# independent.
_CANCELLED_POWER: Final = 0.1
_LONG_SILENCE_S, _LONG_SILENCE_FRACTION, _LONGEST_SILENCE_S = 2.0, 0.2, 10.0
MIN_DURATION_S: Final = 0.1
MIN_RATE_HZ: Final = 4_000
MAX_RATE_HZ: Final = 192_000


@dataclass(slots=True)
class LevelMeter:
    """Running level statistics of a recording, at its own sampling rate, before processing.

    Attributes:
        n_samples: Number of samples per channel so far.
        finite: Whether all samples so far are finite.
        peak: Largest magnitude of a sample so far, of any channel.
    """

    n_samples: int = 0
    finite: bool = True
    peak: float = 0.0
    _energy: float = 0.0
    _sum: float = 0.0
    _channel_energy: float = 0.0
    _independent_energy: float = 0.0
    _lowest: float = np.inf
    _highest: float = -np.inf
    _n_values: int = 0
    _n_full_scale: int = 0
    _n_frames: int = 0
    _n_silent_frames: int = 0
    _n_still_frames: int = 0
    _still_run: int = 0
    _longest_still_run: int = 0

    @property
    def usable(self) -> bool:
        """Whether all samples so far are finite and in range."""
        return self.finite and self.peak <= _ABSURD

    def add(
        self, block: npt.NDArray[np.float32], mono: npt.NDArray[np.float32], frame_samples: int
    ) -> None:
        """Adds a block.

        Args:
            block: Samples (samples, channels) float32.
            mono: The block's downmix, (samples,) float32.
            frame_samples: Length in samples of the frames that are judged silent or not.
        """
        self.n_samples += len(mono)
        if not len(mono):
            return
        # Not of the downmix: its sums may overflow, and infinities of two channels may cancel.
        lowest, highest = float(block.min()), float(block.max())  # nan if any sample is
        self.finite = self.finite and math.isfinite(lowest) and math.isfinite(highest)
        peak = max(-lowest, highest)
        self.peak = max(self.peak, peak)
        if not self.usable:
            return
        self._n_values += block.size
        if peak >= _FULL_SCALE:
            self._n_full_scale += int(np.count_nonzero(np.abs(block) >= _FULL_SCALE))
        squares = np.square(mono, dtype=np.float64)
        energy = float(squares.sum())
        self._energy += energy
        if (n_channels := block.shape[1]) > 1:
            energy = float(np.square(block, dtype=np.float64).sum()) / n_channels
            lowest, highest = float(mono.min()), float(mono.max())
        self._channel_energy += energy
        self._independent_energy += energy / n_channels
        self._lowest = min(self._lowest, lowest)
        self._highest = max(self._highest, highest)
        whole = len(mono) // frame_samples * frame_samples
        if whole:
            power = squares[:whole].reshape(-1, frame_samples).mean(axis=1)
            self._n_frames += len(power)
            self._n_silent_frames += int(np.count_nonzero(power < _SILENCE_POWER))
            sums = np.add.reduceat(mono[:whole], np.arange(0, whole, frame_samples))
            self._sum += float(sums.sum(dtype=np.float64))
            means = sums.astype(np.float64) / frame_samples
            self._add_still(power - np.square(means) < _SILENCE_POWER)
        self._sum += float(mono[whole:].sum())

    def _add_still(self, still: npt.NDArray[np.bool_]) -> None:
        """Counts frames that are silent once their mean is removed, and their longest run."""
        self._n_still_frames += int(np.count_nonzero(still))
        breaks = np.flatnonzero(~still)
        if not breaks.size:
            self._still_run += len(still)
            self._longest_still_run = max(self._longest_still_run, self._still_run)
            return
        longest = max(self._still_run + int(breaks[0]), int(np.diff(breaks).max(initial=1)) - 1)
        self._still_run = len(still) - 1 - int(breaks[-1])
        self._longest_still_run = max(self._longest_still_run, longest, self._still_run)

    def flags(self, sample_rate_hz: int, min_duration_s: float = MIN_DURATION_S) -> tuple[str, ...]:
        """The guards that apply to the recording; a fatal one is returned alone."""
        if not self.n_samples:
            return ("empty",)
        if not self.finite:
            return ("non-finite",)
        if self.peak > _ABSURD:
            return ("out-of-range",)
        if self.n_samples < min_duration_s * sample_rate_hz:
            return ("too-short",)
        power, mean = self._energy / self.n_samples, self._sum / self.n_samples
        sound = max(0.0, power - mean * mean)  # without the mean
        constant = self._lowest == self._highest
        offset = not constant and abs(mean) > max(_DC_OFFSET, _DC_FRACTION * sound**0.5)
        silent = (sound if offset else power) < _SILENCE_POWER
        n_silent = self._n_still_frames if offset else self._n_silent_frames
        loud = self._channel_energy / self.n_samples >= _SILENCE_POWER
        flags = []
        if loud and self._energy < _CANCELLED_POWER * self._independent_energy:
            flags.append("channels-cancel")
            constant, silent = False, False
        elif n_silent > _SILENT_FRACTION * max(self._n_frames, 1) and not silent:
            flags.append("mostly-silent")
        elif not silent and self._long_silence(frame_samples(sample_rate_hz) / sample_rate_hz):
            flags.append("long-silence")
        if silent:
            flags.insert(0, "silent")
        if constant:
            flags.insert(0, "constant")
        if self._n_full_scale > _CLIPPED_FRACTION * self._n_values:
            flags.append("clipped")
        elif offset:  # clipping alone gives speech a mean
            flags.append("dc-offset")
        if self.peak > _LOUDEST:
            flags.append(TOO_LOUD)
        return tuple(flags)

    def _long_silence(self, frame_s: float) -> bool:
        longest_s = self._longest_still_run * frame_s
        fraction = self._longest_still_run / max(self._n_frames, 1)
        return longest_s > _LONGEST_SILENCE_S or (
            longest_s > _LONG_SILENCE_S and fraction > _LONG_SILENCE_FRACTION
        )


def frame_samples(sample_rate_hz: int) -> int:
    """Samples in the 20 ms that are judged silent or not."""
    return max(1, sample_rate_hz // 50)
