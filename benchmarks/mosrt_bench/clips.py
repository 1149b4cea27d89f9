"""Find the recordings that a bench or a gate scores, and identify each by its hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosrt.audio.sources import AUDIO_SUFFIXES
from mosrt.cli.ratings import Rating
from mosrt.host.files import files_below, sha256_of
from mosrt_bench.errors import BenchError

__all__ = ["AudioFile", "audio_files", "rated_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFile:
    """A clip.

    Attributes:
        name: Its path below the folder that it was found in.
        path: The file.
        sha256: Of the file's bytes.
        n_bytes: Size of the file.
    """

    name: str
    path: Path
    sha256: str
    n_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The clip's entry in a report."""
        return {"clip": self.name, "sha256": self.sha256, "bytes": self.n_bytes}


def audio_files(paths: Sequence[Path]) -> list[AudioFile]:
    """Files, and all audio files below folders, in the order of their names.

    Raises:
        BenchError: There are none, or one cannot be read, or two would have one name.
    """
    found: dict[str, AudioFile] = {}
    for path in paths:
        files = [path]
        if path.is_dir():
            files = [file for file in files_below(path) if file.suffix.lower() in AUDIO_SUFFIXES]
            if not files:
                raise BenchError(f"{path}: no audio files ({', '.join(sorted(AUDIO_SUFFIXES))})")
        for file in files:
            if file.exists() and not file.is_file():  # each is read twice, to hash and to score it
                raise BenchError(f"{file}: is a pipe or a device; give a file or a folder")
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            if name in found and found[name].path.resolve() != file.resolve():
                raise BenchError(
                    f"{found[name].path} and {file} would both be called {name}; pass the folder "
                    "above both"
                )
            found[name] = _audio_file(name, file)
    return list(found.values())


def rated_files(
    ratings: Sequence[Rating], ratings_file: Path, folders: Sequence[Path]
) -> dict[str, AudioFile]:
    """The clips of ratings, by the path that the ratings have.

    Each is looked for below the folders given, then below the folder of the ratings.

    Raises:
        BenchError: One is nowhere.
    """
    places = [folder for folder in folders if folder.is_dir()] + [ratings_file.parent]
    found = {}
    for rating in ratings:
        file = next((p / rating.path for p in places if (p / rating.path).is_file()), None)
        if file is None:
            raise BenchError(
                f"{ratings_file}: {rating.path} is in none of {', '.join(map(str, places))}; "
                "pass --audio the folder that the paths are relative to"
            )
        found[rating.path] = _audio_file(rating.path, file)
    return found


def _audio_file(name: str, path: Path) -> AudioFile:
    try:
        sha256 = sha256_of(path)
        size = path.stat().st_size
    except OSError as exc:
        raise BenchError(f"{path}: cannot be read: {exc.strerror}") from exc
    return AudioFile(name=name, path=path, sha256=sha256, n_bytes=size)
