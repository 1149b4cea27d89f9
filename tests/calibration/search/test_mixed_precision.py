from pathlib import Path

import pytest

from mosrt_calibration.clips import Choice
from mosrt_calibration.scoring import ModelUnderTest
from mosrt_calibration.search.drift import Budget, Drift
from mosrt_calibration.search.evaluate import Evaluator
from mosrt_calibration.search.methods import Comparison, compare
from mosrt_calibration.search.mixed_precision import MacCount, Outcome, Sensitivity, rank, search
from mosrt_calibration.search.network import Network, Scheme
from tests.calibration.conftest import model_of
from tests.standins.quantizable import (
    CHANNELS,
    CROP,
    SIZE,
    convolutional,
    relu_chain,
    write_bundle,
)

PLAIN = Scheme(method="min-max")


def _networks(tested: ModelUnderTest, choice: Choice, tmp_path: Path) -> list[Network]:
    return [
        Network(tested, member, choice.calibration, cache=tmp_path / "cache")
        for member in tested.reference.members
    ]


def _compared(
    tested: ModelUnderTest, choice: Choice, tmp_path: Path, budget: Budget, methods: tuple[str, ...]
) -> Comparison:
    """Compares quantisation schemes for CPUs."""
    return compare(
        Evaluator(tested),
        _networks(tested, choice, tmp_path),
        choice.calibration,
        methods=methods,
        symmetric=False,
        budget=budget,
    )


def _searched(
    tested: ModelUnderTest,
    choice: Choice,
    tmp_path: Path,
    budget: Budget,
    *,
    symmetric: bool = False,
) -> Outcome:
    """Searches for blocks to keep in FP32, without the rest of the curve."""
    return search(
        Evaluator(tested),
        _networks(tested, choice, tmp_path),
        Scheme(method="min-max", symmetric=symmetric),
        screening=choice.calibration,
        clips=choice.evaluation,
        budget=budget,
        curve=False,
    )


@pytest.fixture
def broken(tmp_path: Path) -> ModelUnderTest:
    """Two folds whose third block breaks under INT8."""
    model = convolutional(outlier=2)
    return model_of(write_bundle(tmp_path / "broken", model, model))


