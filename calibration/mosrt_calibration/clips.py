"""Chooses the clips that ranges are measured on, and those that the drift is measured on."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mosrt.audio.recording import Recording
from mosrt.audio.sources import AUDIO_SUFFIXES, FileSource
from mosrt.errors import AudioError, MosrtError
from mosrt.host.files import files_below, sha256_of

__all__ = [
    "Choice",
    "Clip",
    "ClipFeatures",
    "ClipsError",
    "Progress",
    "choose",
    "clip_features",
    "list_sha256",
    "no_progress",
]

Progress = Callable[[Sequence[Any], str], AbstractContextManager[Iterable[Any]]]
"""Makes a progress bar with a label: a context manager that gives files or clips one by one."""

_MAX_CANDIDATES: Final = 512
_MIN_EVALUATION: Final = 8
_FRAME_SAMPLES: Final = 512
_FLOOR: Final = 1e-10
_DYNAMIC_RANGE_DB: Final = 60.0
_LONGEST_S: Final = 60


@contextmanager
def no_progress(items: Sequence[Any], _label: str) -> Iterator[Sequence[Any]]:
    """Makes no progress bar."""
    yield items


class ClipsError(MosrtError, ValueError):
    """A directory has too few recordings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A recording.

    Attributes:
        name: POSIX path relative to the directory.
        path: The file.
        sha256: SHA-256 of the file in hex.
        features: Features that clips are chosen by.
    """

    name: str
    path: Path
    sha256: str
    features: ClipFeatures

    def to_dict(self) -> dict[str, Any]:
        """The entry for the manifest."""
        return {"name": self.name, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Calibration clips and evaluation clips.

    Attributes:
        calibration: Clips that activation ranges are measured on.
        evaluation: Clips that the drift is measured on.
    """

    calibration: tuple[Clip, ...]
    evaluation: tuple[Clip, ...]

    @property
    def held_out(self) -> bool:
        """Whether no clip is both a calibration clip and an evaluation clip."""
        return not {c.sha256 for c in self.calibration} & {c.sha256 for c in self.evaluation}


def list_sha256(clips: Sequence[Clip]) -> str:
    """SHA-256 in hex of the names and contents of some clips, in order."""
    text = json.dumps([clip.to_dict() for clip in clips], ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def choose(
    directory: Path,
    *,
    sample_rate_hz: int,
    n_calibration: int = 32,
    n_evaluation: int = 64,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Choice:
    """Chooses clips of every kind of recording in a directory.

    Each of the five clip features splits the recordings at its median, which gives 32 kinds: short
    or long, quiet or loud, dark or bright, noisy or clean, narrow or wide. One clip of each kind is
    taken, then a second, and so on. The first clips are for calibration, the next for evaluation.
    The order depends on the seed and on the contents of the files, not on where they are.

    Args:
        directory: Directory of recordings; subdirectories are included. At most 512 files are
            read.
        sample_rate_hz: Sample rate of the model.
        n_calibration: Number of calibration clips.
        n_evaluation: Largest number of evaluation clips. Those are not calibration clips if there
            are at least 8 of them.
        seed: Seed of the choice.
        progress: Makes a progress bar over files.

    Raises:
        ClipsError: Fewer than `n_calibration` recordings can be scored.
    """
    if not directory.is_dir():
        raise ClipsError(f"{directory}: no such directory; --audio names one with recordings")
    files = [p for p in files_below(directory) if p.suffix.lower() in AUDIO_SUFFIXES]
    files.sort(key=lambda p: _hash(seed, p.relative_to(directory).as_posix()))
    found: dict[str, Clip] = {}
    with progress(files[:_MAX_CANDIDATES], "reading") as each:
        for path in each:
            clip = _read_clip(path, directory, sample_rate_hz)
            if clip is not None:
                twin = found.get(clip.sha256, clip)
                found[clip.sha256] = min(clip, twin, key=lambda clip: clip.name)
    if len(found) < n_calibration:
        raise ClipsError(
            f"{directory}: {len(found)} recordings can be scored, and {n_calibration} are needed; "
            "add recordings, or ask for fewer with --clips"
        )
    ordered = _stratified(list(found.values()), seed)
    calibration = tuple(ordered[:n_calibration])
    evaluation = tuple(ordered[n_calibration : n_calibration + n_evaluation])
    if len(evaluation) < _MIN_EVALUATION:
        evaluation = tuple(ordered[:n_evaluation])
    return Choice(calibration=calibration, evaluation=evaluation)


def _read_clip(path: Path, directory: Path, sample_rate_hz: int) -> Clip | None:
    """Reads a recording; gives None if it cannot be scored."""
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


def _stratified(clips: list[Clip], seed: int) -> list[Clip]:
    """All clips in an order that takes one of each kind in turn."""
    values = np.array([dataclasses.astuple(clip.features) for clip in clips])
    above = values > np.median(values, axis=0)
    kinds: dict[str, list[Clip]] = {}
    for i in sorted(range(len(clips)), key=lambda i: _hash(seed, clips[i].sha256)):
        kinds.setdefault(str(tuple(above[i].tolist())), []).append(clips[i])
    in_order = [kinds[kind] for kind in sorted(kinds, key=lambda kind: _hash(seed, kind))]
    turns = itertools.zip_longest(*in_order)
    return [clip for turn in turns for clip in turn if clip is not None]


def _hash(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFeatures:
    """Acoustic features of a clip.

    Attributes:
        duration_s: Length in seconds.
        loudness_db: Level of the louder half of the frames, in dB re full scale.
        tilt_db: Level below 1 kHz relative to that above, in dB.
        snr_db: Level of loud frames (95th percentile) relative to quiet ones (10th), in dB. Noise
            and reverberation lower it.
        bandwidth_hz: Highest frequency at less than 60 dB below the strongest. Codecs and
            telephones lower it.
    """

    duration_s: float
    loudness_db: float
    tilt_db: float
    snr_db: float
    bandwidth_hz: float


def clip_features(samples: NDArray[np.float32], sample_rate_hz: int) -> ClipFeatures:
    """Computes the features of a clip, of which only the first minute is analysed.

    Args:
        samples: (samples,) float32 with full scale 1.
        sample_rate_hz: Sample rate.
    """
    analysed = samples[: _LONGEST_S * sample_rate_hz]
    padded = np.pad(analysed, (0, -len(analysed) % _FRAME_SAMPLES))
    frames = padded.reshape(-1, _FRAME_SAMPLES).astype(np.float64)
    levels_db = _db(np.mean(np.square(frames), axis=1))
    loud = frames[levels_db >= np.median(levels_db)]
    power = np.mean(np.abs(np.fft.rfft(loud * np.hanning(_FRAME_SAMPLES), axis=1)) ** 2, axis=0)
    frequencies_hz = np.fft.rfftfreq(_FRAME_SAMPLES, 1 / sample_rate_hz)
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
