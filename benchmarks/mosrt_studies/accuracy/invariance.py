"""Does a score stay where it is when nothing changes that a listener would rate?

Clean clips are scored as they are, and with silence before or after them that makes up half of the
new clip, at other levels, with an offset, with the opposite sign, and resampled to other rates,
which keeps their content. A score should move by 0.05 MOS in the mean and by 0.15 at most, unless a
flag that the clean clip does not have says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import soxr

from mosrt._arrays import Float32Array, FloatArray
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ

from .heldout import Speech
from .scorers import score_clips

__all__ = ["CHANGES", "MAX_MOS", "MEAN_MOS", "Flagged", "clean", "measure", "movement"]

MEAN_MOS: Final = 0.05
"""Largest mean movement that counts as none, in MOS."""

MAX_MOS: Final = 0.15
"""Largest movement of a clip that counts as none, in MOS."""

_PEAK_DB: Final = -12.0  # of the clean clip, so that an offset does not clip it
_LEVELS_DB: Final = (-40, -30, -20, -3)
_RATES_HZ: Final = (22_050, 24_000, 44_100, 48_000)
_SHARES: Final = (0.25, 0.5)
_OFFSET: Final = np.float32(0.02)

Change = Callable[[Float32Array], tuple[Float32Array, int]]
"""Maps a clip (samples,) at 16 kHz to another and its rate in Hz."""


class Flagged(Protocol):
    """The models: scores, and the flags of each."""

    defaults: tuple[str, ...]

    def with_flags(
        self, waveform: Float32Array, rate_hz: int, /
    ) -> tuple[Mapping[str, float], Mapping[str, frozenset[str]]]:
        """Scores a waveform (samples,); see `mosrt_studies.accuracy.scorers.Scorers`."""


def _at_peak(waveform: Float32Array, peak_db: float) -> Float32Array:
    gain = 10 ** (peak_db / 20) / max(float(np.abs(waveform).max()), 1e-9)
    return (waveform * np.float32(gain)).astype(np.float32)


def _with_silence(share: float, *, leading: bool) -> Change:
    def change(waveform: Float32Array) -> tuple[Float32Array, int]:
        n_silent = round(len(waveform) * share / (1 - share))
        return np.pad(waveform, (n_silent, 0) if leading else (0, n_silent)), SAMPLE_RATE_HZ

    return change


def _at_level(peak_db: float) -> Change:
    return lambda waveform: (_at_peak(waveform, peak_db), SAMPLE_RATE_HZ)


def _at_rate(rate_hz: int) -> Change:
    return lambda waveform: (
        soxr.resample(waveform, SAMPLE_RATE_HZ, rate_hz, quality="VHQ").astype(np.float32),
        rate_hz,
    )


def clean(waveform: Float32Array) -> Float32Array:
    """A clip at the level and in the band of a clean one.

    A resampler removes what is just below half of the lower rate. That is taken out of the clean
    clip, too, so that all rates have the same content.
    """
    resampled = soxr.resample(waveform, SAMPLE_RATE_HZ, _RATES_HZ[-1], quality="VHQ")
    back = soxr.resample(resampled, _RATES_HZ[-1], SAMPLE_RATE_HZ, quality="VHQ")
    return _at_peak(back.astype(np.float32), _PEAK_DB)


CHANGES: Final[Mapping[str, Change]] = {
    **{f"{share:.0%} leading silence": _with_silence(share, leading=True) for share in _SHARES},
    **{f"{share:.0%} trailing silence": _with_silence(share, leading=False) for share in _SHARES},
    **{f"peak at {level_db} dBFS": _at_level(level_db) for level_db in _LEVELS_DB},
    f"offset of {_OFFSET:g}": lambda waveform: (waveform + _OFFSET, SAMPLE_RATE_HZ),
    "opposite polarity": lambda waveform: (-waveform, SAMPLE_RATE_HZ),
    **{f"{rate_hz / 1e3:g} kHz": _at_rate(rate_hz) for rate_hz in _RATES_HZ},
}
"""Changes by name; the clean clip is at 16 kHz with its peak at -12 dBFS."""


def movement(moves: FloatArray, flagged: Sequence[bool]) -> dict[str, Any]:
    """How far a score moved.

    Args:
        moves: Changed less clean score (clips,).
        flagged: Whether the changed clip has a flag that the clean one does not have.

    Returns:
        Mean and largest absolute movement, the signed mean, the share of clips that are flagged,
        and whether those that are not moved within the limits ("holds").
    """
    silent = np.abs(moves[~np.asarray(flagged)])
    return {
        "mean_abs": float(np.abs(moves).mean()),
        "max_abs": float(np.abs(moves).max()),
        "mean": float(moves.mean()),
        "flagged": float(np.mean(flagged)),
        "holds": not len(silent) or bool(silent.mean() <= MEAN_MOS and silent.max() <= MAX_MOS),
    }


def measure(
    clips: Sequence[Speech], scorers: Flagged, changes: Mapping[str, Change] = CHANGES
) -> dict[str, Any]:
    """Scores clips before and after every change, by every model's default score."""
    flags: list[Mapping[str, frozenset[str]]] = []
    before = "clean"
    every: Mapping[str, Change] = {before: lambda clip: (clip, SAMPLE_RATE_HZ), **changes}

    def changed() -> Iterator[tuple[str, Float32Array, int]]:
        for clip in clips:
            for name, change in every.items():
                yield name, *change(clean(clip.waveform))

    def score(waveform: Float32Array, rate_hz: int) -> Mapping[str, float]:
        scores, raised = scorers.with_flags(waveform, rate_hz)
        flags.append(raised)
        return {name: scores[name] for name in scorers.defaults}

    found = score_clips(changed(), score, length=len(clips) * len(every), label="invariances")
    raised = {name: flags[i :: len(every)] for i, name in enumerate(every)}
    scores = {
        model: {name: np.array(values, np.float64) for name, values in by_change.items()}
        for model, by_change in found.items()
    }
    return {
        "limits_mos": {"mean": MEAN_MOS, "max": MAX_MOS},
        "voices": [clip.voice for clip in clips],
        "changes": {
            model: {
                name: movement(
                    by_change[name] - by_change[before],
                    [
                        bool(new[model] - old[model])
                        for old, new in zip(raised[before], raised[name], strict=True)
                    ],
                )
                for name in changes
            }
            for model, by_change in scores.items()
        },
        "scores": scores,
    }
