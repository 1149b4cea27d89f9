"""The README's figures of reports by `mosrt bench`: a row for each variant on each provider."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["bench_sections"]

_CLIP_S: Final = 5.0

Report = Mapping[str, Any]
Row = Mapping[str, Any]


def bench_sections(results: Path) -> list[str]:
    """Lines of Markdown of every report bench_NAME.json in `results`; none without any."""
    lines: list[str] = []
    for path in sorted(results.glob("bench_*.json")):
        lines += [*_section(json.loads(path.read_text(encoding="utf-8"))), ""]
    return lines


def _section(report: Report) -> list[str]:
    machine, settings = report["machine"], report["settings"]
    threads = settings["threads"]
    many = len(threads) > 1 or len(report["bundles"]) > 1
    lines = [
        f"`mosrt bench` of {' and '.join(b['name'] for b in report['bundles'])}: drift from the "
        f"reference on {len(report['audio'])} clips; speed on one of 5 s, "
        f"{' or '.join(map(str, threads))} thread{'' if threads == [1] else 's'} "
        f"({machine['cpu']}, {machine['usable_cores']} cores).",
        "",
        "| variant, provider | mean drift | largest | SRCC | p50 | p95 | times as fast | clips/s "
        "| fresh process, two scores | peak memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    references = {bundle["reference"] for bundle in report["bundles"]}
    parity = {r["contestant"]: r for r in report["parity"] if r.get("against") in references}
    cold = {row["contestant"]: row for row in report.get("cold_start", [])}
    for row in report.get("latency", []):
        if row["clip_s"] != _CLIP_S:
            continue
        name, _, count = row["contestant"].rpartition(" x")
        drift = parity[name]
        called = f"{name}, {count} threads" if many else f"{drift['variant']}, {drift['provider']}"
        lines.append(
            f"| {called} | {_drift(drift)} | {_times(row)} "
            f"| {_rate(report, row['contestant'])} | {_start(cold.get(row['contestant']))} |"
        )
    return [*lines, *_left_out(report)]


def _drift(row: Row) -> str:
    if row["is_reference"]:
        return "reference | | "
    if row.get("mae") is None:
        return "- | - | - (FAILS)"
    unit = "" if row["scale"] == 1.0 else " relative"
    mean, largest = row["mae"] / row["scale"], row["max_abs"] / row["scale"]
    rank = "-" if row["srcc"] is None else f"{row['srcc']:.4f}"
    return f"{_small(mean)}{unit} | {_small(largest)} | {rank}{'' if row['passed'] else ' (FAILS)'}"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}" if value < 5e-4 else f"{value:.4f}"


def _times(row: Row) -> str:
    p50, p95 = (row["quantiles"][name]["ms"] for name in ("p50", "p95"))
    faster = "1"
    if row["contestant"] != row["first"]:
        ratio = row["ratio_to_first"]
        low, high = ratio["interval_95"]
        faster = f"**{1 / ratio['ratio']:.2f}** ({1 / high:.2f} to {1 / low:.2f})"
    digits = 0 if p50 >= 100 else 1
    return f"{p50:.{digits}f} ms | {p95:.{digits}f} ms | {faster}"


def _rate(report: Report, contestant: str) -> str:
    """The most scores per second, and how they are had."""
    rows = [row for row in report.get("throughput", []) if row["contestant"] == contestant]
    if not rows:
        return "-"
    best = max(rows, key=lambda row: row["clips_per_s"])
    rate = best["clips_per_s"]
    how = f"batch {best['count']}" if best["kind"] == "batch" else f"{best['count']} callers"
    return f"{rate:.{2 if rate < 10 else 0}f} ({how})"


def _start(row: Row | None) -> str:
    if row is None:
        return "- | -"
    peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MB"
    if row["device_peak_mb"] is not None:
        peak += f", GPU {row['device_peak_mb']:.0f} MB"
    return f"{row['process_ms'] / 1e3:.2f} s | {peak}"


def _left_out(report: Report) -> list[str]:
    """What the machine does not run or does not tell."""
    missing = [
        f"{row['variant']} on {row['provider']} ({row['problems'][0]})"
        for row in report["parity"]
        if row["passed"] is None
    ]
    lines = ["", f"Left out: {'; '.join(missing)}."] if missing else []
    untold = dict.fromkeys(note.partition(":")[0] for note in report["notes"])
    if untold:
        lines += ["", f"Not measured, since this machine does not tell: {', '.join(untold)}."]
    return lines
