"""Report files: report.json, report.md and report.html in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mosrt_bench.clips import AudioFile
from mosrt_bench.output import save, save_text

from .html import page
from .text import markdown

__all__ = ["write_report"]


def write_report(
    report: dict[str, Any], clips: Sequence[AudioFile], folder: Path
) -> tuple[Path, ...]:
    """Writes the three files; each is complete or not there.

    Args:
        report: What `run_bench` gave.
        clips: The recordings, of which the page holds some.
        folder: Made if need be.

    Returns:
        The files' paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    json_file, text_file, page_file = (folder / f"report.{kind}" for kind in ("json", "md", "html"))
    save(report, json_file)
    save_text(markdown(report), text_file)
    save_text(page(report, clips), page_file)
    return json_file, text_file, page_file
