"""Files of noise in every format, and what is read from them."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from mosrt.audio.sources import FileSource

Samples = npt.NDArray[np.float32]
RATE_HZ = 16_000
ID3 = b"ID3\x04\0\0\0\0\0\x14" + bytes(20)
ID3V1 = b"TAG" + bytes(125)
APE = b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0) + bytes(8)


def speech_like(seconds: float, rate_hz: int = RATE_HZ, channels: int = 1) -> Samples:
    """Noise with syllables, so that a variable bit rate varies; (samples, channels)."""
    n = int(seconds * rate_hz)
    level = 0.02 + 0.15 * np.abs(np.sin(np.arange(n) / rate_hz * 3.0)) ** 3
    values = np.random.default_rng(n).normal(0, 1, (n, channels)) * level[:, np.newaxis]
    return values.astype(np.float32)


def encoded(samples: Samples, kind: str, rate_hz: int = RATE_HZ, **options: Any) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate_hz, format=kind, **options)
    return stream.getvalue()


def read(data: bytes | Path) -> tuple[Samples, FileSource]:
    source = FileSource(data)
    return np.concatenate([block.mean(axis=1) for block in source.blocks()]), source


class Unseekable(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """Seeking would make libmpg123 round samples in another way."""

    def seekable(self) -> bool:
        return False


def whole(data: bytes) -> Samples:
    """The samples of a file that needs no mending, as soundfile reads it at once."""
    with Unseekable(io.BytesIO(data)) as file:
        mono: Samples = file.read(file.frames, dtype="float32", always_2d=True).mean(axis=1)
    return mono


def assert_reads(data: bytes, expected: Samples, tmp_path: Path) -> None:
    """Path and bytes give the samples, and no flag."""
    path = tmp_path / "clip.bin"
    path.write_bytes(data)
    for form in (data, path):
        got, source = read(form)
        np.testing.assert_array_equal(got, expected)
        assert not source.truncated
        assert not source.unread


def mp3(rate_hz: int, channels: int, mode: str, seconds: float = 4.0) -> tuple[bytes, bytes, int]:
    """An MP3 with its Info frame, that frame's bytes, and the number of frames behind it."""
    samples = speech_like(seconds, rate_hz, channels)
    data = encoded(samples, "MP3", rate_hz, bitrate_mode=mode, compression_level=0.5)
    at = max(data.find(b"Info"), data.find(b"Xing"))
    frames, size = struct.unpack(">II", data[at + 8 : at + 16])
    start = data.rfind(b"\xff", 0, at)
    assert size == len(data) - start
    # The second frame has the first two bytes of all frames.
    end = data.find(data[start : start + 2], at + 120)
    return data[start:], data[start:end], frames


def pcm(kind: str, **options: Any) -> tuple[bytes, Samples]:
    data = encoded(speech_like(2.0), kind, **options)
    return data, whole(data)


def patched(data: bytes, *fields: tuple[int, bytes]) -> bytes:
    found = bytearray(data)
    for at, value in fields:
        found[at : at + len(value)] = value
    return bytes(found)
