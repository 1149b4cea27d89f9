"""The GPU benchmark where there is no GPU: real processes on the CPU, and planted contestants."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import Manifest
from mosrt_bench.bench.latency import Budget
from mosrt_bench.gpu.__main__ import main
from mosrt_bench.gpu.contest import Contest, Found
from mosrt_bench.gpu.measurement import Effort
from mosrt_bench.gpu.rows import FRONT_ENDS, Row, front_end_of, plan_rows
from mosrt_bench.gpu.targets import judge_targets
from mosrt_bench.worker.device import MemoryPeak
from mosrt_bench.worker.process import OutOfTimeError, RefusedError, WorkerProcess
from tests.standins.planted_defects import one_weight_off, unchanged, with_variants

EFFORT = Effort(latency=Budget(runs=6, seconds=5, warm_up_runs=1), rate_s=0.01, sizes=(1, 2, 4, 8))
WANTED = [[3.0, 4.0], [2.0, 1.0]]


class Planted:
    """A contestant that answers by rule; batches take memory, and 8 views are too many."""

    def __init__(self, row: Row, *, ms: float = 20.0, off: float = 0.0, most: int = 8) -> None:
        self.row, self.ms, self.off, self.most = row, ms, off, most
        self.asked: list[str] = []
        self.closed = False

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        assert not self.closed
        self.asked.append(request["do"])
        if timeout_s <= 0:
            raise OutOfTimeError("no time")
        if request["do"] == "start":
            facts = {} if self.row.is_torch else {"provider": self.row.provider}
            return {"load_s": 1.0, "first_call_ms": 9.0, "facts": facts}
        if request["do"] == "judge":
            return {"mos": (np.array(WANTED) + self.off).tolist()}
        if request["do"] == "score":
            return {"front_end": 1.0, "model": self.ms - 1, "total": self.ms}
        if request["do"] == "placement":
            return {"nodes": {self.row.provider: 5}}
        size = request["size"]
        if size > self.most:
            raise RefusedError("out of memory")
        mos = [WANTED[i % 2][1] + self.off for i in range(size)]
        return {"clips_per_s": 1e3 / self.ms * min(size, 4), "mos": mos}

    def close(self) -> None:
        self.closed = True


def row(name: str, provider: str = "cuda", variant: str = "fp16") -> Row:
    return Row(name=name, provider=provider, device="cuda", variant=variant, bundle="b")


def contest(
    rows: list[Row], make: Callable[[Row], Planted], **changes: Any
) -> tuple[Contest, list[Planted], list[Found]]:
    """A contest of planted contestants, all that were started, and all that was kept."""
    started: list[Planted] = []
    kept: list[Found] = []

    def launch(row: Row) -> Planted:
        started.append(make(row) if row.device == "cuda" else Planted(row))
        return started[-1]

    options: dict[str, Any] = {
        "launch": launch,
        "effort": EFFORT,
        "minutes": 1.0,
        "clip_s": 4.0,
        "default_domain": {"b": 1},
        "used_bytes": None,
        "keep": lambda found: kept.append(json.loads(json.dumps(found))),
        "say": lambda _: None,
        **changes,
    }
    return Contest(rows, **options), started, kept


def test_a_run_on_the_cpu(tmp_path: Path, clips: list[Path]) -> None:
    """Real processes on the embedded model; one variant is as it should be, one is not."""
    changes = {"fp16": one_weight_off}
    bundle = with_variants(find_bundle("nano"), tmp_path / "bundle", changes, name="off")
    out = tmp_path / "gpu.json"
    arguments = ["--bundle", str(bundle), "--audio", str(clips[0]), "--clips", "2"]
    arguments += ["--device", "cpu", "--quick", "--threads", "1", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    run = json.loads(out.read_text())
    assert run["device"] == "cpu"
    assert run["quick"] is True
    assert run["gpu"] is None
    rows = run["rows"]
    assert all("CUDA" not in name for name in rows)
    good = rows["mosrt fp32, ONNX Runtime CPU, NumPy front end (off)"]
    assert good["status"] == "measured"
    assert good["parity"]["max_abs_mos"] == 0.0  # it is the reference itself
    assert good["facts"]["provider"] == "cpu"
    assert good["load_s"] > 0
    assert good["latency"]["runs"] == 5
    assert good["throughput"]["clips_per_s"] > 0
    bad = rows["mosrt fp16, ONNX Runtime CPU, NumPy front end (off)"]
    assert bad["status"] == "failed"
    # One domain's offset is wrong by a quarter, which the head scales.
    assert bad["parity"]["max_abs_mos"] > bad["parity"]["tolerance_mos"] == 0.02
    assert "single scores differ" in bad["reason"]
    rest = [found for found in rows.values() if found not in (good, bad)]
    assert {found["status"] for found in rest} == {"unmeasured"}
    assert all(found["reason"] for found in rest)
    assert {target["status"] for target in run["targets"]} == {"not measured"}


def test_without_a_gpu_nothing_falls_back(tmp_path: Path, clips: list[Path]) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a GPU's ONNX Runtime")
    out = tmp_path / "gpu.json"
    arguments = ["--bundle", "nano", "--audio", str(clips[0]), "--clips", "1", "--quick"]
    arguments += ["--only", "ONNX Runtime", "--threads", "1", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    run = json.loads(out.read_text())
    found = run["rows"]["mosrt fp32, ONNX Runtime CUDA, NumPy front end (nano)"]
    assert found["status"] == "unmeasured"
    assert "provider 'cuda'" in found["reason"]
    assert "latency" not in found
    assert run["device_memory"].startswith("unmeasured: ")


def test_rows_are_measured_beside_the_baseline_and_kept_one_by_one() -> None:
    rows = [row("torch", "torch"), row("ours"), row("off"), row("nan")]
    speeds = {"torch": 40.0, "ours": 8.0, "off": 8.0, "nan": 8.0}
    offs = {"off": 0.03, "nan": float("nan")}

    def make(row: Row) -> Planted:
        return Planted(row, ms=speeds[row.name], off=offs.get(row.name, 0.0), most=4)

    running, started, kept = contest(rows, make)
    found = running.run()
    ours = found["ours"]
    assert ours["status"] == "measured"
    assert ours["latency"]["times_as_fast"]["ratio"] == pytest.approx(5.0)
    assert ours["throughput"]["times_as_fast"]["ratio"] == pytest.approx(5.0)
    assert ours["throughput"]["best_batch"] == 4
    assert ours["throughput"]["ended"] == "batch 8: out of memory"
    assert "times_as_fast" not in found["torch"]["latency"]
    assert found["off"]["status"] == found["nan"]["status"] == "failed"
    assert "0.03 MOS" in found["off"]["reason"]
    # A reference each for torch and the bundle, on the CPU, in FP32.
    references = [each.row for each in started if each.row.device == "cpu"]
    assert [(r.provider, r.variant) for r in references] == [("torch", "fp32"), ("cpu", "fp32")]
    assert all(each.closed for each in started)
    assert [sum(f["status"] != "unmeasured" for f in each.values()) for each in kept] == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    judged = judge_targets(found, {each.name: each for each in rows}, counts=True)
    # 125 clips/s alone, four times that in batches of four.
    assert [(t["status"], t["row"]) for t in judged] == [("met", "ours")] * 4
    slow = {**found, "ours": {**ours, "latency": found["torch"]["latency"]}}
    statuses = [
        t["status"] for t in judge_targets(slow, {each.name: each for each in rows}, counts=True)
    ]
    assert statuses == ["missed", "met", "not measured", "met"]


def test_throughput_that_falls_ends_the_search() -> None:
    class Falling(Planted):
        def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
            answer = super().ask(request, timeout_s)
            if request["do"] == "rate":
                answer["clips_per_s"] = {1: 10.0, 2: 30.0, 4: 20.0}[request["size"]]
            return answer

    running, _, _ = contest([row("ours")], Falling)
    found = running.run()["ours"]["throughput"]
    assert found["ended"] == "throughput fell"
    assert found["best_batch"] == 2
    assert found["clips_per_s"] == 30.0


def test_what_runs_elsewhere_fails() -> None:
    class Elsewhere(Planted):
        def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
            answer = super().ask(request, timeout_s)
            return {"nodes": {"cpu": 5}} if request["do"] == "placement" else answer

    running, _, _ = contest([row("ours")], Elsewhere)
    found = running.run()["ours"]
    assert found["status"] == "failed"
    assert "cuda fell back" in found["reason"]


@pytest.mark.parametrize(
    ("start_s", "statuses"),
    [
        # The last one would begin with a fortieth of the time.
        (19.5, ["measured", "measured", "measured", "dropped"]),
        # None may take more than a third, or one that hangs would leave nothing for the others.
        (25.0, ["unmeasured", "unmeasured", "unmeasured", "dropped"]),
    ],
)
def test_what_there_is_no_time_for(start_s: float, statuses: list[str]) -> None:
    clock = [0.0]

    class Slow(Planted):
        def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
            clock[0] += start_s if request["do"] == "start" else 0.0
            return super().ask(request, timeout_s)

    rows = [row("first"), row("second"), row("third"), row("fourth")]
    running, started, kept = contest(rows, Slow, now=lambda: clock[0])
    found = running.run()
    assert [f["status"] for f in found.values()] == statuses
    assert found["third"]["reason"] == (None if start_s < 20 else "no time")
    assert found["fourth"]["reason"] == "the 1 minutes were used up"
    assert kept[-1]["fourth"]["status"] == "dropped"
    assert all(each.closed for each in started)


def test_a_contestant_that_hangs_or_dies_ends_alone(tmp_path: Path) -> None:
    clips = tmp_path / "clips.npy"
    np.save(clips, np.zeros((1, 16_000), np.float32))
    options = {"provider": "none", "variant": "fp32", "bundle": "nano", "threads": 1}
    worker = WorkerProcess({**options, "clips": str(clips)})
    with pytest.raises(RefusedError, match="provider 'none' is not in"):
        worker.ask({"do": "start"}, 60)
    with pytest.raises(RefusedError, match="was not started"):  # it still answers
        worker.ask({"do": "judge"}, 60)
    with pytest.raises(OutOfTimeError, match="judge"):
        worker.ask({"do": "judge"}, 0)
    worker.close()
    dead = WorkerProcess({**options, "clips": str(tmp_path / "none.npy")})
    with pytest.raises(RefusedError, match=r"status 1: .*none\.npy"):
        dead.ask({"do": "start"}, 60)
    dead.close()


def test_rows_are_called_what_manifests_say(tiny: Path) -> None:
    manifest: Manifest = Bundle.open(tiny).manifest
    assert front_end_of(manifest) == FRONT_ENDS[0]
    inside = dataclasses.replace(manifest, front_end="graph")
    assert front_end_of(inside) == FRONT_ENDS[1]
    names = [each.name for each in plan_rows([str(tiny)], "cuda")]
    assert names[0].startswith("torch eager fp16")
    missing = {each.name: each.missing for each in plan_rows([str(tiny)], "cpu")}
    assert missing["mosrt fp32, ONNX Runtime CPU, NumPy front end (tiny)"] is None
    assert "needs a GPU" in str(missing["mosrt fp32, TensorRT, NumPy front end (tiny)"])


def test_memory_is_watched_over_what_was_in_use() -> None:
    levels = iter([5_000_000, 5_000_000, 9_000_000, *[6_000_000] * 10_000])
    with MemoryPeak(lambda: next(levels)) as memory:
        deadline = time.monotonic() + 10
        while memory.peak_mb < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert memory.peak_mb == 4.0


def test_the_torch_runner_is_the_baseline(
    tiny: Path, tmp_path: Path, speech: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small torch model on the CPU: batches, halves and compiled calls are the plain call's."""
    torch = pytest.importorskip("torch")
    from mosrt_bench.worker.torch_runner import TorchRunner
    from tests.standins.utmosv2 import SMALL

    bundle = with_variants(tiny, tmp_path / "bundle", {"fp16": unchanged})
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    # Small images: convolutions in FP16 take minutes on CPUs that have none.
    spectrogram = {"backbone": "test_efficientnet", "attention_heads": 4, "n_mels": 64}
    spectrogram["image_width"] = 64
    manifest["mel"] |= {"n_mels": 64, "image_height": 64, "image_width": 64}
    manifest["inputs"][1]["shape"] = ["batch", 8, 64, 64]
    ssl = {**SMALL["ssl"], "crop_samples": 48_000}
    manifest["provenance"]["config"] = {"ssl": ssl, "spectrogram": spectrogram}
    path.write_text(json.dumps(manifest))
    compiled: list[Any] = []

    def uncompiled(model: Any) -> Any:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", uncompiled)
    before = torch.get_num_threads()
    options: dict[str, Any] = {"device": "cpu", "threads": 1}
    clips = [speech[:64_000], speech[16_000:80_000]]
    try:
        plain = TorchRunner(str(bundle), None, half=False, compiled=False, **options)
        half = TorchRunner(str(bundle), None, half=True, compiled=True, **options)
        wanted = [plain.judge(clip) for clip in clips]
        default = manifest["domains"].index(manifest["default_domain"])
        # Rounding of other kernels for another batch.
        assert plain.score_batch(clips) == pytest.approx([w[default] for w in wanted], abs=1e-4)
        assert np.ptp(wanted, axis=1).min() > 1e-3  # domains differ, or swaps would go unseen
        np.testing.assert_allclose([half.judge(clip) for clip in clips], wanted, atol=0.02)
        assert set(half.score(clips[0])) == {"front_end", "model"}
    finally:
        torch.set_num_threads(before)
    assert len(compiled) == 1
    assert "untrained" in plain.facts["weights"]
