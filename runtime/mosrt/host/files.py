"""Writes files and directories atomically, and hashes files."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "replacing_directory", "sha256_of"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name beside `path`; the file written there replaces `path` if the block succeeds."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: Path, *, copy_of: Path | None = None) -> Iterator[Path]:
    """Yields a directory beside `path` that replaces `path` if the block succeeds.

    If the block fails, the new directory is removed and `path` stays as it was.

    Args:
        path: The directory to write; parents are made.
        copy_of: A directory whose files the new one starts with; empty if left out.

    Raises:
        OSError: The directory cannot be made, copied or moved.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    previous = path.with_name(f".{path.name}.{os.getpid()}.previous")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if copy_of is None:
            partial.mkdir()
        else:
            shutil.copytree(copy_of, partial)
        yield partial
        if path.exists():
            path.rename(previous)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if previous.exists():
            if not path.exists():
                previous.rename(path)
            shutil.rmtree(previous, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
