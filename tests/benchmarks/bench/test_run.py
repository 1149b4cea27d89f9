"""Whole runs: torch beside a bundle, configurations that fail, a time budget, interruptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mosrt_bench.bench.configurations import list_configurations, open_bundle
from mosrt_bench.bench.request import Request, TimeBudget
from mosrt_bench.bench.run import Bench
from mosrt_bench.bench.timing import Effort
from mosrt_bench.errors import BenchError, WorkerError
from mosrt_bench.report.sections import sections
from mosrt_bench.worker.process import IsolatedRunner
from mosrt_bench.worker.protocol import LoadKind
from tests.benchmarks.conftest import Fusion, run_bench
from tests.conftest import DATA
from tests.standins.planted_defects import one_weight_off, unchanged, with_variants
from tests.standins.segments import write_segments_bundle

CLIP = DATA / "flite_kal_8k_mono.wav"


def quick(**changes: Any) -> Request:
    options: dict[str, Any] = {
        "bundles": ("nano",), "providers": ("cpu",), "audio": (CLIP,), "lengths_s": (1.0,),
        "batches": (2,), "callers": (), "starts": 0,
        "effort": Effort(runs=5, seconds=0.0, warm_up_runs=1),
    }  # fmt: skip
    return Request(**{**options, **changes})


def test_torch_is_a_configuration_like_any_other(fusion: Fusion) -> None:
    request = quick(
        bundles=(str(fusion.bundle),), references=(fusion.checkpoint,), starts=1, batches=()
    )
    report, _ = run_bench(request)
    ours, torch = "small fp32 cpu x1", "small fp32 torch-cpu x1"
    rows = {(row["contestant"], row["against"]): row for row in report["parity"]}
    reference = "small fp32 cpu"
    for key in ((torch[:-3], reference), (torch[:-3], "torch checkpoint"), (reference, reference)):
        assert rows[key]["passed"], key
    assert 0 < rows[torch[:-3], reference]["max_abs"] < 1e-3
    headline = {row["contestant"]: row for row in report["latency"] if row["clip_s"] == 5}
    assert set(headline) == {ours, torch}
    assert headline[ours]["torch"] == torch
    low, high = headline[ours]["ratio_to_torch"]["interval_95"]
    assert low <= headline[ours]["ratio_to_torch"]["ratio"] <= high
    inverse = headline[torch]["ratio_to_first"]["ratio"]
    assert headline[ours]["ratio_to_torch"]["ratio"] == pytest.approx(1 / inverse)
    assert {row["contestant"] for row in report["cold_start"]} == {ours, torch}
    assert report["facts"]["small fp32 torch-cpu"]["device"] == "CPU"
    assert report["finished"]
    assert report["not_measured"] == []
    (latency,) = [section for section in sections(report) if section.key == "latency"]
    ratio = latency.header.index("relative to torch (95 %)")
    assert [row[ratio] == "-" for row in latency.rows] == [False, True]


def test_a_model_of_segments_with_several_domains(tmp_path: Path) -> None:
    bundle = write_segments_bundle(tmp_path / "bundle")
    report, _ = run_bench(quick(bundles=(str(bundle),)))
    assert report["not_measured"] == []
    assert all(row["passed"] for row in report["parity"])
    assert {row["contestant"] for row in report["latency"]} == {"small-segments fp32 cpu x1"}


@pytest.mark.parametrize(
    ("torch", "providers", "wanted"),
    [
        (("auto",), ("cpu",), ["fp32 torch-cpu"]),
        (("auto",), ("cuda", "tensorrt"), ["fp16 torch-cuda", "fp32 torch-cuda"]),
        ((), ("cpu",), []),
        (
            ("cpu-compiled", "cuda-fp16-compiled"),
            ("cpu",),
            ["fp32 torch-cpu-compiled", "fp16 torch-cuda-compiled"],
        ),
    ],
)
def test_which_torch_is_timed(
    fusion: Fusion, torch: tuple[str, ...], providers: tuple[str, ...], wanted: list[str]
) -> None:
    request = quick(
        bundles=(str(fusion.bundle),), providers=providers, references=(fusion.checkpoint,),
        torch=torch,
    )  # fmt: skip
    found = list_configurations([open_bundle(str(fusion.bundle))], request)
    assert [f"{c.variant} {c.provider}" for c in found if c.is_torch] == wanted
    if "cpu" in providers:
        assert found[0].is_reference


def test_torch_needs_a_checkpoint_of_one_bundle(fusion: Fusion) -> None:
    nano = [open_bundle("nano")]
    with pytest.raises(BenchError, match="--torch needs --reference"):
        list_configurations(nano, quick(torch=("cpu",)))
    both = [*nano, open_bundle(str(fusion.bundle))]
    with pytest.raises(BenchError, match="goes with one bundle"):
        list_configurations(both, quick(references=(fusion.checkpoint,)))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """The embedded model with two more variants of the same graph."""
    changes = {"fp32-b": unchanged, "fp32-c": unchanged}
    return with_variants(Path(open_bundle("nano").path), tmp_path / "nano", changes)


def test_one_that_dies_is_named_and_the_others_are_measured(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second variant's process is killed while it is timed, and the third's in a batch."""
    time_one, run_many = IsolatedRunner.time, IsolatedRunner.run_many
    n_timed = 0

    def killing(runner: IsolatedRunner, clip: Path) -> dict[str, float]:
        nonlocal n_timed
        n_timed += 1
        if n_timed == 5:  # of the three, in turn
            runner.close()
        try:
            return time_one(runner, clip)
        except ValueError as exc:  # a closed pipe
            raise WorkerError("its process ended") from exc

    def too_large(runner: IsolatedRunner, clip: Path, kind: LoadKind, count: int, n: int) -> float:
        if count == 4:
            raise WorkerError("out of memory")
        return run_many(runner, clip, kind, count, n)

    monkeypatch.setattr(IsolatedRunner, "time", killing)
    monkeypatch.setattr(IsolatedRunner, "run_many", too_large)
    report, _ = run_bench(quick(bundles=(str(three),), isolate=True, batches=(2, 4)))
    failed = report["not_measured"][0]
    assert failed["contestant"] == "nano fp32-b cpu x1"
    assert failed["reason"].startswith("its process ended")
    (shown,) = [section for section in sections(report) if section.key == "not_measured"]
    assert shown.rows[0] == tuple(failed.values())
    whole = {"nano fp32 cpu x1", "nano fp32-c cpu x1"}
    assert {r["contestant"] for r in report["latency"] if r["clip_s"] == 1} == whole
    assert {(r["contestant"], r["count"]) for r in report["throughput"]} == {(n, 2) for n in whole}
    assert [(r["contestant"], r["reason"]) for r in report["not_measured"][1:]] == [
        (name, "out of memory") for name in sorted(whole)
    ]
    assert report["finished"]


