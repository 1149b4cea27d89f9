"""Do scores put recordings and speech synthesisers in the order that any listener would?

flite's statistical voices slt and rms, its diphone voices at 16 kHz (kal16) and 8 kHz (kal), and
the formant synthesiser espeak-ng read the same sentences; held-out recordings have sentences of
their own. All clips have the same level. Intervals resample sentences, the same for both voices
where both read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mosrt._arrays import FloatArray
from mosrt_bench.stats.bootstrap import percentile_interval, resample_indices
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ
from mosrt_export.nano.voices import (
    VoiceError,
    missing_programs,
    sentences,
    speak,
    synthetic_voices,
)

from .heldout import Speech, levelled, utterances
from .scorers import ScoreClip, score_clips

__all__ = [
    "ORDER",
    "READERS",
    "RECORDINGS",
    "difference",
    "mean",
    "measure",
    "score_readers",
    "verdicts",
]


RECORDINGS: Final = "recordings"
READERS: Final = ("flite slt", "flite rms", "flite kal16", "flite kal", "espeak-ng en-us")
ORDER: Final = (
    (RECORDINGS, "flite slt"),
    (RECORDINGS, "flite rms"),
    ("flite slt", "flite kal16"),
    ("flite rms", "flite kal16"),
    ("flite kal16", "flite kal"),
    ("flite slt", "espeak-ng en-us"),
    ("flite rms", "espeak-ng en-us"),
)
"""Pairs (better, worse) on which listeners agree."""

_SHORTEST_S: Final = 2.0
_RESAMPLES: Final = 2000


def mean(scores: FloatArray) -> dict[str, Any]:
    """The mean of scores (clips,) with a 95 % bootstrap interval."""
    return _interval(scores.mean(), scores[_indices(scores, 0)].mean(axis=1))


def difference(better: FloatArray, worse: FloatArray, *, paired: bool) -> dict[str, Any]:
    """The difference of the means of two sets of scores, with a 95 % interval.

    Args:
        better: (clips,) scores.
        worse: (clips,) scores.
        paired: Whether clips at the same position have the same sentence.
    """
    if paired:
        drawn = (better - worse)[_indices(better, 0)].mean(axis=1)
    else:
        drawn = better[_indices(better, 0)].mean(axis=1) - worse[_indices(worse, 1)].mean(axis=1)
    return {**_interval(better.mean() - worse.mean(), drawn), "paired": paired}


def verdicts(scores: Mapping[str, FloatArray]) -> dict[str, dict[str, Any]]:
    """Compares each pair of `ORDER` for one model, from its scores (clips,) by reader.

    Returns:
        By "BETTER > WORSE" the difference of means, its interval, whether it is above 0 ("holds")
        and whether the whole interval is ("clear").
    """
    found = {}
    for better, worse in ORDER:
        figure = difference(scores[better], scores[worse], paired=better != RECORDINGS)
        figure["holds"] = figure["mean"] > 0
        figure["clear"] = figure["interval_95"][0] > 0
        found[f"{better} > {worse}"] = figure
    return found


def _indices(scores: FloatArray, seed: int) -> npt.NDArray[np.int64]:
    return resample_indices(len(scores), _RESAMPLES, rng=seed)


def _interval(value: float, drawn: FloatArray) -> dict[str, Any]:
    low, high = percentile_interval(drawn) or (value, value)
    return {"mean": float(value), "interval_95": [low, high]}


def readings(texts: Sequence[str]) -> dict[str, list[Speech]]:
    """Every synthesiser's reading of every sentence.

    Raises:
        VoiceError: A synthesiser is not installed.
    """
    voices = {voice.name: voice for voice in synthetic_voices() if voice.name in READERS}
    for name, cure in missing_programs(list(voices.values())).items():
        raise VoiceError(f"{name} is missing: {cure}")
    return {
        name: [Speech(name, levelled(speak(voices[name], text))) for text in texts]
        for name in READERS
    }


def score_readers(
    speech: Mapping[str, Sequence[Speech]], score: ScoreClip
) -> dict[str, dict[str, FloatArray]]:
    """Scores (clips,) of speech by reader, by model and reader."""
    clips = [
        (r, clip.waveform, SAMPLE_RATE_HZ) for r, members in speech.items() for clip in members
    ]
    scores = score_clips(clips, score, length=len(clips), label="readings")
    return {
        name: {reader: np.array(values) for reader, values in by_reader.items()}
        for name, by_reader in scores.items()
    }


def measure(speech: Path, count: int, seed: int, score: ScoreClip) -> dict[str, Any]:
    """Scores recordings and what synthesisers read.

    Args:
        speech: Folder of recordings, whose held-out part is used.
        count: Number of recordings, and of sentences that are read.
        seed: Seed of the sentences.
        score: The models.

    Raises:
        VoiceError: A synthesiser is not installed, or there are too few recordings.
    """
    texts = sentences("en", count, np.random.default_rng(seed))
    recordings = utterances(speech, count, shortest_s=_SHORTEST_S)
    scores = score_readers({RECORDINGS: recordings, **readings(texts)}, score)
    return {
        "sentences": texts,
        "means": {
            name: {reader: mean(values) for reader, values in by_reader.items()}
            for name, by_reader in scores.items()
        },
        "order": {name: verdicts(by_reader) for name, by_reader in scores.items()},
        "scores": scores,
    }
