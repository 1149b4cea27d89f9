"""The view study on a scorer whose spread is known, and on the embedded model."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import mosrt
from mosrt.crops import PlanRule
from mosrt.score import Score
from mosrt.scorer import Scorer
from mosrt_bench.bench.view_study import study_views
from mosrt_bench.clips import audio_files
from mosrt_bench.errors import BenchError
from tests.conftest import DATA

CLIPS = audio_files([DATA / "flite_kal_8k_mono.wav", DATA / "flite_slt_16k_mono.wav"])
SPREAD = 0.2


class Known:
    """Reference views scatter by 0.2 around 3; a grid's views are 3.1 and alternate by 0.1."""

    manifest = SimpleNamespace(name="known", uncertainty=None)

    def score_file(self, _: object, *, plan: PlanRule) -> Score:
        views = plan.views or 1
        if plan.kind == "reference":
            values = np.asarray(np.random.default_rng(0).normal(3.0, SPREAD, views))
        else:
            values = np.asarray(3.1 + 0.1 * (-1.0) ** np.arange(views), np.float64)
        return Score(
            mos=float(values.mean()), low=0, high=0, n_views=views, views=tuple(values),
            windows=(), domain="d", duration_s=1.0, model="known", variant="fp32", provider="cpu",
        )  # fmt: skip


def test_bias_spread_and_advice() -> None:
    scorer = cast(Scorer, Known())
    study = study_views(scorer, CLIPS, seeds=400, max_views=8, wanted=0.1)
    # standard error of a standard deviation over 400 draws: 3.5 %
    assert study["reference"]["sd"] == pytest.approx(SPREAD, rel=0.11)
    assert study["reference"]["target_sd"] == pytest.approx(SPREAD / 20, rel=0.11)
    even = [row for row in study["grid"] if row["views"] % 2 == 0]
    for row in even:
        assert row["bias"] == pytest.approx(0.1, abs=3 * SPREAD / 20)
        assert row["sd"] == 0
    assert study["grid"][0]["half_width"] is None
    # t(7) * sd / sqrt(8), where sd of n alternating views is 0.1 * sqrt(n / (n - 1))
    assert study["grid"][7]["half_width"] == pytest.approx(2.3646 * 0.1 / math.sqrt(7), rel=1e-3)
    assert study["recommended_views"] == 7
    study = study_views(scorer, CLIPS, seeds=10, max_views=3, wanted=0.01)
    assert study["recommended_views"] is None


def test_uncertainty_has_no_views() -> None:
    with (
        mosrt.load("nano-uncertainty", threads=1) as scorer,
        pytest.raises(BenchError, match="has no views"),
    ):
        study_views(scorer, CLIPS, seeds=2, max_views=2, wanted=0.1)


def test_no_clip_to_score(tmp_path: Any) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    with (
        mosrt.load("nano", threads=1, on_bad_audio="nan") as scorer,
        pytest.raises(BenchError, match="no clip of the set can be scored"),
    ):
        study_views(scorer, audio_files([tmp_path]), seeds=2, max_views=2, wanted=0.1)
