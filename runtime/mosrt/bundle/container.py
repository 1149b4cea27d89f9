"""Reads the files of a bundle from a directory or a zip, neither of which is trusted."""

from __future__ import annotations

import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mosrt.errors import BundleError

__all__ = ["Container"]

# A zip whose files are more than so many times its size is made to fill a disk.
_MAX_RATIO: Final = 200
_MAX_RATIO_FROM_BYTES: Final = 256 * 1024 * 1024
_CHUNK_BYTES: Final = 1024 * 1024
# LZMA and bzip2 may unpack one read to any size, so little is read at a time.
_SMALL_CHUNK_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Container:
    """A directory, or a zip file of one."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Container:
        """Checks that a path is a directory or a zip; pipes and devices are never opened.

        Raises:
            BundleError: It is not.
        """
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                return cls(path)
            if stat.S_ISREG(mode):
                with path.open("rb") as stream:
                    if zipfile.is_zipfile(stream):
                        return cls(path)
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(
                f"{path}: no such bundle; `mosrt export --help` tells how to make one"
            ) from None
        except (OSError, ValueError) as exc:
            reason = getattr(exc, "strerror", None) or exc
            raise BundleError(f"{str(path)!r}: cannot be opened ({reason})") from exc
        raise BundleError(f"{path}: neither a bundle directory nor a zip of one")

    def read(self, name: str, limit: int) -> bytes | None:
        """The content of a file of at most `limit` bytes; None if there is no such file.

        Raises:
            BundleError: The file is larger, or cannot be read.
        """
        found = bytearray()
        try:
            for chunk in self.chunks(name):
                found += chunk
                if len(found) > limit:
                    raise BundleError(
                        f"{self.path / name}: larger than {limit} bytes, which no real one is"
                    )
        except FileNotFoundError:
            return None
        return bytes(found)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yields the content of a file in chunks.

        Raises:
            FileNotFoundError: There is no such file.
            BundleError: It cannot be read.
        """
        if self.path.is_dir():
            with self._reading(name), self.file(name).open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    yield chunk
            return
        with self._zip() as archive:
            if name not in archive.NameToInfo:
                raise FileNotFoundError(2, "No such file in the zip", name)
            packed = archive.getinfo(name).compress_type
            usual = packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            with archive.open(name) as member:
                while chunk := member.read(_CHUNK_BYTES if usual else _SMALL_CHUNK_BYTES):
                    yield chunk

    def sizes(self, names: Iterable[str]) -> Mapping[str, int]:
        """Sizes in bytes, by name, of the files that exist.

        Raises:
            BundleError: A file is a link that leaves the bundle, or not a regular file; or the zip
                is damaged, has a file twice, or is made to fill a disk.
        """
        if self.path.is_dir():
            sizes = {}
            for name in names:
                with suppress(FileNotFoundError), self._reading(name):
                    sizes[name] = self.file(name).stat().st_size
            return sizes
        with self._zip() as archive:
            counts = Counter(archive.namelist())
            found = [archive.getinfo(name) for name in names if name in counts]
            for member in found:
                if counts[member.filename] > 1 or f"{member.filename}/" in counts:
                    raise BundleError(
                        f"{self.path}: has {member.filename!r} twice; zip the bundle again"
                    )
            n_bytes = sum(member.file_size for member in found)
            # Files of a zip may overlap.
            n_packed = min(sum(m.compress_size for m in found), self.path.stat().st_size)
            if n_bytes > max(_MAX_RATIO * n_packed, _MAX_RATIO_FROM_BYTES):
                raise BundleError(
                    f"{self.path}: {n_packed} bytes unpack to {n_bytes}; get the bundle from a "
                    "source you trust, or unpack it yourself"
                )
            return {member.filename: member.file_size for member in found}

    def file(self, name: str) -> Path:
        """The path of a file in a directory, with links resolved.

        A link may lead to another file of the bundle. In the cache of the Hugging Face Hub, where
        the files of a revision are links, it may lead to any file of the same repository.

        Raises:
            OSError: There is no such file, or it cannot be reached.
            BundleError: It is a link that leads elsewhere, or not a regular file.
        """
        try:
            home = self.path.resolve(strict=True)
            found = (self.path / name).resolve(strict=True)
            mode = found.stat().st_mode
        except RuntimeError as exc:  # links in a circle, before Python 3.13
            raise OSError(str(exc)) from exc
        if not any(found.is_relative_to(folder) for folder in (home, *_repositories(home))):
            raise BundleError(
                f"{self.path / name}: a link that leaves the bundle; copy the file in"
            )
        if not stat.S_ISREG(mode):
            raise BundleError(f"{self.path / name}: not a file; copy or export the bundle again")
        return found

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Turns an OSError, unless a file is missing, into a BundleError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as exc:
            raise BundleError(
                f"{self.path / name}: cannot be read ({exc.strerror or exc}); copy the bundle again"
            ) from exc

    @contextmanager
    def _zip(self) -> Iterator[zipfile.ZipFile]:
        """Opens the zip; whatever goes wrong while it is read is a BundleError."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (BundleError, FileNotFoundError):
            raise
        except Exception as exc:  # each method of compression has exceptions of its own
            raise BundleError(
                f"{self.path}: damaged zip, or one of an unknown kind ({exc}); copy the bundle "
                "again"
            ) from exc


def _repositories(home: Path) -> Iterator[Path]:
    """Yields the repository's folder of a bundle in a cache of the Hugging Face Hub."""
    for folder in home.parents:
        if folder.name.startswith("models--"):
            if home.relative_to(folder).parts[0] == "snapshots":
                yield folder
            return
