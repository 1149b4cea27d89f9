"""RESULTS.md's table of a report of `mosrt bench`, made from a report of the embedded model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mosrt.bundle.embedded import find_bundle
from mosrt_bench.bench.request import Request
from mosrt_bench.bench.timing import Effort
from mosrt_studies.figures.render import render, section
from tests.benchmarks.conftest import run_bench
from tests.conftest import DATA
from tests.standins.planted_defects import rounded_weights, with_variants


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("figures")
    bundle = with_variants(find_bundle("nano"), folder / "nano", {"fp16": rounded_weights})
    request = Request(
        bundles=(str(bundle),), providers=("cpu", "tensorrt"),
        audio=(DATA / "flite_slt_16k_mono.wav", DATA / "flite_kal_8k_mono.wav"), lengths_s=(1.0,),
        batches=(1,), callers=(2,), starts=1, effort=Effort(runs=5, seconds=0.0, warm_up_runs=1),
    )  # fmt: skip
    return run_bench(request)[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_for_each_that_runs(report: dict[str, Any]) -> None:
    report = copy.deepcopy(report)
    report["notes"] = ["device memory: no library", "energy of GPUs: none", "energy of GPUs: 1"]
    row = next(
        r for r in report["latency"] if r["clip_s"] == 5.0 and r["contestant"] == "nano fp16 cpu x1"
    )
    row["quantiles"]["p50"]["ms"], row["quantiles"]["p95"]["ms"] = 12.34, 1234.5
    row["ratio_to_first"] = {"ratio": 0.5, "interval_95": [0.4, 0.8]}
    for each in report["throughput"]:
        each["clips_per_s"] = 20.4 if each["kind"] == "callers" else 3.0
    report["cold_start"][1].update(process_ms=1234.0, peak_mb=99.6, device_peak_mb=12.0)
    lines = section("bench", report).splitlines()
    assert "measured on 2 clips" in lines[2]
    by_length = lines.index("By length of the clip:")
    rows = [cells(line) for line in lines[:by_length] if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in rows[1:]] == ["fp32, cpu", "fp16, cpu"]
    assert rows[1][1:4] == ["reference", "", ""]
    drift = next(r for r in report["parity"] if r["variant"] == "fp16")
    assert 0 < float(rows[2][1]) == pytest.approx(drift["mae"], rel=0.5)
    assert rows[2][4:] == [
        "12.3 ms", "1234.5 ms", "**2.00** (1.25 to 2.50)", "20 (2 callers)", "1.23 s",
        "100 MB, GPU 12 MB",
    ]  # fmt: skip
    lengths = [cells(line) for line in lines[by_length:] if line.startswith("| ")]
    assert {len(row) for row in lengths} == {4}
    assert [row[0] for row in lengths] == ["clip", "1 s", "1 s", "5 s", "5 s"]
    assert lengths[-1] == ["5 s", "nano fp16 cpu x1", "12.3 ms", "**2.00** (1.25 to 2.50)"]
    assert "Left out: fp32 on tensorrt (does not run here: " in lines[-3]
    assert lines[-1] == "Not available on this machine: device memory, energy of GPUs."


def test_the_heading_names_the_models(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bench_any.json").write_text(json.dumps(report))
    assert "\n## Speed of the variants of nano\n" in render(tmp_path)


def test_parity_alone_and_failures(report: dict[str, Any]) -> None:
    report = copy.deepcopy(report)
    for key in ("throughput", "cold_start"):
        del report[key]
    row = next(r for r in report["parity"] if r["variant"] == "fp16")
    row.update(passed=False, scale=0.01, mae=0.002, max_abs=0.004, srcc=None)
    (found,) = [line for line in section("bench", report).splitlines() if line.startswith("| fp16")]
    assert cells(found)[1:4] == ["0.2000 relative", "0.4000", "- (FAILS)"]
    assert cells(found)[7:] == ["-", "-", "-"]
    del row["mae"]  # no clip that both score
    (found,) = [line for line in section("bench", report).splitlines() if line.startswith("| fp16")]
    assert cells(found)[1:4] == ["-", "-", "- (FAILS)"]
