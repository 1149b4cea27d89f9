"""The commands of `python -m mosrt_export.nano`. Importing this module imports no model library."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path
from typing import Any

import click

from mosrt.cli.command import COUNT, CommandGroup, exit_statuses, output_option
from mosrt.errors import MosrtError
from mosrt_export.cli.command import exporting
from mosrt_export.cli.distill import (
    ProgressLines,
    device_option,
    reduced_option,
    seed_option,
    used,
)

__all__ = ["nano"]

_EXISTING = click.Path(exists=True, path_type=Path)


@click.group(cls=CommandGroup, short_help="Make the embedded models from scratch.")
def nano() -> None:
    """Make the embedded models `nano` and `nano-uncertainty` from scratch.

    `nano` is a student of `mosrt distill`; the commands here make what that does not.

    \b
      python -m mosrt_export.nano voices -o voices
      python -m mosrt_export.nano voices -o voices --neural
      mosrt distill bvcc=dnsmospro_bvcc.pt p808=dnsmos_p808.onnx --recipe nano \\
          --audio SPEECH --audio voices --reduced -o nano
      python -m mosrt_export.nano pretrain --data nano.data -o wav2vec.pt

    The recipe needs an extra, and programs that synthesise and code speech:

    \b
      pip install 'mosrt[train]'
      apt install flite espeak-ng festival codec2
    """  # noqa: D301 - click reads the backspace


@nano.command(short_help="Synthesise voices to train on.", epilog=exit_statuses())
@output_option("Folder for the voices.", metavar="DIR", directory=True, required=True)
@click.option("--workers", type=COUNT, default=2, show_default=True, help="Number of processes.")
@click.option("--neural", is_flag=True, help="The voices of hibari, Piper and Kokoro instead.")
@seed_option
def voices(output: Path, workers: int, neural: bool, seed: int) -> None:
    """Synthesise the voices of flite, festival and espeak-ng, each into a folder.

    With --neural the voices are those of optional Python packages, which have their weights inside.
    The same command continues after an interruption.
    """
    with exporting("train"):
        from .neural import missing_packages, neural_voices, utterances  # noqa: PLC0415
        from .voices import VoiceError, missing_programs, synthetic_voices, write_utterances  # noqa: PLC0415

        found = neural_voices() if neural else synthetic_voices()
        missing = missing_packages(found) if neural else missing_programs(found)
        for name, cure in missing.items():
            raise VoiceError(f"{name} is missing: {cure}")
        options = {"speak_all": utterances} if neural else {}
        with concurrent.futures.ThreadPoolExecutor(workers) as executor:
            made = executor.map(
                lambda voice: write_utterances(voice, seed, output, **options), found
            )
            progress = ProgressLines()
            for done, _ in enumerate(made, 1):
                progress("voices", done / len(found))
            progress.close()


@nano.command(short_help="Train the wav2vec v1 model on clean speech.", epilog=exit_statuses())
@click.option("--data", type=_EXISTING, required=True, metavar="DIR",
              help="Clips made by `mosrt distill`: its --cache.")  # fmt: skip
@output_option("Checkpoint to write.", required=True)
@click.option(
    "--steps", type=COUNT, default=2000, show_default=True,
    help="Number of updates, each on 16 excerpts of 2.5 s.",
)  # fmt: skip
@seed_option
@device_option
@reduced_option
def pretrain(data: Path, output: Path, device: str, **options: Any) -> None:
    """Train a wav2vec v1 model with 1.1 million parameters on the clean clips of recordings.

    Training uses no labels. `mosrt export wav2vec` reads the checkpoint, which has the published
    layout.
    """
    with exporting("train"):
        from mosrt_export.distill.data.batches import clean_waveforms  # noqa: PLC0415 - torch

        from .pretraining import PretrainingConfig, save_wav2vec  # noqa: PLC0415
        from .pretraining import pretrain as train  # noqa: PLC0415

        if not output.parent.is_dir():
            raise MosrtError(
                f"{output}: the folder {output.parent} does not exist; create it first"
            )
        clean = clean_waveforms(data)
        config = PretrainingConfig(**options)
        progress = ProgressLines()
        model, facts = train(clean, config, used(device), progress)
        progress.close()
        save_wav2vec(output, model, facts)
    click.echo(f"{output}: loss {facts['loss_nats']:.3f} nats, accuracy {facts['accuracy']:.1%}")
