"""Pipes, devices, contents that are no audio, and libraries that print."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mosrt
from mosrt import AudioError
from mosrt.audio.sources import ArraySource, FileSource
from tests.conftest import HANG_S

from .audio_files import encoded, mp3, read, speech_like, whole

fifos = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


def fed(path: Path, data: bytes, repeat: int = 1) -> threading.Thread:
    """Writes to a named pipe as a program would that stops when nobody reads."""

    def write() -> None:
        try:
            with path.open("wb", buffering=0) as pipe:
                for _ in range(repeat):
                    pipe.write(data)
        except BrokenPipeError:
            pass

    os.mkfifo(path)
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


@fifos
@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "W64", "AIFF", "MP3"])
def test_a_named_pipe_is_read_once(kind: str, tmp_path: Path) -> None:
    data = encoded(speech_like(3.0), kind)
    thread = fed(tmp_path / "pipe", data)
    source = FileSource(tmp_path / "pipe")
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(source.blocks()))[:, 0], whole(data))
    thread.join(HANG_S)


@fifos
def test_a_pipe_that_is_no_audio_is_left_at_once(tmp_path: Path) -> None:
    thread = fed(tmp_path / "pipe", b"y\n" * 100_000, repeat=10**9)
    with pytest.raises(AudioError, match="no known audio"):
        FileSource(tmp_path / "pipe")
    thread.join(HANG_S)
    assert not thread.is_alive()


@fifos
def test_a_pipe_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mosrt.audio.sources.LARGEST_PIPE_BYTES", 1 << 22)
    thread = fed(tmp_path / "pipe", encoded(speech_like(10.0), "WAV"), repeat=10**9)
    with pytest.raises(AudioError, match="does not end within"):
        FileSource(tmp_path / "pipe")
    thread.join(HANG_S)
    assert not thread.is_alive()


@fifos
def test_a_pipe_that_nobody_writes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mosrt.audio.sources.PIPE_WAIT_S", 0.2)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AudioError, match="nothing writes to this pipe"):
        FileSource(tmp_path / "pipe")


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="needs /dev/stdin")
def test_standard_input_as_a_path() -> None:
    code = "import sys, mosrt; print(mosrt.load().score_file('/dev/stdin').mos)"
    data = encoded(speech_like(2.0), "W64")
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, timeout=HANG_S, check=True
    )
    with mosrt.load() as scorer:
        assert float(done.stdout) == scorer.score_file(data).mos


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/random"])
def test_devices_are_refused(path: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"{path} is missing")
    with pytest.raises(AudioError, match="it is a device") as caught:
        FileSource(path)
    assert caught.value.flags == ("unreadable",)


class Trickle(io.RawIOBase):
    """A stream that cannot be sought in and gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._data.read(min(777, len(buffer)))
        buffer[: len(part)] = part
        return len(part)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "CAF"])
def test_every_form_of_a_file_gives_one_score(kind: str, tmp_path: Path) -> None:
    data = encoded(speech_like(2.0), kind)
    (tmp_path / "clip").write_bytes(data)
    forms: list[Any] = [
        tmp_path / "clip", str(tmp_path / "clip"), data, bytearray(data), memoryview(data),
        io.BytesIO(data), Trickle(data),
    ]  # fmt: skip
    with mosrt.load() as scorer, (tmp_path / "clip").open("rb") as file:
        assert len({score.mos for score in scorer.score_many([*forms, file])}) == 1


@pytest.mark.parametrize("item", [None, 3, 1.5, object(), io.StringIO("text")])
def test_what_is_no_recording_is_a_type_error(item: Any) -> None:
    with mosrt.load() as scorer, pytest.raises(TypeError):
        scorer.score_file(item)


NAMES = ["a.vox", "a.gsm", "a.wav", "a.mp3", "a.raw", "a.sds", "a.ul", "a.flac", "a"]


@pytest.mark.parametrize("name", NAMES)
def test_text_is_no_audio_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("To be, or not to be, that is the question: " * 2_000)
    with pytest.raises(AudioError, match="no known audio file.*any_format") as caught:
        FileSource(tmp_path / name)
    assert caught.value.flags == ("unreadable",)


def test_noise_is_no_audio() -> None:
    for seed in range(20):
        junk = np.random.default_rng(seed).bytes(300_000)
        with pytest.raises(AudioError):
            FileSource(junk)


@pytest.mark.parametrize("n_frames", [5, 40])
def test_a_program_with_a_few_frames_in_it_is_no_mp3(n_frames: int) -> None:
    junk = np.random.default_rng(0).bytes(30_000)
    frame = b"\xff\xfb\x90\xc0" + bytes(413)
    with pytest.raises(AudioError, match="no known audio"):
        FileSource(b"\x7fELF" + junk + frame * n_frames + junk)
    assert not FileSource(junk[:20_000] + frame * 100).truncated


