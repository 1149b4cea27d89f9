"""`mosrt export wav2vec2`: wav2vec 2.0 and HuBERT models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .uncertainty import EXIT_CODES, MEASURES, run_export, uncertainty_options

if TYPE_CHECKING:
    from mosrt_export.uncertainty.bundle import Drift

__all__ = ["wav2vec2"]


@click.command(epilog=EXIT_CODES)
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
    "--mask-share",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    default=0.65,
    show_default=True,
    help="Share of frames that the spans masked in a pass would cover if none overlapped; for "
    "--head pretraining.",
)
@click.option(
    "--passes",
    "n_passes",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Passes of dropout or masking; time grows with them.",
)
@uncertainty_options(
    name="wav2vec2", measures=MEASURES, measure="entropy", seed_help="Of all draws."
)
def wav2vec2(**options: Any) -> None:
    """Export wav2vec 2.0 or HuBERT to a bundle that scores by the model's uncertainty.

    \b
      mosrt export wav2vec2 --model facebook/wav2vec2-base-960h --out ctc
      mosrt export wav2vec2 --model facebook/wav2vec2-base --head pretraining --passes 1 --out pre
    """  # noqa: D301 - click reads the backspace
    for name, head in (("dropout", "ctc"), ("mask_share", "pretraining")):
        given = click.get_current_context().get_parameter_source(name)
        if options["head"] != head and given is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} is for --head {head}")
    run_export(_export, options)


def _export(request: dict[str, Any], out: Path, **how: Any) -> Drift:
    from mosrt_export.uncertainty.wav2vec2.exporter import Wav2Vec2Request, export_wav2vec2  # noqa: PLC0415 - torch

    return export_wav2vec2(Wav2Vec2Request(**request), out, **how)
