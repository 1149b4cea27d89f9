"""Load held-out speech: recordings and voices that the embedded models were not trained on."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np

from mosrt._arrays import Float32Array
from mosrt.audio.sources import AUDIO_SUFFIXES
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ, find_speakers, held_out_file, read
from mosrt_export.nano.voices import (
    Voice,
    VoiceError,
    missing_programs,
    synthesise,
    synthetic_voices,
)

__all__ = [
    "CLIP_SAMPLES",
    "Speech",
    "clips_in",
    "joined",
    "levelled",
    "recorded_clips",
    "speech_option",
    "unseen_clips",
    "utterances",
]


CLIP_SAMPLES: Final = 80_000
_LEVEL_DB: Final = -26.0
_MAX_SILENT: Final = 10
_SILENCE: Final = 0.01

speech_option = click.option(
    "--speech", required=True, type=click.Path(path_type=Path), metavar="DIR",
    help="The recordings that the embedded models were trained on; the held-out part is used.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Speech:
    """Clean speech: the name of the voice, and (samples,) at 16 kHz and -26 dBFS RMS."""

    voice: str
    waveform: Float32Array


def levelled(waveform: Float32Array) -> Float32Array:
    """A waveform (samples,) at -26 dBFS RMS."""
    rms = max(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))), 1e-9)
    return (waveform * np.float32(10 ** (_LEVEL_DB / 20) / rms)).astype(np.float32)


def joined(parts: Iterable[Float32Array], n_samples: int = CLIP_SAMPLES) -> Iterator[Float32Array]:
    """Clips (n_samples,) of consecutive utterances; no utterance is in two clips."""
    row: list[Float32Array] = []
    length = 0
    for part in parts:
        row.append(part)
        length += len(part)
        if length >= n_samples:
            yield np.concatenate(row)[:n_samples]
            row, length = [], 0


def recorded_clips(folder: Path, count: int) -> list[Speech]:
    """Clips of 5 s of the held-out utterances of recorded voices, alternating between voices.

    Raises:
        VoiceError: There are no recordings, or too few.
    """
    streams = [_named(name, joined(parts)) for name, parts in _recorded(folder)]
    return _taken(streams, count, f"{folder}: held-out recordings")


def utterances(folder: Path, count: int, *, shortest_s: float) -> list[Speech]:
    """Held-out utterances of recorded voices, alternating between voices.

    Raises:
        VoiceError: There are no recordings, or too few.
    """
    shortest = shortest_s * SAMPLE_RATE_HZ
    streams = [
        _named(name, (part for part in parts if len(part) >= shortest))
        for name, parts in _recorded(folder)
    ]
    return _taken(streams, count, f"{folder}: held-out recordings of {shortest_s:g} s")


def _recorded(folder: Path) -> Iterator[tuple[str, Iterator[Float32Array]]]:
    """Names of recorded voices, and the held-out recordings of each."""
    for speaker in find_speakers([folder]):
        held_out = [file for file in speaker.files if held_out_file(file)]
        yield f"recorded {speaker.name}", map(read, held_out)


def clips_in(folders: Sequence[Path], count: int) -> list[Speech]:
    """Clips of 5 s of speakers outside the training data, a folder of recordings each.

    Speakers alternate. Silent recordings, which sets of spoken prompts contain, are left out.

    Raises:
        VoiceError: There are too few recordings.
    """
    streams = [
        _named(
            folder.name,
            joined(
                part
                for path in sorted(folder.iterdir())
                if path.suffix.lower() in AUDIO_SUFFIXES
                and np.abs(part := read(path)).max() > _SILENCE
            ),
        )
        for folder in folders
    ]
    return _taken(streams, count, ", ".join(str(folder) for folder in folders))


def unseen_clips(count: int, seed: int) -> list[Speech]:
    """Clips of 5 s of the synthetic voices kept for evaluation, alternating between engines.

    The seed is that of text, speaking rates and pitches.

    Raises:
        VoiceError: A voice is not installed, or produces no speech.
    """
    voices = [voice for voice in synthetic_voices() if voice.held_out]
    for name, cure in missing_programs(voices).items():
        raise VoiceError(f"{name} is missing: {cure}")
    by_engine: dict[str, list[Iterator[Speech]]] = {}
    for voice in voices:
        stream = _named(voice.name, joined(_reading(voice, seed)))
        by_engine.setdefault(voice.engine, []).append(stream)
    engines = [_in_turn(streams) for streams in by_engine.values()]
    return _taken(engines, count, "held-out voices")


def _reading(voice: Voice, seed: int) -> Iterator[Float32Array]:
    """Utterances of a synthetic voice; ends after ten sentences without speech."""
    rng = np.random.default_rng([seed, *hashlib.sha256(voice.name.encode()).digest()])
    silent = 0
    while silent < _MAX_SILENT:
        (part,) = synthesise(voice, 1, rng)
        # a voice that cannot read its text is almost silent
        if len(part) > 8000 and part.std() > 1e-3:
            silent = 0
            yield part
        else:
            silent += 1


def _named(name: str, waveforms: Iterable[Float32Array]) -> Iterator[Speech]:
    return (Speech(name, levelled(waveform)) for waveform in waveforms)


def _in_turn(streams: Sequence[Iterator[Speech]]) -> Iterator[Speech]:
    """One item of each stream in turn, until all streams have ended."""
    for turn in itertools.zip_longest(*streams):
        yield from (speech for speech in turn if speech is not None)


def _taken(streams: Sequence[Iterator[Speech]], count: int, source: str) -> list[Speech]:
    taken = list(itertools.islice(_in_turn(streams), count))
    if len(taken) < count:
        raise VoiceError(f"{source}: enough for only {len(taken)} clips, not for {count}")
    return taken
