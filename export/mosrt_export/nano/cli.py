"""`mosrt nano`: make the embedded models from scratch."""

from __future__ import annotations

import concurrent.futures
import json
import time
from pathlib import Path
from typing import Final

import click
import numpy as np
import torch

from mosrt.errors import MosrtError
from mosrt_export.parity import audio_sources
from mosrt_export.wav2vec.checkpoint import read_wav2vec
from mosrt_export.wav2vec.model import Wav2Vec

from .dataset import CHUNK_CLIPS, LABELS, Dataset, Recipe, build_pool, generate
from .exporting import export_nano
from .images import draw_images, image_paths
from .model import save_nano
from .pretraining import ARCHITECTURE, PretrainingConfig, clean_clips, pretrain
from .stages import Clips, Plan, summary, train_nano
from .voices import missing_programs, recorded_voices, synthetic_voices
from .wav2vec_checkpoint import save_wav2vec

__all__ = ["nano"]

_SEED: Final = 7
_CLIP_S: Final = 5.0


@click.group(short_help="Make the embedded models from scratch.")
def nano() -> None:
    r"""Make the embedded models `nano` and `nano-uncertainty` from scratch.

    \b
    mosrt nano generate --speech SPEECH --teachers TEACHERS --out data
    mosrt nano pretrain --data data --out wav2vec.pt
    mosrt nano train --data data --wav2vec wav2vec.pt --out nano.pt
    mosrt nano export --checkpoint nano.pt --out nano
    """


