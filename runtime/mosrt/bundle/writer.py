"""Writer: a directory, such as a bundle, that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mosrt.errors import MosrtError
from mosrt.host.files import sha256_of

from .bundle import MANIFEST_NAME
from .manifest import File, Manifest

__all__ = ["OutputError", "bundle_file", "check_target", "staged", "write_manifest"]

_JSON_INDENT: Final = 2


class OutputError(MosrtError, OSError):
    """A directory cannot be written where it was asked for."""


def check_target(
    out: Path, *, force: bool, kind: str = "bundle", mark: str = MANIFEST_NAME
) -> None:
    """Refuses a target that must not be replaced, before minutes of work go into it.

    Args:
        out: The directory to be.
        force: Whether an older one of its kind there is replaced.
        kind: What it is called in messages.
        mark: The file that tells one of its kind from anything else.

    Raises:
        OutputError: `out` exists and `force` is off, or it is something else than one of its kind.
    """
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise OutputError(f"{out} exists already; choose another --out, or replace it with --force")
    empty = out.is_dir() and not any(out.iterdir())
    if out.is_symlink() or not (empty or (out / mark).is_file()):
        raise OutputError(f"{out} is not a {kind}, so --force does not replace it; move it away")


@contextmanager
def staged(
    out: Path, *, force: bool, kind: str = "bundle", mark: str = MANIFEST_NAME
) -> Iterator[Path]:
    """A directory beside `out` that takes its place if the block succeeds, else disappears.

    Args:
        out: The directory to be.
        force: As for `check_target`.
        kind: As for `check_target`.
        mark: As for `check_target`.

    Yields:
        The directory to write into, on the same file system.

    Raises:
        OutputError: As `check_target`, or the directory cannot be made.
    """
    check_target(out, force=force, kind=kind, mark=mark)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    previous = out.with_name(f".{out.name}.{os.getpid()}.previous")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as exc:
        raise OutputError(f"{out}: cannot write there ({exc.strerror})") from exc
    try:
        yield partial
        if out.exists():
            out.rename(previous)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if previous.exists():
            if not out.exists():
                previous.rename(out)
            shutil.rmtree(previous, ignore_errors=True)


def bundle_file(path: Path) -> File:
    """The manifest's entry for a file that lies in the bundle's root."""
    return File(path=path.name, sha256=sha256_of(path), bytes=path.stat().st_size)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes manifest.json after reading it back, so that no bundle is written that will not load.

    Raises:
        BundleError: The manifest contradicts itself.
    """
    text = json.dumps(manifest.to_dict(), indent=_JSON_INDENT, ensure_ascii=False)
    Manifest.from_dict(json.loads(text))
    (directory / MANIFEST_NAME).write_text(f"{text}\n", encoding="utf-8", newline="\n")
