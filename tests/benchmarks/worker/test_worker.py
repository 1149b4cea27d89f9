"""Runners in this process and in processes of their own, where no GPU is needed."""

from __future__ import annotations

import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from mosrt.bundle.embedded import find_bundle
from mosrt.errors import MosrtError, ProviderError
from mosrt_bench.errors import BenchError, WorkerError, WorkerTimeoutError
from mosrt_bench.worker.device import memory_peak
from mosrt_bench.worker.process import IsolatedRunner, WorkerProcess
from mosrt_bench.worker.protocol import Configuration
from mosrt_bench.worker.worker import open_runner
from tests.benchmarks.conftest import Fusion
from tests.conftest import DATA, HANG_S

CLIP = DATA / "flite_kal_8k_mono.wav"
NANO = Configuration(
    model="nano", bundle=str(find_bundle("nano")), variant="fp32", provider="cpu", threads=1
)


def unlimited() -> float:
    return HANG_S


def test_a_process_of_its_own_gives_the_same_scores() -> None:
    here = open_runner(NANO)
    there = IsolatedRunner(NANO, unlimited)
    try:
        assert there.provider == here.provider == "cpu"
        assert there.score(CLIP) == here.score(CLIP)
        assert there.nodes() == here.nodes()
        for runner in (here, there):
            times = runner.time(CLIP)
            assert times["total"] == pytest.approx(
                sum(value for stage, value in times.items() if stage != "total")
            )
            assert runner.run_many(CLIP, "batch", 2, 4) > 0
            assert runner.run_many(CLIP, "callers", 2, 4) > 0
    finally:
        here.close()
        there.close()


def test_a_plan_and_views_are_passed_on() -> None:
    runner = open_runner(replace(NANO, views=1))
    assert runner.score(CLIP) != open_runner(replace(NANO, views=5)).score(CLIP)
    seeded = open_runner(replace(NANO, plan="reference:1"))
    assert seeded.score(CLIP) != open_runner(replace(NANO, plan="reference:2")).score(CLIP)


