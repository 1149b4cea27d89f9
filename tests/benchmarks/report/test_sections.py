"""Tables of reports that have torch beside a bundle, and steps that were not measured."""

from __future__ import annotations

from typing import Any

from mosrt_bench.report.sections import Section, sections


def latency(name: str, **more: Any) -> dict[str, Any]:
    quantile = {"ms": 2.0, "interval_95": [1.0, 3.0]}
    return {
        "contestant": name, "first": "nano fp32 cpu x1", "clip_s": 5.0, "runs": 5, "warm_up": 1,
        "stable": True, "quantiles": dict.fromkeys(("p50", "p90", "p95", "p99"), quantile),
        "stages_ms": {}, "real_time_factor": 0.1, "real_time_factor_95": None,
        "ratio_to_first": {"ratio": 2.0, "interval_95": [1.5, 2.5]}, **more,
    }  # fmt: skip


def by_key(report: dict[str, Any]) -> dict[str, Section]:
    return {section.key: section for section in sections(report)}


def test_latency_relative_to_torch() -> None:
    torch = "nano fp32 torch-cuda x1"
    ratio = {"ratio": 0.5, "interval_95": None}
    rows = [latency("nano fp32 cpu x1", torch=torch, ratio_to_torch=ratio), latency(torch)]
    found = by_key({"latency": rows})
    table = found["latency"]
    column = table.header.index("relative to torch (95 %)")
    assert [row[column] for row in table.rows] == ["0.500 (-)", "-"]
    assert table.rows[1][column - 1] == "2.000 (1.500 to 2.500)"
    assert all(len(row) == len(table.header) for row in table.rows)
    assert found["stages"].notes  # copies to the GPU
    assert not any("torch" in name for name in by_key({"latency": [rows[1]]})["latency"].header)


def test_what_was_not_measured_is_shown() -> None:
    missing = [{"contestant": "nano fp32 cpu x1", "what": "loading", "reason": "no time"}]
    assert by_key({"not_measured": missing, "finished": True})["not_measured"].rows == (
        ("nano fp32 cpu x1", "loading", "no time"),
    )
    assert by_key({"finished": False})["not_measured"].rows[0][2] == "the run was interrupted"
    assert "not_measured" not in by_key({"not_measured": [], "finished": True})
