"""Writes files and directories atomically, cleans up after killed processes, and hashes files.

Until it is complete, a file or directory has a temporary name beside its target, which tells the
process that writes it: `.NAME.mosrt-HOST-PID-TOKEN-NUMBER.part`. A directory that is being replaced
may have such a name that ends with `previous`. What a killed process left is removed when another
writes to the same folder.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import itertools
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = ["files_below", "recover_directory", "replacing", "replacing_directory", "sha256_of"]

_PART: Final = "part"
_PREVIOUS: Final = "previous"
_TEMPORARY: Final = re.compile(
    r"\.(?P<name>.+)\.mosrt-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<token>[0-9a-f]{8})-\d+"
    r"\.(?P<kind>part|previous)",
    re.DOTALL,
)
# Whether a process of another machine or container is alive cannot be known. No command takes
# longer than this.
_OLD_S: Final = 24 * 3600.0
# File systems allow 255 bytes; the rest of a temporary name takes at most 64.
_MAX_NAME_BYTES: Final = 180
_NUMBERS: Final = itertools.count()
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a name to write to; the file written there replaces `path` if the block succeeds.

    Links are followed, and a file that exists keeps its mode and, where this process may set it,
    its owner. Devices and pipes are written to in place, and so are files that cannot be replaced,
    because their directory is read-only or they are mount points.

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
    _clean(target.parent)
    part = _temporary(target, _PART)
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
        with part.open("r+b") as stream:
            os.fsync(stream.fileno())  # a power cut must not leave the new name without the data
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


@contextmanager
def replacing_directory(path: Path, *, copy_of: Path | None = None) -> Iterator[Path]:
    """Yields a directory beside `path` that replaces `path` if the block succeeds.

    If the block fails, the new directory is removed and `path` stays as it was. Old and new change
    places in one step on Linux. Where the system cannot do that, a process that is killed between
    two renames leaves the old directory under another name: see `recover_directory`.

    Args:
        path: The directory to write; parents are made.
        copy_of: A directory whose files the new one starts with; empty if left out.

    Raises:
        OSError: The directory cannot be made, copied or moved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_directory(path)
    _clean(path.parent)
    part = _temporary(path, _PART)
    try:
        if copy_of is None:
            part.mkdir()
        else:
            shutil.copytree(copy_of, part)
        yield part
        if path.exists():
            _keep_owner_and_mode(part, path.stat())
        _move_into_place(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def recover_directory(path: Path) -> None:
    """Gives a directory its name back if a process was killed while it replaced it.

    It does nothing if `path` exists, or no killed process has left its previous version.
    """
    if os.path.lexists(path):
        return
    for left, name in _left_behind(path.parent):
        if name["name"] == _short_name(path.name) and name["kind"] == _PREVIOUS:
            with suppress(OSError):
                left.rename(path)
            return


def files_below(
    folder: Path, *, recursive: bool = True, failed: Callable[[OSError], None] | None = None
) -> list[Path]:
    """The files in a folder, sorted by path, with links to files, even those that lead nowhere.

    Links to folders are followed, but each folder is read once, by its own path if it is below
    `folder`. What is neither a file nor a folder is left out, and so are macOS's `._NAME` files.

    Args:
        folder: Where to look.
        recursive: Whether to look into its folders, too.
        failed: Called with the error if a folder cannot be read. By default it is raised.
    """
    found: list[Path] = []
    read: set[tuple[int, int]] = set()
    own, links = [folder], list[Path]()
    while own or links:
        # Folders come before links, so that a folder goes by its own path.
        place = own.pop() if own else links.pop()
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in read:
                continue
            read.add((status.st_dev, status.st_ino))
            for path in sorted(place.iterdir(), reverse=True):
                if path.is_dir():
                    (links if path.is_symlink() else own).append(path)
                elif not path.name.startswith("._") and (path.is_file() or path.is_symlink()):
                    found.append(path)
        except OSError as exc:
            if failed is None:
                raise
            failed(exc)
        if not recursive:
            break
    return sorted(found)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _move_into_place(part: Path, path: Path) -> None:
    """Moves a directory to `path`. A directory there is then called `part`, or is removed."""
    try:
        part.rename(path)  # nothing is there, or an empty directory
        return
    except OSError:
        if not path.is_dir() or path.is_symlink():
            raise
    if not _exchange(part, path):
        previous = _temporary(path, _PREVIOUS)
        path.rename(previous)
        try:
            part.rename(path)
        except BaseException:
            previous.rename(path)
            raise
        shutil.rmtree(previous, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot do it."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # musl before 1.2.4, glibc before 2.28
        return False
    names = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return bool(renameat2(*names, ctypes.c_uint(_RENAME_EXCHANGE)) == 0)


def _without_links(path: Path) -> Path:
    """The file that links lead to, which need not exist; links to open files are not followed."""
    for _ in range(40):
        # /dev/stdout leads there, to an open file, which must be written to and not replaced.
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


@functools.cache
def _token(_pid: int) -> str:
    """A random token of this process, because numbers of processes are used again."""
    return secrets.token_hex(4)


@functools.cache
def _host() -> str:
    """A hash of the machine and container, within which process numbers are unique."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _short_name(name: str) -> str:
    """A file's name; of a long one the beginning, and a hash."""
    raw = os.fsencode(name)
    if len(raw) <= _MAX_NAME_BYTES:
        return name
    return os.fsdecode(raw[: _MAX_NAME_BYTES // 2]) + hashlib.sha256(raw).hexdigest()[:16]


def _temporary(path: Path, kind: str) -> Path:
    pid = os.getpid()
    maker = f"{_host()}-{pid}-{_token(pid)}-{next(_NUMBERS)}"
    return path.with_name(f".{_short_name(path.name)}.mosrt-{maker}.{kind}")


def _left_behind(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yields what dead processes have left in a folder, and the parts of its names."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        found = _TEMPORARY.fullmatch(entry.name)
        if found is None:
            continue
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
                continue
            old = time.time() - status.st_mtime > _OLD_S
            if old or (found["host"] == _host() and not _alive(int(found["pid"]), found["token"])):
                yield Path(entry.path), found


def _alive(pid: int, token: str) -> bool:
    """Whether the process that chose a temporary name may still be running."""
    if pid == os.getpid():
        return token == _token(pid)
    if sys.platform == "win32":
        return True  # asking is not safe there: os.kill ends the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # it is another user's
    return True


@functools.cache
def _clean(folder: Path) -> None:
    """Removes what processes that are no longer alive have left in a folder, once per process."""
    for left, name in _left_behind(folder):
        # A previous directory is kept until there is another in its place.
        if name["kind"] == _PREVIOUS and not os.path.lexists(left.with_name(name["name"])):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):
                left.unlink()
