"""Runs: what the commands that compare scores have in common: errors, tables and JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from mosrt.errors import MosrtError

__all__ = ["PlainErrors", "save", "table"]

_NUMBERS: Final = re.compile(r"\[\n\s*((?:[-\d.eE]+,\n\s*)*[-\d.eE]+)\n\s*\]")


class PlainErrors(click.Command):
    """A command whose foreseen errors are told in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; a MosrtError becomes a message and exit status 1."""
        try:
            return super().invoke(ctx)
        except MosrtError as exc:
            raise click.ClickException(str(exc)) from exc


def save(run: dict[str, Any], out: Path) -> None:
    """Writes a run as JSON, complete or not at all, each list of numbers on a line of its own."""
    text = json.dumps(run, indent=1, allow_nan=False)
    text = _NUMBERS.sub(lambda match: "[" + " ".join(match[1].split()) + "]", text)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(out)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a terminal: the first to the left, the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
