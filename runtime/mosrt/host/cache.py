"""Keeps files on disk that are slow to make from a bundle, such as optimised graphs.

An entry is checked by the SHA-256 of its files and of the files that it was made from. The hash of
a large file is remembered until the size, times or inode of the file change.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

from .files import replacing, replacing_directory, sha256_of

__all__ = ["Cache", "cache_directory", "distrust", "private_directory"]

_T = TypeVar("_T")
_ENTRY: Final = "entry.json"
_HASHES: Final = "hashes"
# Hashing a smaller file takes no longer than looking its hash up.
WORTH_REMEMBERING_BYTES: Final = 16_000_000
# A file that changes twice within one tick of the file system's clock keeps its times.
_TICK_S: Final = 0.05
_COARSE_TICK_S: Final = 2.5  # of file systems that keep times in steps of 1 s or 2 s
_LOG = logging.getLogger(__name__)


def cache_directory() -> Path | None:
    """The cache directory: MOSRT_CACHE if it is set, else the platform's usual place.

    None if this user has no home directory, as in many containers.
    """
    if chosen := os.environ.get("MOSRT_CACHE"):
        return Path(chosen)
    usual = "~/.cache"
    if sys.platform == "win32":
        usual = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        usual = "~/Library/Caches"
    elif (root := os.environ.get("XDG_CACHE_HOME", "")) and Path(root).is_absolute():
        usual = root  # the specification says that others are ignored
    try:
        parent = Path(usual).expanduser()
        home = Path("~").expanduser()
    except RuntimeError:
        return None
    # A home directory that does not exist, such as Debian's /nonexistent, is not made.
    homeless = usual[0] == "~" and (os.environ.get("HOME") == "" or not home.is_dir())
    if homeless or not parent.is_absolute():
        return None
    return parent / ("mosrt/Cache" if sys.platform == "win32" else "mosrt")


def distrust(path: Path) -> str | None:  # noqa: PLR0911 - one for each reason
    """Why a file or directory of a cache cannot be relied on; None if it can, or does not exist.

    It must belong to this user or to root, and nobody else may write to it or replace it.
    """
    if not hasattr(os, "geteuid"):  # Windows, where the cache is in the user's own folder
        return None
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        return f"{path} is neither a file nor a directory"
    if status.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to another user (number {status.st_uid})"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write to {path} (mode {stat.S_IMODE(status.st_mode):o})"
    for folder in Path(os.path.realpath(path)).parents:
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"others can replace {path} (mode of {folder}: {stat.S_IMODE(mode):o})"
    return None


def private_directory(cache: Path, directory: Path) -> None:
    """Makes a directory of a cache, and the cache itself if needed, for this user alone.

    Raises:
        OSError: It cannot be made, or others can write to it.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    if (reason := distrust(cache) or distrust(directory)) is not None:
        raise PermissionError(reason)


