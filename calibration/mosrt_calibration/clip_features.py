"""Traits: figures of a clip by which calibration clips are spread."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Traits", "traits"]

_FRAME: Final = 512
_FLOOR: Final = 1e-10
_HEARD_DB: Final = 60.0
_LONGEST_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a clip is like.

    Attributes:
        duration_s: Length in seconds.
        loudness_db: Level of the louder half of its frames, dB re full scale.
        tilt_db: Level below 1 kHz over that above, in dB.
        snr_db: Loud frames (95th percentile) over quiet ones (10th), in dB: low in noise and
            reverberation.
        bandwidth_hz: Highest frequency less than 60 dB below the strongest: low after codecs and
            telephones.
    """

    duration_s: float
    loudness_db: float
    tilt_db: float
    snr_db: float
    bandwidth_hz: float

    def values(self) -> tuple[float, ...]:
        """The figures in the order of the fields."""
        return dataclasses.astuple(self)


def traits(samples: NDArray[np.float32], sample_rate_hz: int) -> Traits:
    """Measures a clip.

    Args:
        samples: (samples,) float32 at full scale 1; of a long one the first minute is heard.
        sample_rate_hz: Their rate.
    """
    heard = samples[: _LONGEST_S * sample_rate_hz]
    padded = np.pad(heard, (0, -len(heard) % _FRAME))
    frames = padded.reshape(-1, _FRAME).astype(np.float64)
    levels_db = _db(np.mean(np.square(frames), axis=1))
    loud = frames[levels_db >= np.median(levels_db)]
    power = np.mean(np.abs(np.fft.rfft(loud * np.hanning(_FRAME), axis=1)) ** 2, axis=0)
    frequencies_hz = np.fft.rfftfreq(_FRAME, 1 / sample_rate_hz)
    low = frequencies_hz < 1000.0
    quiet_db, loud_db = np.percentile(levels_db, (10, 95))
    spectrum_db = _db(power)
    return Traits(
        duration_s=len(samples) / sample_rate_hz,
        loudness_db=float(_db(np.mean(np.square(loud)))),
        tilt_db=float(_db(power[low].sum()) - _db(power[~low].sum())),
        snr_db=float(loud_db - quiet_db),
        bandwidth_hz=float(frequencies_hz[spectrum_db > spectrum_db.max() - _HEARD_DB].max()),
    )


def _db(power: NDArray[np.float64] | np.floating[Any]) -> NDArray[np.float64]:
    return 10.0 * np.log10(np.asarray(power) + _FLOOR)
