import numpy as np
import pytest

from mosrt_studies.accuracy.uncertainty_ranking import DEGRADATIONS, correlations, ladder


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_ladders_move_away_from_the_clip(name: str) -> None:
    """Each rung is further from the clip than the one before, at the same level."""
    rng = np.random.default_rng(0)
    t = np.arange(32_000) / 16_000
    clip = 0.2 * np.sin(2 * np.pi * (150 + 900 * t) * t) * (1 + np.sin(9 * t)) * 0.5
    clip += 0.02 * rng.standard_normal(len(clip))
    rungs = [rung.astype(np.float64) for rung in ladder(clip, name, 3)]
    assert len(rungs) == 1 + len(DEGRADATIONS[name][1])
    similarity = [
        np.dot(rung, clip) / np.linalg.norm(rung) / np.linalg.norm(clip) for rung in rungs
    ]
    assert all(np.diff(similarity) < 0)
    levels = [np.sqrt(np.mean(rung**2)) for rung in rungs]
    np.testing.assert_allclose(levels, levels[0], rtol=1e-4)


def test_correlations() -> None:
    found = correlations({"up": [[1, 2, 3], [5, 6, 9]], "down": [[3, 2, 1], [1, 2, 0]]})
    assert found["up"]["per_clip"] == 1.0
    assert found["up"]["mean_is_monotone"]
    assert found["down"]["per_clip"] == pytest.approx((-1.0 - 0.5) / 2)
    assert not found["down"]["mean_is_monotone"]
