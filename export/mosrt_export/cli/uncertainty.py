"""`mosrt export wav2vec` and `mosrt export wav2vec2`: models that score by their uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from mosrt.cli.command import FiniteRange, exit_statuses

from .command import PATH, bundle_options, exporting, steps

if TYPE_CHECKING:
    from mosrt_export.uncertainty.bundle import StagedRequest

__all__ = ["wav2vec", "wav2vec2"]

_MEASURES: Final = ("mean", "std", "max", "entropy")
_LAYOUTS: Final = ("paper", "contrastive", "dense")
_EPILOG: Final = exit_statuses("graphs and torch disagree and nothing is written")
_Command = Callable[..., None]


def _shared_options(
    *, name: str, measures: Sequence[str], measure: str, seed_help: str
) -> Callable[[_Command], _Command]:
    """The options of both commands; `name` and `measure` are defaults."""
    options = (
        bundle_options,
        click.option("--name", default=name, show_default=True, help="Name of the model."),
        click.option(
            "--measure",
            type=click.Choice(measures),
            default=measure,
            show_default=True,
            help="Measure of the logits that is used as the uncertainty.",
        ),
        click.option(
            "--sign",
            type=click.Choice(["+", "-"]),
            callback=lambda _ctx, _param, value: {"+": 1, "-": -1, None: None}[value],
            help="Whether the measure grows (+) or falls (-) with uncertainty. [default: + for "
            "entropy, - for the others]",
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help=seed_help
        ),
        click.option("--licence", help="Licence of the weights, for the model card."),
        click.option("--training-data", help="What the model was trained on, for the model card."),
    )

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command(epilog=_EPILOG)
@click.argument("checkpoint", type=PATH)
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    type=click.Choice(_LAYOUTS),
    default=_LAYOUTS,
    show_default=True,
    help="Arrangement of logits to give measures of. Repeat the option for several.",
)
@_shared_options(
    name="wav2vec",
    measures=[f"{layout}.{measure}" for layout in _LAYOUTS for measure in _MEASURES],
    measure="contrastive.entropy",
    seed_help="Seed of the sampled distractors.",
)
@click.option("--note", help="First paragraph of the model card.")
def wav2vec(**options: Any) -> None:
    """Export a wav2vec v1 or vq-wav2vec CHECKPOINT to a bundle that scores by its uncertainty.

    CHECKPOINT is wav2vec_large.pt, vq-wav2vec.pt, a conversion of them by s3prl, or your own of
    that kind. The bundle holds ONNX graphs, a manifest and a model card. Its scores rank
    recordings without any ratings; they are no MOS until `mosrt fit-mos` fits a map.

    \b
      mosrt export wav2vec wav2vec_large.pt --output wav2vec
      mosrt score clips/ --model wav2vec
    """  # noqa: D301 - click reads the backspace
    layout = options["measure"].partition(".")[0]
    if layout not in options["layouts"]:
        raise click.UsageError(f"--measure {options['measure']} needs --layout {layout}")

    with exporting():
        from mosrt_export.uncertainty.wav2vec.exporter import Wav2VecRequest  # noqa: PLC0415 - torch

        _run(options, Wav2VecRequest)


@click.command(epilog=_EPILOG)
@click.argument("model", metavar="NAME|DIR")
@click.option(
    "--head",
    type=click.Choice(["ctc", "pretraining"]),
    default="ctc",
    show_default=True,
    help="Logits to measure: of the CTC head (the hidden units if the model has none), or the "
    "contrastive ones of wav2vec 2.0's pretraining.",
)
@click.option(
    "--dropout",
    type=FiniteRange(0.0, 1.0),
    default=0.74,
    show_default=True,
    help="Dropout probability of feature values, for --head ctc. With 0 there is one pass.",
)
@click.option(
    "--mask-share",
    type=FiniteRange(0.0, 1.0, min_open=True),
    default=0.65,
    show_default=True,
    help="Share of frames that the masked spans of a pass would cover without overlap, for --head "
    "pretraining.",
)
@click.option(
    "--passes",
    "n_passes",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="Number of passes with dropout or masking. Scoring time is proportional to it.",
)
@_shared_options(
    name="wav2vec2", measures=_MEASURES, measure="entropy", seed_help="Seed of all random sampling."
)
def wav2vec2(**options: Any) -> None:
    """Export a wav2vec 2.0 or HuBERT model to a bundle that scores by its uncertainty.

    The model is a name on Hugging Face, such as facebook/wav2vec2-base-960h, or a directory. The
    bundle holds ONNX graphs, a manifest and a model card.

    \b
      mosrt export wav2vec2 facebook/wav2vec2-base-960h --output ctc
      mosrt export wav2vec2 facebook/wav2vec2-base --head pretraining --passes 1 --output pre
    """  # noqa: D301 - click reads the backspace
    for name, head in (("dropout", "ctc"), ("mask_share", "pretraining")):
        given = click.get_current_context().get_parameter_source(name)
        if options["head"] != head and given is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} is for --head {head}")

    with exporting():
        from mosrt_export.uncertainty.wav2vec2.exporter import Wav2Vec2Request  # noqa: PLC0415 - torch

        _run(options, Wav2Vec2Request)


def _run(options: dict[str, Any], request: Callable[..., StagedRequest]) -> None:
    """Exports what the command's options request; `request` has a field for each."""
    from mosrt_export.parity import audio_sources  # noqa: PLC0415 - torch
    from mosrt_export.uncertainty.bundle import N_STEPS, export_staged  # noqa: PLC0415

    out, force, audio = (options.pop(name) for name in ("output", "force", "parity_audio"))
    if options["sign"] is None:
        options["sign"] = 1 if options["measure"].endswith("entropy") else -1
    clips = audio_sources(audio)
    step = steps(N_STEPS)
    drift = export_staged(request(**options), out, clips=clips, step=step, force=force)
    click.echo(drift.table(), err=True)
    click.echo(f"{out}: written")
