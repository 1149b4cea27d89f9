"""`mosrt export`: checkpoints in, bundles out. Importing this module imports no model library."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .front_end import front_end_option
from .progress import extra_needed, steps
from .triton import triton
from .wav2vec import wav2vec
from .wav2vec2 import wav2vec2

if TYPE_CHECKING:
    from mosrt_export.utmosv2.config import Kind, ModelConfig
    from mosrt_export.utmosv2.exporter import Source, Step

__all__ = ["export"]

_PATH = click.Path(path_type=Path)


@click.group()
def export() -> None:
    """Turn trained checkpoints into bundles that score without torch.

    A bundle is a directory with ONNX graphs, a manifest that says everything about the model, and
    a model card. Scoring needs nothing but mosrt; exporting needs the extra:

    \b
      pip install 'mosrt[export]'
    """  # noqa: D301 - click reads the backspace


@export.command(epilog="Exit code: 0 written, 1 refused (nothing is written), 2 wrong usage.")
@click.option(
    "--checkpoint",
    "checkpoints",
    type=_PATH,
    multiple=True,
    metavar="FILE",
    help="State dict saved by torch.save. Give it again for each network of an ensemble.",
)
@click.option(
    "--fold",
    "folds",
    type=click.IntRange(0, 4),
    multiple=True,
    metavar="N",
    help="Published fold 0 to 4, downloaded from Hugging Face (819 MB each) and kept in its "
    "cache. Give it again for an ensemble.",
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
    help="How your model differs from the published one: domains, SSL encoder, image backbone, "
    "windows, crops.",
)
@click.option(
    "--kind",
    type=click.Choice(["fusion", "spec", "ssl"]),
    help="Kind of model; by default read off the checkpoint.",
)
@front_end_option
@click.option("--out", required=True, type=_PATH, metavar="DIR", help="Bundle directory to make.")
@click.option("--force", is_flag=True, help="Replace an older bundle at --out.")
@click.option("--name", help="What scores call the model; by default utmosv2.")
@click.option(
    "--parity-audio",
    type=_PATH,
    metavar="PATH",
    help="Audio file, or directory of them, to compare graph and torch on; by default five "
    "clips that come along.",
)
def utmosv2(**options: Any) -> None:
    """Export UTMOSv2, or a model of its shape, to an FP32 bundle.

    Every graph is compared with the torch modules it came from before anything is written: a
    difference over 0.001 MOS, or a score that is not finite, ends the export.

    \b
    One published fold, downloaded:
      mosrt export utmosv2 --fold 0 --out utmosv2

    \b
    The ensemble of all five (4 GB):
      mosrt export utmosv2 --fold 0 --fold 1 --fold 2 --fold 3 --fold 4 --out all

    \b
    A file you have, compared on your own recordings:
      mosrt export utmosv2 --checkpoint fold0_s42_best_model.pth \\
          --parity-audio clips/ --out utmosv2

    \b
    Your own training:
      mosrt export utmosv2 --checkpoint best.pth --config ours.toml --out ours

    \b
    where ours.toml says what differs from the published model, such as:
      name = "ours"
      domains = ["ours", "bvcc"]
      [ssl.encoder]
      model_type = "wavlm"
      [spectrogram]
      backbone = "tf_efficientnetv2_b0"
      windows = [2048, 512]
    """  # noqa: D301 - click reads the backspace
    request = _Request(**options)
    if not request.checkpoints and not request.folds:
        raise click.UsageError("nothing to export: pass --checkpoint FILE or --fold N")
    if request.revision is not None and not request.folds:
        raise click.UsageError("--revision goes with --fold")
    with extra_needed():
        _export(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The options of `mosrt export utmosv2`, by the names click gives them."""

    checkpoints: tuple[Path, ...]
    folds: tuple[int, ...]
    revision: str | None
    config_file: Path | None
    kind: Kind | None
    front_end: str
    out: Path
    force: bool
    name: str | None
    parity_audio: Path | None


def _export(request: _Request) -> None:
    """Reads the configuration, exports, and turns mosrt's errors into click's."""
    from mosrt.errors import MosrtError  # noqa: PLC0415 - numpy and onnxruntime
    from mosrt_export.utmosv2.config import ModelConfig  # noqa: PLC0415

    try:
        file = request.config_file
        config = ModelConfig() if file is None else ModelConfig.from_toml(file)
        if request.kind is not None:
            config = dataclasses.replace(config, kind=request.kind)
        if request.name is not None:
            config = dataclasses.replace(config, name=request.name)
        _run(request, config)
    except MosrtError as exc:
        raise click.ClickException(str(exc)) from exc


def _run(request: _Request, config: ModelConfig) -> None:
    """Finds the checkpoints, exports them and says what was measured."""
    from mosrt.bundle.writer import check_target  # noqa: PLC0415
    from mosrt_export.utmosv2.exporter import export_bundle, n_steps  # noqa: PLC0415 - torch
    from mosrt_export.utmosv2.parity import ParityError, audio_sources  # noqa: PLC0415

    out, force = request.out, request.force
    check_target(out, force=force)
    clips = audio_sources(request.parity_audio)
    step = steps(len(request.folds) + n_steps(len(request.checkpoints) + len(request.folds)))
    sources = _sources(request, step)
    try:
        drift = export_bundle(
            sources,
            config,
            out,
            clips=clips,
            step=step,
            front_end=request.front_end,
            force=force,
        )
    except ParityError as exc:
        if exc.drift is not None:
            click.echo(exc.drift.table(), err=True)
        raise
    click.echo(drift.table(), err=True)
    click.echo(f"{out}: written; largest difference {drift.to_dict()['mos_max_abs']:g} MOS")


def _sources(request: _Request, step: Step) -> list[Source]:
    """All networks of the bundle, under names that tell them apart."""
    from mosrt_export.utmosv2.exporter import Source  # noqa: PLC0415 - torch
    from mosrt_export.utmosv2.hub import PINNED_REVISION, REPOSITORY, download_fold  # noqa: PLC0415

    sources = []
    for fold in request.folds:
        used = request.revision or PINNED_REVISION
        with step(f"downloading fold {fold} unless it is in the cache"):
            path = download_fold(fold, used)
        sources.append(
            Source(path=path, member=f"fold{fold}", repository=REPOSITORY, revision=used)
        )
    for i, path in enumerate(request.checkpoints):
        match = re.match(r"fold\d+", path.name)
        sources.append(Source(path=path, member=match[0] if match else f"network{i}"))
    names = [source.member for source in sources]
    if len(set(names)) < len(names):
        raise click.ClickException(
            f"two networks would have the same name: {', '.join(names)}; give each file once, "
            "or rename them"
        )
    return sources


export.add_command(triton)
export.add_command(wav2vec)
export.add_command(wav2vec2)
