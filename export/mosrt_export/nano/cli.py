"""The commands of `python -m mosrt_export.nano`. Importing this module imports no model library."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from mosrt.cli.command import (
    CommandError,
    ExitStatus,
    exit_on_error,
    exit_statuses,
    output_option,
    require_extra,
)
from mosrt_export.cli.export import front_end_option
from mosrt_export.errors import ParityError

__all__ = ["nano"]

_EXISTING: Final = click.Path(exists=True, path_type=Path)
_AT_LEAST_ONE: Final = click.IntRange(min=1)

_data = click.option(
    "--data", required=True, type=_EXISTING, metavar="DIR", help="Data made by `generate`."
)
_checkpoint = output_option("Checkpoint to write.", required=True)
_seed = click.option("--seed", default=7, show_default=True, help="Seed of all random choices.")
_device = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device to train on: cpu, cuda, or auto, which is a GPU if there is one.",
)
_reduced = click.option(
    "--reduced/--full-precision",
    default=True,
    show_default=True,
    help="Whether convolutions run in bfloat16, which is faster on hardware that supports it.",
)


@click.group(short_help="Make the embedded models from scratch.")
def nano() -> None:
    """Make the embedded models `nano` and `nano-uncertainty` from scratch.

    \b
      python -m mosrt_export.nano generate --speech SPEECH --teachers TEACHERS -o data
      python -m mosrt_export.nano pretrain --data data -o wav2vec.pt
      python -m mosrt_export.nano train --data data --wav2vec wav2vec.pt -o nano.pt
      python -m mosrt_export.nano export nano.pt -o nano

    The recipe needs an extra, and programs that synthesise and code speech:

    \b
      pip install 'mosrt[train]'
      apt install flite espeak-ng festival codec2
    """  # noqa: D301 - click reads the backspace


@nano.command(short_help="Make labelled clips.", epilog=exit_statuses())
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
    help="Folder with the published models dnsmospro_bvcc.pt and dnsmos_p808.onnx.",
)
@output_option("Directory for the data.", metavar="DIR", directory=True, required=True)
@click.option(
    "--hours",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Hours of single clips. A later run with more hours adds to the data.",
)
@click.option(
    "--ladder-hours",
    default=8.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Hours of ladders. A ladder is a clean clip and three copies with ever more severe "
    "degradation.",
)
@click.option(
    "--workers", default=2, show_default=True, type=_AT_LEAST_ONE, help="Number of processes."
)
@_seed
@click.option(
    "--reduced/--full-precision",
    default=False,
    show_default=True,
    help="Whether the teachers run in bfloat16, which is faster on processors that support it.",
)
def generate(**options: Any) -> None:
    """Make clean and degraded clips of speech, and label them with the teachers' scores.

    The command can be interrupted at any time; the same command continues where it stopped.
    """
    _run("run_generate", options)


@nano.command(short_help="Train the wav2vec v1 model on clean speech.", epilog=exit_statuses())
@_data
@_checkpoint
@click.option(
    "--steps",
    default=5000,
    show_default=True,
    type=_AT_LEAST_ONE,
    help="Number of updates, each on 16 excerpts of 2.5 s.",
)
@_seed
@_device
@_reduced
def pretrain(**options: Any) -> None:
    """Train a wav2vec v1 model with 1.1 million parameters on the clean recordings.

    Training uses no labels. `mosrt export wav2vec` reads the checkpoint, which has the published
    layout. `train --wav2vec` uses it as the waveform branch.
    """
    _run("run_pretrain", options)


@nano.command(short_help="Train the fusion model on labelled clips.", epilog=exit_statuses())
@_data
@_checkpoint
@click.option(
    "--wav2vec",
    type=_EXISTING,
    metavar="FILE",
    help="Checkpoint made by `pretrain`. Without it the model has no waveform branch.",
)
@click.option(
    "--epochs",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Passes over the data that train the spectrogram branch alone.",
)
@click.option(
    "--joint-epochs",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Passes over the data at the end that train all parts together.",
)
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=_AT_LEAST_ONE,
    help="Number of processes that compute log-mel images.",
)
@_seed
@_device
@_reduced
def train(**options: Any) -> None:
    """Train each branch alone, then the head, then all parts together.

    Prints the correlation of each network's predictions with the labels of validation clips. The
    waveform branch is dropped if it adds too little, and the model card says so.
    """
    _run("run_train", options)


@nano.command(
    short_help="Export the fusion model to a bundle.",
    epilog=exit_statuses("graph and torch disagree and nothing is written"),
)
@click.argument("checkpoint", type=_EXISTING)
@output_option(
    "Bundle directory to write; its name becomes the model's name.",
    metavar="DIR",
    directory=True,
    required=True,
)
@click.option(
    "--evaluation",
    type=_EXISTING,
    metavar="FILE.json",
    help="Measured results for the model card: a JSON object of claims and values.",
)
@front_end_option
@click.option("--force", is_flag=True, help="Replace an older bundle at --output.")
def export(**options: Any) -> None:
    """Write graph, manifest and model card of a CHECKPOINT made by `train`.

    The graph is compared with the torch module first. `mosrt export wav2vec` exports the checkpoint
    made by `pretrain`.
    """
    _run("run_export", options)


def _run(name: str, options: dict[str, Any]) -> None:
    """Runs a function of `commands`, which needs torch."""
    with exit_on_error(), require_extra("train"):
        from . import commands  # noqa: PLC0415 - torch

        try:
            getattr(commands, name)(**options)
        except ParityError as exc:
            raise CommandError(str(exc), ExitStatus.NO) from exc
