"""What the commands of `mosrt nano` do."""

from __future__ import annotations

import concurrent.futures
import json
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch

from mosrt.errors import MosrtError
from mosrt_export.uncertainty.wav2vec.checkpoint import read_wav2vec
from mosrt_export.uncertainty.wav2vec.model import Wav2Vec
from mosrt_export.utmosv2.parity import audio_sources

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
from .data.images import draw_images, image_paths
from .data.voices import VoiceError, missing_programs, recorded_voices, synthetic_voices
from .train.exporting import export_nano
from .train.model import save_nano
from .train.pretraining import ARCHITECTURE, PretrainingConfig, clean_clips, pretrain, save_wav2vec
from .train.stages import Clips, Plan, summary, train_nano

__all__ = ["run_export", "run_generate", "run_pretrain", "run_train"]

_CLIP_S: Final = 5.0


def run_generate(
    *, speech: Path, teachers: Path, out: Path, hours: float, ladder_hours: float, workers: int,
    seed: int, reduced: bool,
) -> None:  # fmt: skip
    """`mosrt nano generate`."""
    voices = recorded_voices(speech)
    voices += [voice for voice in synthetic_voices() if not voice.held_out]
    for name, cure in missing_programs(voices).items():
        raise VoiceError(f"{name} is missing: {cure}")
    recipe = Recipe(seed=seed, teachers=teachers, reduced=reduced)
    record_recipe(recipe, out)
    with (
        concurrent.futures.ThreadPoolExecutor(workers) as executor,
        click.progressbar(length=len(voices), label="voices") as bar,
    ):
        futures = [executor.submit(build_pool, voice, seed, out / "voices") for voice in voices]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                bar.update(1)
        finally:  # the first voice that fails is told at once, not after all others
            executor.shutdown(cancel_futures=True)
        pools = [future.result() for future in futures]
    chunks, ladders = _chunks(hours), _chunks(ladder_hours)
    with click.progressbar(length=len(chunks) + len(ladders), label="clips", show_eta=True) as bar:
        for _ in generate(voices, pools, recipe, chunks, ladders, out, workers):
            bar.update(1)


def _chunks(hours: float) -> range:
    return range(-(-int(hours * 3600 / _CLIP_S) // CHUNK_CLIPS))


def run_pretrain(
    *, data: Path, out: Path, steps: int, seed: int, device: str, reduced: bool
) -> None:
    """`mosrt nano pretrain`."""
    _check_folder(out)
    chosen = _chosen_device(device)
    dataset = Dataset(data)
    chosen_clips = clean_clips(dataset.notes)
    if not len(chosen_clips):
        raise DatasetError(f"{data}: no clean recordings among its clips; generate more")
    clean = dataset.waveforms[chosen_clips]
    click.echo(f"{len(clean)} clean clips, {len(clean) * _CLIP_S / 3600:.1f} h")
    torch.manual_seed(seed)
    model = Wav2Vec(ARCHITECTURE).to(chosen)
    config = PretrainingConfig(steps=steps, seed=seed, reduced=reduced)
    loss, right = _Smooth(), _Smooth()
    stages = _StageLines()
    for done, now_loss, now_right in pretrain(model, clean, config):
        loss.add(now_loss)
        right.add(now_right)
        stages("pretraining", done, now_loss)
    stages.close()
    provenance = {
        "seed": seed,
        "steps": steps,
        "data": dataset.recipe,
        "data_sha256": dataset.digest(),
        "clips": len(clean),
        "loss_nats": loss.value,
        "right": right.value,
    }
    save_wav2vec(out, model.cpu(), provenance)
    chance = np.log(config.negatives + 1)
    click.echo(f"{out}: {loss.value:.3f} nats (chance {chance:.2f}), {right.value:.1%} right")


def run_train(
    *, data: Path, out: Path, wav2vec: Path | None, epochs: float, joint_epochs: float,
    workers: int, seed: int, device: str, reduced: bool,
) -> None:  # fmt: skip
    """`mosrt nano train`."""
    _check_folder(out)
    chosen = _chosen_device(device)
    drawing = draw_images(data, workers)
    with click.progressbar(length=next(drawing), label="images") as bar:
        for count in drawing:
            bar.update(count)
    dataset = Dataset(data)
    images = [np.load(path, mmap_mode="r") for path in image_paths(data)]
    hours = round(len(dataset) * _CLIP_S / 3600, 1)
    click.echo(f"{len(dataset)} clips, {hours} h")
    plan = Plan(mel_epochs=epochs, joint_epochs=joint_epochs, seed=seed, reduced=reduced)
    encoder = None if wav2vec is None else read_wav2vec(wav2vec).build()
    stages = _StageLines()
    clips = Clips(dataset.waveforms, images, dataset.labels, dataset.ladders)
    resume = out.with_name(f"{out.name}.mel")
    outcome = train_nano(clips, encoder, plan, chosen, stages, resume)
    stages.close()
    click.echo(summary(outcome.ablation))
    provenance = {
        "seed": seed,
        "clips": len(dataset),
        "ladders": len(dataset.ladders),
        "hours": hours,
        "data": dataset.recipe,
        "data_sha256": dataset.digest(),
        "epochs": epochs,
        "joint_epochs": joint_epochs,
        "ablation": {
            network: {name: [round(value, 4) for value in pair] for name, pair in row.items()}
            for network, row in outcome.ablation.items()
        },
    }
    save_nano(out, outcome.model, outcome.standard, provenance)
    click.echo(f"{out}: a {outcome.model.kind} model for {', '.join(LABELS)}")


def run_export(
    *, checkpoint: Path, out: Path, evaluation: Path | None, front_end: str, force: bool
) -> None:
    """`mosrt nano export`."""
    figures = {}
    if evaluation is not None:
        try:
            figures = json.loads(evaluation.read_text(encoding="utf-8"))
        except ValueError as exc:
            raise MosrtError(f"{evaluation}: not JSON ({exc})") from exc
        if not isinstance(figures, dict):
            raise MosrtError(f"{evaluation}: must be an object, claim to figure")
    drift = export_nano(
        checkpoint,
        out,
        clips=audio_sources(None),
        evaluation=figures,
        front_end=front_end,
        force=force,
    )
    click.echo(drift.table(), err=True)
    click.echo(f"{out}: written")


class _Smooth:
    """A running mean over about fifty values."""

    def __init__(self) -> None:
        self.value = float("nan")

    def add(self, value: float) -> None:
        """Takes in a value."""
        self.value = value if np.isnan(self.value) else 0.98 * self.value + 0.02 * value


class _StageLines:
    """A line per stage of training, with how far it is and the loss."""

    def __init__(self) -> None:
        self._stage = ""
        self._shown = 0.0
        self._loss = _Smooth()

    def __call__(self, stage: str, done: float, loss: float) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._shown, self._loss = stage, 0.0, _Smooth()
        self._loss.add(loss)
        if done - self._shown >= 0.01 or done == 1.0:
            self._shown = done
            click.echo(f"\r{stage}: {done:4.0%}  loss {self._loss.value:.4f}", nl=False)

    def close(self) -> None:
        """Ends the line."""
        if self._stage:
            click.echo()


def _chosen_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as exc:
        raise MosrtError(f"--device {name}: not usable here ({exc})") from exc
    return torch.device(name)


def _check_folder(out: Path) -> None:
    """Refuses a target that could not be written, before hours of work go into it."""
    if not out.parent.is_dir():
        raise MosrtError(f"{out}: the folder {out.parent} does not exist; make it first")
