"""Decodes audio files and arrays to blocks of float32. libsndfile reads all formats, MP3 too."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from mosrt._arrays import Array, Float32Array
from mosrt.errors import AudioError
from mosrt.host.fork import fork_waits

from .containers import IGNORED_BYTES, find_parts, recognised
from .guards import FLAGS, MAX_RATE_HZ, MIN_RATE_HZ, frame_samples
from .mp3 import Part, quiet

__all__ = [
    "AUDIO_SUFFIXES", "ArraySource", "AudioSource", "FileSource", "audio_error", "file_chunks",
    "spooled",
]  # fmt: skip


AUDIO_SUFFIXES: Final = frozenset({
    ".aif", ".aifc", ".aiff", ".au", ".bwf", ".caf", ".flac", ".mp3", ".nist", ".oga", ".ogg",
    ".opus", ".rf64", ".snd", ".sph", ".w64", ".wav", ".wave", ".wavex",
})  # fmt: skip
"""Suffixes, in lower case, of what is taken for an audio file in a folder."""

_BLOCK_S: Final = 2.0
_MAX_CHANNELS: Final = 64
_INTEGER_SCALE: Final = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
# Most values in a block, all channels together: enough for 2 s of 43 channels at 48 kHz.
_BLOCK_VALUES: Final = 1 << 22
_SHORT_OGG: Final = "lacks an end-of-stream bit"
# A pipe is read into memory up to this, and refused early if it does not begin like audio.
LARGEST_PIPE_BYTES: Final = 1 << 30
_HEAD_BYTES: Final = 1 << 18
PIPE_WAIT_S: Final = 10.0


def audio_error(name: str, flag: str, detail: str = "") -> AudioError:
    """The error with which guard `flag` refuses recording `name`."""
    reason = f" ({detail})" if detail else ""
    return AudioError(f"{name}: cannot be scored: {FLAGS[flag]}{reason}", flags=(flag,))


class ArraySource:
    """A waveform in memory.

    Args:
        waveform: (samples,) or (channels, samples); float32 or float64 in [-1, 1], int16 or int32.
        sample_rate_hz: Sampling rate, 4 000 to 192 000.

    Raises:
        AudioError: With flag "bad-array" or "bad-rate".
    """

    def __init__(self, waveform: npt.ArrayLike, sample_rate_hz: float) -> None:
        self.name = name = "waveform"
        self.truncated = self.unread = False
        self.sample_rate_hz = _checked_rate(sample_rate_hz, name)
        rows = waveform[:_MAX_CHANNELS] if isinstance(waveform, list | tuple) else ()
        if any(map(np.ma.is_masked, (waveform, *rows))):
            cure = "drop its masked samples with .compressed(), or set them with .filled(0)"
            raise audio_error(name, "bad-array", f"its masked samples are no audio; {cure}")
        try:
            array = np.asarray(waveform)
        except (ValueError, TypeError, RuntimeError) as exc:
            raise audio_error(name, "bad-array", str(exc)) from exc
        if array.dtype.newbyteorder("=") not in (np.float32, np.float64, *_INTEGER_SCALE):
            raise audio_error(name, "bad-array", f"its dtype is {array.dtype}")
        shape = array.shape
        if array.ndim not in (1, 2) or not 1 <= len(np.atleast_2d(array)) <= _MAX_CHANNELS:
            hint = ", is it transposed?" if array.ndim == 2 and shape[0] > shape[1] > 0 else ""
            raise audio_error(name, "bad-array", f"its shape is {shape}{hint}")
        self._samples = np.atleast_2d(array.astype(array.dtype.newbyteorder("="), copy=False))

    @property
    def samples(self) -> Array:
        """The waveform, (channels, samples)."""
        return self._samples

    def blocks(self) -> Iterator[Float32Array]:
        """Yields the recording in blocks (samples, channels) float32 of about 2 s."""
        step = _block_samples(self.sample_rate_hz, len(self._samples))
        scale = _INTEGER_SCALE.get(self._samples.dtype)
        for start in range(0, self._samples.shape[1], step):
            block = self._samples[:, start : start + step].T
            if scale is not None:
                block = block * np.float32(1 / scale)
            # Values beyond float32 become infinite, which a guard reports.
            with np.errstate(over="ignore"):
                yield np.asarray(block, np.float32)


class _Sound(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """A sound file that is read from beginning to end without seeking.

    Between two reads, soundfile seeks to the current position. In an MP3 file that is not exact, so
    samples would differ from those of a single read. soundfile does not seek in a file that is not
    seekable.
    """

    def __init__(self, file: Any) -> None:
        with fork_waits(), quiet():  # libsndfile has locks
            super().__init__(file)

    def read(self, *args: Any, **options: Any) -> Any:
        with fork_waits(), quiet():
            return super().read(*args, **options)

    def seekable(self) -> bool:
        return False


class _View:
    """Shows a part to soundfile as a seekable binary file.

    An OSError ends the file and sets `failed`, because soundfile's callbacks cannot raise.

    Args:
        file: The file.
        part: The part to show.
    """

    def __init__(self, file: BinaryIO, part: Part) -> None:
        self._file = file
        self._pieces = part.pieces
        self._starts = [0, *accumulate(len(piece) for piece in part.pieces)]
        self._size = self._starts[-1] + part.padding
        self._position = 0
        self.failed = False

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to a position as other files do."""
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readinto(self, buffer: bytearray) -> int:
        """Reads bytes into a buffer, and returns their number."""
        into = memoryview(buffer).cast("B")
        done = 0
        try:
            while done < len(into) and (chunk := self._next(len(into) - done)):
                into[done : done + len(chunk)] = chunk
                done += len(chunk)
                self._position += len(chunk)
        except OSError:
            self.failed = True
        return done

    def unread(self) -> bool:
        """Whether more follows the position than a tag or padding may have."""
        return self._size - self._position > IGNORED_BYTES and any(self._next(self._size))

    def _next(self, count: int) -> bytes:
        number = bisect_right(self._starts, self._position) - 1
        if number >= len(self._pieces):
            # Zeros where libmpg123 looks for a tag, in the last 128 bytes; the file ends before.
            return bytes(count if self._position == self._size - 128 else 0)
        piece, offset = self._pieces[number], self._position - self._starts[number]
        if isinstance(piece, bytes):
            return piece[offset : offset + count]
        self._file.seek(piece.start + offset)
        return self._file.read(min(count, len(piece) - offset))


