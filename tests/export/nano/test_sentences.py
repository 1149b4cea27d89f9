"""Tests the sentences that synthetic voices read."""

import numpy as np
import pytest

from mosrt_export.nano.voices import LANGUAGES, sentences, synthetic_voices


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_follow_the_seed(language: str) -> None:
    first, same, other = (
        sentences(language, 30, np.random.default_rng(seed)) for seed in (4, 4, 5)
    )
    assert first == same
    assert first != other
    assert len(first) == 30


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_varied_and_whole(language: str) -> None:
    """Of 200 draws out of at least 256 combinations, 117 or more are new but for bad luck."""
    drawn = sentences(language, 200, np.random.default_rng(0))
    assert len(set(drawn)) > 115
    for text in drawn:
        assert text[0].isupper()
        assert text[-1] in ".!?"
        assert "  " not in text
        assert text == text.strip()
        assert text.encode().decode() == text


def test_every_voice_has_sentences() -> None:
    assert {voice.language for voice in synthetic_voices()} <= set(LANGUAGES)


def test_an_unknown_language_is_an_error() -> None:
    with pytest.raises(KeyError, match="tlh"):
        sentences("tlh", 1, np.random.default_rng(0))
