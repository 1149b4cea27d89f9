import numpy as np
import numpy.typing as npt
import pytest

from mosrt_studies.accuracy.heldout import Speech, levelled
from mosrt_studies.accuracy.ladder import (
    KINDS,
    falling,
    measure,
    overall,
    rungs,
    score_ladders,
    summary,
)

Float32Array = npt.NDArray[np.float32]


def noise(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
    return (speech + severity * rng.standard_normal(len(speech))).astype(np.float32)


def tone(n_samples: int = 1600) -> Float32Array:
    return levelled(np.sin(np.arange(n_samples) / 3).astype(np.float32))


def test_falling_is_spearman_with_its_sign_turned() -> None:
    assert falling([0, 0.1, 0.5], [4, 3, 1]) == 1.0
    assert falling([0, 0.1, 0.5], [1, 3, 4]) == -1.0
    # 1 - 6 Σd² / n(n² - 1), with ranks 1 2 3 4 and 4 2 3 1 of what falls: d = 0 0 0 0 but a swap
    assert falling([0, 1, 2, 3], [4, 2, 3, 1]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert falling([0, 1, 2, 3], [2, 2, 2, 2]) == 0.0


def test_summary_by_hand() -> None:
    scores = np.array([[4.0, 3.0, 2.0], [2.0, 1.0, 2.5]])
    figure = summary(scores, (0.2, 0.8))
    # The first falls all the way; of the second the ranks are 2 1 3 against 3 2 1: d² = 1 1 4.
    assert figure["srcc"] == pytest.approx((1.0 + (1 - 6 * 6 / 24)) / 2)
    assert figure["below_clean"] == 0.75
    np.testing.assert_array_equal(figure["mean_scores"], [3.0, 2.0, 2.25])
    # All six: severities 1.5 3.5 5.5 1.5 3.5 5.5, scores 6 5 2.5 2.5 1 4, both of mean 3.5.
    a = np.array([-2, 0, 2, -2, 0, 2])
    b = np.array([2.5, 1.5, -1, -1, -2.5, 0.5])
    wanted = -(a @ b) / np.sqrt((a @ a) * (b @ b))
    assert figure["srcc_pooled"] == pytest.approx(wanted, abs=1e-4)


def test_equal_scores_are_not_below() -> None:
    figure = summary(np.full((3, 4), 2.0), (0.1, 0.5, 0.9))
    assert figure["srcc"] == figure["srcc_pooled"] == figure["below_clean"] == 0.0


def test_only_severity_changes_on_a_ladder() -> None:
    clean = tone()

    def remember(speech: Float32Array, severity: float, rng: np.random.Generator) -> Float32Array:
        drawn.append(rng.standard_normal(4).tolist())
        return speech * np.float32(1 - severity)

    drawn: list[list[float]] = []
    steps = rungs(clean, remember, (0.1, 0.5, 0.9), (1, 2, 3))
    assert drawn[0] == drawn[1] == drawn[2]
    for step in steps:  # a degradation that only lowers the level changes nothing
        np.testing.assert_allclose(step, clean, rtol=1e-5, atol=1e-7)
    rungs(clean, remember, (0.1,), (1, 2, 4))
    assert drawn[3] != drawn[0]


def test_ladders_put_the_clean_clip_first_and_repeats() -> None:
    clips = [Speech("a", tone()), Speech("b", tone(2400))]
    lengths: list[int] = []

    def score(waveform: Float32Array, rate_hz: int) -> dict[str, float]:
        assert rate_hz == 16_000
        lengths.append(len(waveform))
        roughness = float(np.abs(np.diff(waveform)).mean())
        return {"smooth": -roughness, "constant": 3.0}

    def run(seed: int) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
        return score_ladders(clips, score, kinds={"noise": noise}, severities=(0.1, 1.0), seed=seed,
                     label="clips")  # fmt: skip

    found = run(5)
    assert lengths == [1600] * 3 + [2400] * 3
    assert found["noise"]["smooth"].shape == (2, 3)
    expected = [score(clip.waveform, 16_000)["smooth"] for clip in clips]
    np.testing.assert_array_equal(found["noise"]["smooth"][:, 0], expected)
    kinds = {kind: {n: summary(s, (0.1, 1.0)) for n, s in by.items()} for kind, by in found.items()}
    assert kinds["noise"]["smooth"]["srcc"] == kinds["noise"]["smooth"]["below_clean"] == 1.0
    assert overall(kinds)["constant"] == {"srcc": 0.0, "srcc_pooled": 0.0, "below_clean": 0.0}
    np.testing.assert_array_equal(run(5)["noise"]["smooth"], found["noise"]["smooth"])
    assert (run(6)["noise"]["smooth"] != found["noise"]["smooth"]).any()


def test_overall_is_the_mean_of_kinds() -> None:
    def figure(value: float) -> dict[str, float]:
        return {"srcc": value, "srcc_pooled": value / 2, "below_clean": 1.0}

    kinds = {"a": {"x": figure(1.0)}, "b": {"x": figure(0.5)}, "c": {"x": figure(0.0)}}
    assert overall(kinds) == {"x": {"srcc": 0.5, "srcc_pooled": 0.25, "below_clean": 1.0}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_degrades(kind: str, speech: Float32Array) -> None:
    """The further down, the less is left of the clip: no rung is the clip, no two are equal."""
    clean = levelled(speech[:32_000])
    mild, severe = rungs(clean, KINDS[kind], (0.1, 0.9), (0, 0, 0))
    assert len(mild) == len(severe) == len(clean)
    level = np.sqrt(np.mean(np.square([clean, mild, severe], dtype=np.float64), axis=1))
    np.testing.assert_allclose(level, 10 ** (-26 / 20), rtol=1e-3)
    assert not np.array_equal(mild, clean)
    assert np.abs(severe - mild).max() > 1e-3


def test_measure(speech: Float32Array) -> None:
    """A model that measures how much of the clip is above 2 kHz, and one that measures nothing."""
    clips = [Speech("ann", levelled(speech[:16_000])), Speech("bob", levelled(speech[16_000:]))]

    def score(waveform: Float32Array, rate_hz: int) -> dict[str, float]:
        power = np.abs(np.fft.rfft(waveform)) ** 2
        high = power[2000 * len(waveform) // rate_hz :].sum() / power.sum()
        return {"dull": -float(high), "constant": 1.0}

    run = measure({"first": clips, "second": clips[::-1]}, score, 5)
    assert run["voices"] == {"first": ["ann", "bob"], "second": ["bob", "ann"]}
    for group, kinds in run["kinds"].items():
        assert list(kinds) == list(KINDS)
        assert kinds["white noise"]["dull"]["srcc"] == 1.0
        assert kinds["white noise"]["dull"]["below_clean"] == 1.0
        assert kinds["low-pass"]["dull"]["below_clean"] < 0.5  # less high is not worse here
        assert run["scores"][group]["pink noise"]["dull"].shape == (2, 6)
        mean = np.mean([kind["dull"]["srcc"] for kind in kinds.values()])
        assert run["overall"][group]["dull"]["srcc"] == pytest.approx(mean)
        assert run["overall"][group]["constant"]["srcc"] == 0.0