def test_a_failure_is_told_and_the_worker_goes_on() -> None:
    worker = WorkerProcess(asdict(replace(NANO, provider="none")))
    with pytest.raises(WorkerError, match="unknown provider 'none'"):
        worker.ask({"do": "open"}, HANG_S)
    with pytest.raises(WorkerError, match="first request must be 'open'"):
        worker.ask({"do": "nodes"}, HANG_S)
    worker.close()
    with pytest.raises(WorkerError, match="unknown provider 'none'"):
        IsolatedRunner(replace(NANO, provider="none"), unlimited)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that hangs, crashes or answers as it is asked."""
    (tmp_path / "planted_worker.py").write_text(
        "import os, time\n"
        "from mosrt_bench.worker.worker import serve\n"
        "def answer(request):\n"
        "    if request['do'] == 'hang':\n"
        "        time.sleep(10_000)\n"
        "    if request['do'] == 'crash':\n"
        "        print('out of memory', flush=True)\n"
        "        os._exit(7)\n"
        "    return request['do']\n"
        "if __name__ == '__main__':\n"
        "    serve(answer)\n"
    )
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *filter(None, sys.path)]))
    return "planted_worker"


def test_one_that_hangs_is_ended(planted: str) -> None:
    worker = WorkerProcess({}, planted)
    assert worker.ask({"do": "something"}, HANG_S) == "something"
    with pytest.raises(WorkerTimeoutError, match="no answer to 'hang' within 0 s"):
        worker.ask({"do": "hang"}, 0.2)
    with pytest.raises(WorkerError, match="its process ended"):
        worker.ask({"do": "something"}, HANG_S)
    worker.close()


def test_one_that_crashes_leaves_its_last_words(planted: str) -> None:
    worker = WorkerProcess({}, planted)
    with pytest.raises(WorkerError, match="its process ended with status 7: out of memory"):
        worker.ask({"do": "crash"}, HANG_S)
    worker.close()


def test_memory_is_watched_over_what_was_in_use() -> None:
    levels = iter([5_000_000, 5_000_000, 9_000_000])
    fallen = threading.Event()

    def watched() -> int:
        level = next(levels, None)
        if level is None:
            fallen.set()
        return level or 6_000_000

    with memory_peak(watched) as peak_mb:
        assert fallen.wait(HANG_S)
    assert peak_mb() == 4.0


def torch_options(fusion: Fusion, **changes: Any) -> Configuration:
    checkpoints = [str(fusion.checkpoint)]
    options = replace(NANO, bundle=str(fusion.bundle), provider="torch-cpu")
    return replace(options, **{"checkpoints": checkpoints, **changes})


def scores(options: Configuration, clip: Path) -> dict[str, float]:
    runner = open_runner(options)
    found: dict[str, float] = runner.score(clip)["scores"]
    runner.close()
    return found


@pytest.fixture
def short(tmp_path: Path, speech: npt.NDArray[np.float32]) -> Path:
    """A clip shorter than any crop, which is repeated."""
    path = tmp_path / "short.wav"
    soundfile.write(path, speech[20_000:22_000], 16_000, subtype="FLOAT")
    return path


@pytest.mark.parametrize("plan", [None, "reference:3"])
def test_torch_with_either_front_end_scores_like_the_bundle(
    fusion: Fusion, short: Path, plan: str | None
) -> None:
    """Rounding of two front ends and two engines, on scores of order one."""
    for clip in (CLIP, short):
        bundle = replace(NANO, bundle=str(fusion.bundle), plan=plan)
        wanted = scores(bundle, clip)
        assert np.ptp([*wanted.values()]) > 1e-3  # domains differ, or swaps would go unseen
        for front_end in ("librosa", "mosrt"):
            found = scores(torch_options(fusion, front_end=front_end, plan=plan), clip)
            assert found == pytest.approx(wanted, abs=1e-3), front_end


def test_torch_is_timed_alone_and_in_batches(
    fusion: Fusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    compiled: list[Any] = []

    def uncompiled(model: Any) -> Any:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", uncompiled)
    runner = open_runner(torch_options(fusion, provider="torch-cpu-compiled"))
    assert runner.provider == "torch-cpu-compiled"
    assert len(compiled) == 1
    stages = {"decode", "resample", "front_end", "model", "rest", "total"}
    assert set(runner.time(CLIP)) == stages
    assert runner.run_many(CLIP, "batch", 2, 3) > 0
    assert runner.run_many(CLIP, "callers", 2, 2) > 0
    assert runner.score(CLIP)["scores"] == pytest.approx(
        scores(torch_options(fusion), CLIP), abs=1e-5
    )
    runner.close()


def test_students_can_be_compiled(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def options(provider: str) -> Configuration:
        return Configuration(
            model="student", bundle=str(student), variant="fp32", provider=provider, threads=1,
            checkpoints=[str(student.with_name("student.pt"))],
        )  # fmt: skip

    monkeypatch.setattr(torch, "compile", lambda model: model)
    found = scores(options("torch-cpu-compiled"), CLIP)
    assert found == pytest.approx(scores(options("torch-cpu"), CLIP), abs=1e-5)
    assert found == pytest.approx(scores(options("cpu"), CLIP), abs=1e-4)


def test_a_clip_that_a_guard_refuses_has_no_score(fusion: Fusion, tmp_path: Path) -> None:
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    found = open_runner(torch_options(fusion)).score(empty)
    assert np.isnan([found["duration_s"], *found["scores"].values()]).all()


def test_what_torch_cannot_run_is_told(fusion: Fusion) -> None:
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(ProviderError, match="finds no GPU"):
            open_runner(torch_options(fusion, provider="torch-cuda"))
    with pytest.raises(BenchError, match="1 networks and 2 checkpoints"):
        open_runner(torch_options(fusion, checkpoints=[str(fusion.checkpoint)] * 2))
    with pytest.raises(BenchError, match="nano is no fusion bundle"):
        open_runner(torch_options(fusion, bundle=str(find_bundle("nano"))))
    with pytest.raises(BenchError, match="scores by its uncertainty"):
        open_runner(torch_options(fusion, bundle=str(find_bundle("nano-uncertainty"))))
    with pytest.raises(MosrtError, match="keys are not those of this model"):
        open_runner(torch_options(fusion, bundle=str(find_bundle("nano")), front_end="mosrt"))
