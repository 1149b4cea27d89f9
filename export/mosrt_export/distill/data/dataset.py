"""Makes the clips and labels of a data set in several processes.

A chunk is some clips, and each thing that is made of them a file of its own: waveforms, the labels
of each teacher, and the frames of one. What is there is not made again, so an interrupted run
continues, more hours add chunks, and another teacher adds its labels to the same clips.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mosrt._arrays import Float32Array
from mosrt.errors import MosrtError, os_errors_as
from mosrt.host.files import replacing
from mosrt_export.distill.recipe import Recipe
from mosrt_export.distill.teachers import OpenTeacher, Teacher

from .clips import CLIP_SAMPLES, RUNGS, Clip, Pool, make_clip, make_ladder
from .degradations import DEGRADATIONS
from .fidelity import fidelity
from .resyntheses import RESYNTHESES, RETIMED
from .speech import SAMPLE_RATE_HZ, Speaker

__all__ = [
    "CLIP_S",
    "HINTS",
    "HINT_FRAMES",
    "TEST_PARTS",
    "WAVEFORMS",
    "Data",
    "DatasetError",
    "as_float",
    "at_random_level",
]

CLIP_S: Final = CLIP_SAMPLES / SAMPLE_RATE_HZ
TEST_PARTS: Final = {"recordings": "held-out recordings", "speakers": "held-out speakers"}
HINT_FRAMES: Final = 125  # of a clip: one each 40 ms
_RECIPE: Final = "recipe.json"
_FORMAT: Final = 2
WAVEFORMS: Final = ".waveforms.npy"
HINTS: Final = ".hints.npy"
# Number of the first clip, so that no two parts make clips from the same number.
_FIRST: Final = {"clips": 0, "ladders": 10**9, "recordings": 2 * 10**9, "speakers": 3 * 10**9}
_LADDER_SHARE: Final = 0.2


class DatasetError(MosrtError, ValueError):
    """A data set cannot be made or read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What a data set is made from. It can be pickled.

    Attributes:
        folder: Where its files are.
        recipe: How clips are made.
        seed: Seed of all clips.
        speech: The speakers of each part: "clips" and "ladders", which train, and `TEST_PARTS`.
        teachers: The teachers.
        provider: Where teachers run.
        reduced: Whether DNSMOS Pro runs in bfloat16.
    """

    folder: Path
    recipe: Recipe
    seed: int
    speech: Mapping[str, Sequence[Speaker]]
    teachers: Sequence[Teacher]
    provider: str = "cpu"
    reduced: bool = False

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        names = [name for teacher in self.teachers for name in teacher.domains]
        if self.recipe.fidelity:
            names.append("fidelity")
            if any(group.anchor for group in self.recipe.groups.values()):
                names.append("anchor")
        return tuple(names)

    @property
    def hint_teacher(self) -> Teacher | None:
        """The first teacher that knows something of each frame, which the student also learns."""
        return next((each for each in self.teachers if each.hint_size), None)

    def check(self) -> None:
        """Records what decides the clips beside them, or compares it with what is there.

        Raises DatasetError if that differs, or the recipe names no existing treatment or domain.
        """
        recipe = self.recipe
        for name in recipe.leave_out:
            if name not in {*RESYNTHESES, *DEGRADATIONS}:
                raise DatasetError(f"leave_out: there is no treatment {name!r}")
        if any(table.keys() <= set(recipe.leave_out) for table in (RESYNTHESES, DEGRADATIONS)):
            raise DatasetError("leave_out: keep at least one resynthesis and one degradation")
        if recipe.overall is not None:
            if "overall" in self.domains:
                raise DatasetError(
                    "overall: a teacher's domain has this name; name its default score, as in "
                    "mine=TEACHER"
                )
            for name in (*recipe.overall.averaged, *recipe.overall.penalties):
                if name not in self.domains:
                    raise DatasetError(
                        f"overall: no teacher has a domain {name!r}; there are "
                        f"{', '.join(self.domains)}; name a teacher's score, as in {name}=FILE"
                    )
        speech = [
            (part, each.name, recipe.group(each.name), [path.name for path in each.files])
            for part, speakers in self.speech.items()
            for each in speakers
        ]
        facts = {
            "seed": self.seed,
            "takes": recipe.takes,
            "first_teacher": self.teachers[0].sha256 if recipe.takes > 1 else None,
            "fidelity": recipe.fidelity,
            "leave_out": list(recipe.leave_out),
            "chunk_clips": recipe.chunk_clips,
            "format": _FORMAT,
            "speech_sha256": hashlib.sha256(repr(speech).encode()).hexdigest(),
        }
        path = self.folder / _RECIPE
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8")) != facts:
                raise DatasetError(
                    f"{self.folder} has clips of other speech, another seed or recipe; choose "
                    "another --cache, or repeat the options of the first run"
                )
            return
        what, cure = f"{self.folder}: cannot be written", "choose another --cache"
        with os_errors_as(DatasetError, what, cure):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def chunks(self) -> list[tuple[str, int]]:
        """Returns part and number of each chunk, in order."""
        recipe = self.recipe
        hours = dict.fromkeys(TEST_PARTS, recipe.test_hours)
        hours["ladders"] = _LADDER_SHARE * recipe.hours
        hours["clips"] = recipe.hours - hours["ladders"]
        return [
            (part, number)
            for part, speakers in self.speech.items()
            if speakers
            for number in range(math.ceil(hours[part] * 3600 / CLIP_S / recipe.chunk_clips))
        ]

    def make(self, workers: int) -> Iterator[None]:
        """Makes what is missing, and yields after each chunk of `chunks`.

        Raises DatasetError if a process is ended from outside, or a file cannot be written.
        """
        what, cure = f"{self.folder}: cannot be written", "free space, or choose another --cache"
        with os_errors_as(DatasetError, what, cure):
            yield from self._made(workers)

    def _made(self, workers: int) -> Iterator[None]:
        if workers == 1:
            yield from map(_Maker(self), self.chunks())
            return
        context = multiprocessing.get_context("spawn")
        reader, writer = context.Pipe(duplex=False)
        try:
            with concurrent.futures.ProcessPoolExecutor(
                workers, context, initializer=_start_worker, initargs=(self, reader)
            ) as executor:
                try:
                    with _interruptions_held():
                        made = [executor.submit(_make_in_worker, chunk) for chunk in self.chunks()]
                    for each in made:
                        each.result()
                        yield
                except BaseException:
                    writer.close()  # ends the processes: a chunk can take minutes
                    raise
        except BrokenProcessPool as exc:
            raise DatasetError(
                "a process that makes clips was ended, as happens where memory is short; run the "
                "same command with fewer --workers"
            ) from exc
        finally:
            writer.close()
            reader.close()

    def path(self, part: str, number: int, suffix: str = ".npz") -> Path:
        """Returns a file of a chunk: its waveforms, or what has another suffix."""
        return self.folder / f"{part}-{number:05d}{suffix}"

    def waveforms(self, part: str, number: int) -> Float32Array:
        """Returns the clips (clips, CLIP_SAMPLES) of a chunk."""
        return as_float(np.load(self.path(part, number, WAVEFORMS)))

    def labels(self, part: str, number: int) -> Float32Array:
        """Returns the labels (clips, domains) of a chunk, nan where unknown."""
        columns = [np.load(self.path(part, number, label_suffix(each))) for each in self.teachers]
        with np.load(self.path(part, number)) as arrays:
            columns.append(arrays["measures"])
        return np.concatenate(columns, axis=1)[:, : len(self.domains)].astype(np.float32)


class _Maker:
    """Makes chunks, with teachers that are opened when they are first needed."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._pools = {
            part: Pool.of(speakers, data.recipe)
            for part, speakers in data.speech.items()
            if speakers
        }

    def __call__(self, chunk: tuple[str, int]) -> None:
        """Makes the files of a chunk that are not there."""
        path = self._data.path(*chunk)
        if not path.exists():
            self._make_clips(*chunk)
        for teacher in self._data.teachers:
            labels = self._data.path(*chunk, label_suffix(teacher))
            hints = self._data.path(*chunk, HINTS)
            hinting = teacher is self._data.hint_teacher and chunk[0] not in TEST_PARTS
            if labels.exists() and (hints.exists() or not hinting):
                continue
            waveforms = self._data.waveforms(*chunk)
            hinted = self._opened(teacher).hinted
            if hinting and hinted is not None:
                scored = [hinted(each) for each in waveforms]
                _save(hints, np.stack([_shortened(frames) for _, frames in scored]))
                _save(labels, np.array([scores for scores, _ in scored], np.float32))
            else:
                scores = self._opened(teacher).scores
                _save(labels, np.array([scores(each) for each in waveforms], np.float32))

    def _make_clips(self, part: str, number: int) -> None:
        recipe, seed, pool = self._data.recipe, self._data.seed, self._pools[part]
        size = RUNGS if part == "ladders" else 1
        count = recipe.chunk_clips // size
        waveforms, measures, notes = [], [], []
        for at in range(_FIRST[part] + number * count, _FIRST[part] + (number + 1) * count):
            if part == "ladders":
                made = make_ladder(pool, seed, at, self._rate)
            else:
                made = [make_clip(pool, seed, at, self._rate)]
            for clip in made:
                # The clips of a ladder have the same level.
                level = np.random.default_rng([seed, at, 1])
                waveforms.append(at_random_level(clip.waveform, level))
                measures.append(self._measures(clip))
                notes.append(f"{clip.speaker}|{clip.treatment}|{clip.severity:.3f}")
        _save(self._data.path(part, number, WAVEFORMS), np.stack(waveforms))
        with replacing(self._data.path(part, number)) as file, file.open("wb") as stream:
            np.savez(
                stream,
                measures=np.array(measures, np.float32),
                notes=np.array(notes),
            )

    def _measures(self, clip: Clip) -> tuple[float, float]:
        """Returns fidelity and anchor, which falls by the share of fidelity that is lost."""
        if not self._data.recipe.fidelity:
            return math.nan, math.nan
        if RETIMED & set(clip.treatment.split(" + ")):
            return math.nan, math.nan  # measured on samples that do not correspond
        clean = clip.treatment == "clean"
        quality = 5.0 if clean else fidelity(clip.reference, clip.waveform)
        anchor = self._data.recipe.group(clip.speaker).anchor or math.nan
        return quality, 1 + (anchor - 1) * (quality - 1) / 4

    def _rate(self, waveform: Float32Array) -> float:
        return self._opened(self._data.teachers[0]).scores(waveform)[0]

    def _opened(self, teacher: Teacher) -> OpenTeacher:
        return _opened(teacher, self._data.provider, self._data.reduced)


