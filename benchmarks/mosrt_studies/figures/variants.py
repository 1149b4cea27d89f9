"""Render what the variants of a model cost and how far they drift, for RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from mosrt_bench.report.writer import markdown_table

__all__ = ["SECTIONS", "WEIGHTS", "bench_section", "bench_title", "drift_cell"]

Run = Mapping[str, Any]
Row = Mapping[str, Any]

_CLIP_S: Final = 5.0
_WORST: Final = 8
# How the keys of a declared drift begin and end, and its unit.
_DRIFTS: Final = (("mos", "abs", "MOS"), ("uncertainty", "rel", "relative"))
WEIGHTS: Final = {
    "nano": "Embedded weights.",
    "nano-uncertainty": "Embedded weights.",
    "utmosv2-distilled": "Distilled weights.",
}
_STANDIN_WEIGHTS: Final = (
    "Stand-in weights, one view: this proves speed and parity of FP32 with torch. In `int8-cpu` "
    "every block is quantised, whatever the drift, which says nothing for such weights."
)


def _drift(run: Run) -> list[str]:
    rows = []
    for bundle in run["bundles"]:
        fp32_bytes = bundle["variants"]["fp32"]["bytes"]
        for name, variant in bundle["variants"].items():
            if name != "fp32":
                size = f"{variant['bytes'] / fp32_bytes:.2f}"
                rows.append((bundle["name"], name, size, *_drift_cells(variant["declared_drift"])))
    weights = {True: "Distilled weights.", False: "Embedded weights."}
    return [
        "How far are the scores of a quantised variant from those of FP32? The clips are clean, "
        "degraded and synthetic speech on which no quantisation range was measured; which blocks "
        "stay in FP32 was chosen on them. `int8-trt` is measured as its graph computes on a CPU, "
        "not as an engine. Size is relative to FP32. "
        f"{weights['utmosv2-distilled' in {bundle['name'] for bundle in run['bundles']}]}",
        "",
        *markdown_table(
            ("model", "variant", "size", "mean drift", "p95", "largest", "SRCC", "clips",
             "mean by kind of speech"), rows,
        ),
    ]  # fmt: skip


def _drift_cells(drift: Row) -> tuple[str, ...]:
    what, suffix, unit = next(kind for kind in _DRIFTS if f"{kind[0]}_mean_{kind[1]}" in drift)
    mean, p95, largest = (f"{drift[f'{what}_{n}_{suffix}']:.4f}" for n in ("mean", "p95", "max"))
    kinds = ", ".join(
        f"{name} {folder[f'{what}_mean_{suffix}']:.4f}"
        for name, folder in drift["by_folder"].items()
    )
    return f"{mean} {unit}", p95, largest, f"{drift['srcc']:.4f}", str(drift["n_clips"]), kinds


def drift_cell(drift: Row) -> str:
    """Mean drift of a declared drift, with its unit."""
    return _drift_cells(drift)[0]


def _distilled(run: Run) -> list[str]:
    return [
        "`utmosv2-distilled` is a UTMOSv2 of the published size that was trained briefly to "
        "predict the scores of `nano`, so that drift can be measured on a trained network. It is "
        "not the published model and not meant for scoring. On "
        f"{run['held_out_clips']} held-out clips its rank correlation with `nano` is "
        f"{run['srcc']:.2f} and its mean absolute error {run['mean_abs_error_mos']:.2f} MOS.",
    ]


def _mixed_precision(run: Run) -> list[str]:
    lines: list[str] = []
    for variant, found in run["variants"].items():
        if "trade_off" in found:
            lines += (
                ["", *_trade_off(run, variant, found)] if lines else _trade_off(run, variant, found)
            )
    return lines


def _trade_off(run: Run, variant: str, found: Row) -> list[str]:
    budget = run["budget"]
    blocks = {row["block"] for row in found["sensitivity"]}
    rows = []
    for point in found["trade_off"]:
        drift, kept = point["drift"], point["left_float"]
        whole = sum(name in blocks for name in kept)
        n_parts = len(kept) - whole
        count = f"{whole} and {n_parts} parts" if n_parts else str(whole)
        rows.append(
            (
                f"**{count}** (chosen)" if kept == found["left_float"] else count,
                f"{point['share_of_work']:.0%}",
                f"{drift['mos_mean_abs']:.3f} MOS",
                f"{drift['mos_max_abs']:.3f}",
                f"{drift['srcc']:.3f}",
                f"{point['bytes'] / run['fp32_bytes']:.3f}",
            )
        )
    worst = ", ".join(
        f"`{row['block']}` {row['drift']['mos_mean_abs']:.3f}"
        for row in found["sensitivity"][:_WORST]
    )
    return [
        f"How does the drift of `{variant}` of `utmosv2-distilled` fall as more of its "
        f"{len(found['sensitivity'])} blocks stay in FP32? Large blocks may be kept in part. "
        f"{len(run['evaluation_clips'])} clips, one view; the limits are {budget['max_drift']:g} "
        f"MOS of mean drift and a rank correlation of {budget['min_srcc']:g}. MACs are a share of "
        "all MACs, size is relative to FP32. Distilled weights.",
        "",
        *markdown_table(
            ("blocks in FP32", "MACs in FP32", "mean drift", "largest", "SRCC", "size"), rows
        ),
        "",
        "The most sensitive blocks, by mean drift when one block is quantised fully and all others "
        f"in their weights only: {worst}.",
    ]


def bench_title(run: Run) -> str:
    """The heading of a report of `mosrt bench`."""
    return f"Speed of the variants of {' and '.join(b['name'] for b in run['bundles'])}"


def bench_section(run: Run) -> list[str]:
    """A report of `mosrt bench`: drift, latency, throughput, start and memory by configuration."""
    threads = run["settings"]["threads"]
    many = len(threads) > 1 or len(run["bundles"]) > 1
    references = {bundle["reference"] for bundle in run["bundles"]}
    parity = {r["contestant"]: r for r in run["parity"] if r.get("against") in references}
    starts = {row["contestant"]: row for row in run.get("cold_start", [])}
    has_torch = any("torch" in row for row in run.get("latency", []))
    rows = []
    for row in run.get("latency", []):
        if row["clip_s"] == _CLIP_S:
            name, _, count = row["contestant"].rpartition(" x")
            drift = parity.get(name)
            label = f"{name}, {count} threads"
            if drift is not None and not many:
                label = f"{drift['variant']}, {drift['provider']}"
            rows.append(
                (
                    label,
                    *_parity_cells(drift),
                    *_latency_cells(row),
                    *([_speed_up(row.get("ratio_to_torch"))] * has_torch),
                    _throughput(run, row["contestant"]),
                    *_start_cells(starts.get(row["contestant"])),
                )
            )
    return [
        "How fast is each variant, and how far does it drift on the clips of this run? Drift is "
        f"measured on {len(run['audio'])} clips, speed on a clip of 5 s. "
        f"{WEIGHTS.get(run['bundles'][0]['name'], _STANDIN_WEIGHTS)}",
        "",
        *markdown_table(
            ("variant, provider", "mean drift", "largest", "SRCC", "p50", "p95", "speed-up",
             *["speed-up over torch"] * has_torch, "clips/s", "fresh process, two scores",
             "peak memory"), rows,
        ),
        *_not_measured(run),
    ]  # fmt: skip


def _parity_cells(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return "-", "-", "-"
    if row["is_reference"]:
        return "reference", "", ""
    if row.get("mae") is None:
        return "-", "-", "- (FAILS)"
    unit = "" if row["scale"] == 1.0 else " relative"
    mean, largest = row["mae"] / row["scale"], row["max_abs"] / row["scale"]
    rank = "-" if row["srcc"] is None else f"{row['srcc']:.4f}"
    return f"{_small(mean)}{unit}", _small(largest), f"{rank}{'' if row['passed'] else ' (FAILS)'}"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}" if value < 5e-4 else f"{value:.4f}"


def _latency_cells(row: Row) -> tuple[str, str, str]:
    p50, p95 = (row["quantiles"][name]["ms"] for name in ("p50", "p95"))
    speed_up = "1" if row["contestant"] == row["first"] else _speed_up(row["ratio_to_first"])
    digits = 0 if p50 >= 100 else 1
    return f"{p50:.{digits}f} ms", f"{p95:.{digits}f} ms", speed_up


def _speed_up(ratio: Row | None) -> str:
    """The inverse of a ratio of times, with its interval."""
    if ratio is None:
        return "-"
    low, high = ratio["interval_95"]
    return f"**{1 / ratio['ratio']:.2f}** ({1 / high:.2f} to {1 / low:.2f})"


def _throughput(run: Run, configuration: str) -> str:
    """The highest throughput, and how it is reached."""
    rows = [row for row in run.get("throughput", []) if row["contestant"] == configuration]
    if not rows:
        return "-"
    best = max(rows, key=lambda row: row["clips_per_s"])
    rate = best["clips_per_s"]
    how = f"batch {best['count']}" if best["kind"] == "batch" else f"{best['count']} callers"
    return f"{rate:.{2 if rate < 10 else 0}f} ({how})"


def _start_cells(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MB"
    if row["device_peak_mb"] is not None:
        peak += f", GPU {row['device_peak_mb']:.0f} MB"
    return f"{row['process_ms'] / 1e3:.2f} s", peak


def _not_measured(run: Run) -> list[str]:
    """What this machine cannot run or report."""
    skipped = [
        f"{row['variant']} on {row['provider']} ({row['problems'][0]})"
        for row in run["parity"]
        if row["passed"] is None
    ]
    lines = ["", f"Left out: {'; '.join(skipped)}."] if skipped else []
    for row in run.get("not_measured", []):
        lines += ["", f"Not measured: {row['contestant']}, {row['what']} ({row['reason']})."]
    missing = dict.fromkeys(note.partition(":")[0] for note in run["notes"])
    if missing:
        lines += ["", f"Not available on this machine: {', '.join(missing)}."]
    return lines


SECTIONS: Final[tuple[tuple[str, str, Callable[[Run], list[str]]], ...]] = (
    ("drift", "Drift of the variants of the embedded models", _drift),
    ("distilled", "What utmosv2-distilled is", _distilled),
    ("bench_utmosv2", "Drift of the variants of utmosv2-distilled", _drift),
    ("calibration_utmosv2", "Mixed precision of int8-cpu", _mixed_precision),
    ("calibration_utmosv2_trt", "Mixed precision of int8-trt", _mixed_precision),
)
"""Name of the JSON file, heading and renderer."""
