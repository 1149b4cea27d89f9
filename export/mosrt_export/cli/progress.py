"""What the export commands share: announced steps, and a word on a missing extra."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from mosrt_export.utmosv2.exporter import Step

__all__ = ["extra_needed", "steps"]

_EXPORT: Final = frozenset(
    ("torch", "timm", "transformers", "onnx", "onnx_ir", "onnxscript", "huggingface_hub", "tomli")
)
_EXTRAS: Final = {
    "export": _EXPORT,
    "train": _EXPORT | {"librosa", "pesq", "pkg_resources", "pyworld", "scipy"},
}


@contextmanager
def extra_needed(extra: str = "export") -> Iterator[None]:
    """Turns a missing library of the extra into advice."""
    try:
        yield
    except ImportError as exc:
        if (exc.name or "").split(".")[0] in _EXTRAS[extra]:
            raise click.ClickException(
                f"this command needs the extra: pip install 'mosrt[{extra}]' "
                f"({exc.name} is missing)"
            ) from exc
        raise


def steps(total: int) -> Step:
    """Announces steps on stderr, and after each how long it took."""
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
