"""Runs the commands `generate`, `pretrain`, `train` and `export`."""

from __future__ import annotations

import concurrent.futures
import json
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch

from mosrt.cli.terminal import bar_stream
from mosrt.errors import MosrtError
from mosrt_export.parity import audio_sources
from mosrt_export.uncertainty.wav2vec.model import Wav2Vec

from .data.dataset import (
    CHUNK_CLIPS,
    LABELS,
    Dataset,
    DatasetError,
    Recipe,
    build_pool,
    generate,
    record_recipe,
)
from .data.images import compute_images, image_paths
from .data.voices import VoiceError, missing_programs, recorded_voices, synthetic_voices
from .train.exporting import export_nano
from .train.model import save_nano
from .train.pretraining import ARCHITECTURE, PretrainingConfig, clean_clips, pretrain, save_wav2vec
from .train.stages import Clips, Plan, ablation_table, train_nano

__all__ = ["run_export", "run_generate", "run_pretrain", "run_train"]

_CLIP_S: Final = 5.0


def run_generate(
    *, speech: Path, teachers: Path, output: Path, hours: float, ladder_hours: float, workers: int,
    seed: int, reduced: bool,
) -> None:  # fmt: skip
    """Runs `generate`."""
    voices = recorded_voices(speech)
    voices += [voice for voice in synthetic_voices() if not voice.held_out]
    for name, cure in missing_programs(voices).items():
        raise VoiceError(f"{name} is missing: {cure}")
    recipe = Recipe(seed=seed, teachers=teachers, reduced=reduced)
    record_recipe(recipe, output)
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:
        built = executor.map(lambda voice: build_pool(voice, seed, output / "voices"), voices)
        with click.progressbar(built, label="voices", file=bar_stream(), length=len(voices)) as bar:
            pools = list(bar)
    chunks, ladders = _chunks(hours), _chunks(ladder_hours)
    made = generate(voices, pools, recipe, chunks, ladders, output, workers)
    n_chunks = len(chunks) + len(ladders)
    with click.progressbar(
        made, label="clips", file=bar_stream(), length=n_chunks, show_eta=True
    ) as bar:
        for _ in bar:
            pass


def _chunks(hours: float) -> range:
    return range(-(-int(hours * 3600 / _CLIP_S) // CHUNK_CLIPS))


def run_pretrain(
    *, data: Path, output: Path, steps: int, seed: int, device: str, reduced: bool
) -> None:
    """Runs `pretrain`."""
    _check_folder(output)
    where = _device(device)
    dataset = Dataset(data)
    numbers = clean_clips(dataset.notes)
    if not len(numbers):
        raise DatasetError(f"{data}: no clip is a clean recording; generate more")
    clean = dataset.waveforms[numbers]
    click.echo(f"{len(clean)} clean clips ({len(clean) * _CLIP_S / 3600:.1f} h)")
    torch.manual_seed(seed)
    model = Wav2Vec(ARCHITECTURE).to(where)
    config = PretrainingConfig(steps=steps, seed=seed, reduced=reduced)
    loss = accuracy = float("nan")
    stages = _StageLines()
    for done, step_loss, step_accuracy in pretrain(model, clean, config):
        loss, accuracy = _averaged(loss, step_loss), _averaged(accuracy, step_accuracy)
        stages("pretraining", done, step_loss)
    stages.close()
    provenance = {
        "seed": seed,
        "steps": steps,
        "data": dataset.recipe,
        "data_sha256": dataset.digest(),
        "clips": len(clean),
        "loss_nats": loss,
        "right": accuracy,
    }
    save_wav2vec(output, model.cpu(), provenance)
    chance = np.log(config.negatives + 1)
    click.echo(f"{output}: loss {loss:.3f} nats (chance {chance:.2f}), accuracy {accuracy:.1%}")


def run_train(
    *, data: Path, output: Path, epochs: float, workers: int, seed: int, device: str, reduced: bool
) -> None:
    """Runs `train`."""
    _check_folder(output)
    where = _device(device)
    dataset = Dataset(data)
    n_chunks = len(dataset) // CHUNK_CLIPS
    with click.progressbar(
        compute_images(data, workers), label="images", file=bar_stream(), length=n_chunks
    ) as bar:
        for _ in bar:
            pass
    images = [np.load(path, mmap_mode="r") for path in image_paths(data)]
    hours = round(len(dataset) * _CLIP_S / 3600, 1)
    click.echo(f"{len(dataset)} clips ({hours} h)")
    plan = Plan(epochs=epochs, seed=seed, reduced=reduced)
    stages = _StageLines()
    clips = Clips(images, dataset.labels, dataset.ladders)
    resume = output.with_name(f"{output.name}.mel")
    outcome = train_nano(clips, plan, where, stages, resume)
    stages.close()
    click.echo(ablation_table(outcome.ablation))
    provenance = {
        "seed": seed,
        "clips": len(dataset),
        "ladders": len(dataset.ladders),
        "hours": hours,
        "data": dataset.recipe,
        "data_sha256": dataset.digest(),
        "epochs": epochs,
        "ablation": {
            network: {name: [round(value, 4) for value in pair] for name, pair in row.items()}
            for network, row in outcome.ablation.items()
        },
    }
    save_nano(output, outcome.model, outcome.standard, provenance)
    click.echo(f"{output}: a model for {', '.join(LABELS)}")


def run_export(
    *, checkpoint: Path, output: Path, evaluation: Path | None, front_end: str, force: bool
) -> None:
    """Runs `export`."""
    results = {}
    if evaluation is not None:
        try:
            results = json.loads(evaluation.read_text(encoding="utf-8"))
        except ValueError as exc:
            raise MosrtError(f"{evaluation}: not JSON ({exc})") from exc
        if not isinstance(results, dict):
            raise MosrtError(f"{evaluation}: must be a JSON object of claims and values")
    clips = audio_sources(None)
    drift = export_nano(
        checkpoint, output, clips=clips, evaluation=results, front_end=front_end, force=force
    )
    click.echo(drift.table(), err=True)
    click.echo(f"{output}: written")


def _averaged(mean: float, value: float) -> float:
    """Updates an exponentially weighted mean over about fifty values; nan has no values yet."""
    return value if np.isnan(mean) else 0.98 * mean + 0.02 * value


class _StageLines:
    """Prints one line per stage of training, with the share that is done and the mean loss."""

    def __init__(self) -> None:
        self._stage, self._shown, self._loss = "", 0.0, float("nan")

    def __call__(self, stage: str, done: float, loss: float) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._shown, self._loss = stage, 0.0, float("nan")
        self._loss = _averaged(self._loss, loss)
        if done - self._shown >= 0.01 or done == 1.0:
            self._shown = done
            click.echo(f"\r{stage}: {done:4.0%}  loss {self._loss:.4f}", nl=False)

    def close(self) -> None:
        """Ends the line."""
        if self._stage:
            click.echo()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as exc:
        raise MosrtError(f"--device {name} cannot be used here ({exc})") from exc
    return torch.device(name)


def _check_folder(output: Path) -> None:
    """Raises an error now, rather than after hours of training, if `output` cannot be written."""
    if not output.parent.is_dir():
        raise MosrtError(f"{output}: the folder {output.parent} does not exist; create it first")
