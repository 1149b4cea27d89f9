"""`mosrt distill`: teachers to a small student. Importing this module imports no model library."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mosrt.cli.command import COUNT, FiniteRange, exit_statuses
from mosrt.cli.terminal import bar_stream, printable
from mosrt.errors import MosrtError

from .command import PATH, bundle_options, exporting

if TYPE_CHECKING:
    import torch

__all__ = ["ProgressLines", "device_option", "distill", "reduced_option", "seed_option", "used"]

_SHOWN: Final = 3
seed_option: Final = click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=7,
    show_default=True,
    help="Seed of all random choices.",
)
device_option: Final = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device to train on: cpu, cuda, or auto, which is a GPU if there is one.",
)
reduced_option: Final = click.option(
    "--reduced/--full-precision",
    default=False,
    show_default=True,
    help="Whether convolutions run in bfloat16, which is faster on hardware that supports it.",
)


@click.command(
    short_help="Teach a small model to score as larger ones do.",
    epilog=exit_statuses("graph and torch disagree and nothing is written"),
)
@click.argument("teachers", nargs=-1, required=True, metavar="TEACHER...")
@click.option(
    "--audio",
    "folders",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    required=True,
    metavar="DIR",
    help="Recordings of clean speech, one folder per speaker; a file in no folder is a speaker of "
    "its own. Silent, short and unreadable ones are left out and listed. Repeat the option for "
    "more.",
)
@click.option(
    "--recipe",
    metavar="nano|FILE.toml",
    help="How the student is taught, where that differs from the defaults. nano is the recipe of "
    "the embedded model.",
)
@click.option(
    "--hours",
    type=FiniteRange(min=0.001, max=100_000),
    help="Hours of clips to train on; more in a later run adds to them. [default: 25, or the "
    "recipe's]",
)
@click.option(
    "--test-hours",
    type=FiniteRange(min=0.001, max=100_000),
    help="Hours of clips of held-out recordings, and as many of held-out speakers, to compare the "
    "student on. Teachers label them, too: take less for a trial. [default: 1, or the recipe's]",
)
@click.option(
    "--cache",
    type=PATH,
    metavar="DIR",
    help="Where clips, labels and the state of the training are kept. [default: --output with "
    ".data added]",
)
@click.option(
    "--provider",
    default="cpu",
    show_default=True,
    help="Where teachers run, as for `mosrt score`. On a GPU use --workers 1.",
)
@click.option(
    "--workers", type=COUNT, default=2, show_default=True, help="Processes that make clips."
)
@click.option(
    "--evaluation",
    type=PATH,
    metavar="FILE.json",
    help="Other results for the model card: a JSON object of claims and values.",
)
@seed_option
@device_option
@reduced_option
@bundle_options
def distill(
    teachers: tuple[str, ...],
    folders: tuple[Path, ...],
    recipe: str | None,
    output: Path,
    cache: Path | None,
    workers: int,
    device: str,
    parity_audio: Path | None,
    evaluation: Path | None,
    force: bool,
    hours: float | None,
    test_hours: float | None,
    **given: Any,
) -> None:
    """Teach a small model, the student, to score as its teachers do, at a fraction of their cost.

    A TEACHER is a bundle, an embedded model, or a DNSMOS model (.onnx, or .pt for DNSMOS Pro). The
    student has a domain for each domain of its teachers. NAME=TEACHER takes the default score of a
    teacher only, and calls it NAME. The default score is that of the first teacher.

    Recordings are cut into clips of 5 s, which are varied and degraded, and labelled by the
    teachers. One recording and one speaker in ten are held out: the student's scores of these are
    compared with the teachers' at the end, and so are time and size. All of it is in the card.

    Labels take most of the time: 720 clips an hour, plus 1440 to test on. A teacher like UTMOSv2
    takes seconds for each, and --workers share them. The command can be interrupted at any time;
    the same command continues where it stopped, and more --hours later add to what is there.

    \b
      pip install 'mosrt[train]'
      mosrt distill ./utmosv2 --audio recordings/ --hours 0.1 --test-hours 0.05 -o trial
      mosrt distill ./utmosv2 --audio recordings/ -o small
      mosrt distill ./utmosv2 p808=model_v8.onnx --audio recordings/ --hours 60 -o small
      mosrt score clips/ --model ./small
    """  # noqa: D301 - click reads the backspace
    with exporting("train"):
        from mosrt.bundle.bundle import Bundle  # noqa: PLC0415
        from mosrt.bundle.writer import check_target  # noqa: PLC0415 - numpy and onnxruntime
        from mosrt_export.distill.data.dataset import Data  # noqa: PLC0415 - torch
        from mosrt_export.distill.data.speech import (  # noqa: PLC0415
            SpeechError,
            find_speakers,
            left_out,
            split,
        )
        from mosrt_export.distill.distillation import distil  # noqa: PLC0415
        from mosrt_export.distill.recipe import Recipe  # noqa: PLC0415
        from mosrt_export.distill.teachers import find_teachers  # noqa: PLC0415
        from mosrt_export.distill.train.exporting import fidelity_table  # noqa: PLC0415
        from mosrt_export.parity import audio_sources  # noqa: PLC0415

        check_target(output, force=force)
        chosen = Recipe.read(recipe)
        if hours is not None:
            chosen = dataclasses.replace(chosen, hours=hours)
        if test_hours is not None:
            chosen = dataclasses.replace(chosen, test_hours=test_hours)
        speakers = find_speakers(folders)
        data = Data(
            folder=cache or output.with_name(f"{output.name}.data"),
            recipe=chosen,
            speech=split(speakers, chosen.held_out),
            teachers=find_teachers(teachers),
            **given,
        )
        progress = ProgressLines()
        device_used = used(device)
        total = len({path for speaker in speakers for path in speaker.files})
        reasons: dict[str, list[str]] = {}
        for done, (path, why) in enumerate(left_out(speakers), 1):
            progress("recordings", done / total)
            if why is not None:
                reasons.setdefault(why, []).append(printable(str(path)))
        progress.close()
        for line in _left_out(reasons):
            click.echo(line, err=True)
        if sum(map(len, reasons.values())) == total:
            raise SpeechError(f"none of {total} recordings can be used; pass a folder of speech")
        drift = distil(
            data, output, device=device_used, workers=workers, progress=progress,
            clips=audio_sources(parity_audio), evaluation=_claims(evaluation),
            force=force,
        )  # fmt: skip
        progress.close()
    click.echo(drift.table(), err=True)
    measured = Bundle.open(output).manifest.provenance
    click.echo(fidelity_table(measured["fidelity"]))
    for name, each in measured["cost"].items():
        click.echo(
            f"{name}: {each['times_slower']:g} times the student's time, "
            f"{each['times_larger']:g} times its size"
        )
    click.echo(f"{output}: written; largest difference {drift.values['mos_max_abs']:g} MOS")


def _left_out(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each reason to leave recordings out, with how many, and the first ones."""
    lines = []
    for why, paths in reasons.items():
        more = ", …" if len(paths) > _SHOWN else ""
        lines.append(f"warning: left out, {why}: {len(paths)} ({', '.join(paths[:_SHOWN])}{more})")
    return lines


