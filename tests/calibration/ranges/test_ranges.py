import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource
from mosrt.crops import PlanRule
from mosrt.mos.scorer import FusionFrontEnd
from mosrt_calibration.clips import Choice, Clip
from mosrt_calibration.graph import Topology, read_graph
from mosrt_calibration.passes.qparams import quant_params
from mosrt_calibration.passes.targets import Targets
from mosrt_calibration.ranges.collector import ActivationProbe, collect, slices
from mosrt_calibration.ranges.ranges import METHODS, ranges
from mosrt_calibration.ranges.statistics import BINS, Histogram, NonFiniteError, Statistics
from mosrt_calibration.scoring import ModelUnderTest


@contextmanager
def _broken_off(clips: Sequence[Clip], label: str) -> Iterator[Iterator[Clip]]:
    """A progress bar that is interrupted after three clips."""
    assert label

    def some() -> Iterator[Clip]:
        yield from clips[:3]
        raise KeyboardInterrupt

    yield some()


def _tensors(tested: ModelUnderTest) -> tuple[Any, tuple[str, ...]]:
    model = read_graph(tested.directory / tested.reference.members[0].graph.path)
    topology = Topology(model)
    return model, Targets.of(topology).tensors(topology)


def _collect(tested: ModelUnderTest, choice: Choice, cache: Path) -> Statistics:
    model, tensors = _tensors(tested)
    return collect(
        tested,
        tested.reference.members[0],
        model,
        tensors,
        choice.calibration,
        histograms=True,
        cache=cache,
    )


def _activations(tested: ModelUnderTest, clips: Sequence[Clip]) -> dict[str, NDArray[np.float32]]:
    """All activations of all clips, by onnx's own evaluator."""
    model, tensors = _tensors(tested)
    for name in tensors:
        if name not in {value.name for value in (*model.graph.input, *model.graph.output)}:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    evaluator = ReferenceEvaluator(model)
    front_end = FusionFrontEnd(tested.manifest)
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in tensors}
    for clip in clips:
        recording = Recording(FileSource(clip.path), tested.manifest.sample_rate_hz)
        plan = PlanRule(kind="grid", views=1).plan(recording.n_samples, front_end.geometry)
        (view,) = front_end.views(recording, plan)
        feeds = {name: value[np.newaxis] for name, value in view.items()}
        names = [name for name in tensors if name not in feeds]
        values = {**feeds, **dict(zip(names, evaluator.run(names, feeds), strict=True))}
        for name in tensors:
            found[name].append(values[name])
    return {name: np.concatenate(values) for name, values in found.items()}


def test_statistics_are_those_of_all_activations(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    found = _collect(conv_model, choice, tmp_path / "cache")
    expected = _activations(conv_model, choice.calibration)
    assert set(found.low) == set(expected)
    assert len(expected) > 20
    for name, values in expected.items():
        # two evaluators sum convolutions in different orders
        tolerance = 1e-5 * float(np.abs(values).max())
        assert found.low[name] == pytest.approx(values.min(), abs=tolerance)
        assert found.high[name] == pytest.approx(values.max(), abs=tolerance)
        seen = found.histograms[name]
        assert seen.counts.sum() == values.size
        assert seen.counts.shape == (BINS,)
        assert seen.limit / 2 <= np.abs(values).max() * 1.00001 <= seen.limit * 1.00002
    name = "net.blocks.1/Mul:0"  # what a convolution reads
    channels = found.channels[name]
    assert channels.mean == pytest.approx(expected[name].mean(axis=(0, 2, 3)), rel=1e-4, abs=1e-6)
    assert channels.largest == pytest.approx(np.abs(expected[name]).max(axis=(0, 2, 3)), rel=1e-5)


def test_min_max_and_percentile_are_those_of_numpy(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path
) -> None:
    statistics = _collect(conv_model, choice, tmp_path / "cache")
    expected = _activations(conv_model, choice.calibration)
    plain, cut = ranges(statistics, "min-max"), ranges(statistics, "percentile")
    for name, values in expected.items():
        limit = float(np.abs(values).max())
        assert plain[name] == pytest.approx(
            (min(values.min(), 0), max(values.max(), 0)), abs=1e-5 * limit
        )
        low, high = np.percentile(values, (0.005, 99.995), method="inverted_cdf")
        # a bin to either side, and no wider than min-max
        step = 2 * statistics.histograms[name].limit / BINS
        assert cut[name] == pytest.approx((min(low, 0), max(high, 0)), abs=1.01 * step)


def test_entropy_cuts_outliers_and_keeps_what_is_common() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(1_000_000), [60.0]]).astype(np.float32)
    counts, _ = np.histogram(values, BINS, (-60.0, 60.0))
    statistics = Statistics(
        low={"x": float(values.min())},
        high={"x": 60.0},
        channels={},
        histograms={"x": Histogram(counts.astype(np.int64), 60.0)},
    )
    low, high = ranges(statistics, "entropy")["x"]
    assert 3.0 < high < 10.0
    assert low == pytest.approx(float(values.min()), abs=1e-6) or low == -high


