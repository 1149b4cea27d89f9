"""Generates clips and their labels in several processes, and reads them back.

An interrupted generation continues with the first chunk of clips that is not on disk.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt._arrays import Float32Array, IntArray
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
# Shares of treated clips. PESQ is the slowest step. The teachers do not notice codecs.
_FIDELITY_SHARE: Final = 0.5
_CODEC_FIDELITY_SHARE: Final = 0.85
_CODECS: Final = ("MP3", "Opus")
_UTTERANCES: Final = {"flite": 60, "festival": 30, "espeak-ng": 8}  # per voice
_RECIPE: Final = "recipe.json"
_BVCC: Final = "dnsmospro_bvcc.pt"
_P808: Final = "dnsmos_p808.onnx"


class DatasetError(MosrtError, ValueError):
    """A data set cannot be generated or read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a data set is made from.

    Attributes:
        seed: Seed of all random choices.
        teachers: Folder of the teachers' published files.
        reduced: Whether the teachers run in bfloat16.
    """

    seed: int
    teachers: Path
    reduced: bool = False


def build_pool(voice: Voice, seed: int, out: Path) -> Path:
    """Writes a voice's utterances to a file in `out`, unless it exists, and returns its path.

    Raises:
        VoiceError: The voice cannot be synthesised, or has no usable utterance.
    """
    digest = hashlib.sha256(voice.name.encode())
    path = out / f"{digest.hexdigest()[:16]}.npz"
    if not path.exists():
        rng = np.random.default_rng([seed, *digest.digest()])
        if voice.engine == "recorded":
            speech = list(recorded(voice, held_out=False))
        else:
            speech = synthesise(voice, _UTTERANCES[voice.engine], rng)
        # The output is short or silent where an engine cannot read the text.
        usable = [part for part in speech if len(part) > 8000 and part.std() > 1e-3]
        if not usable:
            raise VoiceError(
                f"{voice.name} has no usable utterance: all of {len(speech)} are too short or "
                "silent; repair the voice, or leave it out"
            )
        scaled = {
            f"utterance{i:05d}": np.round(part * (0.25 / np.abs(part).max()) * 32767)
            for i, part in enumerate(usable)
        }
        save_arrays(path, **{name: part.astype(np.int16) for name, part in scaled.items()})
    return path


def record_recipe(recipe: Recipe, out: Path) -> None:
    """Writes the recipe of the data in `out` beside it, or compares it with the one that is there.

    Raises:
        DatasetError: The folder has data of another recipe, or a teacher is missing.
    """
    for name in (_BVCC, _P808):
        if not (recipe.teachers / name).is_file():
            raise DatasetError(
                f"{recipe.teachers}: {name} is missing; the recipe's README says where to get it"
            )
    facts = {
        "seed": recipe.seed,
        "held_out": False,  # voices and recordings that are kept for evaluation are left out
        "reduced": recipe.reduced,
        "teachers": {name: sha256_of(recipe.teachers / name) for name in (_BVCC, _P808)},
    }
    path = out / _RECIPE
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != facts:
            raise DatasetError(
                f"{out} has data of another seed, precision or other teachers; choose another "
                "--output, or repeat the options of the first run"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def load_pool(voices: list[Voice], paths: list[Path]) -> Pool:
    """Reads the utterances of voices from the files that `build_pool` wrote."""
    utterances = []
    for path in paths:
        with np.load(path) as arrays:
            utterances.append([arrays[name] for name in sorted(arrays)])
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
    """Makes the chunks of single clips and the chunks of ladders that do not exist yet.

    Args:
        voices: The voices to use.
        pools: The file of utterances of each voice.
        recipe: What the data is made from.
        chunks: Numbers of the chunks of single clips.
        ladders: Numbers of the chunks of ladders.
        out: Folder for the chunks.
        workers: Number of processes.

    Yields:
        The file of each chunk, as soon as it exists.
    """
    out.mkdir(parents=True, exist_ok=True)
    missing = []
    for with_ladders, numbers in ((False, chunks), (True, ladders)):
        for number in numbers:
            path = chunk_path(out, number, ladders=with_ladders)
            if path.exists():
                yield path
            else:
                missing.append((number, recipe, path, with_ladders))
    if missing:
        with concurrent.futures.ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(voices, pools, recipe),
        ) as executor:
            yield from executor.map(_make_in_worker, missing)


@dataclass(frozen=True, slots=True)
class Labeller:
    """The utterances and teachers that a process keeps between chunks.

    Attributes:
        pool: Utterances of all voices.
        bvcc: DNSMOS Pro.
        p808: DNSMOS P.808.
    """

    pool: Pool
    bvcc: Callable[[Float32Array], float]
    p808: Callable[[Float32Array], float]

    def labels(self, clip: Clip, stored: NDArray[np.int16], *, measured: bool) -> list[float]:
        """Returns the labels of a clip, in the order of `LABELS`.

        Args:
            clip: The clip.
            stored: Its samples at their final level.
            measured: Whether its fidelity is measured; nan if not, but 5 for clean clips.
        """
        waveform: Float32Array = stored.astype(np.float32) / np.float32(32768)
        quality = float("nan")
        if clip.treatment == "clean":
            quality = 5.0
        elif measured:
            quality = fidelity(clip.reference, clip.waveform)
        # The anchor above the bottom of the scale falls by the share of fidelity that is lost.
        anchor = 1 + (clip.voice.anchor - 1) * (quality - 1) / 4
        return [self.bvcc(waveform), self.p808(waveform), quality, anchor]


_labeller: Labeller | None = None


def _start_worker(voices: list[Voice], pools: list[Path], recipe: Recipe) -> None:
    global _labeller  # noqa: PLW0603  # one per process, set by the executor's initializer
    torch.set_num_threads(1)
    bvcc = DnsmosPro(recipe.teachers / _BVCC, reduced=recipe.reduced)
    _labeller = Labeller(load_pool(voices, pools), bvcc, DnsmosP808(recipe.teachers / _P808))


def _make_in_worker(chunk: tuple[int, Recipe, Path, bool]) -> Path:
    number, recipe, path, ladders = chunk
    if _labeller is None:
        raise RuntimeError("the worker was not started")
    make_chunk(_labeller, number, recipe, path, ladders=ladders)
    return path


def make_chunk(
    labeller: Labeller, chunk: int, recipe: Recipe, path: Path, *, ladders: bool = False
) -> None:
    """Makes and labels CHUNK_CLIPS clips, single ones or ladders, and writes them to `path`."""
    seed, pool = recipe.seed, labeller.pool
    waveforms, labels, notes = [], [], []
    size = CHUNK_CLIPS // RUNGS if ladders else CHUNK_CLIPS
    for number in range(chunk * size, (chunk + 1) * size):
        if ladders:
            clips = make_ladder(pool, seed, number, labeller.bvcc)
        else:
            clips = [make_clip(pool, seed, number, labeller.bvcc)]
        for rung, clip in enumerate(clips):
            level_seed = [seed, number, 3, rung] if ladders else [seed, number, 1]
            waveforms.append(at_random_level(clip.waveform, level_seed))
            measured = ladders or is_measured(clip, number)
            labels.append(labeller.labels(clip, waveforms[-1], measured=measured))
            notes.append(f"{clip.voice.name}|{clip.treatment}|{clip.severity:.3f}")
    rows = np.array(labels, np.float32)
    save_arrays(path, waveforms=np.stack(waveforms), labels=rows, notes=np.array(notes))


def at_random_level(waveform: Float32Array, seed: list[int]) -> NDArray[np.int16]:
    """Scales a clip to a random level between -32 and -16 dBFS RMS, or less to avoid clipping."""
    rng = np.random.default_rng(seed)
    gain = 10 ** (rng.uniform(-32, -16) / 20) / max(float(waveform.std()), 1e-6)
    gain = min(gain, 0.99 / max(float(np.abs(waveform).max()), 1e-6))
    return np.round(waveform * gain * 32767).astype(np.int16)


def is_measured(clip: Clip, number: int) -> bool:
    """Whether the fidelity of treated clip `number` is measured."""
    share = _CODEC_FIDELITY_SHARE if clip.treatment.endswith(_CODECS) else _FIDELITY_SHARE
    return number % 100 < 100 * share


def chunk_paths(folder: Path) -> list[Path]:
    """Returns the files of a data set in order: chunks of single clips, then chunks of ladders."""
    return sorted(folder.glob("chunk-*.npz")) + sorted(folder.glob("ladders-*.npz"))


def chunk_path(out: Path, number: int, *, ladders: bool) -> Path:
    """Returns the file of a chunk of single clips or of ladders."""
    return out / f"{'ladders' if ladders else 'chunk'}-{number:05d}.npz"


def save_arrays(path: Path, **arrays: NDArray[np.generic]) -> None:
    """Writes an npz file whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for one