@pytest.mark.parametrize("kind", ["VOC", "SVX", "IRCAM", "PAF", "MAT5", "SDS", "HTK"])
def test_other_formats_need_to_be_asked_for(kind: str, tmp_path: Path) -> None:
    data = encoded(speech_like(2.0), kind, subtype="PCM_16")
    with pytest.raises(AudioError, match="any_format"):
        FileSource(data)
    source = FileSource(data, any_format=True)
    assert sum(len(block) for block in source.blocks()) >= 32_000
    (tmp_path / "clip").write_bytes(data)
    with mosrt.load(any_format=True, on_bad_audio="error") as scorer:
        assert 0 < scorer.score_file(tmp_path / "clip").mos < 6


def test_any_format_goes_by_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.vox").write_bytes(bytes(range(256)) * 40)
    assert FileSource(tmp_path / "a.vox", any_format=True).sample_rate_hz == 8_000


def test_command_line_any_format(tmp_path: Path) -> None:
    (tmp_path / "a.voc").write_bytes(encoded(speech_like(2.0), "VOC", subtype="PCM_16"))
    program = "from mosrt.cli.main import main; main()"
    command = [sys.executable, "-c", program, "score", str(tmp_path / "a.voc")]
    refused = subprocess.run(command, capture_output=True, timeout=HANG_S, check=False)
    assert refused.returncode == 1
    assert b"--any-format" in refused.stderr
    taken = subprocess.run(
        [*command, "--any-format"], capture_output=True, timeout=HANG_S, check=False
    )
    assert taken.returncode == 0, taken.stderr


def test_many_channels_at_a_high_rate_take_little_memory() -> None:
    n_channels, rate_hz, seconds = 1_024, 192_000, 0.25
    silence = np.zeros((int(rate_hz * seconds), n_channels), np.int16)
    data = encoded(silence, "WAV", rate_hz, subtype="PCM_16")  # type: ignore[arg-type]
    blocks = [block.nbytes for block in FileSource(data).blocks()]
    assert max(blocks) <= 16 << 20
    assert sum(blocks) == silence.size * 4


def test_blocks_of_usual_recordings_are_two_seconds() -> None:
    source = ArraySource(np.zeros((8, 192_000 * 5)), 192_000)
    assert [len(block) for block in source.blocks()] == [384_000, 384_000, 192_000]


def test_damaged_mp3_prints_nothing(clips: list[Path]) -> None:
    code = (
        "import sys\nfrom mosrt import AudioError\nfrom mosrt.audio.sources import FileSource\n"
        "import numpy as np\ndata = open(sys.argv[1], 'rb').read()\n"
        "rng = np.random.default_rng(0)\n"
        "for _ in range(60):\n"
        "    damaged = bytearray(data)\n"
        "    for at in rng.integers(0, len(data), 40): damaged[at] = int(rng.integers(256))\n"
        "    try: list(FileSource(bytes(damaged[: rng.integers(100, len(data))])).blocks())\n"
        "    except AudioError: pass\n"
    )
    clip = next(path for path in clips if path.suffix == ".mp3")
    done = subprocess.run(
        [sys.executable, "-c", code, str(clip)], capture_output=True, timeout=HANG_S, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


def test_masked_samples_are_no_audio(speech: Any) -> None:
    with pytest.raises(AudioError, match="compressed") as caught:
        ArraySource(np.ma.masked_greater(speech, 0.1), 16_000)
    assert caught.value.flags == ("bad-array",)
    nothing_masked = np.ma.masked_greater(speech, 9.0)
    block = next(ArraySource(nothing_masked, 16_000).blocks())
    np.testing.assert_array_equal(block[:, 0], speech[: len(block)])


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "i4"])
def test_both_byte_orders_are_taken(dtype: str) -> None:
    samples = np.arange(-4_000, 4_000).astype(dtype)
    little, big = (
        next(ArraySource(samples.astype(order + dtype), 16_000).blocks()) for order in "<>"
    )
    np.testing.assert_array_equal(little, big)


def test_mp3_in_wav_is_counted_too() -> None:
    tagged, info, _ = mp3(44_100, 1, "VARIABLE")
    bare = tagged[len(info) :]
    fmt = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 44_100, 8_000, 1, 0, 12, 1, 2, 0, 1, 0)
    body = b"WAVEfmt \x1e\0\0\0" + fmt + b"data" + struct.pack("<I", len(bare)) + bare
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    got, source = read(data)
    np.testing.assert_array_equal(got, read(bare)[0])
    assert not source.truncated
