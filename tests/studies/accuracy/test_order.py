from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mosrt_studies.accuracy import order
from mosrt_studies.accuracy.heldout import Speech
from mosrt_studies.accuracy.order import (
    ORDER,
    READERS,
    RECORDINGS,
    difference,
    mean,
    score_readers,
    verdicts,
)


def readings(rng: np.random.Generator) -> dict[str, npt.NDArray[np.float64]]:
    """Scores in the right order, far apart."""
    centres = (RECORDINGS, *READERS)
    values = {RECORDINGS: 4.6, "flite slt": 3.6, "flite rms": 3.5, "flite kal16": 2.6,
              "flite kal": 1.8, "espeak-ng en-us": 1.5}  # fmt: skip
    return {name: values[name] + 0.1 * rng.standard_normal(24) for name in centres}


def test_mean_has_the_interval_of_the_mean() -> None:
    scores = np.random.default_rng(1).normal(3, 0.5, 400)
    figure = mean(scores)
    half = 1.96 * scores.std() / np.sqrt(len(scores))
    assert figure["mean"] == pytest.approx(scores.mean(), abs=1e-4)
    # 2000 draws give the ends of a normal interval to about 4 % of its width.
    assert figure["interval_95"] == pytest.approx(
        [scores.mean() - half, scores.mean() + half], abs=0.1 * 2 * half
    )
    assert mean(scores) == figure


def test_pairing_takes_the_sentence_out() -> None:
    rng = np.random.default_rng(2)
    sentence = rng.normal(0, 1, 30)
    better, worse = 3.1 + sentence, 3.0 + sentence + rng.normal(0, 0.01, 30)
    paired = difference(better, worse, paired=True)
    apart = difference(better, worse, paired=False)
    assert paired["mean"] == apart["mean"] == pytest.approx((better - worse).mean(), abs=1e-4)
    assert 0 < paired["interval_95"][0] < paired["interval_95"][1] < 0.2
    assert apart["interval_95"][0] < -0.2
    assert apart["interval_95"][1] > 0.4


def test_unpaired_sides_are_drawn_apart() -> None:
    # Drawn alike, equal scores would always have a difference of 0.
    scores = np.random.default_rng(3).normal(0, 1, 30)
    low, high = difference(scores, scores, paired=False)["interval_95"]
    half = 1.96 * scores.std() * np.sqrt(2 / 30)
    assert [low, high] == pytest.approx([-half, half], abs=0.1 * 2 * half)


def test_verdicts() -> None:
    scores = readings(np.random.default_rng(4))
    found = verdicts(scores)
    assert list(found) == [f"{better} > {worse}" for better, worse in ORDER]
    assert all(figure["holds"] and figure["clear"] for figure in found.values())
    assert {pair for pair, figure in found.items() if not figure["paired"]} == {
        "recordings > flite slt",
        "recordings > flite rms",
    }
    scores["flite kal"] = scores["flite kal16"] + 0.5
    scores["espeak-ng en-us"] = scores["flite slt"] - 0.01 * np.resize([3.0, -2.0], 24)
    found = verdicts(scores)
    assert not found["flite kal16 > flite kal"]["holds"]
    assert found["flite slt > espeak-ng en-us"]["holds"]
    assert not found["flite slt > espeak-ng en-us"]["clear"]


def test_recordings_may_be_fewer() -> None:
    scores = readings(np.random.default_rng(5))
    scores[RECORDINGS] = scores[RECORDINGS][:20]
    assert verdicts(scores)["recordings > flite slt"]["clear"]


def test_readers_are_kept_apart() -> None:
    speech = {
        reader: [Speech(reader, np.full(n, i, np.float32)) for n in (10, 20)]
        for i, reader in enumerate(("a", "b"))
    }
    found = score_readers(speech, lambda waveform, rate_hz: {"x": waveform.sum(), "rate": rate_hz})
    np.testing.assert_array_equal(found["x"]["a"], [0, 0])
    np.testing.assert_array_equal(found["x"]["b"], [10, 20])
    np.testing.assert_array_equal(found["rate"]["b"], [16_000, 16_000])


def test_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that give the level at which everyone speaks, and its opposite."""
    scores = readings(np.random.default_rng(6))
    speech = {
        reader: [Speech(reader, np.full(10, score, np.float32)) for score in values]
        for reader, values in scores.items()
    }
    monkeypatch.setattr(order, "utterances", lambda *_, **__: speech[RECORDINGS])
    monkeypatch.setattr(order, "readings", lambda _: {name: speech[name] for name in READERS})

    def score(waveform: npt.NDArray[np.float32], rate_hz: int) -> dict[str, float]:
        assert rate_hz == 16_000
        return {"level": float(waveform.mean()), "upside down": -float(waveform.mean())}

    run = order.measure(Path("x"), 24, 1002, score)
    assert len(run["sentences"]) == 24
    right = {name: [each["holds"] for each in of.values()] for name, of in run["order"].items()}
    assert right == {"level": [True] * 7, "upside down": [False] * 7}
    assert run["means"]["level"][RECORDINGS]["mean"] == pytest.approx(scores[RECORDINGS].mean())
