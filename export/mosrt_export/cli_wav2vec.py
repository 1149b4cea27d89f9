"""`mosrt export wav2vec`: wav2vec v1 and vq-wav2vec checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from .cli_progress import extra_needed, steps

__all__ = ["wav2vec"]

_PATH = click.Path(path_type=Path)
_LAYOUTS: Final = ("paper", "contrastive", "dense")
_MEASURES: Final = ("mean", "std", "max", "entropy")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The options, by the names click gives them."""

    checkpoint: Path
    out: Path
    force: bool
    name: str
    layouts: tuple[str, ...]
    measure: str
    sign: int | None
    seed: int
    licence: str | None
    training_data: str | None
    note: str | None
    parity_audio: Path | None


@click.command(epilog="Exit code: 0 written, 1 refused (nothing is written), 2 wrong usage.")
@click.option(
    "--checkpoint",
    required=True,
    type=_PATH,
    metavar="FILE",
    help="wav2vec_large.pt, vq-wav2vec.pt, s3prl's conversion of them, or your own of that kind.",
)
@click.option("--out", required=True, type=_PATH, metavar="DIR", help="Bundle directory to make.")
@click.option("--force", is_flag=True, help="Replace an older bundle at --out.")
@click.option("--name", default="wav2vec", show_default=True, help="What scores call the model.")
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    type=click.Choice(_LAYOUTS),
    default=_LAYOUTS,
    show_default=True,
    help="Arrangement of logits to give figures in. Give it again for several.",
)
@click.option(
    "--measure",
    type=click.Choice([f"{layout}.{measure}" for layout in _LAYOUTS for measure in _MEASURES]),
    default="contrastive.entropy",
    show_default=True,
    help="The figure that is *the* uncertainty.",
)
@click.option(
    "--sign",
    type=click.Choice(["+", "-"]),
    callback=lambda _ctx, _param, value: {"+": 1, "-": -1, None: None}[value],
    help="Whether it grows (+) or falls (-) with uncertainty. [default: + for entropy, - for the "
    "others]",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the distractors."
)
@click.option("--licence", help="Licence of the weights, for the model card.")
@click.option("--training-data", help="What the model was trained on, for the model card.")
@click.option("--note", help="What to know before anything else, at the head of the model card.")
@click.option(
    "--parity-audio",
    type=_PATH,
    metavar="PATH",
    help="Audio file, or directory of them, to compare graphs and torch on; by default five "
    "clips that come along.",
)
def wav2vec(**options: Any) -> None:
    """Export wav2vec v1 or vq-wav2vec to a bundle that scores by the model's uncertainty.

    No rating by listeners is involved: the figure ranks recordings, and is on no MOS scale unless
    `mosrt calibrate-mos` fits a map to rated ones.

    \b
      mosrt export wav2vec --checkpoint wav2vec_large.pt --out wav2vec
      mosrt score clips/ --model wav2vec
    """  # noqa: D301 - click reads the backspace
    request = _Request(**options)
    if request.measure.partition(".")[0] not in request.layouts:
        raise click.UsageError(
            f"--measure {request.measure} needs --layout {request.measure.partition('.')[0]}"
        )
    with extra_needed():
        _export(request)


def _export(request: _Request) -> None:
    """Exports, and turns mosrt's errors into click's."""
    from mosrt.errors import MosrtError  # noqa: PLC0415 - numpy and onnxruntime

    try:
        from .parity import audio_sources  # noqa: PLC0415 - torch
        from .staged_bundle import N_STEPS  # noqa: PLC0415
        from .wav2vec.exporter import Wav2VecRequest, export_wav2vec  # noqa: PLC0415

        default_sign = 1 if request.measure.endswith(".entropy") else -1
        drift = export_wav2vec(
            Wav2VecRequest(
                checkpoint=request.checkpoint,
                name=request.name,
                layouts=request.layouts,
                measure=request.measure,
                sign=request.sign or default_sign,
                seed=request.seed,
                licence=request.licence,
                training_data=request.training_data,
                note=request.note,
            ),
            request.out,
            clips=audio_sources(request.parity_audio),
            step=steps(N_STEPS),
            force=request.force,
        )
    except MosrtError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(drift.table(), err=True)
    click.echo(f"{request.out}: written")
