from pathlib import Path

import numpy as np
import pytest
import soundfile

from mosrt_export.distill.data.speech import held_out_file
from mosrt_export.nano.voices import VoiceError
from mosrt_studies.accuracy.heldout import (
    CLIP_SAMPLES,
    clips_in,
    joined,
    levelled,
    recorded_clips,
    utterances,
)


def write_voice(folder: Path, count: int, seconds: float, offset: float) -> list[Path]:
    """Recordings whose samples tell which file they come from."""
    folder.mkdir(parents=True)
    paths = [folder / f"sentence{i:03d}.flac" for i in range(count)]
    for i, path in enumerate(paths):
        samples = np.full(int(seconds * 16_000), offset + i / 1000, np.float32)
        soundfile.write(path, samples, 16_000)
    return paths


def test_level_is_set() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.3, 4000).astype(np.float32)
    found = levelled(waveform)
    assert 20 * np.log10(found.astype(np.float64).std()) == pytest.approx(-26, abs=0.01)
    assert np.corrcoef(found, waveform)[0, 1] == pytest.approx(1)
    assert not levelled(np.zeros(10, np.float32)).any()


def test_joined_uses_every_utterance_once() -> None:
    parts = [np.full(n, i, np.float32) for i, n in enumerate((3, 4, 5, 2, 9, 1))]
    clips = list(joined(parts, 6))
    assert [clip.tolist() for clip in clips] == [
        [0, 0, 0, 1, 1, 1],  # what is left of an utterance is left out
        [2, 2, 2, 2, 2, 3],
        [4] * 6,
    ]


def test_recorded_clips_are_of_held_out_files_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "ann"
    folder.mkdir()
    signals = {}
    for i in range(120):
        path = folder / f"sentence{i:03d}.flac"
        samples = rng.normal(0, 0.1, 48_000).astype(np.float32)
        soundfile.write(path, samples, 16_000)
        signals[path] = samples
    (tmp_path / "no voice.txt").write_text("")
    kept = [samples for path, samples in signals.items() if held_out_file(path)]
    clips = recorded_clips(tmp_path, 3)
    assert [clip.voice for clip in clips] == ["recorded ann"] * 3
    for i, clip in enumerate(clips):
        expected = np.concatenate(kept[2 * i : 2 * i + 2])[:CLIP_SAMPLES]
        assert np.corrcoef(clip.waveform, expected)[0, 1] > 0.999
    with pytest.raises(VoiceError, match="enough for only [0-9]+ clips, not for 60"):
        recorded_clips(tmp_path, 60)


def test_voices_take_turns(tmp_path: Path) -> None:
    folders = [tmp_path / "ann", tmp_path / "bob"]
    for folder, count in zip(folders, (6, 2), strict=True):
        write_voice(folder, count, 3.0, 0.1)
    clips = clips_in(folders, 4)
    assert [clip.voice for clip in clips] == ["ann", "bob", "ann", "ann"]
    assert all(len(clip.waveform) == CLIP_SAMPLES for clip in clips)
    with pytest.raises(VoiceError, match="enough for only 4 clips, not for 5"):
        clips_in(folders, 5)


def test_short_utterances_are_left_out(tmp_path: Path) -> None:
    write_voice(tmp_path / "ann", 60, 1.0, 0.1)
    write_voice(tmp_path / "bob", 60, 2.5, 0.1)
    found = utterances(tmp_path, 2, shortest_s=2.0)
    assert [speech.voice for speech in found] == ["recorded bob"] * 2
    assert [len(speech.waveform) for speech in found] == [40_000] * 2