@nano.command("generate", short_help="Make labelled clips.")
@click.option(
    "--speech",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Folder of clean recordings: one folder of FLAC files per voice.",
)
@click.option(
    "--teachers",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Folder of the published models dnsmospro_bvcc.pt and dnsmos_p808.onnx.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the data.")
@click.option(
    "--hours",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="How much to make; more may be added later.",
)
@click.option(
    "--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Processes."
)
@click.option("--seed", default=_SEED, show_default=True, help="Of everything random.")
@click.option(
    "--reduced/--full-precision",
    default=False,
    show_default=True,
    help="Let the teachers compute in bfloat16: faster on processors that have it.",
)
def generate_command(speech: Path, teachers: Path, out: Path, hours: float, workers: int,
                     seed: int, reduced: bool) -> None:  # fmt: skip
    """Make clips of speech, clean and spoilt in many ways, and have the teachers score them.

    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    voices = recorded_voices(speech)
    voices += [voice for voice in synthetic_voices() if not voice.held_out]
    for name, cure in missing_programs(voices).items():
        raise click.ClickException(f"{name} is missing: {cure}")
    with (
        concurrent.futures.ThreadPoolExecutor(workers) as executor,
        click.progressbar(length=len(voices), label="voices") as bar,
    ):
        futures = [executor.submit(build_pool, voice, seed, out / "voices") for voice in voices]
        for future in concurrent.futures.as_completed(futures):
            future.result()
            bar.update(1)
        pools = [future.result() for future in futures]
    recipe = Recipe(seed=seed, teachers=teachers, reduced=reduced)
    chunks = range(-(-int(hours * 3600 / _CLIP_S) // CHUNK_CLIPS))
    with click.progressbar(length=len(chunks), label="clips", show_eta=True) as bar:
        for _ in generate(voices, pools, recipe, chunks, out, workers):
            bar.update(1)


_device = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, or auto: a GPU if there is one."
)
_data = click.option(
    "--data", required=True, type=click.Path(exists=True, path_type=Path),
    help="Folder that `generate` filled.",
)  # fmt: skip
_reduced = click.option(
    "--reduced/--full-precision",
    default=True,
    show_default=True,
    help="Convolutions in bfloat16: faster on processors and GPUs that have it.",
)


@nano.command("pretrain", short_help="Train the wav2vec v1 model on clean speech.")
@_data
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Checkpoint to write.")
@click.option("--steps", default=6000, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.1),
    help="Time to take: steps are timed first, and as many made as fit.",
)
@click.option("--seed", default=_SEED, show_default=True, help="Of everything random.")
@_device
@_reduced
def pretrain_command(data: Path, out: Path, steps: int, minutes: float | None, seed: int,
                     device: str, reduced: bool) -> None:  # fmt: skip
    """Train a wav2vec v1 model of 1.1 million parameters on the clean recordings alone.

    No labels are used. The checkpoint has fairseq's layout, so that `mosrt export wav2vec` reads
    it like the published one; it is also the waveform branch of `mosrt nano train`.
    """
    chosen = _chosen_device(device)
    dataset = Dataset(data)
    clean = dataset.waveforms[clean_clips(dataset.notes)]
    click.echo(f"{len(clean)} clean clips, {len(clean) * _CLIP_S / 3600:.1f} h")
    torch.manual_seed(seed)
    if minutes is not None:
        timed = PretrainingConfig(steps=6, seed=seed, reduced=reduced)
        trial = Wav2Vec(ARCHITECTURE).to(chosen)
        started = time.perf_counter()
        for done, _, _ in pretrain(trial, clean, timed):
            if done <= 0.5:  # the first steps also allocate and compile
                started = time.perf_counter()
        steps = max(1, int(minutes * 60 / ((time.perf_counter() - started) / 3)))
    model = Wav2Vec(ARCHITECTURE).to(chosen)
    config = PretrainingConfig(steps=steps, seed=seed, reduced=reduced)
    smooth: dict[str, float] = {}
    bar = _StageBars()
    for done, loss, right in pretrain(model, clean, config):
        for name, value in (("loss", loss), ("right", right)):
            smooth[name] = 0.98 * smooth.get(name, value) + 0.02 * value
        bar("pretraining", done, loss)
    bar.close()
    save_wav2vec(out, model.cpu(), {"seed": seed, "steps": steps, "data": dataset.digest(),
                                    "clips": len(clean), **smooth})  # fmt: skip
    click.echo(f"{out}: {_figures(smooth)} nats, chance {np.log(config.negatives + 1):.2f}")


@nano.command("train", short_help="Train the fusion model on labelled clips.")
@_data
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Checkpoint to write.")
@click.option(
    "--wav2vec",
    type=click.Path(exists=True, path_type=Path),
    help="Checkpoint of `pretrain`; without it there is no waveform branch.",
)
@click.option(
    "--epochs",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Passes over the data for the spectrogram branch alone.",
)
@click.option(
    "--joint-epochs",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Passes for all together, at the end.",
)
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(min=1),
    help="Processes that draw images.",
)
@click.option("--seed", default=_SEED, show_default=True, help="Of everything random.")
@_device
@_reduced
def train_command(data: Path, out: Path, wav2vec: Path | None, epochs: float, joint_epochs: float,
                  workers: int, seed: int, device: str, reduced: bool) -> None:  # fmt: skip
    """Train branches alone, then the head, then all together.

    Prints how well each network predicts the labels of clips it has not seen; the waveform branch
    is dropped where it adds nothing, and the checkpoint says so.
    """
    chosen = _chosen_device(device)
    drawing = draw_images(data, workers)
    with click.progressbar(length=next(drawing), label="images") as bar:
        for count in drawing:
            bar.update(count)
    dataset = Dataset(data)
    images = [np.load(path, mmap_mode="r") for path in image_paths(data)]
    clips = Clips(dataset.waveforms, images, dataset.labels)
    click.echo(f"{len(dataset)} clips, {len(dataset) * _CLIP_S / 3600:.1f} h")
    plan = Plan(mel_epochs=epochs, joint_epochs=joint_epochs, seed=seed, reduced=reduced)
    encoder = None if wav2vec is None else read_wav2vec(wav2vec).build()
    progress = _StageBars()
    outcome = train_nano(clips, encoder, plan, chosen, progress)
    progress.close()
    click.echo(summary(outcome.ablation))
    provenance = {
        "seed": seed,
        "clips": len(dataset),
        "hours": round(len(dataset) * _CLIP_S / 3600, 1),
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


class _StageBars:
    """A progress bar per stage of training."""

    def __init__(self) -> None:
        self._stage = ""
        self._shown = 0.0
        self._loss = 0.0

    def __call__(self, stage: str, done: float, loss: float) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._shown, self._loss = stage, 0.0, loss
        self._loss = 0.98 * self._loss + 0.02 * loss
        if done - self._shown >= 0.01 or done == 1.0:
            self._shown = done
            click.echo(f"\r{stage}: {done:4.0%}  loss {self._loss:.4f}", nl=False)

    def close(self) -> None:
        """Ends the line."""
        if self._stage:
            click.echo()


def _figures(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in values.items())


def _chosen_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


@nano.command("export", short_help="Make a bundle of the fusion model.")
@click.option(
    "--checkpoint",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Checkpoint of `train`.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory of the bundle; its name is the model's.",
)
@click.option(
    "--evaluation",
    type=click.Path(exists=True, path_type=Path),
    help="JSON object of measured figures, claim -> figure, for the model card.",
)
@click.option("--force", is_flag=True, help="Replace an older bundle.")
def export_command(checkpoint: Path, out: Path, evaluation: Path | None, force: bool) -> None:
    """Write graph, manifest and model card, after comparing the graph with torch.

    The model of `pretrain` is exported by `mosrt export wav2vec`.
    """
    figures = {} if evaluation is None else json.loads(evaluation.read_text(encoding="utf-8"))
    try:
        drift = export_nano(checkpoint, out, clips=audio_sources(None), evaluation=figures,
                            force=force)  # fmt: skip
    except MosrtError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(drift.table())
