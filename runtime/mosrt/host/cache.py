"""Keeps files on disk that are slow to make from a bundle, such as optimised graphs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

__all__ = ["Cache", "cache_directory"]

_T = TypeVar("_T")
_ENTRY: Final = "entry.json"
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
    except RuntimeError:
        return None
    if not parent.is_absolute() or os.environ.get("HOME") == "":
        return None
    return parent / ("mosrt/Cache" if sys.platform == "win32" else "mosrt")


class Cache:
    """A directory of entries, each a directory of files that can be made again at any time.

    Entries are written atomically, so several processes may share a cache. An entry is made again
    if other versions made it, or if a file's size or modification time has changed; files are not
    hashed. A cache that fails costs time, but is never an error.

    Args:
        directory: Directory of the entries; it is created with the first entry.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(
        self,
        identity: Mapping[str, Any],
        versions: Mapping[str, Any],
        *,
        make: Callable[[Path], None],
        load: Callable[[Path], _T],
    ) -> _T | None:
        """Loads an entry, which is made first if it is missing, stale or damaged.

        Args:
            identity: The entry's key, JSON-ready.
            versions: Versions and settings that made the entry; others make it again.
            make: Writes the entry's files into an empty directory.
            load: Loads the files from the entry's directory.

        Returns:
            The result of `load`; None if the cache cannot be used, for a reason that is logged.
        """
        described = {"identity": dict(identity), "versions": dict(versions)}
        text = json.dumps(described["identity"], sort_keys=True)
        entry = self.directory / sha256(text.encode()).hexdigest()[:32]
        for attempt in ("first", "last"):
            try:
                if not _is_whole(entry, described):
                    self._replace(entry, described, make)
            except Exception as exc:  # noqa: BLE001 - engines have exceptions of their own
                _LOG.info("cache %s cannot be used: %s", self.directory, exc)
                return None
            try:
                return load(entry)
            except Exception as exc:  # noqa: BLE001 - engines have exceptions of their own
                _LOG.info("cache %s, %s attempt: %s", entry, attempt, exc)
                shutil.rmtree(entry, ignore_errors=True)
        return None

    def _replace(
        self, entry: Path, described: Mapping[str, Any], make: Callable[[Path], None]
    ) -> None:
        """Makes an entry in a temporary directory, which is then moved into place."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".part-", dir=self.directory, ignore_cleanup_errors=True
        ) as temporary:
            part, old = Path(temporary, "new"), Path(temporary, "old")
            part.mkdir()
            make(part)
            text = json.dumps({**described, "files": _stamps(part)}, indent=1)
            (part / _ENTRY).write_text(text + "\n", encoding="utf-8")
            if entry.exists():
                entry.rename(old)
            try:
                part.rename(entry)
            except OSError:
                # If another process was first, its entry is used.
                if not _is_whole(entry, described):
                    raise


def _is_whole(entry: Path, described: Mapping[str, Any]) -> bool:
    """Whether an entry exists, was made as `described`, and its files are unchanged."""
    try:
        found = json.loads((entry / _ENTRY).read_text(encoding="utf-8"))
        return bool(found == {**described, "files": _stamps(entry)})
    except (OSError, ValueError):
        return False


def _stamps(directory: Path) -> dict[str, list[int]]:
    """Size in bytes and modification time in ns of each file but the description, by name."""
    found = {}
    for path in sorted(directory.iterdir()):
        if path.name != _ENTRY:
            status = path.stat()
            found[path.name] = [status.st_size, status.st_mtime_ns]
    return found
