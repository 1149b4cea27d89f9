"""Tests recordings and their held-out part, and the output of the synthesis engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import pyworld
import soundfile as sf

from mosrt_export.nano.data import voices
from mosrt_export.nano.data.voices import (
    Voice,
    VoiceError,
    missing_programs,
    recorded,
    recorded_voices,
    sentences,
    synthesise,
    synthetic_voices,
)
from tests.standins.nano import voice

PROGRAMS = {"flite": "flite", "festival": "text2wave", "espeak-ng": "espeak-ng"}


def installed(engine: str) -> None:
    if shutil.which(PROGRAMS[engine]) is None:
        pytest.skip(f"the program {PROGRAMS[engine]} is not installed")


def named(name: str) -> Voice:
    return {voice.name: voice for voice in synthetic_voices()}[name]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two voices of sixty files; the length of each, 100 samples and more, is its number."""
    for name in ("anna", "bert"):
        folder = tmp_path / "speech" / name
        folder.mkdir(parents=True)
        for i in range(60):
            sf.write(folder / f"{name}_{i:03d}.flac", np.zeros(100 + i), 16_000)
    (tmp_path / "speech" / "README.md").touch()
    (tmp_path / "speech" / "empty").mkdir()
    return tmp_path / "speech"


def test_recorded_voices_are_folders_of_flac(recordings: Path) -> None:
    found = recorded_voices(recordings)
    assert [voice.name for voice in found] == ["recorded anna", "recorded bert"]
    assert not any(voice.held_out for voice in found)
    for folder in (recordings / "empty", recordings / "none"):
        with pytest.raises(VoiceError, match="--speech"):
            recorded_voices(folder)


def test_recordings_are_held_out_or_not(recordings: Path, tmp_path: Path) -> None:
    for speaker in recorded_voices(recordings):
        kept, held = (
            {len(part) for part in recorded(speaker, held_out=held_out)}
            for held_out in (False, True)
        )
        assert held
        assert not kept & held
        assert kept | held == set(range(100, 160))
        moved = shutil.copytree(speaker.selector, tmp_path / "elsewhere" / speaker.name)
        again = voice(speaker.name, "recorded", selector=str(moved))
        assert {len(part) for part in recorded(again, held_out=True)} == held


def test_one_recording_in_ten_is_held_out_by_name() -> None:
    """Deviation of the share of 4000 fair draws: 0.5 %."""
    names = [f"arctic_{i:04d}" for i in range(4000)]
    held = [voices.held_out_file(Path("a") / f"{name}.flac") for name in names]
    assert held == [voices.held_out_file(Path("b/c") / f"{name}.wav") for name in names]
    assert 0.085 < np.mean(held) < 0.12


def test_reading_mixes_and_resamples(tmp_path: Path) -> None:
    """A stereo tone at 44.1 kHz: half as loud in the mean of both, at the same frequency."""
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(44_100) / 44_100)
    sf.write(tmp_path / "tone.wav", np.stack([tone, 0 * tone], axis=1), 44_100, subtype="FLOAT")
    samples = voices.read(tmp_path / "tone.wav")
    assert samples.dtype == np.float32
    assert abs(len(samples) - 16_000) <= 1
    middle = samples[4000:12_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert int(spectrum.argmax()) * 16_000 / len(middle) == pytest.approx(1000, abs=2)
    assert np.std(middle) == pytest.approx(0.25 / np.sqrt(2), rel=1e-3)


def test_synthetic_voices_are_distinct() -> None:
    found = synthetic_voices()
    assert len({voice.name for voice in found}) == len(found)
    assert len({(voice.engine, voice.selector) for voice in found}) == len(found)
    assert {voice.engine for voice in found} == set(PROGRAMS)
    held = [voice for voice in found if voice.held_out]
    # Evaluation on unknown voices needs some of every engine.
    assert {voice.engine for voice in held} == set(PROGRAMS)
    assert len(held) < len(found) / 5


def test_anchors_follow_common_knowledge() -> None:
    order = ["flite slt", "flite kal16", "flite kal", "espeak-ng en-us"]
    anchors = [named(name).anchor for name in order]
    assert anchors == sorted(anchors, reverse=True)
    assert len(set(anchors)) == len(order)
    assert all(1 < voice.anchor < 4 for voice in synthetic_voices())


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(voices, "_FESTIVAL_VOICES_PATH", tmp_path)
    speakers = [named(name) for name in ("flite slt", "festival kal_diphone", "espeak-ng de+f2")]
    missing = missing_programs(speakers)
    assert set(missing) == {*PROGRAMS.values(), "c2enc", "festival kal_diphone"}
    assert "codec2" in missing["c2enc"]
    for engine, program in PROGRAMS.items():
        assert missing[program] == f"install the system package {engine!r}"
    assert "festvox" in missing["festival kal_diphone"]
    assert missing_programs(speakers[:1]) == {name: missing[name] for name in ("flite", "c2enc")}
    for speaker in speakers:
        with pytest.raises(VoiceError, match="is it installed") as caught:
            voices.speak(speaker, "Hello.")
        assert speaker.name in str(caught.value)


@pytest.mark.parametrize("engine", PROGRAMS)
def test_engines_keep_the_pace(engine: str) -> None:
    """At 1.5 times the rate, speech and the silence around it are at most 0.85 times as long."""
    installed(engine)
    speaker = named(
        {"flite": "flite slt", "festival": "festival kal_diphone", "espeak-ng": "espeak-ng en-us"}[
            engine
        ]
    )
    if missing_programs([speaker]):
        pytest.skip(f"{speaker.name} is not installed")
    slow, fast = (
        voices.speak(speaker, "The night watchman walked slowly past the church clock.", pace=pace)
        for pace in (0.8, 1.2)
    )
    for said in (slow, fast):
        assert said.dtype == np.float32
        assert said.std() > 1e-2
        assert len(said) > 16_000
    assert len(fast) < 0.85 * len(slow)


def test_espeak_keeps_the_pitch() -> None:
    installed("espeak-ng")
    pitches = []
    for pitch in (0.8, 1.25):
        said = voices.speak(named("espeak-ng en-us"), "Our best pianist.", pitch=pitch)
        found, _ = pyworld.dio(said.astype(np.float64), 16_000)
        pitches.append(np.median(found[found > 0]))
    assert pitches[1] > 1.15 * pitches[0]


FESTIVAL = [voice for voice in synthetic_voices() if voice.engine == "festival"]


@pytest.mark.parametrize("speaker", FESTIVAL, ids=[voice.selector for voice in FESTIVAL])
def test_every_festival_voice_can_spell_its_sentences(speaker: Voice) -> None:
    """With a wrong encoding an engine is silent, or spells out letters."""
    installed("festival")
    if missing_programs([speaker]):
        pytest.skip(f"{speaker.name} is not installed")
    text = sentences(speaker.language, 1, np.random.default_rng(3))[0]
    said = voices.speak(speaker, text)
    assert said.std() > 1e-2
    assert 1.5 < len(said) / 16_000 < 10
    assert 6 < len(text) / (len(said) / 16_000) < 25  # letters per second


def test_synthesis_follows_the_seed() -> None:
    installed("espeak-ng")
    first, same, other = (
        synthesise(named("espeak-ng fr+m3"), 2, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert len(first) == 2
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first[0], other[0])
