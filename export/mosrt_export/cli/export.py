"""`mosrt export`: checkpoints to bundles. Importing this module imports no model library."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mosrt.cli.command import exit_statuses, output_option

from .progress import exporting, steps
from .triton import triton
from .uncertainty import wav2vec, wav2vec2

if TYPE_CHECKING:
    from mosrt_export.parity import Step
    from mosrt_export.utmosv2.config import Kind
    from mosrt_export.utmosv2.exporter import Source

__all__ = ["export", "front_end_option"]

_PATH: Final = click.Path(path_type=Path)

front_end_option: Final = click.option(
    "--frontend",
    "front_end",
    # Those of mosrt.bundle.front_end_spec, which would import numpy and onnxruntime.
    type=click.Choice(["numpy", "graph"]),
    default="numpy",
    show_default=True,
    help="What computes the features that the networks read: the runtime, in NumPy, or the graph "
    "itself, which then reads crops of audio. A graph suits GPUs and programs in other languages.",
)


@click.group()
def export() -> None:
    """Export trained checkpoints to bundles that score without torch.

    A bundle is a directory with ONNX graphs, a manifest that describes the model, and a model card.
    Scoring needs nothing but mosrt; exporting needs an extra:

    \b
      pip install 'mosrt[export]'
    """  # noqa: D301 - click reads the backspace


@export.command(epilog=exit_statuses("graph and torch disagree and nothing is written"))
@click.argument("checkpoints", type=_PATH, nargs=-1, metavar="[CHECKPOINT]...")
@click.option(
    "--fold",
    "folds",
    type=click.IntRange(0, 4),
    multiple=True,
    metavar="N",
    help="Published fold 0 to 4, downloaded from Hugging Face (819 MB each) into its cache. Repeat "
    "the option for an ensemble.",
)
@click.option(
    "--revision",
    metavar="REV",
    help="Revision of the Hugging Face repository, instead of the pinned one.",
)
@click.option(
    "--config",
    "config_file",
    type=_PATH,
    metavar="FILE.toml",
    help="Differences from the published model: domains, SSL encoder, image backbone, windows, "
    "crops.",
)
@click.option(
    "--kind",
    type=click.Choice(["fusion", "spec", "ssl"]),
    help="Kind of model. [default: read from the checkpoint]",
)
@front_end_option
@output_option("Bundle directory to write.", metavar="DIR", directory=True, required=True)
@click.option("--force", is_flag=True, help="Replace an older bundle at --output.")
@click.option("--name", help="Name of the model. [default: utmosv2]")
@click.option(
    "--parity-audio",
    type=_PATH,
    metavar="PATH",
    help="Audio file or directory on which graph and torch are compared. [default: five clips that "
    "come with mosrt]",
)
def utmosv2(
    checkpoints: tuple[Path, ...],
    folds: tuple[int, ...],
    revision: str | None,
    output: Path,
    **options: Any,
) -> None:
    """Export UTMOSv2, or a model of its architecture, to an FP32 bundle.

    Each CHECKPOINT is a state dict saved by torch.save; several make an ensemble. Every graph is
    compared with its torch modules before the bundle is written. A difference over 0.001 MOS, or a
    score that is not finite, ends the export.

    \b
    One published fold, downloaded:
      mosrt export utmosv2 --fold 0 --output utmosv2

    \b
    The ensemble of all five (4 GB):
      mosrt export utmosv2 --fold 0 --fold 1 --fold 2 --fold 3 --fold 4 --output all

    \b
    A local file, compared on your own recordings:
      mosrt export utmosv2 fold0_s42_best_model.pth --parity-audio clips/ --output utmosv2

    \b
    A model that you trained:
      mosrt export utmosv2 best.pth --config ours.toml --output ours

    \b
    where ours.toml names the differences from the published model, such as:
      name = "ours"
      domains = ["ours", "bvcc"]
      [ssl.encoder]
      model_type = "wavlm"
      [spectrogram]
      backbone = "tf_efficientnetv2_b0"
      windows = [2048, 512]
    """  # noqa: D301 - click reads the backspace
    if not checkpoints and not folds:
        raise click.UsageError("nothing to export: pass a CHECKPOINT or --fold N")
    if revision is not None and not folds:
        raise click.UsageError("--revision needs --fold")
    with exporting():
        _export(checkpoints, folds, revision, output, **options)


@export.command(epilog=exit_statuses("graph and torch disagree and nothing is written"))
@output_option("Bundle directory to write.", metavar="DIR", directory=True, required=True)
@click.option("--force", is_flag=True, help="Replace an older bundle at --output.")
@click.option("--name", default="distillmos", show_default=True, help="Name of the model.")
@click.option(
    "--parity-audio",
    type=_PATH,
    metavar="PATH",
    help="Audio file or directory on which graph and torch are compared. [default: five clips that "
    "come with mosrt]",
)
def distillmos(output: Path, force: bool, name: str, parity_audio: Path | None) -> None:
    """Export Distill-MOS, a small published model, to an FP32 bundle.

    The weights come from the package distillmos. The bundle's scores are compared with the
    package's before it is written; a difference over 0.0001 MOS ends the export.

    \b
      mosrt export distillmos --output distillmos
      mosrt score clips/ --model distillmos
    """  # noqa: D301 - click reads the backspace
    with exporting():
        from mosrt_export.distillmos import N_STEPS, export_distillmos  # noqa: PLC0415 - torch
        from mosrt_export.parity import audio_sources  # noqa: PLC0415

        clips = audio_sources(parity_audio)
        drift = export_distillmos(output, clips=clips, step=steps(N_STEPS), name=name, force=force)
    click.echo(drift.table(), err=True)
    click.echo(f"{output}: written; largest difference {drift.values['mos_max_abs']:g} MOS")


def _export(
    paths: tuple[Path, ...],
    folds: tuple[int, ...],
    revision: str | None,
    out: Path,
    *,
    config_file: Path | None,
    kind: Kind | None,
    name: str | None,
    front_end: str,
    parity_audio: Path | None,
    force: bool,
) -> None:
    """Exports the checkpoints and reports the measured differences."""
    from mosrt.bundle.writer import check_target  # noqa: PLC0415 - numpy and onnxruntime
    from mosrt_export.parity import audio_sources  # noqa: PLC0415
    from mosrt_export.utmosv2.config import ModelConfig  # noqa: PLC0415
    from mosrt_export.utmosv2.exporter import export_bundle, n_steps  # noqa: PLC0415 - torch

    config = ModelConfig() if config_file is None else ModelConfig.from_toml(config_file)
    if kind is not None:
        config = dataclasses.replace(config, kind=kind)
    if name is not None:
        config = dataclasses.replace(config, name=name)
    check_target(out, force=force)
    clips = audio_sources(parity_audio)
    step = steps(len(folds) + n_steps(len(paths) + len(folds)))
    drift = export_bundle(
        _sources(paths, folds, revision, step),
        config,
        out,
        clips=clips,
        step=step,
        front_end=front_end,
        force=force,
    )
    click.echo(drift.table(), err=True)
    click.echo(f"{out}: written; largest difference {drift.values['mos_max_abs']:g} MOS")


def _sources(
    paths: tuple[Path, ...], folds: tuple[int, ...], revision: str | None, step: Step
) -> list[Source]:
    """The networks of the bundle, with distinct names."""
    from mosrt_export.errors import CheckpointError  # noqa: PLC0415
    from mosrt_export.utmosv2.checkpoint import PINNED_REVISION, REPOSITORY, download_fold  # noqa: PLC0415 - torch
    from mosrt_export.utmosv2.exporter import Source  # noqa: PLC0415

    sources = []
    used = revision or PINNED_REVISION
    for fold in folds:
        with step(f"downloading fold {fold} unless it is in the cache"):
            path = download_fold(fold, used)
        sources.append(
            Source(path=path, member=f"fold{fold}", repository=REPOSITORY, revision=used)
        )
    for i, path in enumerate(paths):
        match = re.match(r"fold\d+", path.name)
        sources.append(Source(path=path, member=match[0] if match else f"network{i}"))
    names = [source.member for source in sources]
    if len(set(names)) < len(names):
        raise CheckpointError(
            f"two networks would have the same name: {', '.join(names)}; pass each file once, or "
            "rename the files"
        )
    return sources


export.add_command(triton)
export.add_command(wav2vec)
export.add_command(wav2vec2)