class FileSource:
    """An audio file: WAV, RF64, W64, AIFF, AU, CAF, FLAC, Ogg (Vorbis, Opus), MP3 or NIST SPHERE.

    The contents decide, not the name. Recordings that are joined end to end, or chained as in Ogg,
    are read one after the other, at the sampling rate of the first.

    Attributes:
        name: Name for messages.
        sample_rate_hz: Sampling rate.
        truncated: Whether the file ends before the length in its header, as far as known so far.
        unread: Whether the file has more audio than is read, as far as known so far.

    Args:
        file: A path, or the whole of a file as bytes. What is no regular file, such as a pipe, is
            read once and into memory, up to 1 GiB.
        name: Name for messages; by default the path.
        any_format: Whether to leave other formats to libsndfile, which also goes by the name.

    Raises:
        AudioError: With flag "unreadable" or "bad-rate".
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | bytes,
        *,
        name: str | None = None,
        any_format: bool = False,
    ) -> None:
        self.name = name or ("audio" if isinstance(file, bytes) else os.fspath(file))
        self._file: Path | bytes
        with self._reading():
            self._file = file if isinstance(file, bytes) else _file(Path(file), any_format)
            with self._opened() as opened:
                size = opened.seek(0, os.SEEK_END)
                self._parts, self.unread = find_parts(opened, size)
        if not (known := bool(self._parts)):
            if not any_format:
                raise audio_error(self.name, "unreadable", _unknown(size))
            self._parts = [Part(pieces=(range(size),), end=size)]
        # soundfile takes every file named .raw for samples without a header.
        named = isinstance(self._file, Path) and self._file.suffix.lower() == ".raw" and known
        first = self._parts[0]
        viewed = named or first.padding or first.open_end
        self._whole = first.pieces == (range(size),) and not viewed
        self.truncated = any(part.cut for part in self._parts)
        with self._open(first) as sound:
            self.sample_rate_hz = _checked_rate(sound.samplerate, self.name)
            self.truncated |= _SHORT_OGG in sound.extra_info

    def blocks(self) -> Iterator[Float32Array]:
        """Yields the recording in blocks (samples, channels) float32 of about 2 s.

        A damaged file is read as far as possible, and `truncated` is then set.

        Raises:
            AudioError: Nothing of it can be decoded.
        """
        for part in self._parts:
            try:
                with self._open(part) as sound:
                    if sound.samplerate == self.sample_rate_hz:
                        yield from self._part_blocks(part, sound)
                    else:
                        rates = _checked_rate(sound.samplerate, self.name), self.sample_rate_hz
                        resampler = soxr.ResampleStream(
                            *rates, sound.channels, dtype="float32", quality="HQ"
                        )
                        for block in self._part_blocks(part, sound):
                            yield resampler.resample_chunk(block).reshape(-1, sound.channels)
                        rest = np.zeros((0, sound.channels), np.float32)
                        yield resampler.resample_chunk(rest, last=True).reshape(-1, sound.channels)
            except AudioError:
                if part is self._parts[0]:
                    raise
                self.unread = True

    def _part_blocks(self, part: Part, sound: _Sound) -> Iterator[Float32Array]:
        step = _block_samples(sound.samplerate, sound.channels)
        length = part.n_samples or sound.frames
        n_read = 0
        while n_read < length:
            # No more than the length: other data may follow.
            block = np.full((min(step, length - n_read), sound.channels), np.nan, np.float32)
            try:
                block = sound.read(out=block)
            except (soundfile.LibsndfileError, RuntimeError) as exc:
                block = block[: np.append(np.isnan(block[:, 0]), True).argmax()]  # as decoded
                if not n_read + len(block):
                    raise audio_error(self.name, "unreadable", str(exc)) from exc
                length, self.truncated = 0, True
            if not len(block):
                break
            n_read += len(block)
            yield block
        self.unread |= part.open_end and sound.name.unread()
        self.truncated |= (part.counted and n_read < length) or _SHORT_OGG in sound.extra_info

    @contextmanager
    def _open(self, part: Part) -> Iterator[Any]:
        """Opens a part for reading; every failure becomes an AudioError."""
        view = None
        with ExitStack() as stack:
            with self._reading():
                if self._whole and isinstance(self._file, Path):
                    path = os.fspath(self._file)
                    # soundfile encodes names strictly.
                    sound = _Sound(path if os.name == "nt" else os.fsencode(path))
                else:
                    file = stack.enter_context(self._opened())
                    view = _View(file, part)
                    sound = _Sound(view)
                stack.enter_context(sound)
            yield sound
            self.truncated |= view is not None and view.failed

    def _opened(self) -> BinaryIO:
        return io.BytesIO(self._file) if isinstance(self._file, bytes) else self._file.open("rb")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns what goes wrong while a file is opened into AudioErrors."""
        try:
            yield
        except soundfile.LibsndfileError as exc:
            cure = "convert it to WAV or FLAC if it plays elsewhere"
            detail = f"{exc.error_string.rstrip('.')}; {cure}"
            raise audio_error(self.name, "unreadable", detail) from exc
        except (OSError, ValueError) as exc:
            detail = getattr(exc, "strerror", None) or str(exc)
            raise audio_error(self.name, "unreadable", detail) from exc
        except TypeError as exc:  # soundfile needs the format of a .raw file
            detail = "raw samples without a header; convert them to WAV"
            raise audio_error(self.name, "unreadable", detail) from exc


