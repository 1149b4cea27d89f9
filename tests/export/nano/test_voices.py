"""Tests the synthetic voices, and the output of the synthesis engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import pyworld
from numpy.typing import NDArray

from mosrt_export.distill.recipe import Recipe
from mosrt_export.nano import voices
from mosrt_export.nano.neural import neural_voices
from mosrt_export.nano.voices import (
    Voice,
    VoiceError,
    missing_programs,
    sentences,
    synthesise,
    synthetic_voices,
    write_utterances,
)

PROGRAMS = {"flite": "flite", "festival": "text2wave", "espeak-ng": "espeak-ng"}


def installed(engine: str) -> None:
    if shutil.which(PROGRAMS[engine]) is None:
        pytest.skip(f"the program {PROGRAMS[engine]} is not installed")


def named(name: str) -> Voice:
    return {voice.name: voice for voice in synthetic_voices()}[name]


def test_synthetic_voices_are_distinct() -> None:
    found = synthetic_voices()
    assert len({voice.name for voice in found}) == len(found)
    assert len({(voice.engine, voice.selector) for voice in found}) == len(found)
    assert {voice.engine for voice in found} == set(PROGRAMS)
    held = [voice for voice in found if voice.held_out]
    # Evaluation on unknown voices needs some of every engine.
    assert {voice.engine for voice in held} == set(PROGRAMS)
    assert len(held) < len(found) / 5


def test_the_recipe_knows_the_voices() -> None:
    """Every group of the recipe has voices, and anchors are in the order of common knowledge."""
    recipe = Recipe.read("nano")
    groups = {recipe.group_of(voice.folder) for voice in (*synthetic_voices(), *neural_voices())}
    assert groups | {"*"} == set(recipe.groups)
    assert sum(group.share for group in recipe.groups.values()) == pytest.approx(1)
    assert sum(group.ladder_share or 0 for group in recipe.groups.values()) == pytest.approx(1)
    order = ["kathleen", *(named(f"flite {name}").folder for name in ("slt", "kal16", "kal")),
             named("espeak-ng en-us").folder]  # fmt: skip
    anchors = [recipe.group(name).anchor or 0 for name in order]
    assert anchors == sorted(anchors, reverse=True)
    assert len(set(anchors)) == len(order)


def test_utterances_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def speak(voice: Voice, text: str, **_options: float) -> NDArray[np.float32]:
        said.append(text)
        if len(said) == 3:
            raise VoiceError(f"{voice.name}: no output")
        return np.full(100, 0.5, np.float32)

    monkeypatch.setattr(voices, "speak", speak)
    voice = named("espeak-ng de+f2")
    with pytest.raises(VoiceError, match="no output"):
        write_utterances(voice, 7, tmp_path)
    assert find(tmp_path) == []
    write_utterances(voice, 7, tmp_path)
    assert find(tmp_path) == [f"espeak-ng-formant/de+f2/0000{i}.flac" for i in range(8)]
    assert said[:3] == said[3:6]  # the seed decides
    write_utterances(voice, 7, tmp_path)
    assert len(said) == 11


def find(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.flac"))


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(voices, "FESTIVAL_VOICES_PATH", tmp_path)
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
