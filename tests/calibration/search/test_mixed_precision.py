from pathlib import Path

import pytest

from mosrt_calibration.clips import Choice
from mosrt_calibration.scoring import Subject
from mosrt_calibration.search.batch_invariance import IndependenceError, fixed_batch
from mosrt_calibration.search.drift import Budget, Drift
from mosrt_calibration.search.evaluate import Bench, written
from mosrt_calibration.search.macs import Work
from mosrt_calibration.search.methods import Comparison, compare
from mosrt_calibration.search.mixed_precision import Outcome, Sensitivity, rank, search
from mosrt_calibration.search.network import Network
from mosrt_calibration.search.recipe import Recipe
from tests.calibration.conftest import silent, subject_of
from tests.standins.quantizable import (
    CHANNELS,
    CROP,
    SIZE,
    convolutional,
    relu_chain,
    write_bundle,
)

PLAIN = Recipe(method="min-max")


def _networks(subject: Subject, choice: Choice, tmp_path: Path) -> list[Network]:
    return [
        Network(subject, member, choice.calibration, cache=tmp_path / "cache", progress=silent)
        for member in subject.reference.members
    ]


def _compared(
    subject: Subject, choice: Choice, tmp_path: Path, budget: Budget, methods: tuple[str, ...]
) -> Comparison:
    """Ways of making a graph for CPUs."""
    return compare(
        Bench(subject, silent),
        _networks(subject, choice, tmp_path),
        choice.calibration,
        methods=methods,
        symmetric=False,
        budget=budget,
    )


def _searched(
    subject: Subject, choice: Choice, tmp_path: Path, budget: Budget, *, symmetric: bool = False
) -> Outcome:
    """Blocks to leave in float, without the curve beyond what holds the budget."""
    return search(
        Bench(subject, silent),
        _networks(subject, choice, tmp_path),
        PLAIN,
        screening=choice.calibration,
        clips=choice.evaluation,
        symmetric=symmetric,
        budget=budget,
        curve=False,
    )


@pytest.fixture
def broken(tmp_path: Path) -> Subject:
    """Two folds whose third block breaks under INT8."""
    model = convolutional(outlier=2)
    return subject_of(write_bundle(tmp_path / "broken", model, model))


def test_the_block_that_breaks_is_found_and_left_in_float(
    broken: Subject, choice: Choice, tmp_path: Path
) -> None:
    bench = Bench(broken, silent)
    networks = _networks(broken, choice, tmp_path)
    work = Work.of(networks, PLAIN)
    ranking = rank(bench, networks, PLAIN, work, choice.calibration, symmetric=False)
    assert ranking[0].block == "net.blocks.2"
    assert len(ranking) == 5
    worst, next_worst = ranking[0].drift.mean_abs, ranking[1].drift.mean_abs
    assert worst > 5 * next_worst
    assert sum(row.share for row in ranking) == pytest.approx(1)
    budget = Budget(max_drift=(worst + next_worst) / 2, min_srcc=-1.0)
    outcome = _searched(broken, choice, tmp_path, budget)
    assert not budget.holds(outcome.points[0].measured.drift)
    assert outcome.chosen is not None
    assert outcome.chosen.left_float == ("net.blocks.2",)
    assert "net.blocks.2" in outcome.table()
    assert not list(broken.directory.glob(".candidate-*"))


