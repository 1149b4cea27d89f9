"""An MP3 is read to its end, whatever its first frame says of the length."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource

from .audio_files import APE, ID3, ID3V1, RATE_HZ, assert_reads, mp3, read, whole

MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate_hz", MP3_RATES)
def test_mp3_without_an_info_frame(rate_hz: int, channels: int, mode: str, tmp_path: Path) -> None:
    tagged, info, frames = mp3(rate_hz, channels, mode)
    bare = tagged[len(info) :]
    per_frame = 1152 if rate_hz >= 32_000 else 576
    got, source = read(bare)
    assert len(got) == frames * per_frame
    assert not source.truncated
    # The tag tells a decoder to drop the encoder's delay; the rest is the same.
    trimmed, _ = read(tagged)
    start = int(np.argmax([np.array_equal(got[k : k + 999], trimmed[:999]) for k in range(2500)]))
    np.testing.assert_array_equal(got[start : start + len(trimmed)], trimmed)
    np.testing.assert_array_equal(trimmed, whole(tagged))
    for ends in (ID3 + bare, bare + ID3V1, bare + APE + ID3V1, ID3 + bytes(3000) + bare):
        assert_reads(ends, got, tmp_path)


def test_mp3_joined_end_to_end(tmp_path: Path) -> None:
    first, info, _ = mp3(44_100, 1, "VARIABLE", 3)
    second, _, _ = mp3(44_100, 2, "CONSTANT", 2)
    expected = np.concatenate([whole(first), whole(second)])
    assert_reads(first + second, expected, tmp_path)
    assert_reads(ID3 + first + ID3V1 + ID3 + second + ID3V1, expected, tmp_path)
    bare, _ = read(first[len(info) :])
    assert_reads(first[len(info) :] + second, np.concatenate([bare, whole(second)]), tmp_path)
    assert_reads(first[len(info) :] * 2, read(first[len(info) :] * 2)[0], tmp_path)
    assert len(read(first[len(info) :] * 2)[0]) == 2 * len(bare)


def test_plain_mp3_is_read_alike_through_a_view(tmp_path: Path) -> None:
    tagged, _, _ = mp3(44_100, 2, "VARIABLE", 3)
    for ends in (
        tagged,
        ID3 + tagged,
        ID3 + tagged + APE + ID3V1,
        APE * 2 + tagged,
        ID3 * 2 + tagged,
    ):
        assert_reads(ends, whole(tagged), tmp_path)


def test_mp3_of_other_rates_joined() -> None:
    first, _, _ = mp3(44_100, 1, "VARIABLE", 3)
    second, _, _ = mp3(22_050, 1, "VARIABLE", 2)
    recording = Recording(FileSource(first + second), RATE_HZ)
    assert recording.flags == ()
    assert recording.duration_s == pytest.approx(5.0, abs=0.01)


def test_mp3_is_truncated_only_where_a_tag_promises_more() -> None:
    tagged, info, _ = mp3(22_050, 1, "VARIABLE")
    half = len(tagged) // 2
    got, source = read(tagged[:half])
    assert source.truncated
    np.testing.assert_array_equal(got, whole(tagged)[: len(got)])
    assert not read(tagged[len(info) : half])[1].truncated


@pytest.mark.parametrize("factor", [0.1, 0.5])
def test_mp3_whose_info_frame_counts_too_few(factor: float) -> None:
    tagged, info, frames = mp3(24_000, 1, "VARIABLE")
    at = max(info.find(b"Info"), info.find(b"Xing")) + 8
    wrong = bytearray(tagged)
    struct.pack_into(">I", wrong, at, int(frames * factor))
    got, source = read(bytes(wrong))
    right = whole(tagged)
    np.testing.assert_array_equal(got[: len(right)], right)
    assert len(got) - len(right) < 3 * 576  # padding that the tag would have cut
    assert not source.truncated


@pytest.mark.parametrize("promised", [0, 30, 1.0, 500])
def test_mp3_with_a_vbri_frame(promised: float) -> None:
    tagged, info, frames = mp3(44_100, 2, "VARIABLE")
    bare = tagged[len(info) :]
    count = frames if promised == 1.0 else int(promised)
    vbri = info[:4] + bytes(32) + b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(tagged), count)
    data = vbri.ljust(len(info), b"\0") + bare
    got, source = read(data)
    np.testing.assert_array_equal(got, read(bare)[0])
    assert len(got) == frames * 1152
    assert source.truncated == (count == 500)


def test_mp3_with_gaps_where_blocks_end() -> None:
    """No frame is lost where one block of the file ends within the first frames after a gap."""
    block, largest_frame = 1 << 20, 1 << 13
    tagged, info, _ = mp3(44_100, 1, "CONSTANT", 2)
    bare = tagged[len(info) :]
    count = (block - 5_000) // len(bare)
    many = bare * (count - 1)
    # The frame after the first gap lies in the first block, and the next one does not.
    first = many + bytes(block - largest_frame - 10 - len(many))
    second = bare * count + bytes(block + 300 - len(bare) * count)
    got, source = read(first + second + bare)
    np.testing.assert_array_equal(got, read(bare * (2 * count))[0])
    assert not source.truncated


def test_mp3_with_a_false_start_where_a_block_ends() -> None:
    """A gap holds what looks like a frame, and the next one would lie in another block."""
    tagged, info, _ = mp3(44_100, 1, "CONSTANT", 2)
    bare = tagged[len(info) :]
    end = (1 << 20) - 8_500
    count = (end - 5_000) // len(bare)
    gap = bytes(end - len(bare) * count - 60) + bare[:4] + bytes(56)
    got, source = read(bare * count + gap + bare * 3)
    np.testing.assert_array_equal(got, read(bare * (count + 3))[0])
    assert not source.truncated


def test_a_tag_longer_than_the_file(tmp_path: Path) -> None:
    tagged, info, _ = mp3(22_050, 1, "VARIABLE")
    wrong = b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(100)
    assert_reads(wrong + tagged[len(info) :], read(tagged[len(info) :])[0], tmp_path)
