"""Writes files and directories atomically, and hashes files."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing", "replacing_directory", "sha256_of"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name to write to; the file written there replaces `path` if the block succeeds.

    Links are followed, and a file that exists keeps its mode and, where this process may set it,
    its owner. What is no regular file, such as a device or a pipe, and what cannot be replaced
    because its directory is read-only or it is mounted by itself, is written to in place.

    Raises:
        OSError: The file cannot be written.
    """
    target = _without_links(path)
    try:
        old = target.stat()
    except FileNotFoundError:
        old = None
    if old is not None and (not stat.S_ISREG(old.st_mode) or target.is_symlink()):
        yield path
        return
    # A long name would not fit with the additions.
    part = target.with_name(f".{target.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        # What replaces a private file is private from the first byte on.
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        os.close(os.open(part, flags, 0o666 if old is None else 0o600))
    except OSError as exc:
        read_only = exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if old is None or not read_only or not os.access(target, os.W_OK):
            raise OSError(exc.errno, exc.strerror, str(path)) from exc
        yield path
        return
    try:
        yield part
        if old is not None:
            _keep_owner_and_mode(part, old)
        try:
            part.replace(target)
        except OSError as exc:
            if exc.errno not in (errno.EBUSY, errno.EXDEV):  # a file that is mounted by itself
                raise
            shutil.copyfile(part, target)
    finally:
        part.unlink(missing_ok=True)


def _without_links(path: Path) -> Path:
    """The file that links lead to, which need not exist; a link to an open file stays as it is."""
    for _ in range(40):
        # /dev/stdout leads there; the file behind it is open, and replacing it would lose it.
        opened = str(path.parent.resolve()).startswith("/proc/")
        if opened or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _keep_owner_and_mode(part: Path, old: os.stat_result) -> None:
    if hasattr(os, "chown"):
        new = part.stat()
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            with suppress(PermissionError):
                os.chown(part, old.st_uid, old.st_gid)
    part.chmod(stat.S_IMODE(old.st_mode))


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