def test_a_block_that_the_budget_does_without_is_quantised_again(
    broken: Subject, choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misled(*_: object, **__: object) -> tuple[Sensitivity, ...]:
        shares = {"net.blocks.0": 0.6, "net.blocks.2": 0.1, "net.stem": 0.1, "net.blocks.1": 0.1}
        return tuple(
            _sensitivity(0.1 - 0.02 * i, share, block)
            for i, (block, share) in enumerate(shares.items())
        )

    monkeypatch.setattr("mosrt_calibration.search.mixed_precision.rank", misled)
    monkeypatch.setattr(Sensitivity, "worth", property(lambda row: row.drift.mean_abs))
    outcome = _searched(broken, choice, tmp_path, Budget(max_drift=0.02, min_srcc=-1.0))
    assert outcome.chosen is not None
    assert outcome.chosen.left_float == ("net.blocks.2",)
    tried = [point.left_float for point in outcome.points]
    assert sorted(map(len, tried)) == list(map(len, tried))
    assert ("net.blocks.0", "net.blocks.2") in tried


def test_of_a_block_of_many_parts_only_the_half_that_breaks_stays(
    choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mosrt_calibration.passes.targets._MOST_BLOCKS", 8)
    places = ("0.0", "1.0", "2.0", "3.0", "4.0", "4.1", "4.2", "4.3")
    names = [f"net.0.blocks.{place}" for place in places]
    model = convolutional(8, outlier=6, name=names.__getitem__)
    subject = subject_of(write_bundle(tmp_path / "stages", model))
    (network,) = _networks(subject, choice, tmp_path)
    work = Work.of([network], PLAIN)
    stage, parts = "net.*.blocks.4", tuple(f"net.*.blocks.4.{i}" for i in range(4))
    assert len(work.blocks) == 6
    assert work.parts[stage] == parts
    outcome = _searched(subject, choice, tmp_path, Budget(max_drift=0.3, min_srcc=-1.0))
    assert outcome.chosen is not None
    # a quarter of the stage is less work than a block is on average, and is not tried alone
    assert outcome.chosen.left_float == parts[2:]
    assert outcome.chosen.share == pytest.approx(work.share([stage]) / 2)
    assert [point.left_float for point in outcome.points] == [(), parts[2:], (stage,)]


def test_taking_a_block_apart() -> None:
    work = Work(
        parts={"a": ("a",), "b": ("b.0", "b.1")}, multiplications={"a": 2, "b.0": 1, "b.1": 1}
    )
    assert work.share(["b"]) == work.share(["a"]) == work.share(["b.0", "b.1"]) == 0.5
    assert work.without(["b", "a"], ["b.1"]) == ("b.0", "a")
    assert work.without(["b.0", "a"], ["b.0", "b.1"]) == ("a",)
    assert work.without(["b", "a"], ["c"]) == ("b", "a")


@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_alone_are_heard_where_they_are_bytes(
    conv_subject: Subject,
    choice: Choice,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    symmetric: bool,
) -> None:
    monkeypatch.setattr("mosrt_calibration.passes.weight_only._FEWEST", 1)
    bench, networks = Bench(conv_subject, silent), _networks(conv_subject, choice, tmp_path)
    work = Work.of(networks, PLAIN)
    for row in rank(bench, networks, PLAIN, work, choice.calibration, symmetric=symmetric):
        assert (row.without == 0) == symmetric
        assert row.without < 2 * row.drift.mean_abs


def _sensitivity(mean_abs: float, share: float, block: str = "block") -> Sensitivity:
    drift = Drift(unit="mos", mean_abs=mean_abs, p95_abs=0, max_abs=0, srcc=1, lcc=1, n_clips=8)
    return Sensitivity(block=block, drift=drift, without=0.01, share=share)


def test_blocks_are_worth_what_they_add_by_what_they_cost() -> None:
    dear, cheap = _sensitivity(0.05, 0.3), _sensitivity(0.04, 0.01)
    assert cheap.worth > dear.worth > 0
    assert _sensitivity(0.009, 0.01).worth == 0  # no more than the weights alone
    # two blocks that each add as much in squares as another, at half the cost
    half = _sensitivity((0.01**2 + (0.05**2 - 0.01**2) / 2) ** 0.5, 0.15)
    assert half.worth == pytest.approx(dear.worth)


def test_work_is_multiplications(
    conv_subject: Subject, transformer_subject: Subject, choice: Choice, tmp_path: Path
) -> None:
    (network,) = _networks(conv_subject, choice, tmp_path)
    work = network.work(PLAIN)
    places = work["net.stem"] // (3 * 3 * CHANNELS)
    assert places % SIZE**2 == 0
    assert work["net.blocks.1"] == places * 2 * 3 * 3 * CHANNELS**2
    (network,) = _networks(transformer_subject, choice, tmp_path)
    work = network.work(PLAIN)
    n_frames, width = (CROP - 400) // 200 + 1, 16
    n_views = work["net.frames"] // (CROP // 200 * 400 * width)  # strides, without the edge
    assert n_views > 0
    layer = n_views * n_frames * (4 * width**2 + 2 * width * 2 * width)
    assert work["net.layers.0"] == layer


def test_a_budget_that_nothing_holds(broken: Subject, choice: Choice, tmp_path: Path) -> None:
    outcome = _searched(broken, choice, tmp_path, Budget(max_drift=1e-9, min_srcc=1.0))
    assert outcome.chosen is None
    # every number of blocks was tried but all of them, which would be float32
    assert [len(point.left_float) for point in outcome.points] == [0, 1, 2, 3, 4]


def test_a_budget_that_holds_at_once_asks_for_no_ranking(
    conv_subject: Subject, choice: Choice, tmp_path: Path
) -> None:
    outcome = _searched(
        conv_subject, choice, tmp_path, Budget(max_drift=10.0, min_srcc=-1.0), symmetric=True
    )
    assert outcome.ranking == ()
    assert outcome.points == (outcome.chosen,)


def test_equalisation_wins_where_channels_are_uneven(choice: Choice, tmp_path: Path) -> None:
    subject = subject_of(write_bundle(tmp_path / "uneven", relu_chain()))
    comparison = _compared(subject, choice, tmp_path, Budget(), ("min-max", "percentile"))
    names = [str(recipe) for recipe, _ in comparison.rows]
    assert names[:2] == ["min-max, 7-bit weights", "percentile, 7-bit weights"]
    assert comparison.winner.equalise
    drifts = {recipe: measured.drift.mean_abs for recipe, measured in comparison.rows}
    assert drifts[comparison.winner] == min(drifts.values())
    assert comparison.table().count("<- taken") == 1


@pytest.mark.parametrize(("max_drift", "tried"), [(10.0, {7}), (1e-9, {7, 8})])
def test_weights_have_7_bits_unless_those_drift_too_far(
    conv_subject: Subject, choice: Choice, tmp_path: Path, max_drift: float, tried: set[int]
) -> None:
    comparison = _compared(
        conv_subject, choice, tmp_path, Budget(max_drift=max_drift, min_srcc=-1.0), ("min-max",)
    )
    assert {recipe.weight_bits for recipe, _ in comparison.rows} == tried
    assert comparison.winner.kind(symmetric=False) == f"qdq-u8s{comparison.winner.weight_bits}"


def test_transformers_are_tried_static_smoothed_and_dynamic(
    transformer_subject: Subject, choice: Choice, tmp_path: Path
) -> None:
    comparison = _compared(transformer_subject, choice, tmp_path, Budget(), ("min-max",))
    recipes = [recipe for recipe, _ in comparison.rows]
    assert any(recipe.smooth for recipe in recipes)
    assert any(recipe.dynamic for recipe in recipes)
    assert not any(recipe.equalise for recipe in recipes)  # there is nothing to equalise


def test_a_dynamic_scale_hears_the_whole_batch(
    transformer_subject: Subject, choice: Choice, tmp_path: Path
) -> None:
    (network,) = _networks(transformer_subject, choice, tmp_path)
    root = transformer_subject.directory
    recipe = Recipe(method="min-max", dynamic=True)
    models = {"fold0": network.integer(recipe, (), symmetric=False)}
    variant = written(transformer_subject, models, root, "dynamic", None)
    assert fixed_batch(transformer_subject, variant, choice.evaluation) == 1


def test_static_bytes_do_not(conv_subject: Subject, choice: Choice, tmp_path: Path) -> None:
    (network,) = _networks(conv_subject, choice, tmp_path)
    models = {"fold0": network.integer(PLAIN, (), symmetric=False)}
    variant = written(conv_subject, models, conv_subject.directory, "static", None)
    assert fixed_batch(conv_subject, variant, choice.evaluation) is None


def test_a_variant_that_does_not_repeat_itself_is_refused(
    conv_subject: Subject, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mosrt.backends import OrtBackend

    calls = []
    run = OrtBackend.run

    def restless(self: OrtBackend, feeds: object, outputs: object) -> object:
        calls.append(1)
        found = run(self, feeds, outputs)  # type: ignore[arg-type]
        return {name: value + len(calls) for name, value in found.items()}

    monkeypatch.setattr(OrtBackend, "run", restless)
    with pytest.raises(IndependenceError, match="two scores"):
        fixed_batch(conv_subject, conv_subject.reference, choice.evaluation)