def test_what_finds_no_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only timing moves on: the headline is measured, and no other length."""
    now_s = 0.0
    monkeypatch.setattr(TimeBudget, "used_s", property(lambda _: now_s))
    time_one = IsolatedRunner.time

    def slow(runner: IsolatedRunner, clip: Path) -> dict[str, float]:
        nonlocal now_s
        found = time_one(runner, clip)
        now_s += 600.0
        return found

    monkeypatch.setattr(IsolatedRunner, "time", slow)
    request = quick(isolate=True, budget_s=3540.0, starts=1, effort=Effort(runs=50, warm_up_runs=1))
    report, _ = run_bench(request)
    (row,) = report["latency"]
    assert (row["clip_s"], row["runs"]) == (5.0, 5)
    assert [(r["what"], r["reason"]) for r in report["not_measured"]] == [
        ("timing 1 configurations on 1 s", "no time left"),
        ("throughput", "no time left"),
        ("1 fresh processes each", "no time left"),
    ]


def test_an_interrupted_run_keeps_what_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, Any]] = []
    bench = Bench(quick(isolate=True), keep=kept.append)
    time_one = IsolatedRunner.time
    n_timed = 0

    def interrupted(runner: IsolatedRunner, clip: Path) -> dict[str, float]:
        nonlocal n_timed
        n_timed += 1
        if n_timed == 10:  # one round of 5 s to warm up and five that count, then 1 s
            raise KeyboardInterrupt
        return time_one(runner, clip)

    monkeypatch.setattr(IsolatedRunner, "time", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert [len(report.get("latency", [])) for report in kept] == [0, 1]
    assert [(row["clip_s"], row["runs"]) for row in bench.report["latency"]] == [(1, 2), (5, 5)]
    assert not bench.report["finished"]


def test_a_defect_is_found_in_a_process_of_its_own(tmp_path: Path) -> None:
    bundle = with_variants(
        Path(open_bundle("nano").path), tmp_path / "nano", {"fp16-off": one_weight_off}
    )
    report, _ = run_bench(quick(bundles=(str(bundle),), isolate=True, speed=False))
    assert [row["passed"] for row in report["parity"]] == [True, False]
    assert str(tmp_path) not in str(report)
