"""What the export commands share: options, announced steps, and how they end when one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from mosrt.cli.command import (
    CommandError,
    ExitStatus,
    exit_on_error,
    keep_inputs,
    output_option,
    require_extra,
)
from mosrt_export.errors import ParityError

if TYPE_CHECKING:
    from mosrt_export.parity import Step

__all__ = ["PATH", "bundle_options", "exporting", "steps"]

PATH: Final = click.Path(path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def bundle_options(command: _Command) -> _Command:
    """The options of every command that writes a bundle: output, force and parity_audio."""
    for option in (
        click.option(
            "--parity-audio",
            type=PATH,
            metavar="PATH",
            help="Audio file or directory on which graphs and torch are compared. [default: five "
            "clips that come with mosrt]",
        ),
        click.option("--force", is_flag=True, help="Replace an older bundle at --output."),
        output_option("Bundle directory to write.", metavar="DIR", directory=True, required=True),
    ):
        command = option(command)
    return command


@contextmanager
def exporting(extra: str = "export") -> Iterator[None]:
    """Turns errors of an export, which needs an extra, into one message and an exit status.

    What --force would replace must have no other file in it that the command is given.

    Raises:
        CommandError: In place of a `MosrtError` or a missing extra. The status is NO where graph
            and torch module disagree.
    """
    with exit_on_error(), require_extra(extra):
        given = dict(click.get_current_context().params)
        if given.get("force"):
            paths = [each for value in given.values() if value for each in _each(value)]
            output = given["output"]
            keep_inputs([output], [path for path in paths if path != output])
        try:
            yield
        except ParityError as exc:
            message, *table = str(exc).splitlines()
            for line in table:
                click.echo(line, err=True)
            raise CommandError(message, ExitStatus.NO) from exc


def _each(value: Any) -> list[Path]:
    """The existing files and directories of an option's value."""
    values = value if isinstance(value, tuple) else (value,)
    return [Path(each) for each in values if isinstance(each, str | Path) and Path(each).exists()]


def steps(total: int) -> Step:
    """Announces steps on standard error, and after each how long it took."""
    done = 0

    @contextmanager
    def step(text: str) -> Iterator[None]:
        nonlocal done
        done += 1
        started = time.monotonic()
        click.echo(f"[{done}/{total}] {text} …", err=True, nl=False)
        try:
            yield
        except BaseException:
            click.echo(" failed", err=True)
            raise
        click.echo(f" {time.monotonic() - started:.1f} s", err=True)

    return step
