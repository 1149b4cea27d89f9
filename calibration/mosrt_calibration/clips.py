"""Clips: which recordings ranges are measured on, and which the drift."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mosrt.audio.recording import Recording
from mosrt.audio.sources import AUDIO_SUFFIXES, FileSource
from mosrt.errors import AudioError, MosrtError
from mosrt.host.files import sha256_of

from .clip_features import Traits, traits

__all__ = ["Choice", "Clip", "ClipsError", "choose", "list_sha256"]

_MAX_CANDIDATES: Final = 512
_MIN_EVALUATION: Final = 8


class ClipsError(MosrtError, ValueError):
    """A directory without enough recordings to calibrate with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A recording.

    Attributes:
        name: Path below the directory, POSIX.
        path: The file.
        sha256: Of the file, in hex.
        traits: What it is like.
    """

    name: str
    path: Path
    sha256: str
    traits: Traits

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entry."""
        return {"name": self.name, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Clips to calibrate with, and clips to measure the drift on.

    Attributes:
        calibration: Clips that ranges come from.
        evaluation: Clips that the drift is measured on.
        seed: Of the choice.
    """

    calibration: tuple[Clip, ...]
    evaluation: tuple[Clip, ...]
    seed: int

    @property
    def held_out(self) -> bool:
        """Whether no clip is in both."""
        return not {c.sha256 for c in self.calibration} & {c.sha256 for c in self.evaluation}


def list_sha256(clips: Sequence[Clip]) -> str:
    """SHA-256 in hex of a list of clips: of their names and contents, in order."""
    text = json.dumps([clip.to_dict() for clip in clips], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def choose(
    directory: Path,
    *,
    sample_rate_hz: int,
    n_calibration: int = 32,
    n_evaluation: int = 64,
    seed: int = 0,
    each: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> Choice:
    """Chooses clips so that every kind of recording in a directory is heard.

    Each trait splits the recordings at its median: short and long, quiet and loud, dark and
    bright, noisy and clean, narrow and wide, 32 kinds in all. One clip of each kind is taken, then
    another, until there are enough; the first are for calibration, the next for evaluation. The
    order of kinds, and of clips within one, comes from the seed and the clips' contents, so that
    the same files give the same choice wherever they lie.

    Args:
        directory: Searched with all below it. Of more than 512 files, that many are looked at.
        sample_rate_hz: Rate of the model.
        n_calibration: Clips that ranges come from.
        n_evaluation: Clips that the drift is measured on, at most.
        seed: Another seed gives another choice.
        each: Wraps the iteration over files, for a progress bar.

    Raises:
        ClipsError: There are too few recordings that can be scored.
    """
    if not directory.is_dir():
        raise ClipsError(f"{directory}: no such directory; --audio names one with recordings")
    files = sorted(
        p for p in directory.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file()
    )
    files = sorted(files, key=lambda p: _hash(seed, p.relative_to(directory).as_posix()))
    found: dict[str, Clip] = {}
    for path in each(files[:_MAX_CANDIDATES]):
        clip = _heard(path, directory, sample_rate_hz)
        if clip is not None:
            twin = found.setdefault(clip.sha256, clip)
            if clip.name < twin.name:
                found[clip.sha256] = clip
    if len(found) < n_calibration:
        raise ClipsError(
            f"{directory}: {len(found)} recordings that can be scored, and "
            f"{n_calibration} are needed; add recordings, or ask for fewer with --clips"
        )
    ordered = _spread(list(found.values()), seed)
    calibration = tuple(ordered[:n_calibration])
    evaluation = tuple(ordered[n_calibration : n_calibration + n_evaluation])
    if len(evaluation) < _MIN_EVALUATION:
        evaluation = tuple(ordered[:n_evaluation])
    return Choice(calibration=calibration, evaluation=evaluation, seed=seed)


def _heard(path: Path, directory: Path, sample_rate_hz: int) -> Clip | None:
    """A clip, or None if it cannot be scored."""
    try:
        recording = Recording(FileSource(path), sample_rate_hz)
    except AudioError:
        return None
    whole = np.zeros(1, np.int64)
    (samples,) = recording.gather([(whole, recording.n_samples)])
    return Clip(
        name=path.relative_to(directory).as_posix(),
        path=path,
        sha256=sha256_of(path),
        traits=traits(samples[0], sample_rate_hz),
    )


def _spread(clips: list[Clip], seed: int) -> list[Clip]:
    """All clips, one of each kind in turn."""
    values = np.array([clip.traits.values() for clip in clips])
    above = values > np.median(values, axis=0)
    kinds: dict[tuple[bool, ...], list[Clip]] = {}
    for i in sorted(range(len(clips)), key=lambda i: _hash(seed, clips[i].sha256)):
        kinds.setdefault(tuple(above[i].tolist()), []).append(clips[i])
    order = sorted(kinds, key=lambda kind: _hash(seed, str(kind)))
    ordered = []
    for turn in range(max(map(len, kinds.values()))):
        ordered += [kinds[kind][turn] for kind in order if turn < len(kinds[kind])]
    return ordered


def _hash(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
