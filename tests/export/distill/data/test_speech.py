"""Tests how speakers are found, and which of their recordings are held out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from mosrt_export.distill.data.speech import (
    SpeechError,
    find_speakers,
    held_out_file,
    left_out,
    read,
    split,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two speakers of sixty files, one of them in a deeper folder, and a loose file."""
    for name in ("anna", "studio/bert"):
        (tmp_path / "speech" / name).mkdir(parents=True)
        for i in range(60):
            path = tmp_path / "speech" / name / f"{name[-4:]}_{i:03d}.flac"
            sf.write(path, np.zeros(100 + i), 16_000)
    sf.write(tmp_path / "speech" / "loose.wav", np.zeros(100), 16_000)
    (tmp_path / "speech" / "README.md").touch()
    (tmp_path / "speech" / "empty").mkdir()
    return tmp_path / "speech"


def test_folders_and_loose_files_are_speakers(folder: Path, tmp_path: Path) -> None:
    found = find_speakers([folder])
    assert {each.name: len(each.files) for each in found} == {
        "anna": 60, "loose.wav": 1, "studio/bert": 60
    }  # fmt: skip
    # The same speaker in two folders is one speaker.
    again = find_speakers([folder, folder / "studio"])
    assert [each.name for each in again] == ["anna", "bert", "loose.wav", "studio/bert"]
    (tmp_path / "none").mkdir()
    with pytest.raises(SpeechError, match="none: no recordings"):
        find_speakers([folder, tmp_path / "none"])


def test_recordings_and_speakers_are_held_out(folder: Path, tmp_path: Path) -> None:
    speakers = find_speakers([folder])
    parts = split(speakers, ["*/bert"])
    train, recordings, unknown = (parts[name] for name in ("clips", "recordings", "speakers"))
    assert parts["ladders"] == train
    assert [each.name for each in unknown] == ["studio/bert"]
    assert "studio/bert" not in {each.name for each in (*train, *recordings)}
    kept, held = ({path.name for each in part for path in each.files}
                  for part in (train, recordings))  # fmt: skip
    assert held
    assert not kept & held
    assert len(kept | held) == 61
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    again = split(find_speakers([moved]), ["*/bert"])["recordings"]
    assert {path.name for each in again for path in each.files} == held
    # Without patterns some speaker is held out, if there are more than two.
    assert len(split(speakers)["speakers"]) == 1
    assert split([each for each in speakers if each.name != "loose.wav"])["speakers"] == []


def test_too_few_recordings_are_an_error(folder: Path) -> None:
    with pytest.raises(SpeechError, match="too few recordings to hold some out: 1"):
        split([each for each in find_speakers([folder]) if each.name == "loose.wav"])


def test_one_recording_in_ten_is_held_out_by_name() -> None:
    """Deviation of the share of 4000 fair draws: 0.5 %."""
    names = [f"arctic_{i:04d}" for i in range(4000)]
    held = [held_out_file(Path("a") / f"{name}.flac") for name in names]
    assert held == [held_out_file(Path("b/c") / f"{name}.wav") for name in names]
    assert 0.085 < np.mean(held) < 0.12


def test_reading_mixes_and_resamples(tmp_path: Path) -> None:
    """A stereo tone at 44.1 kHz: half as loud in the mean of both, at the same frequency."""
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(44_100) / 44_100)
    sf.write(tmp_path / "tone.wav", np.stack([tone, 0 * tone], axis=1), 44_100, subtype="FLOAT")
    samples = read(tmp_path / "tone.wav")
    assert samples.dtype == np.float32
    assert abs(len(samples) - 16_000) <= 1
    middle = samples[4000:12_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert int(spectrum.argmax()) * 16_000 / len(middle) == pytest.approx(1000, abs=2)
    assert np.std(middle) == pytest.approx(0.25 / np.sqrt(2), rel=1e-3)
    sf.write(tmp_path / "twice.wav", np.concatenate([tone, tone]), 44_100, subtype="FLOAT")
    part, whole = read(tmp_path / "twice.wav", 0.5, at=0.25), read(tmp_path / "twice.wav")
    assert abs(len(part) - 8000) <= 1
    np.testing.assert_allclose(part[1000:7000], whole[5000:11_000], atol=1e-3)


def test_what_is_no_audio_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF of nothing")
    with pytest.raises(SpeechError, match=r"broken\.wav: cannot be read"):
        read(tmp_path / "broken.wav")


def test_recordings_that_give_no_clips(tmp_path: Path) -> None:
    """Half a second is enough; speech may come late; a constant is silent."""
    rng = np.random.default_rng(0)
    late = np.concatenate([np.zeros(100_000), rng.normal(0, 0.1, 40_000)])
    for name, samples in (
        ("enough", rng.normal(0, 0.1, 8000)),
        ("late", late),
        ("short", rng.normal(0, 0.1, 7999)),
        ("constant", np.full(20_000, 0.2)),
    ):
        sf.write(tmp_path / f"{name}.wav", samples, 16_000)
    (tmp_path / "text.wav").write_text("not audio")
    found = {path.stem: why for path, why in left_out(find_speakers([tmp_path]))}
    assert found == {
        "constant": "silent", "enough": None, "late": None, "short": "shorter than 0.5 s",
        "text": "unreadable",
    }  # fmt: skip
