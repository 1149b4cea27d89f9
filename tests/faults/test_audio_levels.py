"""Flags for levels that move scores, and numbers that are not finite."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from mosrt import AudioError, BundleError
from mosrt.audio.recording import Recording
from mosrt.audio.sources import ArraySource
from tests.standins.resealed import resealed

Waveform = npt.NDArray[np.float32]
MODELS = ["nano", "nano-uncertainty"]


def flags(waveform: npt.ArrayLike) -> tuple[str, ...]:
    try:
        return Recording(ArraySource(waveform, 16_000), 16_000).flags
    except AudioError as exc:
        return exc.flags


def test_channels_that_cancel_are_not_silent(speech: Waveform) -> None:
    assert flags(np.stack([speech, -speech])) == ("channels-cancel",)
    assert flags(np.stack([speech, -0.9 * speech])) == ("channels-cancel",)
    assert flags(np.stack([speech, -speech, speech, -speech])) == ("channels-cancel",)
    independent = np.random.default_rng(0).normal(0, 0.1, (2, len(speech)))
    assert flags(independent) == ()
    assert flags(np.stack([speech, np.zeros_like(speech)])) == ()
    assert flags(np.stack([speech, *[np.zeros_like(speech)] * 7])) == ()
    assert flags(np.stack([speech, -speech]) * 1e-4) == ("constant", "silent")
    assert flags(np.zeros((2, 16_000))) == ("constant", "silent")


def test_a_dc_offset_is_flagged(speech: Waveform) -> None:
    level = float(speech.std())
    assert flags(speech + 0.2 * level) == ("dc-offset",)
    assert flags(speech - 0.2 * level) == ("dc-offset",)
    assert flags(speech + 0.05 * level) == ()
    quiet = np.random.default_rng(0).normal(0, 1e-4, 32_000)
    assert flags(quiet + 0.1) == ("silent", "dc-offset")
    assert flags(quiet) == ("silent",)


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_long_silence_is_flagged(speech: Waveform, offset: float) -> None:
    more = ("dc-offset",) if offset else ()

    def pause(seconds: float) -> Waveform:
        return np.full(int(seconds * 16_000), offset, np.float32)

    voiced = speech + np.float32(offset)
    for joined in ([voiced, pause(3)], [pause(3), voiced], [voiced[:40_000], pause(3), voiced]):
        assert flags(np.concatenate(joined)) == ("long-silence", *more)
    assert flags(np.concatenate([voiced, pause(1.5)])) == more
    long = [voiced] * 10
    assert flags(np.concatenate([*long, pause(5)])) == more
    assert flags(np.concatenate([*long, pause(11), voiced])) == ("long-silence", *more)
    assert flags(np.concatenate([voiced, pause(40)])) == ("mostly-silent", *more)


def test_samples_far_beyond_full_scale_are_flagged(speech: Waveform) -> None:
    def spiked(value: float) -> Waveform:
        found = speech.copy()
        found[30_000] = value
        return found

    assert flags(spiked(3.9)) == ()
    assert flags(spiked(4.1)) == ("over-full-scale",)
    assert flags(spiked(-1e4)) == ("over-full-scale",)
    assert flags(spiked(1.1e10)) == ("out-of-range",)
    assert flags(spiked(1e20)) == ("out-of-range",)
    assert flags(spiked(np.inf)) == ("non-finite",)
    assert "over-full-scale" in flags(speech * 32_768)  # integers taken for floats


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("level", [1e4, 1e9, 9e9, 1e18, 1e20, 1e38])
@pytest.mark.parametrize("one", [True, False])
def test_no_level_gives_a_score_that_is_not_finite(
    model: str, level: float, one: bool, speech: Waveform
) -> None:
    waveform = speech.copy()
    if one:
        waveform[1_000] = level
    else:
        waveform *= np.float32(level)
    with mosrt.load(model) as scorer, warnings.catch_warnings():
        warnings.simplefilter("error")
        score = scorer.score(waveform, 16_000)
    if score.n_views:
        assert score.flags
        assert np.isfinite(score.mos if model == "nano" else score.measures["uncertainty"])
    else:
        assert score.flags == ("out-of-range",)


@pytest.mark.parametrize("policy", ["nan", "error"])
def test_absurd_samples_follow_the_policy(policy: Any, speech: Waveform) -> None:
    waveform = speech.copy()
    waveform[5] = 1e20
    with mosrt.load(on_bad_audio=policy) as scorer:
        if policy == "error":
            with pytest.raises(AudioError, match="beyond 1e10"):
                scorer.score(waveform, 16_000)
        else:
            assert np.isnan(scorer.score(waveform, 16_000).mos)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("model", MODELS)
def test_damaged_weights_raise(model: str, value: float, tmp_path: Path, speech: Waveform) -> None:
    bundle = tmp_path / model
    shutil.copytree(Path(mosrt.__file__).parent / "models" / model, bundle)
    (weights,) = bundle.glob("*.data")
    damaged = np.frombuffer(weights.read_bytes(), np.float32).copy()
    damaged[len(damaged) // 3 : len(damaged) // 3 + 2_000] = value
    weights.write_bytes(damaged.tobytes())
    with mosrt.load(resealed(bundle), cache=False) as scorer, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BundleError, match="not finite.*--verify"):
            scorer.score(speech, 16_000)
        if model == "nano":  # the other's first graph is not damaged
            with pytest.raises(BundleError, match="not finite"):
                scorer.features(speech, 16_000)
