"""Finds speakers and their recordings, and decides which of them are held out."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np
import soundfile as sf
import soxr

from mosrt._arrays import Float32Array
from mosrt.audio.sources import AUDIO_SUFFIXES
from mosrt.errors import MosrtError
from mosrt.host.files import files_below

__all__ = [
    "SAMPLE_RATE_HZ",
    "Speaker",
    "SpeechError",
    "find_speakers",
    "held_out_file",
    "left_out",
    "read",
    "split",
]

SAMPLE_RATE_HZ: Final = 16_000
HELD_OUT_SHARE: Final = 0.1
_FEWEST: Final = 3
SHORTEST_S: Final = 0.5
_SILENCE: Final = 1e-3  # RMS around the mean, of a full scale of 1
_LOOKED_AT_S: Final = 5.0


class SpeechError(MosrtError, ValueError):
    """There is too little speech, or a recording cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A speaker and the recordings of his or her voice.

    Attributes:
        name: The path of the folder of recordings, such as "anna" or "studio/anna", or the name of
            a file that lies in no folder, whose speaker is known by nothing else.
        files: The recordings.
    """

    name: str
    files: tuple[Path, ...]


def find_speakers(folders: Iterable[Path]) -> list[Speaker]:
    """Returns the speakers in some folders: each folder below is one, and so is each loose file.

    Raises SpeechError if a folder has no recordings.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        files = files_below(folder) if folder.is_dir() else []
        files = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
        if not files:
            raise SpeechError(
                f"{folder}: no recordings ({', '.join(sorted(AUDIO_SUFFIXES))}); pass a folder "
                "of speech"
            )
        for path in files:
            inside = path.relative_to(folder)
            found[(inside.parent if inside.parent.name else inside).as_posix()].append(path)
    return [Speaker(name=name, files=tuple(found[name])) for name in sorted(found)]


def left_out(speakers: Iterable[Speaker]) -> Iterator[tuple[Path, str | None]]:
    """Yields each recording, and why clips are not made of it; None if they are.

    The reason is "unreadable", "shorter than 0.5 s" or "silent".
    """
    for path in dict.fromkeys(path for speaker in speakers for path in speaker.files):
        try:
            start = read(path, _LOOKED_AT_S)
            if len(start) < SHORTEST_S * SAMPLE_RATE_HZ:
                yield path, f"shorter than {SHORTEST_S:g} s"
            elif start.std() < _SILENCE and read(path).std() < _SILENCE:
                yield path, "silent"
            else:
                yield path, None
        except SpeechError:
            yield path, "unreadable"


def split(speakers: Sequence[Speaker], held_out: Collection[str] = ()) -> dict[str, list[Speaker]]:
    """Splits speech into the parts of a data set, by their names.

    "clips" and "ladders" train; "recordings" are held out, of the same speakers, and "speakers" are
    others.

    One recording in ten is held out, by a hash of its name, so that the choice does not depend on
    where it lies; and one speaker in ten, unless `held_out` has patterns of their names. Of very
    few, one is held out or none. Raises SpeechError if there are too few recordings.
    """
    names = {speaker.name for speaker in speakers}
    unknown = {name for name in names if any(fnmatchcase(name, each) for each in held_out)}
    unknown = unknown or _tenth(names)
    known = [speaker for speaker in speakers if speaker.name not in unknown]
    kept = {path.stem for speaker in known for path in speaker.files if held_out_file(path)}
    kept = kept or _tenth({path.stem for speaker in known for path in speaker.files})
    parts: list[list[Speaker]] = []
    for wanted in (False, True):
        chosen = [
            (speaker.name, tuple(path for path in speaker.files if (path.stem in kept) is wanted))
            for speaker in known
        ]
        parts.append([Speaker(name=name, files=files) for name, files in chosen if files])
    if not parts[1]:
        raise SpeechError(
            "too few recordings to hold some out: "
            f"{sum(len(speaker.files) for speaker in speakers)}; add recordings"
        )
    others = [speaker for speaker in speakers if speaker.name in unknown]
    return {"clips": parts[0], "ladders": parts[0], "recordings": parts[1], "speakers": others}


def _tenth(names: Collection[str]) -> set[str]:
    """About a tenth of some names, at least one; none of very few."""
    if len(names) < _FEWEST:
        return set()
    return {name for name in names if _marked(name)} or {min(names, key=_digest)}


def held_out_file(path: Path) -> bool:
    """Whether a recording is held out: one in ten, chosen by a hash of its name."""
    return _marked(path.stem)


def _marked(name: str) -> bool:
    return _digest(name)[0] < 256 * HELD_OUT_SHARE


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def read(source: Path, duration_s: float | None = None, *, at: float = 0.0) -> Float32Array:
    """Returns a recording as mono (samples,) float32 at 16 kHz.

    Args:
        source: The file.
        duration_s: Most seconds that are read; None reads to the end.
        at: Where to start, from 0 at the beginning to 1 at one second before the end.

    Raises:
        SpeechError: It is not audio.
    """
    try:
        with sf.SoundFile(source) as file:
            rate_hz = file.samplerate
            if at:
                file.seek(int(at * max(0, file.frames - rate_hz)))
            count = -1 if duration_s is None else int(np.ceil(duration_s * rate_hz))
            mono = file.read(count, dtype="float32", always_2d=True).mean(axis=1)
    except sf.LibsndfileError as exc:
        raise SpeechError(f"{source}: cannot be read ({exc}); repair or remove it") from exc
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    return np.ascontiguousarray(mono, np.float32)
