import numpy as np
import pytest
import scipy.stats

from mosrt.cli.ratings import Rating
from mosrt_bench.stats.voicemos import protocol


def ratings_of(n_systems: int, per_system: int) -> tuple[list[Rating], dict[str, float]]:
    rng = np.random.default_rng(0)
    ratings, predicted = [], {}
    for system in range(n_systems):
        for clip in range(per_system):
            path = f"s{system}/{clip}.wav"
            mos = 1 + 4 * system / n_systems + rng.normal(0, 0.3)
            ratings.append(Rating(path=path, mos=mos, system=f"s{system}", dataset="vmc"))
            predicted[path] = mos + rng.normal(0, 0.4)
    return ratings, predicted


def test_the_table_of_track_1() -> None:
    """Every figure of every zoom, computed again from the ratings with scipy alone."""
    ratings, predicted = ratings_of(32, 4)
    table = protocol(ratings, predicted, resamples=20)
    assert [(row["level"], row["zoom_percent"]) for row in table] == [
        (level, zoom) for zoom in (100, 50, 25, 12, 6) for level in ("utterance", "system")
    ]
    mos = np.array([rating.mos for rating in ratings]).reshape(32, 4)
    found = np.array([predicted[rating.path] for rating in ratings]).reshape(32, 4)
    best_first = np.argsort(-mos.mean(axis=1))
    for row in table:
        chosen = best_first[: {100: 32, 50: 16, 25: 8, 12: 4, 6: 2}[row["zoom_percent"]]]
        assert row["systems"] == len(chosen)
        x, y = found[chosen].ravel(), mos[chosen].ravel()
        if row["level"] == "system":
            x, y = found[chosen].mean(axis=1), mos[chosen].mean(axis=1)
        assert row["n"] == len(x)
        assert row["mse"] == pytest.approx(np.mean((x - y) ** 2))
        if len(x) >= 5:
            low, high = row["intervals"]["mse"]
            assert low <= row["mse"] <= high
        if len(x) < 3:
            assert row["lcc"] is row["srcc"] is row["ktau"] is None
            continue
        assert row["lcc"] == pytest.approx(scipy.stats.pearsonr(x, y)[0])
        assert row["srcc"] == pytest.approx(scipy.stats.spearmanr(x, y)[0])
        assert row["ktau"] == pytest.approx(scipy.stats.kendalltau(x, y)[0])


def test_systems_of_one_clip_and_lost_clips_are_said() -> None:
    ratings, predicted = ratings_of(4, 1)
    del predicted["s3/0.wav"]
    table = protocol(ratings, predicted, resamples=10)
    system = next(row for row in table if row["level"] == "system")
    assert "3 of 3 systems have only one clip" in system["notes"]
    assert "1 of 4 rated clips have no score" in system["notes"]


def test_scores_on_a_scale_of_their_own_have_no_mse() -> None:
    ratings, predicted = ratings_of(4, 3)
    shrunk = {path: 1e-3 * score for path, score in predicted.items()}
    for row, plain in zip(
        protocol(ratings, shrunk, on_scale=False, resamples=10),
        protocol(ratings, predicted, resamples=10),
        strict=True,
    ):
        assert row["mse"] is row["intervals"]["mse"] is None
        assert (row["srcc"], row["ktau"]) == (plain["srcc"], plain["ktau"])


def test_without_systems_there_is_one_row_per_dataset() -> None:
    ratings = [Rating(path=f"{d}{i}", mos=i, dataset=d) for d in ("a", "b") for i in (1, 2, 3)]
    table = protocol(ratings, {rating.path: rating.mos for rating in ratings}, resamples=10)
    assert [(row["dataset"], row["level"], row["lcc"]) for row in table] == [
        ("a", "utterance", pytest.approx(1)), ("b", "utterance", pytest.approx(1))
    ]  # fmt: skip
