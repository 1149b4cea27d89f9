"""`mosrt export wav2vec`: wav2vec v1 and vq-wav2vec checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .uncertainty import EXIT_CODES, MEASURES, run_export, uncertainty_options

if TYPE_CHECKING:
    from mosrt_export.uncertainty.bundle import Drift

__all__ = ["wav2vec"]

_LAYOUTS: Final = ("paper", "contrastive", "dense")


@click.command(epilog=EXIT_CODES)
@click.option(
    "--checkpoint",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="wav2vec_large.pt, vq-wav2vec.pt, s3prl's conversion of them, or your own of that kind.",
)
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    type=click.Choice(_LAYOUTS),
    default=_LAYOUTS,
    show_default=True,
    help="Arrangement of logits to give figures in. Give it again for several.",
)
@uncertainty_options(
    name="wav2vec",
    measures=[f"{layout}.{measure}" for layout in _LAYOUTS for measure in MEASURES],
    measure="contrastive.entropy",
    seed_help="Of the distractors.",
)
@click.option("--note", help="What to know before anything else, at the head of the model card.")
def wav2vec(**options: Any) -> None:
    """Export wav2vec v1 or vq-wav2vec to a bundle that scores by the model's uncertainty.

    No rating by listeners is involved: the figure ranks recordings, and is on no MOS scale unless
    `mosrt fit-mos` fits a map to rated ones.

    \b
      mosrt export wav2vec --checkpoint wav2vec_large.pt --out wav2vec
      mosrt score clips/ --model wav2vec
    """  # noqa: D301 - click reads the backspace
    layout = options["measure"].partition(".")[0]
    if layout not in options["layouts"]:
        raise click.UsageError(f"--measure {options['measure']} needs --layout {layout}")
    run_export(_export, options)


def _export(request: dict[str, Any], out: Path, **how: Any) -> Drift:
    from mosrt_export.uncertainty.wav2vec.exporter import Wav2VecRequest, export_wav2vec  # noqa: PLC0415 - torch

    return export_wav2vec(Wav2VecRequest(**request), out, **how)