def test_the_block_that_breaks_is_found_and_kept_in_fp32(
    broken: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    evaluator = Evaluator(broken)
    networks = _networks(broken, choice, tmp_path)
    macs = MacCount.of(networks, PLAIN)
    ranking = rank(evaluator, networks, PLAIN, macs, choice.calibration)
    assert ranking[0].block == "net.blocks.2"
    assert len(ranking) == 5
    worst, next_worst = ranking[0].drift.mean_abs, ranking[1].drift.mean_abs
    assert worst > 5 * next_worst
    assert sum(row.share for row in ranking) == pytest.approx(1)
    budget = Budget(max_drift=(worst + next_worst) / 2, min_srcc=-1.0)
    outcome = _searched(broken, choice, tmp_path, budget)
    assert not budget.holds(outcome.points[0].measured.drift)
    assert outcome.chosen is not None
    assert outcome.chosen.kept_fp32 == ("net.blocks.2",)
    assert "net.blocks.2" in outcome.table()
    assert not list(broken.directory.glob(".candidate-*"))


def test_a_block_that_the_budget_does_without_is_quantised_again(
    broken: ModelUnderTest, choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misled(*_: object, **__: object) -> tuple[Sensitivity, ...]:
        shares = {"net.blocks.0": 0.6, "net.blocks.2": 0.1, "net.stem": 0.1, "net.blocks.1": 0.1}
        return tuple(
            _sensitivity(0.1 - 0.02 * i, share, block)
            for i, (block, share) in enumerate(shares.items())
        )

    monkeypatch.setattr("mosrt_calibration.search.mixed_precision.rank", misled)
    monkeypatch.setattr(Sensitivity, "gain", property(lambda row: row.drift.mean_abs))
    outcome = _searched(broken, choice, tmp_path, Budget(max_drift=0.02, min_srcc=-1.0))
    assert outcome.chosen is not None
    assert outcome.chosen.kept_fp32 == ("net.blocks.2",)
    tried = [point.kept_fp32 for point in outcome.points]
    assert sorted(map(len, tried)) == list(map(len, tried))
    assert ("net.blocks.0", "net.blocks.2") in tried


def test_only_the_half_of_a_block_that_breaks_is_kept_in_fp32(
    choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mosrt_calibration.passes.targets.MOST_BLOCKS", 8)
    places = ("0.0", "1.0", "2.0", "3.0", "4.0", "4.1", "4.2", "4.3")
    names = [f"net.0.blocks.{place}" for place in places]
    model = convolutional(8, outlier=6, name=names.__getitem__)
    tested = model_of(write_bundle(tmp_path / "stages", model))
    (network,) = _networks(tested, choice, tmp_path)
    macs = MacCount.of([network], PLAIN)
    stage, parts = "net.*.blocks.4", tuple(f"net.*.blocks.4.{i}" for i in range(4))
    assert len(macs.parts) == 6
    assert macs.parts[stage] == parts
    outcome = _searched(tested, choice, tmp_path, Budget(max_drift=0.3, min_srcc=-1.0))
    assert outcome.chosen is not None
    # a quarter of the stage has fewer MACs than an average block, and is not tried alone
    assert outcome.chosen.kept_fp32 == parts[2:]
    assert outcome.chosen.share == pytest.approx(macs.share([stage]) / 2)
    assert [point.kept_fp32 for point in outcome.points] == [(), parts[2:], (stage,)]


def test_splitting_a_block_into_parts() -> None:
    macs = MacCount(
        parts={"a": ("a",), "b": ("b.0", "b.1")}, multiplications={"a": 2, "b.0": 1, "b.1": 1}
    )
    assert macs.share(["b"]) == macs.share(["a"]) == macs.share(["b.0", "b.1"]) == 0.5
    assert macs.without(["b", "a"], ["b.1"]) == ("b.0", "a")
    assert macs.without(["b.0", "a"], ["b.0", "b.1"]) == ("a",)
    assert macs.without(["b", "a"], ["c"]) == ("b", "a")


@pytest.mark.parametrize("symmetric", [False, True])
def test_drift_of_weight_only_int8_is_measured_for_cpus_only(
    conv_model: ModelUnderTest,
    choice: Choice,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    symmetric: bool,
) -> None:
    monkeypatch.setattr("mosrt_calibration.passes.weight_only.FEWEST_VALUES", 1)
    evaluator, networks = Evaluator(conv_model), _networks(conv_model, choice, tmp_path)
    macs = MacCount.of(networks, PLAIN)
    scheme = Scheme(method="min-max", symmetric=symmetric)
    for row in rank(evaluator, networks, scheme, macs, choice.calibration):
        assert (row.without == 0) == symmetric
        assert row.without < 2 * row.drift.mean_abs


def _sensitivity(mean_abs: float, share: float, block: str = "block") -> Sensitivity:
    drift = Drift(unit="mos", mean_abs=mean_abs, p95_abs=0, max_abs=0, srcc=1, lcc=1, n_clips=8)
    return Sensitivity(block=block, drift=drift, without=0.01, share=share)


def test_gain_is_squared_drift_by_share_of_macs() -> None:
    expensive, inexpensive = _sensitivity(0.05, 0.3), _sensitivity(0.04, 0.01)
    assert inexpensive.gain > expensive.gain > 0
    assert _sensitivity(0.009, 0.01).gain == 0  # no more than weight-only INT8
    # half the squared drift at half the cost gives the same gain
    half = _sensitivity((0.01**2 + (0.05**2 - 0.01**2) / 2) ** 0.5, 0.15)
    assert half.gain == pytest.approx(expensive.gain)


def test_macs_are_multiplications(
    conv_model: ModelUnderTest, transformer_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    (network,) = _networks(conv_model, choice, tmp_path)
    macs = network.macs(PLAIN)
    places = macs["net.stem"] // (3 * 3 * CHANNELS)
    assert places % SIZE**2 == 0
    assert macs["net.blocks.1"] == places * 2 * 3 * 3 * CHANNELS**2
    (network,) = _networks(transformer_model, choice, tmp_path)
    macs = network.macs(PLAIN)
    n_frames, width = (CROP - 400) // 200 + 1, 16
    n_views = macs["net.frames"] // (CROP // 200 * 400 * width)  # strides, without the edge
    assert n_views > 0
    layer = n_views * n_frames * (4 * width**2 + 2 * width * 2 * width)
    assert macs["net.layers.0"] == layer


def test_a_budget_that_nothing_holds(
    broken: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    outcome = _searched(broken, choice, tmp_path, Budget(max_drift=1e-9, min_srcc=1.0))
    assert outcome.chosen is None
    # every number of blocks was tried but all of them, which would be float32
    assert [len(point.kept_fp32) for point in outcome.points] == [0, 1, 2, 3, 4]


def test_a_budget_that_holds_at_once_asks_for_no_ranking(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    outcome = _searched(
        conv_model, choice, tmp_path, Budget(max_drift=10.0, min_srcc=-1.0), symmetric=True
    )
    assert outcome.ranking == ()
    assert outcome.points == (outcome.chosen,)


def test_equalisation_wins_where_channels_are_uneven(choice: Choice, tmp_path: Path) -> None:
    tested = model_of(write_bundle(tmp_path / "uneven", relu_chain()))
    comparison = _compared(tested, choice, tmp_path, Budget(), ("min-max", "percentile"))
    names = [str(scheme) for scheme, _ in comparison.results]
    assert names[:2] == ["min-max, 7-bit weights", "percentile, 7-bit weights"]
    assert comparison.winner.equalised
    drifts = {scheme: measured.drift.mean_abs for scheme, measured in comparison.results}
    assert drifts[comparison.winner] == min(drifts.values())
    assert comparison.table().count("<- chosen") == 1


@pytest.mark.parametrize(("max_drift", "tried"), [(10.0, {7}), (1e-9, {7, 8})])
def test_weights_have_7_bits_unless_those_drift_too_far(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path, max_drift: float, tried: set[int]
) -> None:
    comparison = _compared(
        conv_model, choice, tmp_path, Budget(max_drift=max_drift, min_srcc=-1.0), ("min-max",)
    )
    assert {scheme.weight_bits for scheme, _ in comparison.results} == tried
    assert comparison.winner.kind == f"qdq-u8s{comparison.winner.weight_bits}"


def test_transformers_are_tried_static_smoothed_and_dynamic(
    transformer_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    comparison = _compared(transformer_model, choice, tmp_path, Budget(), ("min-max",))
    schemes = [scheme for scheme, _ in comparison.results]
    assert any(scheme.smoothed for scheme in schemes)
    assert any(scheme.dynamic_matmul for scheme in schemes)
    assert not any(scheme.equalised for scheme in schemes)  # there is nothing to equalise
