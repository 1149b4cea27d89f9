"""Models that score by their uncertainty: short and long recordings, measures, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mosrt
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.uncertainty_spec import MEASURES
from tests.conftest import noise


@pytest.fixture(scope="module")
def scorer(tiny_wav2vec: Path) -> Iterator[mosrt.Scorer]:
    with mosrt.load(tiny_wav2vec, threads=2) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("n_samples", "flags", "n_frames"),
    [(473, ("padded",), 1), (749, ("padded",), 2), (945, (), 4), (1_599, (), 8)],
)
def test_short_recordings(
    scorer: mosrt.Scorer, n_samples: int, flags: tuple[str, ...], n_frames: int
) -> None:
    """Under 750 samples as many zeros come first; the curve is that of the recording alone."""
    samples = noise(n_samples)
    score = scorer.score(samples, 16_000, frames=True)
    assert score.flags == flags
    assert len(score.frames) == n_frames
    padded = np.concatenate([np.zeros(n_samples, np.float32), samples]) if flags else samples
    assert score.measures == scorer.score(padded, 16_000).measures


@pytest.mark.parametrize("n_samples", [0, 472, 750, 944])
def test_too_short(tiny_wav2vec: Path, n_samples: int) -> None:
    with mosrt.load(tiny_wav2vec, on_bad_audio="nan") as scorer:
        score = scorer.score(noise(n_samples), 16_000)
        assert score.flags == (("too-short",) if n_samples else ("empty",))
        assert math.isnan(score.mos)
        assert all(map(math.isnan, score.measures.values()))
    with mosrt.load(tiny_wav2vec, on_bad_audio="error") as strict:
        message = rf"it has {n_samples} samples at 16000 Hz.*needs 945" if n_samples else "no sam"
        with pytest.raises(mosrt.AudioError, match=message):
            strict.score(noise(n_samples), 16_000)


def test_a_long_recording_is_the_mean_of_its_chunks(scorer: mosrt.Scorer) -> None:
    samples = noise(47 * 16_000 + 123)
    score = scorer.score(samples, 16_000, frames=True)
    assert score.n_views == len(score.windows) == 3
    assert score.windows[0][0] == 0.0
    total, rows = np.zeros(4), 0
    curve: list[float] = []
    for start_s, end_s in score.windows:
        chunk = samples[round(start_s * 16_000) : round(end_s * 16_000)]
        part = scorer.score(chunk, 16_000, frames=True)
        assert part.n_views == 1
        n_frames = len(part.frames)
        n_rows = sum(n_frames - horizon for horizon in range(3, 15))
        total += n_rows * np.array([part.measures[f"dense.{name}"] for name in MEASURES])
        rows += n_rows
        curve += part.frames
    assert len(curve) == (len(samples) - 465) // 160 + 1
    np.testing.assert_allclose(np.array(score.frames), curve, rtol=1e-12)
    found = [score.measures[f"dense.{name}"] for name in MEASURES]
    np.testing.assert_allclose(found, total / rows, rtol=1e-12)


def test_horizons(scorer: mosrt.Scorer) -> None:
    score = scorer.score(noise(30_000), 16_000, horizons=True)
    n_frames = (30_000 - 465) // 160 + 1
    weights = [n_frames - horizon for horizon in range(3, 15)]
    for name in scorer.measures[1:]:
        parts = [score.measures[f"{name}@{horizon}"] for horizon in range(3, 15)]
        assert score.measures[name] == pytest.approx(np.average(parts, weights=weights), rel=1e-9)
    assert f"{name}@15" not in score.measures


def test_features(scorer: mosrt.Scorer) -> None:
    features = scorer.features(noise(16_000), 16_000)
    assert {name: values.shape for name, values in features.items()} == {"features": (98, 8)}
    with pytest.raises(mosrt.MeasureError, match="too long for features"):
        scorer.features(noise(21 * 16_000), 16_000)


def test_what_does_not_go_together(scorer: mosrt.Scorer, tiny: Path) -> None:
    with pytest.raises(mosrt.PlanError, match="reads all of every recording"):
        scorer.score(noise(16_000), 16_000, plan="reference:1")
    with mosrt.load(tiny) as fusion, pytest.raises(mosrt.MeasureError, match="predicts MOS"):
        fusion.score(noise(16_000), 16_000, frames=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": "dense.mode"}, "'dense.mode' is none of paper.mean"),
        ({"sign": 0}, "must be 1 or -1"),
        ({"layouts": ["paper", "ctc"], "measure": "paper.mean"}, "must be some of paper"),
        ({"layouts": ["paper"], "measure": "paper.mean"}, "must have the graphs encoder, contrast"),
        ({"contrast": None}, "does not fit family 'wav2vec'"),
        ({"window_samples": 2_000}, "at most a quarter"),
        ({"seed": -1}, "seed must be from 0"),
    ],
)
def test_contradictions_in_a_manifest(
    tiny_wav2vec: Path, change: dict[str, object], message: str
) -> None:
    value = json.loads((tiny_wav2vec / "manifest.json").read_text())
    assert Manifest.from_dict(value).to_dict()["uncertainty"]["measure"] == "dense.entropy"
    value["uncertainty"] |= change
    with pytest.raises(mosrt.BundleError, match=message):
        Manifest.from_dict(value)


@settings(max_examples=40)
@given(
    waveform=st.one_of(
        st.integers(0, 3_000).map(np.zeros),
        st.tuples(st.integers(0, 2), st.integers(0, 3_000)).map(lambda s: np.ones(s, np.int16)),
        st.tuples(st.integers(0, 3_000), st.sampled_from([1e-30, 1.0, 1e25])).map(
            lambda s: np.random.default_rng(s[0]).normal(0, s[1], s[0])
        ),
        st.just(np.array(["a"])),
    ),
    rate_hz=st.sampled_from([0, 8_000, 16_000, 44_100]),
)
def test_any_input_gives_measures_or_flags(
    scorer: mosrt.Scorer, waveform: npt.NDArray[np.float64], rate_hz: int
) -> None:
    score = scorer.score(waveform, rate_hz)
    finite = [math.isfinite(value) for value in score.measures.values()]
    assert all(finite) if score.n_views else not any(finite)
    assert score.flags or score.n_views


def test_many_threads_share_a_scorer(scorer: mosrt.Scorer, clips: list[Path]) -> None:
    alone = [scorer.score_file(clip).measures for clip in clips[:4]]
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(lambda c: scorer.score_file(c).measures, c) for c in clips[:4] * 2]
    together = [future.result() for future in futures]
    assert together == alone * 2
