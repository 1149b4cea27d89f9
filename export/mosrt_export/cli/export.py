"""`mosrt export`: checkpoints to bundles, and bundles to Triton repositories.

Importing this module imports no model library.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mosrt.cli.command import exit_statuses, output_option

from .command import PATH, bundle_options, exporting, steps
from .uncertainty import wav2vec, wav2vec2

if TYPE_CHECKING:
    from mosrt_export.parity import Step
    from mosrt_export.utmosv2.exporter import Source

__all__ = ["export", "front_end_option"]

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
@click.argument("checkpoints", type=PATH, nargs=-1, metavar="[CHECKPOINT]...")
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
    type=PATH,
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
@click.option("--name", help="Name of the model. [default: utmosv2]")
@bundle_options
def utmosv2(
    checkpoints: tuple[Path, ...],
    folds: tuple[int, ...],
    revision: str | None,
    config_file: Path | None,
    output: Path,
    parity_audio: Path | None,
    force: bool,
    front_end: str,
    **named: Any,
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
        from mosrt.bundle.writer import check_target  # noqa: PLC0415 - numpy and onnxruntime
        from mosrt_export.parity import audio_sources  # noqa: PLC0415
        from mosrt_export.utmosv2.config import ModelConfig  # noqa: PLC0415
        from mosrt_export.utmosv2.exporter import export_bundle, n_steps  # noqa: PLC0415 - torch

        config = ModelConfig() if config_file is None else ModelConfig.from_toml(config_file)
        config = dataclasses.replace(config, **{k: v for k, v in named.items() if v is not None})
        check_target(output, force=force)
        clips = audio_sources(parity_audio)
        step = steps(len(folds) + n_steps(len(checkpoints) + len(folds)))
        drift = export_bundle(
            _sources(checkpoints, folds, revision, step),
            config,
            output,
            clips=clips,
            step=step,
            front_end=front_end,
            force=force,
        )
    click.echo(drift.table(), err=True)
    click.echo(f"{output}: written; largest difference {drift.values['mos_max_abs']:g} MOS")


@export.command(epilog=exit_statuses("graph and torch disagree and nothing is written"))
@click.option("--name", default="distillmos", show_default=True, help="Name of the model.")
@click.option(
    "--half-weights",
    is_flag=True,
    help="Store weights in half precision: half the size, and differences up to 0.002 MOS.",
)
@click.option(
    "--frames",
    is_flag=True,
    help="Add an output that students of `mosrt distill` learn faster from than from scores alone.",
)
@bundle_options
def distillmos(output: Path, parity_audio: Path | None, **options: Any) -> None:
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
        drift = export_distillmos(output, clips=clips, step=steps(N_STEPS), **options)
    click.echo(drift.table(), err=True)
    click.echo(f"{output}: written; largest difference {drift.values['mos_max_abs']:g} MOS")


@export.command(epilog=exit_statuses("graph and original disagree and nothing is written"))
@click.argument("file", type=PATH, metavar="FILE.onnx")
@click.option("--name", help="Name of the model. [default: dnsmos-p808 or dnsmos-p835]")
@bundle_options
def dnsmos(file: Path, output: Path, parity_audio: Path | None, **options: Any) -> None:
    """Export Microsoft's DNSMOS P.808 or P.835 to an FP32 bundle, to compare with.

    FILE.onnx is model_v8.onnx (P.808) or sig_bak_ovr.onnx (P.835) from DNSMOS/ of the repository
    microsoft/DNS-Challenge; pDNSMOS/ has other maps to MOS and would score wrongly. A difference
    over 0.0001 MOS from the published way of scoring ends the export.

    \b
      mosrt export dnsmos sig_bak_ovr.onnx --output dnsmos
    """  # noqa: D301 - click reads the backspace
    with exporting():
        from mosrt_export.dnsmos import N_STEPS, export_dnsmos  # noqa: PLC0415 - onnx
        from mosrt_export.parity import audio_sources  # noqa: PLC0415

        clips = audio_sources(parity_audio)
        drift = export_dnsmos(file, output, clips=clips, step=steps(N_STEPS), **options)
    click.echo(drift.table(), err=True)
    click.echo(f"{output}: written; largest difference {drift.values['mos_max_abs']:g} MOS")


def _sources(
    paths: tuple[Path, ...], folds: tuple[int, ...], revision: str | None, step: Step
) -> list[Source]:
    """The networks of the bundle, with distinct names."""
    from mosrt_export.errors import CheckpointError  # noqa: PLC0415
    from mosrt_export.utmosv2.checkpoint import PINNED_REVISION, download_fold  # noqa: PLC0415 - torch
    from mosrt_export.utmosv2.exporter import Source  # noqa: PLC0415

    sources = []
    used = revision or PINNED_REVISION
    for fold in folds:
        with step(f"downloading fold {fold} unless it is in the cache"):
            path = download_fold(fold, used)
        sources.append(Source(path=path, member=f"fold{fold}", revision=used))
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


@export.command(
    short_help="Put the domains of `mosrt adapt` into the graphs.",
    epilog=exit_statuses("scores differ and nothing is written"),
)
@click.argument("model", metavar="PATH", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--parity-audio",
    type=PATH,
    metavar="PATH",
    help="Audio file or directory on which scores are compared. [default: five clips that come "
    "with mosrt]",
)
@click.option("--force", is_flag=True, help="Replace an older bundle at --output.")
@output_option("Bundle directory to write.", metavar="DIR", directory=True, required=True)
def folded(model: Path, output: Path, parity_audio: Path | None, force: bool) -> None:
    """Write a copy of a bundle whose graphs compute the domains that `mosrt adapt` added.

    mosrt computes such a domain from the outputs of the graphs. Other programs that run the graphs,
    and engines of `mosrt build`, need it inside. All variants are kept, and the other domains stay
    as they are; a difference over 0.0001 MOS in the new ones ends the export. `mosrt export triton`
    does this by itself.

    \b
      mosrt adapt nano --ratings mos.csv --name ours --output ours-nano
      mosrt export folded ./ours-nano --output ours-folded
    """  # noqa: D301 - click reads the backspace
    with exporting():
        from mosrt.bundle.bundle import Bundle  # noqa: PLC0415
        from mosrt_export.graphs.heads import write_folded  # noqa: PLC0415
        from mosrt_export.parity import audio_sources  # noqa: PLC0415

        drift = write_folded(
            Bundle.open(model), output, clips=audio_sources(parity_audio), force=force
        )
    click.echo(drift.table(), err=True)
    click.echo(f"{output}: written; largest difference {drift.values['mos_max_abs']:g} MOS")


@export.command(
    short_help="Write a model repository for Triton Inference Server.", epilog=exit_statuses()
)
@click.argument("model", metavar="NAME|PATH")
@output_option("Folder to write.", metavar="DIR", directory=True, required=True)
@click.option("--variant", metavar="NAME", help="Variant to serve. [default: fp32]")
@click.option(
    "--engine",
    "engines",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="TensorRT engine to serve instead of the ONNX graph, a file that `mosrt build` prints. "
    "Repeat the option for each network.",
)
@click.option("--gpu/--cpu", default=True, show_default=True, help="Where the networks run.")
@click.option(
    "--instances",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Copies of each network that run in parallel, per GPU.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    help="Most views per run. [default: 8, or the limit of engine or variant]",
)
@click.option("--force", is_flag=True, help="Replace an older repository at --output.")
def triton(model: str, *, output: Path, gpu: bool, instances: int, **options: Any) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server.

    The model is the name of one that comes with mosrt, or the path of a bundle. The folder holds
    the models, a README.md that describes what clients do, and client.py, which scores recordings
    on the server. The server needs no Python.

    \b
      mosrt export triton nano --output repository
      mosrt export triton ./utmosv2 --variant fp16 --engine FILE --output repository
      tritonserver --model-repository=repository --disable-auto-complete-config
    """  # noqa: D301 - click reads the backspace
    if options["engines"] and not gpu:
        raise click.UsageError("TensorRT engines run on GPUs; leave --cpu or --engine out")
    from mosrt.bundle.bundle import Bundle  # noqa: PLC0415
    from mosrt.bundle.embedded import find_bundle  # noqa: PLC0415
    from mosrt_export.triton.config import Serving  # noqa: PLC0415
    from mosrt_export.triton.repository import write_repository  # noqa: PLC0415

    with exporting():
        serving = Serving(gpu=gpu, instances=instances)
        bundle = Bundle.open(find_bundle(model))
        plan = write_repository(bundle, output, serving=serving, **options)
    click.echo(f"{output}: written; models {', '.join(plan.configs)}")


export.add_command(wav2vec)
export.add_command(wav2vec2)
