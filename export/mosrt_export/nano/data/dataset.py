"""Dataset: clips and their labels on disk, made by several processes, resumed where it stopped."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt.errors import MosrtError
from mosrt.host.files import replacing, sha256_of

from .clips import CLIP_SAMPLES, RUNGS, Clip, Pool, make_clip, make_ladder
from .teachers import DnsmosP808, DnsmosPro, fidelity
from .voices import Voice, VoiceError, recorded, synthesise

__all__ = [
    "CHUNK_CLIPS",
    "LABELS",
    "Dataset",
    "DatasetError",
    "Recipe",
    "build_pool",
    "chunk_paths",
    "generate",
    "record_recipe",
]

LABELS: Final = ("bvcc", "p808", "fidelity", "anchor")
CHUNK_CLIPS: Final = 100
# Of treated clips, since PESQ costs more than all the rest; the teachers are deaf to codecs.
_FIDELITY_SHARE: Final = 0.5
_CODEC_FIDELITY_SHARE: Final = 0.85
_CODECS: Final = ("MP3", "Opus")
_UTTERANCES: Final = {"recorded": 0, "flite": 60, "festival": 30, "espeak-ng": 8}  # 0: all
_RECIPE: Final = "recipe.json"
_BVCC: Final = "dnsmospro_bvcc.pt"
_P808: Final = "dnsmos_p808.onnx"


class DatasetError(MosrtError):
    """A data set that cannot be made or read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a data set is made from.

    Attributes:
        seed: Of everything random.
        teachers: Folder of the teachers' published files.
        reduced: Whether the teachers may compute in bfloat16.
        held_out: Whether it is made of what is kept for evaluation.
    """

    seed: int
    teachers: Path
    reduced: bool = False
    held_out: bool = False


def build_pool(voice: Voice, seed: int, out: Path, *, held_out: bool = False) -> Path:
    """Records a voice's utterances in a file, unless it is there already; returns its path.

    Raises:
        VoiceError: The voice did not speak, or said nothing that can be used; nothing is kept.
    """
    path = out / f"{hashlib.sha256(voice.name.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        rng = np.random.default_rng([seed, *hashlib.sha256(voice.name.encode()).digest()])
        if voice.engine == "recorded":
            speech = list(recorded(voice, held_out=held_out))
        else:
            speech = synthesise(voice, _UTTERANCES[voice.engine], rng)
        # a voice that cannot read its text says next to nothing
        spoken = [part for part in speech if len(part) > 8000 and part.std() > 1e-3]
        if not spoken:
            raise VoiceError(
                f"{voice.name} said nothing that can be used: all of {len(speech)} utterances are "
                "too short or silent; repair the voice, or leave it out"
            )
        scaled = [
            np.round(part * (0.25 / np.abs(part).max()) * 32767).astype(np.int16) for part in spoken
        ]
        _save(path, {f"utterance{i:05d}": part for i, part in enumerate(scaled)})
    return path


def record_recipe(recipe: Recipe, out: Path) -> None:
    """Writes down what the data in `out` is made from, or checks that it is made from the same.

    Raises:
        DatasetError: The folder holds data of another recipe, or a teacher is missing.
    """
    for name in (_BVCC, _P808):
        if not (recipe.teachers / name).is_file():
            raise DatasetError(f"{recipe.teachers}: {name} is missing; the README tells its source")
    facts = {
        "seed": recipe.seed,
        "held_out": recipe.held_out,
        "reduced": recipe.reduced,
        "teachers": {name: sha256_of(recipe.teachers / name) for name in (_BVCC, _P808)},
    }
    path = out / _RECIPE
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != facts:
            raise DatasetError(
                f"{out}: holds data of another seed, precision or other teachers; choose another "
                "--output, or the options it was made with"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load_pool(voices: list[Voice], paths: list[Path]) -> Pool:
    """The pool of the voices, each from the file that `build_pool` made.

    Raises:
        VoiceError: A file holds no speech.
    """
    utterances = []
    for voice, path in zip(voices, paths, strict=True):
        with np.load(path) as arrays:
            parts = [arrays[name] for name in sorted(arrays)]
        if not parts:
            raise VoiceError(f"{path}: holds no speech of {voice.name}; delete it and start again")
        utterances.append(parts)
    return Pool(voices, utterances)


def generate(
    voices: list[Voice],
    pools: list[Path],
    recipe: Recipe,
    chunks: range,
    ladders: range,
    out: Path,
    workers: int,
) -> Iterator[Path]:
    """Makes the chunks of clips, and those of ladders of clips, that are not there yet.

    Yields:
        The file of a chunk as soon as it is there.
    """
    out.mkdir(parents=True, exist_ok=True)
    missing = []
    for make, numbers in ((_make_chunk, chunks), (_make_ladders, ladders)):
        for number in numbers:
            path = _chunk_path(out, number, ladders=make is _make_ladders)
            if path.exists():
                yield path
            else:
                missing.append((make, number, path))
    if not missing:
        return
    with concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(voices, pools, recipe),
    ) as executor:
        futures = {
            executor.submit(make, number, recipe=recipe, path=path): path
            for make, number, path in missing
        }
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            executor.shutdown(cancel_futures=True)


class _Worker:
    """What a process keeps between chunks."""

    def __init__(self, voices: list[Voice], pools: list[Path], recipe: Recipe) -> None:
        torch.set_num_threads(1)
        self.pool = load_pool(voices, pools)
        self.bvcc = DnsmosPro(recipe.teachers / _BVCC, reduced=recipe.reduced)
        self.p808 = DnsmosP808(recipe.teachers / _P808)


_worker: _Worker | None = None
_Take: TypeAlias = tuple[Clip, list[int], bool]
"""A clip, the seed of its level, and whether its fidelity is measured."""


def _start_worker(voices: list[Voice], pools: list[Path], recipe: Recipe) -> None:
    global _worker  # noqa: PLW0603  # one per process, as the executor's initializer wants it
    _worker = _Worker(voices, pools, recipe)


def _make_chunk(chunk: int, *, recipe: Recipe, path: Path) -> None:
    def clips(worker: _Worker) -> Iterator[_Take]:
        for number in range(chunk * CHUNK_CLIPS, (chunk + 1) * CHUNK_CLIPS):
            clip = make_clip(worker.pool, recipe.seed, number, worker.bvcc)
            yield clip, [recipe.seed, number, 1], _has_fidelity(clip, number)

    _save_chunk(path, clips)


def _make_ladders(chunk: int, *, recipe: Recipe, path: Path) -> None:
    def clips(worker: _Worker) -> Iterator[_Take]:
        n_ladders = CHUNK_CLIPS // RUNGS
        for number in range(chunk * n_ladders, (chunk + 1) * n_ladders):
            ladder = make_ladder(worker.pool, recipe.seed, number, worker.bvcc)
            for rung, clip in enumerate(ladder):
                yield clip, [recipe.seed, number, 3, rung], True

    _save_chunk(path, clips)


def _save_chunk(path: Path, clips: Callable[[_Worker], Iterator[_Take]]) -> None:
    if _worker is None:
        raise RuntimeError("the worker was not started")
    waveforms, labels, notes = [], [], []
    for clip, seed, full_reference in clips(_worker):
        waveforms.append(_stored(clip.waveform, seed))
        labels.append(_labels(clip, waveforms[-1], full_reference))
        notes.append(f"{clip.voice}|{clip.treatment}|{clip.severity:.3f}")
    _save(
        path,
        {
            "waveforms": np.stack(waveforms),
            "labels": np.array(labels, np.float32),
            "notes": np.array(notes),
        },
    )


def _stored(waveform: NDArray[np.float32], seed: list[int]) -> NDArray[np.int16]:
    """A clip at a random level between -32 and -16 dBFS RMS, less where it would overload."""
    rng = np.random.default_rng(seed)
    gain = 10 ** (rng.uniform(-32, -16) / 20) / max(float(waveform.std()), 1e-6)
    gain = min(gain, 0.99 / max(float(np.abs(waveform).max()), 1e-6))
    return np.round(waveform * gain * 32767).astype(np.int16)


def _has_fidelity(clip: Clip, number: int) -> bool:
    share = _CODEC_FIDELITY_SHARE if clip.treatment.endswith(_CODECS) else _FIDELITY_SHARE
    return number % 100 < 100 * share


def _labels(clip: Clip, stored: NDArray[np.int16], full_reference: bool) -> list[float]:
    if _worker is None:
        raise RuntimeError("the worker was not started")
    heard: NDArray[np.float32] = stored.astype(np.float32) / np.float32(32768)
    quality = float("nan")
    if clip.treatment == "clean":
        quality = 5.0
    elif full_reference:
        quality = fidelity(clip.reference, clip.waveform)
    # what is wrong with a clip takes its share of what the voice had to lose
    anchor = 1 + (clip.anchor - 1) * (quality - 1) / 4
    return [_worker.bvcc(heard), _worker.p808(heard), quality, anchor]


def chunk_paths(folder: Path) -> list[Path]:
    """The files of a data set, in order: chunks of clips, then chunks of ladders."""
    return sorted(folder.glob("chunk-*.npz")) + sorted(folder.glob("ladders-*.npz"))


def _chunk_path(out: Path, number: int, *, ladders: bool) -> Path:
    return out / f"{'ladders' if ladders else 'chunk'}-{number:05d}.npz"


def _save(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for one


class Dataset:
    """A generated data set, in memory.

    Args:
        folder: Where `generate` put it.

    Attributes:
        waveforms: (clips, CLIP_SAMPLES) int16.
        labels: (clips, len(LABELS)) float32; nan where a label is not known.
        notes: Voice, treatment and severity of each clip.
        ladders: (ladders, RUNGS), the numbers of each ladder's clips, the clean one first; they
            come after all other clips.
        recipe: What it was made from.
    """

    def __init__(self, folder: Path) -> None:
        paths = chunk_paths(folder)
        if not paths:
            raise DatasetError(f"{folder}: no chunks of clips; run `generate` first")
        self.waveforms = np.empty((len(paths) * CHUNK_CLIPS, CLIP_SAMPLES), np.int16)
        labels, notes = [], []
        for i, path in enumerate(paths):
            with np.load(path) as arrays:
                self.waveforms[i * CHUNK_CLIPS : (i + 1) * CHUNK_CLIPS] = arrays["waveforms"]
                labels.append(arrays["labels"])
                notes += [str(note) for note in arrays["notes"]]
        self.labels: NDArray[np.float32] = np.concatenate(labels)
        self.notes = notes
        n_single = CHUNK_CLIPS * sum(path.name.startswith("chunk-") for path in paths)
        self.ladders: NDArray[np.int64] = np.arange(n_single, len(self.waveforms)).reshape(
            -1, RUNGS
        )
        recipe = folder / _RECIPE
        self.recipe: dict[str, Any] = (
            json.loads(recipe.read_text(encoding="utf-8")) if recipe.exists() else {}
        )

    def __len__(self) -> int:
        return len(self.waveforms)

    def digest(self) -> str:
        """SHA-256 of all samples and labels."""
        digest = hashlib.sha256(self.waveforms.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()
