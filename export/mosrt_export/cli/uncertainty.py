"""What the commands that export uncertainty models share: options, and how an export is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .progress import extra_needed, steps

if TYPE_CHECKING:
    from mosrt_export.uncertainty.bundle import Drift

__all__ = ["EXIT_CODES", "MEASURES", "run_export", "uncertainty_options"]

EXIT_CODES: Final = "Exit code: 0 written, 1 refused (nothing is written), 2 wrong usage."
MEASURES: Final = ("mean", "std", "max", "entropy")

_PATH: Final = click.Path(path_type=Path)
_Command = Callable[..., None]


def uncertainty_options(
    *, name: str, measures: Sequence[str], measure: str, seed_help: str
) -> Callable[[_Command], _Command]:
    """The options of every such command, in the order of its help.

    Args:
        name: What scores call the model by default.
        measures: What may be *the* uncertainty.
        measure: What is by default.
        seed_help: What is drawn.
    """
    options = (
        click.option(
            "--out", required=True, type=_PATH, metavar="DIR", help="Bundle directory to make."
        ),
        click.option("--force", is_flag=True, help="Replace an older bundle at --out."),
        click.option("--name", default=name, show_default=True, help="What scores call the model."),
        click.option(
            "--measure",
            type=click.Choice(measures),
            default=measure,
            show_default=True,
            help="The figure that is *the* uncertainty.",
        ),
        click.option(
            "--sign",
            type=click.Choice(["+", "-"]),
            callback=lambda _ctx, _param, value: {"+": 1, "-": -1, None: None}[value],
            help="Whether it grows (+) or falls (-) with uncertainty. [default: + for entropy, - "
            "for the others]",
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help=seed_help
        ),
        click.option("--licence", help="Licence of the weights, for the model card."),
        click.option("--training-data", help="What the model was trained on, for the model card."),
        click.option(
            "--parity-audio",
            type=_PATH,
            metavar="PATH",
            help="Audio file, or directory of them, to compare graphs and torch on; by default "
            "five clips that come along.",
        ),
    )

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def run_export(export: Callable[..., Drift], options: dict[str, Any]) -> None:
    """Exports, and turns mosrt's errors into click's.

    Args:
        export: Called with the fields of the exporter's request, the bundle's directory, and
            `clips`, `step` and `force` by name. What it needs it imports itself.
        options: By the names click gives them: the fields of the request, `out`, `force` and
            `parity_audio`.
    """
    request = dict(options)
    out, force, audio = (request.pop(name) for name in ("out", "force", "parity_audio"))
    if request["sign"] is None:
        request["sign"] = 1 if request["measure"].endswith("entropy") else -1
    with extra_needed():
        from mosrt.errors import MosrtError  # noqa: PLC0415 - numpy and onnxruntime

        try:
            from mosrt_export.uncertainty.bundle import N_STEPS  # noqa: PLC0415
            from mosrt_export.utmosv2.parity import audio_sources  # noqa: PLC0415 - torch

            drift = export(
                request, out, clips=audio_sources(audio), step=steps(N_STEPS), force=force
            )
        except MosrtError as exc:
            raise click.ClickException(str(exc)) from exc
    click.echo(drift.table(), err=True)
    click.echo(f"{out}: written")
