import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mosrt import AudioError
from mosrt.audio.sources import ArraySource, AudioSource, FileSource


def read(source: AudioSource) -> npt.NDArray[np.float32]:
    return np.concatenate(list(source.blocks()))


@pytest.mark.parametrize("as_bytes", [False, True])
def test_reads_every_format(clips: list[Path], as_bytes: bool) -> None:
    for clip in clips:
        source = FileSource(clip.read_bytes() if as_bytes else clip)
        expected, rate_hz = soundfile.read(clip, dtype="float32", always_2d=True)
        assert source.sample_rate_hz == rate_hz
        # Once and once more: a long recording is read twice.
        for _ in range(2):
            np.testing.assert_array_equal(read(source), expected)
        assert not source.truncated


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.int16, np.int32], ids=lambda d: d.__name__
)
@pytest.mark.parametrize("shape", [(70_001,), (1, 70_001), (3, 70_001)], ids=str)
def test_arrays_of_every_kind(dtype: type, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, shape)
    scale = 1 if np.issubdtype(dtype, np.floating) else -float(np.iinfo(dtype).min)
    got = read(ArraySource((values * scale).astype(dtype), 16_000))
    # One step of int16 is 3e-5.
    np.testing.assert_allclose(got.T, np.atleast_2d(values), atol=1 / 32_768)


@pytest.mark.parametrize(
    ("waveform", "rate_hz", "flag", "message"),
    [
        (np.zeros((0, 100)), 16_000, "bad-array", r"\(0, 100\)"),
        (np.zeros((100, 2)), 16_000, "bad-array", "transposed"),
        (np.zeros((1, 2, 100)), 16_000, "bad-array", r"\(1, 2, 100\)"),
        (np.zeros(()), 16_000, "bad-array", r"\(\)"),
        (np.zeros(100, np.complex64), 16_000, "bad-array", "complex64"),
        (np.zeros(100, np.uint8), 16_000, "bad-array", "uint8"),
        (["speech"], 16_000, "bad-array", "dtype"),
        ([[0.0], [0.0, 1.0]], 16_000, "bad-array", "waveform"),
        (None, 16_000, "bad-array", "object"),
        (np.zeros(100), 3_999, "bad-rate", "3999"),
        (np.zeros(100), 192_001, "bad-rate", "192001"),
        (np.zeros(100), 16_000.5, "bad-rate", "16000.5"),
        (np.zeros(100), float("nan"), "bad-rate", "nan"),
        (np.zeros(100), float("inf"), "bad-rate", "inf"),
        (np.zeros(100), "16k", "bad-rate", "16k"),
    ],
)
def test_refuses_what_is_no_waveform(
    waveform: npt.ArrayLike, rate_hz: float, flag: str, message: str
) -> None:
    with pytest.raises(AudioError, match=message) as caught:
        ArraySource(waveform, rate_hz)
    assert caught.value.flags == (flag,)


def test_unreadable_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio at all")
    (tmp_path / "empty.flac").touch()
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    for name, message in [
        ("text.wav", "convert it to WAV"),
        ("empty.flac", "convert it to WAV"),
        ("samples.raw", "without a header"),
        ("missing.wav", "No such file"),
        ("", "Is a directory"),
        ("nul\0.wav", "null byte"),
    ]:
        with pytest.raises(AudioError, match=message) as caught:
            FileSource(tmp_path / name)
        assert caught.value.flags == ("unreadable",)


def test_the_name_does_not_decide_the_format(tmp_path: Path, clips: list[Path]) -> None:
    flac = next(clip for clip in clips if clip.suffix == ".flac")
    for name in ("clip.mp3", "clip.txt", "clip"):
        copy = tmp_path / name
        copy.write_bytes(flac.read_bytes())
        assert len(read(FileSource(copy)))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_truncated_files_are_noticed(tmp_path: Path, clips: list[Path], suffix: str) -> None:
    whole = next(clip for clip in clips if clip.suffix == suffix)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    source = FileSource(cut)
    assert 0 < len(read(source)) < soundfile.info(whole).frames
    assert source.truncated


def test_streamed_wav_is_not_truncated() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(16_000), 16_000, format="WAV", subtype="PCM_16")
    # Programs that write to a pipe leave the sizes open.
    data = bytearray(stream.getvalue())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    source = FileSource(bytes(data))
    assert len(read(source)) == 16_000
    assert not source.truncated


@settings(max_examples=200)
@given(
    data=st.binary(max_size=400), header=st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3"])
)
def test_random_bytes_never_crash(data: bytes, header: bytes) -> None:
    try:
        read(FileSource(header + data))
    except AudioError as exc:
        assert exc.flags in {("unreadable",), ("bad-rate",)}
    except ValueError as exc:
        assert "need at least one array" in str(exc)  # readable, with no samples


@settings(max_examples=60)
@given(position=st.integers(0, 4_000), value=st.integers(0, 255), clip=st.integers(0, 6))
def test_damaged_files_never_crash(position: int, value: int, clip: int) -> None:
    path = sorted((Path(__file__).parents[2] / "data").glob("*_*.[wfom]*"))[clip]
    data = bytearray(path.read_bytes()[:20_000])
    data[position] = value
    try:
        for block in FileSource(bytes(data)).blocks():
            assert block.ndim == 2
    except AudioError as exc:
        assert exc.flags in {("unreadable",), ("bad-rate",)}
