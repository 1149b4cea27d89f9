"""The extra: what to tell whoever has not installed it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

__all__ = ["extra_needed"]

_LIBRARIES: Final = {
    "psutil": "bench",
    "scipy": "bench",
    "mosrt_export": "export",
    "librosa": "train",
    "onnx": "export",
    "pesq": "train",
    "pyworld": "train",
    "timm": "export",
    "torch": "export",
    "transformers": "export",
}


@contextmanager
def extra_needed() -> Iterator[None]:
    """Turns a missing library of an extra into advice."""
    try:
        yield
    except ImportError as exc:
        extra = _LIBRARIES.get((exc.name or "").split(".")[0])
        if extra is None:
            raise
        raise click.ClickException(
            f"this needs the extra: pip install 'mosrt[{extra}]' ({exc.name} is missing)"
        ) from exc
