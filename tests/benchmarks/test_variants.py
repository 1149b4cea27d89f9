import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mosrt.bundle.bundle import Bundle
from mosrt.host.cpu import CpuFeatures
from mosrt_bench import variants
from mosrt_bench.matmul_peak import peaks_gflops
from mosrt_bench.variants import clips_of, left_out, main
from mosrt_bench.variants_figures import variants_section
from mosrt_bench.variants_worker import BASELINE
from tests.standins.variants import with_variants

OLD = CpuFeatures(architecture="x86_64", flags=frozenset({"avx2"}))


def test_what_is_left_out_is_named(tiny: Path, tmp_path: Path) -> None:
    everything = ("cpu", "openvino", "openvino-bf16", "openvino-fp32")
    manifest = Bundle.open(tiny).manifest
    assert left_out(manifest, OLD, everything) == {
        "fp16, cpu": "the bundle has no fp16",
        "int8-cpu, cpu": "the bundle has no int8-cpu",
        "fp32, openvino-bf16": "the CPU has no bfloat16 arithmetic",
        "int8-cpu, openvino-fp32": "the bundle has no int8-cpu",
        "int8-cpu, openvino-bf16": "the bundle has no int8-cpu",
    }
    full = Bundle.open(with_variants(tiny, tmp_path / "full", "fp32", "fp16", "int8-cpu")).manifest
    new = CpuFeatures(architecture="x86_64", flags=frozenset({"amx_bf16"}))
    assert left_out(full, new, everything) == {}
    assert set(left_out(full, new, ("cpu",)).values()) == {"openvino is not installed"}


def test_clips(clips: list[Path]) -> None:
    made = clips_of(clips[:3], 15)
    assert made.shape == (15, 64_000)
    assert made.dtype == np.float32
    assert len(np.unique(made[:, :1000].sum(axis=1))) == 15
    np.testing.assert_array_equal(made, clips_of(clips[:3], 15))


def test_peaks_are_those_of_the_products() -> None:
    peaks = peaks_gflops(threads=1, size=128)
    assert set(peaks) - {"bf16"} == {"fp32", "int8"}
    assert ("bf16" in peaks) == (CpuFeatures.read().bf16 is not None)
    # In units of 1e9 per second: a mistake of one prefix is noticed.
    assert all(0.01 < peak < 20_000 for peak in peaks.values())


def test_a_run(
    tiny: Path, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest run there is, of one row, in real processes."""
    rows = (("fp32", "cpu", "fp32"), ("fp16", "cpu", "fp32"), ("fp32", "openvino-fp32", "fp32"))
    monkeypatch.setattr(variants, "ROWS", rows)
    monkeypatch.setattr(
        variants, "peaks_gflops", lambda *, threads: {"fp32": 50.0 * threads, "int8": 400.0}
    )
    bundle = with_variants(tiny, tmp_path / "bundle", "fp32", "fp16")
    out = tmp_path / "variants.json"
    arguments = ["--bundle", bundle, "--audio", clips[0], "--clips", 15, "--starts", 1]
    arguments += ["--skip", "fp32, openvino-fp32", "--out", out]
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "left out: fp32, openvino-fp32: not asked for" in result.output
    assert "left out: torch and librosa: the bundle does not say which torch model" in result.output
    assert list(out.parent.glob("*.json")) == [out]
    run = json.loads(out.read_text())
    assert run["reference"] == "fp32, cpu"
    first, second = (run["rows"][name] for name in ("fp32, cpu", "fp16, cpu"))
    times = run["timings"]["fp32, cpu"]["times_ms"]
    assert len(times) == 15
    assert first["p50_ms"] == pytest.approx(np.median(times), abs=1e-3)
    assert first["p50_ms"] <= first["p95_ms"] <= first["p99_ms"] <= max(times) + 1e-3
    # A start also imports, loads and scores; the floor is 280 GFLOP at 100 GFLOP/s.
    assert first["cold_start_s"] > first["p50_ms"] / 1e3
    assert first["floors"] == pytest.approx(first["p50_ms"] / 2800, abs=0.01)
    assert first["faster"] is None
    assert second["mean_difference"] == 0.0  # the same graphs under another name
    low, high = second["faster"]["interval_95"]
    assert low <= second["faster"]["ratio"] <= high
    assert second["clips_per_s"] > 0
    assert 20 < first["peak_mb"] < 2000
    section = "\n".join(variants_section(tmp_path))
    assert f"| fp32, cpu | {first['p50_ms']:.0f} ms |" in section
    assert "Left out: torch and librosa (the bundle does not say which torch model" in section
    assert variants_section(tmp_path / "none") == []


def test_what_was_measured_before_a_run_is_ended_is_kept(
    tiny: Path, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "ROWS", (("fp32", "cpu", "fp32"),))
    monkeypatch.setattr(variants, "peaks_gflops", lambda *, threads: {"fp32": 50.0 * threads})

    def ended(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(variants._Contest, "throughput", ended)
    arguments = ["--bundle", tiny, "--audio", clips[0], "--clips", 15, "--starts", 1]
    arguments += ["--skip", "torch and librosa", "--out", tmp_path / "variants.json"]
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 1
    assert not (tmp_path / "variants.json").exists()
    kept = json.loads((tmp_path / "variants.unfinished.json").read_text())
    assert len(kept["cold"]["fp32, cpu"]) == 1
    assert len(kept["times_ms_with_warm_up"]["fp32, cpu"]) == 17


def test_torch_is_left_out_where_it_cannot_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = variants._Contest(str(tiny), None, tmp_path / "clips.npy", 15, 1, ())
    assert contest.left_out[BASELINE].startswith("the bundle does not say which torch model")
    monkeypatch.setattr(variants, "find_spec", lambda name: None if name == "librosa" else name)
    contest = variants._Contest(str(tiny), None, tmp_path / "clips.npy", 15, 1, ())
    assert contest.left_out[BASELINE] == "librosa not installed"
    assert BASELINE not in contest.names
