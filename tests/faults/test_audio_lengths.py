"""What is in a file decides how much is read: lengths in headers may be unknown, wrong or cut."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mosrt import AudioError
from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource

from .audio_files import (
    APE,
    ID3,
    ID3V1,
    RATE_HZ,
    assert_reads,
    encoded,
    mp3,
    patched,
    pcm,
    read,
    speech_like,
    whole,
)


@pytest.mark.parametrize("riff", [0, 36, 0x7FFF_F024, 0xFFFF_FFFF])
@pytest.mark.parametrize("size", [0, 2_000_000_000, 0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_wav_of_unknown_length(riff: int, size: int, subtype: str, tmp_path: Path) -> None:
    data, expected = pcm("WAV", subtype=subtype)
    at = data.find(b"data") + 4
    streamed = patched(data, (4, struct.pack("<I", riff)), (at, struct.pack("<I", size)))
    assert_reads(streamed, expected, tmp_path)


def test_wav_data_size_off_by_less_than_a_block(tmp_path: Path) -> None:
    data, expected = pcm("WAV", subtype="PCM_16")
    at = data.find(b"data") + 4
    (size,) = struct.unpack("<I", data[at : at + 4])
    assert_reads(patched(data, (at, struct.pack("<I", size + 1))), expected, tmp_path)
    assert_reads(data + b"\0", expected, tmp_path)
    missing = patched(data, (at, struct.pack("<I", size + 2)))
    assert read(missing)[1].truncated
    np.testing.assert_array_equal(read(missing)[0], expected)


def test_wav_with_chunks_behind_the_data(tmp_path: Path) -> None:
    data, expected = pcm("WAV", subtype="PCM_16")
    chunk = b"LIST" + struct.pack("<I", 10_000) + b"INFO" + bytes(9_996)
    for behind in (chunk, chunk + b"id3 \4\0\0\0abcd", ID3V1, APE + ID3V1, bytes(100_000)):
        assert_reads(data + behind, expected, tmp_path)


def test_wav_with_odd_chunks_that_are_not_padded(tmp_path: Path) -> None:
    data, expected = pcm("WAV", subtype="PCM_16")
    at = data.find(b"data")
    for pad in (b"", b"\0"):
        odd = data[:at] + b"LIST\5\0\0\0INFOx" + pad + data[at:]
        assert_reads(odd, expected, tmp_path)
    samples = speech_like(2.0)[:20_001]
    odd = encoded(samples, "WAV", subtype="PCM_U8").removesuffix(b"\0")
    chunk = b"LIST" + struct.pack("<I", 10_000) + b"INFO" + bytes(9_996)
    for behind in (chunk, b"\0" + chunk):
        assert_reads(odd + behind, whole(odd), tmp_path)
    assert_reads(odd + data, np.concatenate([whole(odd), expected]), tmp_path)


def test_a_cut_ogg_before_a_whole_one() -> None:
    data, expected = pcm("OGG", subtype="VORBIS")
    got, source = read(data[: len(data) * 2 // 3] + data)
    assert source.truncated
    assert len(got) > len(expected)
    np.testing.assert_array_equal(got[-len(expected) :], expected)


def test_contents_go_before_the_name_raw(tmp_path: Path) -> None:
    data, expected = pcm("WAV", subtype="PCM_16")
    (tmp_path / "clip.raw").write_bytes(data)
    np.testing.assert_array_equal(read(tmp_path / "clip.raw")[0], expected)


def test_different_containers_joined(tmp_path: Path) -> None:
    kinds = ("OGG", "WAV", "AU", "OGG", "FLAC", "FLAC")
    files = [encoded(speech_like(1.0), kind) for kind in kinds]
    joined = b"".join(files)
    assert_reads(joined, np.concatenate([whole(file) for file in files]), tmp_path)


def test_files_of_very_many_parts_end_in_time() -> None:
    head = b".snd" + struct.pack(">5I", 24, 4, 3, RATE_HZ, 1) + b"abcd"
    source = FileSource(head * 50_000)
    assert source.unread
    with pytest.raises(AudioError):
        FileSource(b"RIFF\4\0\0\0WAVE" + b"junk\0\0\0\0" * 1_000_000)
    with pytest.raises(AudioError):
        FileSource(b"\xff\xfb\x90\0" * 2_000_000)


def test_an_empty_wav_stays_empty() -> None:
    data = encoded(np.zeros((0, 1), np.float32), "WAV", subtype="PCM_16")
    assert not list(FileSource(data + b"LIST\4\0\0\0INFO").blocks())


def test_a_wav_with_more_data_than_its_header_says_is_flagged() -> None:
    data, _ = pcm("WAV", subtype="PCM_16")
    at = data.find(b"data") + 4
    stale = patched(data, (at, struct.pack("<I", 20_000)))
    recording = Recording(FileSource(stale), RATE_HZ)
    assert recording.flags == ("unread",)
    assert recording.n_samples == 10_000


def test_rf64_and_bw64_of_unknown_length(tmp_path: Path) -> None:
    data, expected = pcm("RF64", subtype="PCM_16")
    at = data.find(b"ds64") + 8
    for sizes in (bytes(24), b"\xff" * 24):
        assert_reads(patched(data, (at, sizes)), expected, tmp_path)
    assert_reads(b"BW64" + data[4:], expected, tmp_path)


def test_aiff_of_unknown_length(tmp_path: Path) -> None:
    data, expected = pcm("AIFF", subtype="PCM_16")
    comm, ssnd = data.find(b"COMM"), data.find(b"SSND")
    for size in (0, 0x7F00_0000, 0xFFFF_FFFF):
        field = struct.pack(">I", size)
        streamed = patched(data, (4, field), (comm + 10, field), (ssnd + 4, field))
        assert_reads(streamed, expected, tmp_path)


def test_w64_caf_and_au_of_unknown_length(tmp_path: Path) -> None:
    data, expected = pcm("W64", subtype="PCM_16")
    at = data.find(b"data\xf3") + 16
    for size in (0, 24, (1 << 63) - 1, (1 << 64) - 1):
        field = struct.pack("<Q", size)
        assert_reads(patched(data, (16, field), (at, field)), expected, tmp_path)
    data, expected = pcm("CAF", subtype="PCM_16")
    at = data.find(b"data\0") + 4
    for size in (0, (1 << 64) - 1):
        assert_reads(patched(data, (at, struct.pack(">Q", size))), expected, tmp_path)
    data, expected = pcm("AU", subtype="PCM_16")
    for size in (0, 2_000_000_000, 0xFFFF_FFFF):
        assert_reads(patched(data, (8, struct.pack(">I", size))), expected, tmp_path)


def test_flac_of_unknown_length(tmp_path: Path) -> None:
    data, expected = pcm("FLAC", subtype="PCM_16")
    unknown = patched(data, (21, bytes([data[21] & 0xF0, 0, 0, 0, 0])))
    assert_reads(unknown, expected, tmp_path)
    assert_reads(ID3 + unknown + ID3V1, expected, tmp_path)
    assert_reads(unknown + data, np.concatenate([expected, expected]), tmp_path)


@pytest.mark.parametrize("counted", [True, False])
def test_flac_before_something_else(counted: bool) -> None:
    data, expected = pcm("FLAC", subtype="PCM_16")
    flac = data if counted else patched(data, (21, bytes([data[21] & 0xF0, 0, 0, 0, 0])))
    other = mp3(44_100, 1, "VARIABLE")[0]
    for behind in (other, np.random.default_rng(0).bytes(20_000)):
        got, source = read(flac + behind)
        np.testing.assert_array_equal(got, expected)
        assert source.unread
    for tags in (ID3[:8] + b"\x7f\x7f" + bytes(16_383), APE + ID3V1):
        got, source = read(flac + tags)
        np.testing.assert_array_equal(got, expected)
        assert not source.unread
        assert not source.truncated


@pytest.mark.parametrize("keep", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("counted", [True, False])
def test_a_cut_flac_is_read_up_to_the_cut(counted: bool, keep: float) -> None:
    data, expected = pcm("FLAC", subtype="PCM_16")
    flac = data if counted else patched(data, (21, bytes([data[21] & 0xF0, 0, 0, 0, 0])))
    got, source = read(flac[: int(keep * len(flac))])
    assert source.truncated
    assert 0 <= keep * len(expected) - len(got) < 2 * 4_096
    np.testing.assert_array_equal(got, expected[: len(got)])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_cut_in_its_last_page(subtype: str) -> None:
    data, _ = pcm("OGG", subtype=subtype)
    last = data.rfind(b"OggS")
    for end in (last, last + 10, last + 60, len(data) - 1):
        assert read(data[:end])[1].truncated


@pytest.mark.parametrize("kind", ["WAV", "RF64", "AIFF", "W64", "CAF", "AU"])
def test_a_recording_of_unknown_length_ends_where_another_begins(kind: str) -> None:
    data, expected = pcm(kind, subtype="PCM_16")
    at, width = {
        "WAV": (data.find(b"data") + 4, 4), "RF64": (data.find(b"ds64") + 8, 24),
        "AIFF": (data.find(b"SSND") + 4, 4), "W64": (data.find(b"data\xf3") + 16, 8),
        "CAF": (data.find(b"data\0") + 4, 8), "AU": (8, 4),
    }[kind]  # fmt: skip
    streamed = patched(data, (at, b"\xff" * width))
    for other in (streamed, pcm("FLAC")[0], pcm("OGG", subtype="OPUS")[0], pcm("WAV")[0]):
        got, source = read(streamed + other)
        np.testing.assert_array_equal(got, np.concatenate([expected, read(other)[0]]))
        assert not source.truncated
        assert not source.unread


def test_nist_ends_where_its_header_says(tmp_path: Path) -> None:
    data, expected = pcm("NIST", subtype="PCM_16")
    assert_reads(data + ID3V1, expected, tmp_path)
    assert_reads(data + data, np.concatenate([expected, expected]), tmp_path)


def test_text_behind_w64_is_no_audio() -> None:
    data, expected = pcm("W64", subtype="PCM_16")
    got, source = read(data + b"<html>" * 3_000)
    np.testing.assert_array_equal(got, expected)
    assert source.unread


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("FLAC", {"subtype": "PCM_16"}),
        ("OGG", {"subtype": "VORBIS"}),
        ("OGG", {"subtype": "OPUS"}),
        ("WAV", {"subtype": "PCM_16"}),
        ("AIFF", {"subtype": "PCM_16"}),
        ("W64", {"subtype": "PCM_16"}),
        ("AU", {"subtype": "PCM_16"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["subtype"],
)
def test_joined_files_are_read_to_the_end(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    data, expected = pcm(kind, **options)
    stereo = encoded(speech_like(1.5, channels=2), kind, **options)
    joined = np.concatenate([expected, whole(stereo), expected])
    assert_reads(data + stereo + data, joined, tmp_path)
    fast = encoded(speech_like(1.0, 48_000), kind, 48_000, **options)
    recording = Recording(FileSource(data + fast), RATE_HZ)
    assert recording.flags == ()
    assert recording.duration_s == pytest.approx(3.0, abs=0.02)


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC", "W64", "AU", "CAF", "OGG", "RF64"])
def test_a_tag_before_the_header(kind: str, tmp_path: Path) -> None:
    data = encoded(speech_like(2.0), kind)
    assert_reads(ID3 + data, whole(data), tmp_path)
    assert_reads(ID3 + ID3 + bytes(500) + data, whole(data), tmp_path)


@pytest.mark.parametrize("kind", ["WAV", "RF64", "AIFF", "W64", "AU", "CAF", "NIST"])
def test_truncated_files_are_flagged(kind: str, tmp_path: Path) -> None:
    data, expected = pcm(kind, subtype="PCM_16")
    path = tmp_path / "cut"
    path.write_bytes(data[:40_000])
    got, source = read(path)
    assert source.truncated
    assert 15_000 < len(got) < len(expected)
    np.testing.assert_array_equal(got, expected[: len(got)])
