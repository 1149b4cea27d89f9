"""What the export commands share: announced steps, and how they end when an export fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from mosrt.cli.command import CommandError, ExitStatus, exit_on_error, require_extra
from mosrt_export.errors import ParityError

if TYPE_CHECKING:
    from mosrt_export.parity import Step

__all__ = ["exporting", "steps"]


@contextmanager
def exporting() -> Iterator[None]:
    """Turns errors of an export into one message and an exit status.

    Raises:
        CommandError: In place of a `MosrtError` or a missing extra. The status is NO where graph
            and torch module disagree.
    """
    with exit_on_error(), require_extra("export"):
        try:
            yield
        except ParityError as exc:
            raise CommandError(str(exc), ExitStatus.NO) from exc


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
