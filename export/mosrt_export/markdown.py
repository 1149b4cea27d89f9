"""Markdown: text with figures filled in, its lines broken evenly again."""

from __future__ import annotations

import re
import textwrap
from typing import Final

__all__ = ["WIDTH", "refilled"]

WIDTH: Final = 100
_ITEM: Final = re.compile(r"- ")
_KEPT: Final = re.compile(r"#|\|")  # headings and rows of tables are lines of their own


def refilled(text: str) -> str:
    """Breaks the lines of paragraphs and of list items at 100 columns; headings and tables stay.

    Args:
        text: Markdown without code blocks or nested lists.
    """
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line.strip() or _KEPT.match(line):
            blocks += [[line], []]
        elif _ITEM.match(line):
            blocks.append([line])
        else:
            blocks[-1].append(line.strip())
    return "\n".join(_filled(block) for block in blocks if block) + "\n"


def _filled(lines: list[str]) -> str:
    text = " ".join(lines)
    if _KEPT.match(text):
        return text
    indent = "  " if _ITEM.match(text) else ""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
