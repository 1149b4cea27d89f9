"""The commands of `python -m mosrt_export.nano`. Importing this module imports no model library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import click

from mosrt.cli.command import (
    COUNT,
    CommandGroup,
    FiniteRange,
    exit_statuses,
    output_option,
)
from mosrt_export.cli.command import exporting
from mosrt_export.cli.export import front_end_option

__all__ = ["nano"]

_Decorator: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]
_EPOCHS: Final = FiniteRange(min=0)


def _existing(name: str, metavar: str, text: str, *, required: bool = True) -> _Decorator:
    """An option that names an existing file or directory."""
    kind = click.Path(exists=True, path_type=Path)
    return click.option(name, required=required, type=kind, metavar=metavar, help=text)


def _setting(name: str, default: object, text: str, kind: Any = None) -> _Decorator:
    """An option with a default."""
    return click.option(name, default=default, show_default=True, type=kind, help=text)


_data = _existing("--data", "DIR", "Data made by `generate`.")
_checkpoint = output_option("Checkpoint to write.", required=True)
_seed = _setting("--seed", 7, "Seed of all random choices.")
_device = _setting(
    "--device", "auto", "Device to train on: cpu, cuda, or auto, which is a GPU if there is one."
)
_reduced = _setting(
    "--reduced/--full-precision",
    True,
    "Whether convolutions run in bfloat16, which is faster on hardware that supports it.",
)


@click.group(cls=CommandGroup, short_help="Make the embedded models from scratch.")
def nano() -> None:
    """Make the embedded models `nano` and `nano-uncertainty` from scratch.

    \b
      python -m mosrt_export.nano generate --speech SPEECH --teachers TEACHERS -o data
      python -m mosrt_export.nano pretrain --data data -o wav2vec.pt
      python -m mosrt_export.nano train --data data -o nano.pt
      python -m mosrt_export.nano export nano.pt -o nano

    The recipe needs an extra, and programs that synthesise and code speech:

    \b
      pip install 'mosrt[train]'
      apt install flite espeak-ng festival codec2
    """  # noqa: D301 - click reads the backspace


@nano.command(short_help="Make labelled clips.", epilog=exit_statuses())
@_existing("--speech", "DIR", "Clean recordings: one folder of FLAC files per voice.")
@_existing(
    "--teachers", "DIR", "Folder with the published models dnsmospro_bvcc.pt and dnsmos_p808.onnx."
)
@output_option("Directory for the data.", metavar="DIR", directory=True, required=True)
@_setting(
    "--hours",
    30.0,
    "Hours of single clips. A later run with more hours adds to the data.",
    FiniteRange(min=0.1),
)
@_setting(
    "--ladder-hours",
    8.0,
    "Hours of ladders. A ladder is a clean clip and three ever more degraded copies of it.",
    FiniteRange(min=0),
)
@_setting("--workers", 2, "Number of processes.", COUNT)
@_seed
@_setting(
    "--reduced/--full-precision",
    False,
    "Whether the teachers run in bfloat16, which is faster on processors that support it.",
)
def generate(**options: Any) -> None:
    """Make clean and degraded clips of speech, and label them with the teachers' scores.

    The command can be interrupted at any time; the same command continues where it stopped.
    """
    _run("run_generate", options)


@nano.command(short_help="Train the wav2vec v1 model on clean speech.", epilog=exit_statuses())
@_data
@_checkpoint
@_setting("--steps", 5000, "Number of updates, each on 16 excerpts of 2.5 s.", COUNT)
@_seed
@_device
@_reduced
def pretrain(**options: Any) -> None:
    """Train a wav2vec v1 model with 1.1 million parameters on the clean recordings.

    Training uses no labels. `mosrt export wav2vec` reads the checkpoint, which has the published
    layout.
    """
    _run("run_pretrain", options)


@nano.command(short_help="Train the model on labelled clips.", epilog=exit_statuses())
@_data
@_checkpoint
@_setting("--epochs", 7.0, "Passes over the data, before the tuning.", _EPOCHS)
@_setting("--workers", 2, "Number of processes that compute log-mel images.", COUNT)
@_seed
@_device
@_reduced
def train(**options: Any) -> None:
    """Train the model, then tune it.

    Prints the correlation of its predictions with the labels of validation clips after each stage.
    """
    _run("run_train", options)


@nano.command(
    short_help="Export the model to a bundle.",
    epilog=exit_statuses("graph and torch disagree and nothing is written"),
)
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@output_option(
    "Bundle directory to write; its name becomes the model's name.",
    metavar="DIR",
    directory=True,
    required=True,
)
@_existing(
    "--evaluation",
    "FILE.json",
    "Measured results for the model card: a JSON object of claims and values.",
    required=False,
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
    with exporting("train"):
        from . import commands  # noqa: PLC0415 - torch

        getattr(commands, name)(**options)