class Dataset:
    """A generated data set in memory.

    Args:
        folder: The folder that `generate` wrote.

    Attributes:
        waveforms: (clips, CLIP_SAMPLES) int16 at 16 kHz; the ladders come last.
        labels: (clips, len(LABELS)) float32; nan where a label is unknown.
        notes: Voice, treatment and severity of each clip, separated by "|".
        ladders: (ladders, RUNGS), the numbers of each ladder's clips, the clean one first.
        recipe: What the data is made from.

    Raises:
        DatasetError: There are no chunks in the folder.
    """

    def __init__(self, folder: Path) -> None:
        paths = chunk_paths(folder)
        if not paths:
            raise DatasetError(f"{folder}: there are no chunks of clips; run `generate` first")
        self.waveforms = np.empty((len(paths) * CHUNK_CLIPS, CLIP_SAMPLES), np.int16)
        labels: list[Float32Array] = []
        self.notes: list[str] = []
        for i, path in enumerate(paths):
            with np.load(path) as arrays:
                self.waveforms[i * CHUNK_CLIPS : (i + 1) * CHUNK_CLIPS] = arrays["waveforms"]
                labels.append(arrays["labels"])
                self.notes += arrays["notes"].tolist()
        self.labels: Float32Array = np.concatenate(labels)
        n_single = CHUNK_CLIPS * sum(path.name.startswith("chunk-") for path in paths)
        self.ladders: IntArray = np.arange(n_single, len(self.waveforms)).reshape(-1, RUNGS)
        recipe = folder / _RECIPE
        self.recipe = json.loads(recipe.read_text(encoding="utf-8")) if recipe.exists() else {}

    def __len__(self) -> int:
        return len(self.waveforms)

    def digest(self) -> str:
        """Returns the SHA-256 of all samples and labels."""
        digest = hashlib.sha256(self.waveforms.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()
