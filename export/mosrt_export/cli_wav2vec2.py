"""`mosrt export wav2vec2`: wav2vec 2.0 and HuBERT models of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from .cli_progress import extra_needed, steps

__all__ = ["wav2vec2"]

_PATH = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The options, by the names click gives them."""

    model: str
    head: Literal["ctc", "pretraining"]
    dropout: float
    passes: int
    out: Path
    force: bool
    name: str
    measure: str
    sign: int | None
    seed: int
    licence: str | None
    training_data: str | None
    parity_audio: Path | None


@click.command(epilog="Exit code: 0 written, 1 refused (nothing is written), 2 wrong usage.")
@click.option(
    "--model",
    required=True,
    metavar="NAME_OR_DIR",
    help="On Hugging Face, such as facebook/wav2vec2-base-960h, or a directory.",
)
@click.option(
    "--head",
    type=click.Choice(["ctc", "pretraining"]),
    default="ctc",
    show_default=True,
    help="Logits of the CTC head (the hidden units of a model without one), or the contrastive "
    "ones of wav2vec 2.0's pretraining.",
)
@click.option(
    "--dropout",
    type=click.FloatRange(0.0, 1.0),
    default=0.74,
    show_default=True,
    help="Share of feature values that a pass drops; for --head ctc. 0 makes it one pass.",
)
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Passes of dropout or masking; time grows with them.",
)
@click.option("--out", required=True, type=_PATH, metavar="DIR", help="Bundle directory to make.")
@click.option("--force", is_flag=True, help="Replace an older bundle at --out.")
@click.option("--name", default="wav2vec2", show_default=True, help="What scores call the model.")
@click.option(
    "--measure",
    type=click.Choice(["mean", "std", "max", "entropy"]),
    default="entropy",
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
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all draws."
)
@click.option("--licence", help="Licence of the weights, for the model card.")
@click.option("--training-data", help="What the model was trained on, for the model card.")
@click.option(
    "--parity-audio",
    type=_PATH,
    metavar="PATH",
    help="Audio file, or directory of them, to compare graphs and torch on; by default five "
    "clips that come along.",
)
def wav2vec2(**options: Any) -> None:
    """Export wav2vec 2.0 or HuBERT to a bundle that scores by the model's uncertainty.

    \b
      mosrt export wav2vec2 --model facebook/wav2vec2-base-960h --out ctc
      mosrt export wav2vec2 --model facebook/wav2vec2-base --head pretraining --passes 1 --out pre
    """  # noqa: D301 - click reads the backspace
    with extra_needed():
        _export(_Request(**options))


def _export(request: _Request) -> None:
    """Exports, and turns mosrt's errors into click's."""
    from mosrt.errors import MosrtError  # noqa: PLC0415 - numpy and onnxruntime

    try:
        from .parity import audio_sources  # noqa: PLC0415 - torch
        from .staged_bundle import N_STEPS  # noqa: PLC0415
        from .wav2vec2.exporter import Wav2Vec2Request, export_wav2vec2  # noqa: PLC0415

        default_sign = 1 if request.measure == "entropy" else -1
        drift = export_wav2vec2(
            Wav2Vec2Request(
                model=request.model,
                name=request.name,
                head=request.head,
                dropout=request.dropout,
                n_passes=request.passes,
                measure=request.measure,
                sign=request.sign or default_sign,
                seed=request.seed,
                licence=request.licence,
                training_data=request.training_data,
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