class Cache:
    """A directory of entries, each a directory of files that can be made again at any time.

    Several processes may share a cache. A directory that belongs to another user, or that others
    can write to, is not used. A cache that fails costs time, but is never an error.

    Args:
        directory: Directory of the entries; it is created with the first entry.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._hashes: dict[Path, tuple[list[int], str]] = {}
        self._locks: dict[Path, threading.Lock] = {}

    def get(
        self,
        identity: Mapping[str, Any],
        versions: Mapping[str, Any],
        *,
        files: Mapping[Path, str],
        make: Callable[[Path], None],
        load: Callable[[Path], _T],
    ) -> _T | None:
        """Loads an entry, which is made first if it is missing, stale or damaged.

        Args:
            identity: The entry's key, JSON-ready.
            versions: Versions and settings. An entry that was made with others is made again.
            files: The files that the entry is made from, with the SHA-256 that each must have.
                The hashes are part of the key.
            make: Writes the entry's files into an empty directory.
            load: Loads the files from the entry's directory.

        Returns:
            The result of `load`; None if the cache cannot be used, for a reason that is logged.
        """
        key = {**identity, "files": list(files.values())}
        described = {"identity": key, "versions": dict(versions)}
        text = json.dumps(key, sort_keys=True)
        entry = self.directory / sha256(text.encode()).hexdigest()[:32]
        for attempt in ("first", "last"):
            try:
                if (reason := self._distrust(entry)) is not None:
                    _warn_once(reason)
                    return None
                if not self._is_whole(entry, described):
                    self._replace(entry, described, files, make)
            except Exception as exc:  # noqa: BLE001 - engines have exceptions of their own
                _LOG.info("cache %s cannot be used: %s", self.directory, exc)
                return None
            try:
                stamp = _stamp(entry / _ENTRY)
                loaded = load(entry)
                if _stamp(entry / _ENTRY) == stamp:
                    return loaded
                # Another process replaced it meanwhile, so parts of both may have been loaded.
            except Exception as exc:  # noqa: BLE001 - engines have exceptions of their own
                _LOG.info("cache %s, %s attempt: %s", entry, attempt, exc)
                shutil.rmtree(entry, ignore_errors=True)
        return None

    def sha256_of(self, path: Path) -> str:
        """SHA-256 of a file in hex; a large file that has not changed is not read again.

        Raises:
            OSError: The file cannot be read.
        """
        path = path.resolve()
        with self._locks.setdefault(path, threading.Lock()):
            stamp = _stamp(path)
            settled = _settled(stamp)
            kept, found = self._hashes.get(path, (None, ""))
            if kept == stamp or (found := self._remembered(path, stamp)):
                return found
            found = sha256_of(path)
            if settled and _stamp(path) == stamp:
                self._hashes[path] = (stamp, found)
                self._remember(path, stamp, found)
            return found

    def _note(self, path: Path) -> Path:
        """The file in which the hash of `path` is remembered."""
        return self.directory / _HASHES / sha256(os.fsencode(path.resolve())).hexdigest()[:32]

    def _remembered(self, path: Path, stamp: list[int]) -> str:
        """The hash in a note about a file, or "" if there is none about this state of it."""
        note = self._note(path)
        try:
            if stamp[0] < WORTH_REMEMBERING_BYTES or self._distrust(note.parent) or distrust(note):
                return ""
            kept, found, check = json.loads(note.read_bytes())
        except (OSError, ValueError, TypeError, RecursionError):
            return ""
        return str(found) if kept == stamp and check == _checksum(stamp, found) else ""

    def _remember(self, path: Path, stamp: list[int], found: str) -> None:
        note = self._note(path)
        with suppress(OSError):
            if stamp[0] >= WORTH_REMEMBERING_BYTES and self._distrust(note.parent) is None:
                private_directory(self.directory, note.parent)
                with replacing(note) as part:
                    part.write_text(json.dumps([stamp, found, _checksum(stamp, found)]))
                note.chmod(0o600)

    def _distrust(self, inner: Path) -> str | None:
        """As `distrust`, for the cache's directory, a directory in it, and the files there."""
        reason = distrust(self.directory) or distrust(inner)
        if reason is None and inner.name != _HASHES and inner.is_dir():
            return next(filter(None, map(distrust, inner.iterdir())), None)
        return reason

    def _replace(
        self,
        entry: Path,
        described: Mapping[str, Any],
        files: Mapping[Path, str],
        make: Callable[[Path], None],
    ) -> None:
        """Makes an entry in a temporary directory, then moves it into place."""
        self._check(files)
        private_directory(self.directory, self.directory)
        with replacing_directory(entry) as part:
            part.chmod(0o700)
            make(part)
            self._check(files)  # they must not have changed meanwhile
            for path in part.iterdir():
                path.chmod(0o600)
            stamps = {path.name: _stamp(path) for path in sorted(part.iterdir())}
            written = {name: [stamps[name][0], sha256_of(part / name)] for name in stamps}
            text = json.dumps({**described, "files": written}, indent=1)
            (part / _ENTRY).write_text(text + "\n", encoding="utf-8")
            (part / _ENTRY).chmod(0o600)
        for name, stamp in stamps.items():
            self._remember(entry / name, stamp, str(written[name][1]))

    def _check(self, files: Mapping[Path, str]) -> None:
        """Raises ValueError unless files have the hashes that they should have."""
        for path, digest in files.items():
            if self.sha256_of(path) != digest:
                raise ValueError(f"{path} is not what it should be")

    def _is_whole(self, entry: Path, described: Mapping[str, Any]) -> bool:
        """Whether an entry exists, was made as `described`, and its files are unchanged."""
        try:
            found = json.loads((entry / _ENTRY).read_bytes())
            written = found.pop("files")
            names = sorted(path.name for path in entry.iterdir() if path.name != _ENTRY)
            return (
                found == described
                and names == sorted(written)
                and all(written[name][0] == (entry / name).stat().st_size for name in names)
                and all(written[name][1] == self.sha256_of(entry / name) for name in names)
            )
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return False


@functools.cache
def _warn_once(reason: str) -> None:
    _LOG.warning(
        "the cache is not used, because %s; take that right away (chown, chmod go-w), or name "
        "another with MOSRT_CACHE",
        reason,
    )


def _stamp(path: Path) -> list[int]:
    """Size in bytes, times of change in ns, device and inode; they change with the file."""
    status = path.stat()
    return [
        status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino,
    ]  # fmt: skip


def _settled(stamp: list[int]) -> bool:
    """Whether a later change of the file will change its times."""
    newest = max(stamp[1:3])
    whole_seconds = stamp[2] % 1_000_000_000 == 0
    return time.time_ns() - newest > 1e9 * (_COARSE_TICK_S if whole_seconds else _TICK_S)


def _checksum(stamp: list[int], found: object) -> str:
    """A checksum of a note, against damage."""
    return sha256(f"{stamp} {found}".encode()).hexdigest()
