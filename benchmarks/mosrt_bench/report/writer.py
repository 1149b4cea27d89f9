"""Write a report: as text for the terminal, as Markdown, and as files in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mosrt_bench.clips import AudioFile
from mosrt_bench.output import save, save_text, table

from .html import TEMPLATES, page
from .sections import Row, sections

__all__ = ["escaped", "markdown", "markdown_table", "terminal", "write_report"]

_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]<>|#~!])")


def write_report(
    report: dict[str, Any], clips: Sequence[AudioFile], folder: Path
) -> tuple[Path, ...]:
    """Writes report.json, report.md and report.html; each file is complete or absent.

    Args:
        report: The report of a `Bench`.
        clips: The recordings, some of which the page embeds.
        folder: Where to write; created if it does not exist.

    Returns:
        The paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    json_file, text_file, page_file = (folder / f"report.{kind}" for kind in ("json", "md", "html"))
    save(report, json_file)
    save_text(markdown(report), text_file)
    save_text(page(report, clips), page_file)
    return json_file, text_file, page_file


def terminal(report: Row) -> str:
    """All tables, aligned for a terminal."""
    parts = []
    for section in sections(report):
        parts += ["", section.title, table(section.header, section.rows)]
        parts += [f"  {note}" for note in section.notes]
    return "\n".join(parts[1:])


def markdown(report: Row) -> str:
    """The whole report as Markdown, with all text from outside escaped."""
    template = TEMPLATES.get_template("report.md.j2")
    return template.render(report=report, sections=sections(report), text=escaped)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, of cells that are Markdown."""
    first, *rest = (f"| {' | '.join(cells)} |" for cells in (header, *rows))
    return "\n".join([first, "|---" * len(header) + "|", *rest])


def escaped(text: str) -> str:
    """Text on one line that Markdown shows unchanged."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
