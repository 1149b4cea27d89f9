"""Clips: which recordings ranges are measured on, and which the drift."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mosrt.audio.recording import Recording
from mosrt.audio.sources import AUDIO_SUFFIXES, FileSource
from mosrt.errors import AudioError, MosrtError
from mosrt.host.files import sha256_of

__all__ = [
    "Choice",
    "Clip",
    "ClipFeatures",
    "ClipsError",
    "FileProgress",
    "choose",
    "clip_features",
    "list_sha256",
]

FileProgress = Callable[[Sequence[Path]], Iterable[Path]]
"""Passes files on one by one: a progress bar."""

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
        features: What it is like.
    """

    name: str
    path: Path
    sha256: str
    features: ClipFeatures

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
    progress: FileProgress = iter,
) -> Choice:
    """Chooses clips so that every kind of recording in a directory is scored.

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
        progress: Wraps the iteration over files, for a progress bar.

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
    for path in progress(files[:_MAX_CANDIDATES]):
        clip = _read_clip(path, directory, sample_rate_hz)
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


def _read_clip(path: Path, directory: Path, sample_rate_hz: int) -> Clip | None:
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
        features=clip_features(samples[0], sample_rate_hz),
    )


def _spread(clips: list[Clip], seed: int) -> list[Clip]:
    """All clips, one of each kind in turn."""
    values = np.array([clip.features.values() for clip in clips])
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


_FRAME: Final = 512
_FLOOR: Final = 1e-10
_DYNAMIC_RANGE_DB: Final = 60.0
_LONGEST_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFeatures:
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


def clip_features(samples: NDArray[np.float32], sample_rate_hz: int) -> ClipFeatures:
    """Measures a clip.

    Args:
        samples: (samples,) float32 at full scale 1; of a long one the first minute is scored.
        sample_rate_hz: Their rate.
    """
    scored = samples[: _LONGEST_S * sample_rate_hz]
    padded = np.pad(scored, (0, -len(scored) % _FRAME))
    frames = padded.reshape(-1, _FRAME).astype(np.float64)
    levels_db = _db(np.mean(np.square(frames), axis=1))
    loud = frames[levels_db >= np.median(levels_db)]
    power = np.mean(np.abs(np.fft.rfft(loud * np.hanning(_FRAME), axis=1)) ** 2, axis=0)
    frequencies_hz = np.fft.rfftfreq(_FRAME, 1 / sample_rate_hz)
    low = frequencies_hz < 1000.0
    quiet_db, loud_db = np.percentile(levels_db, (10, 95))
    spectrum_db = _db(power)
    return ClipFeatures(
        duration_s=len(samples) / sample_rate_hz,
        loudness_db=float(_db(np.mean(np.square(loud)))),
        tilt_db=float(_db(power[low].sum()) - _db(power[~low].sum())),
        snr_db=float(loud_db - quiet_db),
        bandwidth_hz=float(
            frequencies_hz[spectrum_db > spectrum_db.max() - _DYNAMIC_RANGE_DB].max()
        ),
    )


def _db(power: NDArray[np.float64] | np.floating[Any]) -> NDArray[np.float64]:
    return 10.0 * np.log10(np.asarray(power) + _FLOOR)
