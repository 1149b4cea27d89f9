"""Write results: JSON and text files, and tables for a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from mosrt.cli.command import STDOUT
from mosrt.host.files import replacing

__all__ = ["finite", "save", "save_text", "table"]

_NUMBERS: Final = re.compile(r"\[\n\s*((?:[-\d.eE]+,\n\s*)*[-\d.eE]+)\n\s*\]")


def save(run: dict[str, Any], out: Path) -> None:
    """Writes a run as JSON, complete or not at all, each list of numbers on a line of its own."""
    text = json.dumps(run, indent=1, allow_nan=False)
    text = _NUMBERS.sub(lambda match: "[" + " ".join(match[1].split()) + "]", text)
    save_text(text + "\n", out)


def save_text(text: str, out: Path) -> None:
    """Writes a text file, complete or not at all; "-" is standard output."""
    if str(out) in STDOUT:
        click.echo(text)
        return
    try:
        with replacing(out) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as exc:  # a full disk's error has no name
        raise OSError(exc.errno, exc.strerror, str(out)) from exc


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


def finite(value: Any) -> Any:
    """The value as JSON has it, with None for every number that JSON cannot hold."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
