"""Fills the Markdown templates of this package: model cards, and the README of a Triton repository.

Fields are those of `str.format`, so a template reads attributes and items of what it is given. A
line that starts with `[field]` or `[not field]` is kept only if the field is true, or not.
"""

from __future__ import annotations

import re
import string
import textwrap
from importlib import resources
from typing import Any, Final

__all__ = ["WIDTH", "refilled", "rendered"]

WIDTH: Final = 100
_CONDITION: Final = re.compile(r"\[(not )?([\w.]+)\](?: |$)")
_ITEM: Final = re.compile(r"- ")
_KEPT: Final = re.compile(r"#|\|")  # headings and table rows stay on their own line
_FENCE: Final = "```"


def rendered(template: str, **fields: Any) -> str:
    """Fills a template, the name of a file in `templates/`, and breaks its lines."""
    file = resources.files(__package__).joinpath("templates", template)
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        kept, rest = True, line
        while kept and (condition := _CONDITION.match(rest)):
            value, _ = string.Formatter().get_field(condition[2], (), fields)
            kept, rest = bool(value) is (condition[1] is None), rest[condition.end() :]
        if kept:
            lines.append(rest)
    return refilled("\n".join(lines).format(**fields))


def refilled(text: str) -> str:
    """Breaks paragraphs and list items at 100 columns; headings, tables and code stay as they are.

    Args:
        text: Markdown without nested lists.
    """
    blocks: list[list[str]] = [[]]
    code = False
    for line in text.splitlines():
        code ^= line.startswith(_FENCE)
        if code or not line.strip() or line.startswith(_FENCE) or _KEPT.match(line):
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