def _claims(evaluation: Path | None) -> dict[str, str]:
    if evaluation is None:
        return {}
    try:
        found: dict[str, str] = dict(json.loads(evaluation.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as exc:
        raise MosrtError(f"{evaluation}: not a JSON object of claims and values ({exc})") from exc
    return found


class ProgressLines:
    """Prints one line per step of long work, with the share that is done and the mean loss."""

    def __init__(self) -> None:
        self._step, self._shown, self._loss = "", 0.0, 0.0

    def __call__(self, step: str, done: float, loss: float | None = None) -> None:
        """Shows which share of a step is done; `loss` is averaged over about fifty calls."""
        if step != self._step:
            self.close()
            self._step, self._shown, self._loss = step, 0.0, loss or 0.0
        self._loss += 0.02 * ((loss or 0.0) - self._loss)
        if done - self._shown >= 0.01 or done == 1.0:
            self._shown = done
            shown = "" if loss is None else f"  loss {self._loss:.4f}"
            click.echo(f"\r{step}: {done:4.0%}{shown}", nl=False, file=bar_stream())

    def close(self) -> None:
        """Ends the line."""
        if self._step:
            click.echo(file=bar_stream())
        self._step = ""


def used(name: str) -> torch.device:
    """Returns the device that an option `--device` names.

    Raises:
        MosrtError: It cannot be used here.
    """
    import torch  # noqa: PLC0415 - slow

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as exc:
        raise MosrtError(f"--device {name} cannot be used here ({exc})") from exc
    return torch.device(name)