AudioSource = ArraySource | FileSource
"""A recording at its own sampling rate that can be read more than once."""


def spooled(chunks: Iterable[bytes], *, bounded: bool, any_format: bool) -> bytes:
    """The bytes of a stream; OSError if it is no audio or, if `bounded`, longer than 1 GiB."""
    data, checked = io.BytesIO(), any_format
    for chunk in chunks:
        data.write(chunk)
        if not checked and data.tell() >= _HEAD_BYTES:
            checked = True
            if not recognised(data, data.tell()):
                raise OSError(errno.EINVAL, _unknown(1))
            data.seek(0, os.SEEK_END)
        if bounded and data.tell() > LARGEST_PIPE_BYTES:
            raise OSError(errno.EFBIG, "it does not end within 1 GiB; write it to a file first")
    return data.getvalue()


def file_chunks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a binary file object."""
    while chunk := file.read(_HEAD_BYTES):
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise TypeError(f"{file!r} is open as text; open it in binary mode")
        yield bytes(chunk)
    if chunk is None:
        raise OSError(errno.EAGAIN, "it has no data yet; open it in blocking mode")


def _file(path: Path, any_format: bool) -> Path | bytes:
    """The path itself if it is a regular file, else the content of the pipe."""
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode):
        return spooled(_pipe_chunks(path), bounded=True, any_format=any_format)
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.ENODEV, "it is a device; give a file or a pipe")
    return path


def _pipe_chunks(path: Path) -> Iterator[bytes]:
    """What a named pipe gives, read once; OSError if nobody opens it for writing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    try:
        began, deadline = False, time.monotonic() + PIPE_WAIT_S
        while True:
            poll.poll(100)
            try:
                chunk = os.read(descriptor, _HEAD_BYTES)
            except BlockingIOError:  # it is open for writing, but empty
                began = True
                continue
            if chunk:
                began = True
                yield chunk
            elif began:
                return
            elif time.monotonic() > deadline:
                raise OSError(errno.EPIPE, f"nothing writes to this pipe for {PIPE_WAIT_S:g} s")
            else:
                time.sleep(0.02)
    finally:
        os.close(descriptor)


def _unknown(size: int) -> str:
    """The message for bytes that are in no known container."""
    what = "it begins like no known audio file, maybe samples without a header" if size else "empty"
    cure = "convert it to WAV or FLAC if it plays elsewhere, or allow any format"
    return f"{what}; {cure} (any_format=True, --any-format)"


def _block_samples(sample_rate_hz: int, channels: int) -> int:
    """Samples per block: a multiple of the 20 ms frames in which guards measure silence."""
    frame = frame_samples(sample_rate_hz)
    return frame * max(1, min(round(_BLOCK_S / 0.02), _BLOCK_VALUES // (frame * channels)))


def _checked_rate(sample_rate_hz: float, name: str) -> int:
    try:
        rate = int(sample_rate_hz)
    except (TypeError, ValueError, OverflowError):
        raise audio_error(name, "bad-rate", f"it is {sample_rate_hz!r}") from None
    if rate != sample_rate_hz or not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise audio_error(name, "bad-rate", f"it is {sample_rate_hz} Hz")
    return rate
