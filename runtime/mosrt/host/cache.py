"""Cache: what is slow to make from a bundle and the same every time, kept on disk."""

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


def cache_directory() -> Path:
    """Where the cache is: the variable MOSRT_CACHE, else the place that the platform has for it."""
    if chosen := os.environ.get("MOSRT_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "mosrt/Cache"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/mosrt").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mosrt"


class Cache:
    """A directory of entries, each a directory of files that can be made again at any time.

    An entry appears complete or not at all, so that any number of processes may share the cache.
    One made by other versions is replaced, and so is one whose files have changed in length or in
    time; like a bundle's own, large files are not read to check them. Whatever goes wrong with
    the cache costs time only.

    Args:
        directory: Where the entries are; it is made when the first is.
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
        """What an entry holds, made first where it is missing, stale or damaged.

        Args:
            identity: What the entry is of, JSON-ready: another identity is another entry.
            versions: What it was made by and with: an entry with others is made again.
            make: Writes the entry's files into an empty directory.
            load: Reads them from the entry.

        Returns:
            What `load` gives; None where the cache cannot be used, and a log line says why.
        """
        described = {"identity": dict(identity), "versions": dict(versions)}
        text = json.dumps(described["identity"], sort_keys=True)
        entry = self.directory / sha256(text.encode()).hexdigest()[:32]
        for attempt in ("first", "last"):
            try:
                if not _is_whole(entry, described):
                    self._replace(entry, described, make)
            except Exception as exc:  # noqa: BLE001 - an engine's own for a full disk, too
                _LOG.info("cache %s cannot be used: %s", self.directory, exc)
                return None
            try:
                return load(entry)
            except Exception as exc:  # noqa: BLE001 - whatever an engine throws at a damaged file
                _LOG.info("cache %s, %s attempt: %s", entry, attempt, exc)
                shutil.rmtree(entry, ignore_errors=True)
        return None

    def _replace(
        self, entry: Path, described: Mapping[str, Any], make: Callable[[Path], None]
    ) -> None:
        """Makes an entry beside its place, and then puts it there."""
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
                # Another process was first; its entry is as good.
                if not _is_whole(entry, described):
                    raise


def _is_whole(entry: Path, described: Mapping[str, Any]) -> bool:
    """Whether an entry is there, made as `described`, and its files as they were written."""
    try:
        found = json.loads((entry / _ENTRY).read_text(encoding="utf-8"))
        return bool(found == {**described, "files": _stamps(entry)})
    except (OSError, ValueError):
        return False


def _stamps(directory: Path) -> dict[str, list[int]]:
    """Length in bytes and time of change in ns of each file by name, but for the description."""
    found = {}
    for path in sorted(directory.iterdir()):
        if path.name != _ENTRY:
            status = path.stat()
            found[path.name] = [status.st_size, status.st_mtime_ns]
    return found