def _save(path: Path, array: NDArray[Any]) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, array)


def _shortened(frames: Float32Array) -> NDArray[np.float16]:
    """Returns a teacher's frames (frames, size) of a clip as (HINT_FRAMES, size), by averaging."""
    averaged = functional.adaptive_avg_pool1d(torch.from_numpy(frames.T)[None], HINT_FRAMES)
    return averaged[0].T.numpy().astype(np.float16)


@functools.cache
def _opened(teacher: Teacher, provider: str, reduced: bool) -> OpenTeacher:
    return teacher.open(provider=provider, reduced=reduced)


_worker: list[_Maker] = []  # the maker of a process, once it has started


@contextmanager
def _interruptions_held() -> Iterator[None]:
    """Holds Ctrl-C back; processes that are started meanwhile, which it also reaches, ignore it."""
    if sys.platform == "win32":
        yield
        return
    held = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _start_worker(data: Data, parent: Connection) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    _worker.append(_Maker(data))


def _end_with(parent: Connection) -> None:
    """Ends this process once the other end is closed, be it because its process was killed."""
    parent.poll(None)
    os._exit(1)


def _make_in_worker(chunk: tuple[str, int]) -> None:
    _worker[0](chunk)


def label_suffix(teacher: Teacher) -> str:
    """Returns the suffix of the files of a teacher's labels."""
    which = ".default" if teacher.renamed else ""
    return f".{teacher.sha256[:16]}{which}.npy"


def as_float(waveforms: NDArray[np.int16]) -> Float32Array:
    """Returns 16-bit samples as float32 in [-1, 1)."""
    return waveforms.astype(np.float32) * np.float32(1 / 32768)


def at_random_level(waveform: Float32Array, rng: np.random.Generator) -> NDArray[np.int16]:
    """Scales a clip to a random level between -45 and -3 dBFS RMS, or less to avoid clipping."""
    gain = 10 ** (rng.uniform(-45, -3) / 20) / max(float(waveform.std()), 1e-6)
    gain = min(gain, 0.99 / max(float(np.abs(waveform).max()), 1e-6))
    return np.round(waveform * gain * 32767).astype(np.int16)
