"""What callers give as a recording: a file in many guises, or a waveform."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy.typing as npt

from mosrt.errors import AudioError

from .sources import ArraySource, AudioSource, FileSource, audio_error, file_chunks, spooled

__all__ = ["AudioFile", "Item", "portable", "source_of"]

AudioFile = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
Item = AudioFile | tuple[npt.ArrayLike, float]


@dataclass(frozen=True, slots=True)
class _Read:
    """The content of a file object."""

    data: bytes
    name: str


def portable(item: Item, *, any_format: bool = False) -> Item:
    """A recording as another process can take it; what cannot be read becomes an error to score.

    Raises:
        TypeError: It is no recording.
    """
    try:
        if isinstance(item, tuple):
            source = ArraySource(*item)
            return source.samples, source.sample_rate_hz
        if isinstance(item, str | os.PathLike | bytes | _Read | AudioError):
            return item
        return _read(item, any_format=any_format)  # type: ignore[return-value]
    except AudioError as exc:
        return exc  # type: ignore[return-value]


def source_of(item: Item | _Read | AudioError, *, any_format: bool) -> AudioSource:
    """What reads a recording.

    Raises:
        AudioError: It cannot be read.
        TypeError: It is no recording.
    """
    if isinstance(item, tuple):
        return ArraySource(*item)
    if isinstance(item, AudioError):
        raise item
    if isinstance(item, str | os.PathLike | bytes):
        return FileSource(item, any_format=any_format)
    if not isinstance(item, _Read):
        item = _read(item, any_format=any_format)
    return FileSource(item.data, name=item.name, any_format=any_format)


def _read(item: bytearray | memoryview | BinaryIO, *, any_format: bool) -> _Read:
    """Reads a file object to its end."""
    if isinstance(item, bytearray | memoryview):
        return _Read(bytes(item), "audio")
    name = getattr(item, "name", None)
    name = name if isinstance(name, str) else "audio"
    if hasattr(item, "encoding"):
        raise TypeError(f"{name} is open as text; open it in binary mode")
    if not hasattr(item, "read"):
        raise TypeError(
            f"{type(item).__name__} is no recording; give a path, the bytes of a file, a binary "
            "file object or a tuple (waveform, sample_rate)"
        )
    try:
        # What cannot be sought in may never end.
        seekable = getattr(item, "seekable", bool)()
        data = spooled(file_chunks(item), bounded=not seekable, any_format=any_format)
    except (OSError, ValueError) as exc:
        raise audio_error(name, "unreadable", getattr(exc, "strerror", None) or str(exc)) from exc
    return _Read(data, name)