@pytest.mark.parametrize("kind", ["normal", "silu", "outlier"])
def test_mse_errs_least_of_all(kind: str) -> None:
    """Against values that were really rounded, for ends from a grid of its own."""
    values = np.random.default_rng(0).standard_normal(100_000)
    if kind == "silu":
        values = 3 * values / (1 + np.exp(-3 * values))
    if kind == "outlier":
        values[0] = 300.0
    limit = float(np.abs(values).max())
    counts, _ = np.histogram(values, BINS, (-limit, limit))
    statistics = Statistics(
        low={"x": float(values.min())},
        high={"x": float(values.max())},
        channels={},
        histograms={"x": Histogram(counts.astype(np.int64), limit)},
    )

    def error(low: float, high: float) -> float:
        scale, zero_point = quant_params(low, high, symmetric=False)
        rounded = np.clip(np.round(values / scale) + zero_point, 0, 255)
        return float(np.mean((values - (rounded - zero_point) * scale) ** 2))

    errors = {method: error(*ranges(statistics, method)["x"]) for method in METHODS}
    # Its ends are a few percent apart, and a histogram knows values to a bin only.
    assert errors["mse"] <= 1.02 * min(errors.values())
    ends = np.linspace(0.05, 1.0, 20)
    tried = min(error(a * values.min(), b * values.max()) for a in ends for b in ends)
    assert errors["mse"] <= 1.02 * tried


@pytest.mark.parametrize("method", METHODS)
def test_an_activation_that_is_always_zero_has_a_range(method: str) -> None:
    counts = np.zeros(BINS, np.int64)
    counts[BINS // 2] = 1000
    statistics = Statistics(
        low={"x": 0.0}, high={"x": 0.0}, channels={}, histograms={"x": Histogram(counts, 0.0)}
    )
    assert ranges(statistics, method) == {"x": (0.0, 0.0)}


def test_bins_grow_with_what_comes() -> None:
    rng = np.random.default_rng(0)
    found = Histogram()
    parts = [np.zeros(5, np.float32)]
    parts += [(s * rng.standard_normal(1000)).astype(np.float32) for s in (1e-3, 10.0, 0.1, 3000.0)]
    for part in parts:
        found = found.with_values(part)
    values = np.concatenate(parts).astype(np.float64)
    assert found.limit / 2 <= np.abs(values).max() < found.limit
    expected, edges = np.histogram(values, BINS, (-found.limit, found.limit))
    assert found.counts.sum() == expected.sum()
    # bins become one by pairs, so that no value is in another one than it would have been
    wide = np.abs(edges[:-1] + edges[1] - edges[0]) > 4 * (edges[1] - edges[0])
    assert np.abs(found.counts - expected)[wide].max() <= 1  # a value on an edge


def test_of_large_tensors_evenly_spaced_values_are_counted() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 16, 256, 1024)).astype(np.float32)
    found = Histogram().with_values(values)
    counts = found.counts
    assert 200_000 < counts.sum() <= 262_144
    everything, _ = np.histogram(values, BINS, (-found.limit, found.limit))
    shares = np.cumsum(counts) / counts.sum() - np.cumsum(everything) / values.size
    assert np.abs(shares).max() < 0.005


def test_values_that_are_not_finite_are_refused() -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="'x'"):
            Statistics().observe("x", np.array([0.0, value], np.float32))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Counts runs of the network since it was last asked."""
    counted = []
    run = ActivationProbe.run

    def counting(self: ActivationProbe, feeds: Any, outputs: Any) -> Any:
        counted.append(1)
        return run(self, feeds, outputs)

    def since() -> int:
        n = len(counted)
        counted.clear()
        return n

    monkeypatch.setattr(ActivationProbe, "run", counting)
    return since


def test_a_run_that_was_broken_off_goes_on_where_it_was(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path, runs: Callable[[], int]
) -> None:
    whole = _collect(conv_model, choice, tmp_path / "other")
    n = len(choice.calibration)
    assert runs() == n
    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        _collect(dataclasses.replace(conv_model, progress=_broken_off), choice, cache)
    assert runs() == 3
    resumed = _collect(conv_model, choice, cache)
    assert runs() == n - 3
    again = _collect(conv_model, choice, cache)
    assert runs() == 0
    for found in (resumed, again):
        assert found.low == whole.low
        assert found.high == whole.high
        for name, seen in whole.histograms.items():
            assert np.array_equal(found.histograms[name].counts, seen.counts)
            assert found.histograms[name].limit == seen.limit
        for name, channels in whole.channels.items():
            assert np.array_equal(found.channels[name].mean, channels.mean)


def test_other_clips_other_weights_and_damaged_files_are_not_taken_from_the_cache(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path, runs: Callable[[], int]
) -> None:
    cache = tmp_path / "cache"
    _collect(conv_model, choice, cache)
    runs()
    fewer = Choice(calibration=choice.calibration[:2], evaluation=choice.evaluation)
    _collect(conv_model, fewer, cache)
    assert runs() == 2
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    _collect(conv_model, fewer, cache)
    assert runs() == 2
    assert not [file for file in conv_model.directory.iterdir() if "probe" in file.name]


def test_slices_bound_what_is_held_at_once(conv_model: ModelUnderTest) -> None:
    model, tensors = _tensors(conv_model)
    largest = 4 * 8 * 16 * 16  # float32, channels, rows, columns
    cut = slices(model, tensors, limit_bytes=3 * largest)
    assert [name for run in cut for name in run] == list(tensors)
    assert max(map(len, cut)) <= 4  # the image is smaller than an activation
    assert min(map(len, cut[:-1])) >= 3
    assert len(slices(model, tensors)) == 1


def test_slices_do_not_change_what_is_seen(
    conv_model: ModelUnderTest, choice: Choice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _collect(conv_model, choice, tmp_path / "cache")
    monkeypatch.setattr(
        "mosrt_calibration.ranges.collector.slices",
        lambda model, names: slices(model, names, 10_000),
    )
    sliced = _collect(conv_model, choice, tmp_path / "other")
    # which tensors are outputs changes what ONNX Runtime fuses, hence the last bits
    assert sliced.low == pytest.approx(whole.low, rel=1e-5, abs=1e-6)
    assert sliced.high == pytest.approx(whole.high, rel=1e-5, abs=1e-6)
