"""`mosrt nano`: make the embedded models. Importing this module imports no model library."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from mosrt.cli.command import require_extra
from mosrt_export.cli.export import front_end_option

__all__ = ["nano"]

_SEED: Final = 7
_PATH: Final = click.Path(path_type=Path)
_EXISTING: Final = click.Path(exists=True, path_type=Path)

_data = click.option(
    "--data", required=True, type=_EXISTING, metavar="DIR", help="What `generate` filled."
)
_checkpoint_out = click.option(
    "--out", required=True, type=_PATH, metavar="FILE", help="Checkpoint to write."
)
_seed = click.option("--seed", default=_SEED, show_default=True, help="Of everything random.")
_device = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, or auto: a GPU if there is one."
)
_reduced = click.option(
    "--reduced/--full-precision",
    default=True,
    show_default=True,
    help="Convolutions in bfloat16: faster on processors and GPUs that have it.",
)


@click.group(short_help="Make the embedded models from scratch.")
def nano() -> None:
    """Make the embedded models `nano` and `nano-uncertainty` from scratch.

    \b
      mosrt nano generate --speech SPEECH --teachers TEACHERS --out data
      mosrt nano pretrain --data data --out wav2vec.pt
      mosrt nano train --data data --wav2vec wav2vec.pt --out nano.pt
      mosrt nano export --checkpoint nano.pt --out nano

    Needs the extra, and the programs that speak and code:

    \b
      pip install 'mosrt[train]'
      apt install flite espeak-ng festival codec2
    """  # noqa: D301 - click reads the backspace


@nano.command(short_help="Make labelled clips.")
@click.option(
    "--speech",
    required=True,
    type=_EXISTING,
    metavar="DIR",
    help="Clean recordings: one folder of FLAC files per voice.",
)
@click.option(
    "--teachers",
    required=True,
    type=_EXISTING,
    metavar="DIR",
    help="The published models dnsmospro_bvcc.pt and dnsmos_p808.onnx.",
)
@click.option("--out", required=True, type=_PATH, metavar="DIR", help="Folder for the data.")
@click.option(
    "--hours",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="How much to make; more may be added later.",
)
@click.option(
    "--ladder-hours",
    default=8.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="How much to make of clips in fours: one clean, three with ever more of one damage.",
)
@click.option(
    "--workers", default=2, show_default=True, type=click.IntRange(min=1), help="Processes."
)
@_seed
@click.option(
    "--reduced/--full-precision",
    default=False,
    show_default=True,
    help="Let the teachers compute in bfloat16: faster on processors that have it.",
)
def generate(**options: Any) -> None:
    """Make clips of speech, clean and spoilt in many ways, and have the teachers score them.

    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    _run("run_generate", options)


@nano.command(short_help="Train the wav2vec v1 model on clean speech.")
@_data
@_checkpoint_out
@click.option(
    "--steps",
    default=5000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Updates, on 16 excerpts of 2.5 s each.",
)
@_seed
@_device
@_reduced
def pretrain(**options: Any) -> None:
    """Train a wav2vec v1 model of 1.1 million parameters on the clean recordings alone.

    No labels are used. The checkpoint has the published layout, so that `mosrt export wav2vec`
    reads it; it is also the waveform branch of `mosrt nano train`.
    """
    _run("run_pretrain", options)


@nano.command(short_help="Train the fusion model on labelled clips.")
@_data
@_checkpoint_out
@click.option(
    "--wav2vec",
    type=_EXISTING,
    metavar="FILE",
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
@_seed
@_device
@_reduced
def train(**options: Any) -> None:
    """Train branches alone, then the head, then all together.

    Prints how well each network predicts the labels of clips it has not seen; the waveform branch
    is dropped where it adds too little, and the model card says so.
    """
    _run("run_train", options)


@nano.command(short_help="Make a bundle of the fusion model.")
@click.option(
    "--checkpoint", required=True, type=_EXISTING, metavar="FILE", help="Checkpoint of `train`."
)
@click.option(
    "--out",
    required=True,
    type=_PATH,
    metavar="DIR",
    help="Bundle directory to make; its name is the model's.",
)
@click.option(
    "--evaluation",
    type=_EXISTING,
    metavar="FILE.json",
    help="Object of measured figures, claim to figure, for the model card.",
)
@front_end_option
@click.option("--force", is_flag=True, help="Replace an older bundle.")
def export(**options: Any) -> None:
    """Write graph, manifest and model card, after comparing the graph with torch.

    The model of `pretrain` is exported by `mosrt export wav2vec`.
    """
    _run("run_export", options)


def _run(name: str, options: dict[str, Any]) -> None:
    """Runs a command with its libraries, and turns mosrt's errors into click's."""
    from mosrt.errors import MosrtError  # noqa: PLC0415 - numpy and onnxruntime

    with require_extra("train"):
        from . import commands  # noqa: PLC0415 - torch

        try:
            getattr(commands, name)(**options)
        except MosrtError as exc:
            raise click.ClickException(str(exc)) from exc
