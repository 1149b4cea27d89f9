"""Decodes audio files and arrays in blocks of float32; MP3 and the rest through libsndfile."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import soundfile

from mosrt._arrays import Float32Array
from mosrt.errors import AudioError
from mosrt.host.fork import fork_waits

from .guards import FLAGS, MAX_RATE_HZ, MIN_RATE_HZ

__all__ = ["AUDIO_SUFFIXES", "ArraySource", "AudioSource", "FileSource"]


AUDIO_SUFFIXES: Final = frozenset({
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64",
    ".w64", ".wav",
})  # fmt: skip
"""Suffixes of the audio files that are looked for in a folder, in lower case."""

_BLOCK_S: Final = 2.0
_MAX_CHANNELS: Final = 64
_INTEGER_SCALE: Final = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
# How libsndfile logs a header that gives more data than the file has. Programs that write WAV to a
# pipe cannot know the length and leave a number near the largest one there.
_SHORT_DATA = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZES: Final = range(0x7FFF_0000, 0x1_0000_0000)
_SHORT_OGG: Final = "lacks an end-of-stream bit"


class AudioSource(Protocol):
    """A recording at its own sampling rate that can be read more than once.

    Attributes:
        name: Name for messages.
        sample_rate_hz: Sampling rate.
        truncated: Whether the file ends before the length in its header, as far as is known yet.
    """

    name: str
    sample_rate_hz: int
    truncated: bool

    def blocks(self) -> Iterator[Float32Array]:
        """Yields the recording in blocks (samples, channels) float32 of about 2 s.

        Raises:
            AudioError: The recording cannot be decoded.
        """
        ...


def audio_error(name: str, flag: str, detail: str = "") -> AudioError:
    """The error with which guard `flag` refuses recording `name`."""
    reason = f" ({detail})" if detail else ""
    return AudioError(f"{name}: cannot be scored: {FLAGS[flag]}{reason}", flags=(flag,))


class ArraySource:
    """A waveform in memory.

    Args:
        waveform: (samples,) or (channels, samples); float32 or float64 in [-1, 1], int16 or int32.
        sample_rate_hz: Sampling rate, 4 000 to 192 000.
        name: Name for messages.

    Raises:
        AudioError: With flag "bad-array" or "bad-rate".
    """

    def __init__(
        self, waveform: npt.ArrayLike, sample_rate_hz: float, *, name: str = "waveform"
    ) -> None:
        self.name = name
        self.truncated = False
        self.sample_rate_hz = _checked_rate(sample_rate_hz, name)
        try:
            array = np.asarray(waveform)
        except ValueError as exc:
            raise audio_error(name, "bad-array", str(exc)) from exc
        if array.dtype not in (np.float32, np.float64, *_INTEGER_SCALE):
            raise audio_error(name, "bad-array", f"its dtype is {array.dtype}")
        if array.ndim not in (1, 2):
            raise audio_error(name, "bad-array", f"its shape is {array.shape}")
        if array.ndim == 2 and not 1 <= array.shape[0] <= _MAX_CHANNELS:
            hint = ", is it transposed?" if array.shape[0] > array.shape[1] > 0 else ""
            raise audio_error(name, "bad-array", f"its shape is {array.shape}{hint}")
        self._samples = np.atleast_2d(array)

    def blocks(self) -> Iterator[Float32Array]:
        """Yields the recording in blocks (samples, channels) float32 of about 2 s."""
        step = _block_samples(self.sample_rate_hz)
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
        with fork_waits():  # libsndfile has locks
            super().__init__(file)

    def read(self, *args: Any, **options: Any) -> Any:
        with fork_waits():
            return super().read(*args, **options)

    def seekable(self) -> bool:
        return False


class FileSource:
    """An audio file in a format that libsndfile reads, such as WAV, FLAC, OGG, Opus or MP3.

    Args:
        file: A path, or the whole of a file as bytes.
        name: Name for messages; by default the path.

    Raises:
        AudioError: With flag "unreadable" or "bad-rate".
    """

    def __init__(self, file: str | os.PathLike[str] | bytes, *, name: str | None = None) -> None:
        self.name = name or ("audio" if isinstance(file, bytes) else os.fspath(file))
        self._file = file
        self.truncated = False
        with self._open() as sound:
            self.sample_rate_hz = _checked_rate(sound.samplerate, self.name)
            log = sound.extra_info
            self.truncated = _SHORT_OGG in log or any(
                int(promised) > int(present) and int(promised) not in _UNKNOWN_SIZES
                for promised, present in _SHORT_DATA.findall(log)
            )

    def blocks(self) -> Iterator[Float32Array]:
        """Yields the recording in blocks (samples, channels) float32 of about 2 s.

        A damaged file is read as far as possible, and `truncated` is then set.
        """
        step = _block_samples(self.sample_rate_hz)
        with self._open() as sound:
            n_read = 0
            while True:
                try:
                    block = sound.read(step, dtype="float32", always_2d=True)
                except (soundfile.LibsndfileError, RuntimeError) as exc:
                    if not n_read:
                        raise audio_error(self.name, "unreadable", str(exc)) from exc
                    self.truncated = True
                    return
                if not len(block):
                    break
                n_read += len(block)
                yield block
            self.truncated = self.truncated or n_read < sound.frames

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """Opens the file for reading; every failure becomes an AudioError."""
        try:
            if isinstance(self._file, bytes):
                sound = _Sound(io.BytesIO(self._file))
            else:
                # The system tells why a file cannot be opened; libsndfile does not.
                Path(self._file).open("rb").close()
                sound = _Sound(os.fspath(self._file))
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
        with sound:
            yield sound


def _block_samples(sample_rate_hz: int) -> int:
    """Samples per block: a multiple of the 20 ms frames in which guards measure silence."""
    return frame_samples(sample_rate_hz) * round(_BLOCK_S / 0.02)


def frame_samples(sample_rate_hz: int) -> int:
    """Samples in 20 ms."""
    return max(1, sample_rate_hz // 50)


def _checked_rate(sample_rate_hz: float, name: str) -> int:
    try:
        rate = int(sample_rate_hz)
    except (TypeError, ValueError, OverflowError):
        raise audio_error(name, "bad-rate", f"it is {sample_rate_hz!r}") from None
    if rate != sample_rate_hz or not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise audio_error(name, "bad-rate", f"it is {sample_rate_hz} Hz")
    return rate
