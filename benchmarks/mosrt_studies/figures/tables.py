"""Render the table of each result, with its caption from captions.md, for RESULTS.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from mosrt_bench.report.sections import interval_cell, number
from mosrt_bench.report.writer import markdown_table

__all__ = ["SECTIONS", "WEIGHTS", "drift_cell", "milliseconds", "section"]

Run = Mapping[str, Any]
"""A result as its JSON file has it, or a part of one."""

_WORST: Final = 8
# How the keys of a declared drift begin and end, and its unit.
_DRIFTS: Final = (("mos", "abs", "MOS"), ("uncertainty", "rel", "relative"))
WEIGHTS: Final = {
    "nano": "Embedded weights.",
    "nano-uncertainty": "Embedded weights.",
    "utmosv2-distilled": "Distilled weights.",
}
"""Models with trained weights, and what kind of weights they are."""
_STANDIN_WEIGHTS: Final = (
    "Stand-in weights, one view: this proves speed and parity of FP32 with torch. In `int8-cpu` "
    "every block is quantised, whatever the drift, which says nothing for such weights."
)


@cache
def _captions() -> dict[str, str]:
    """Captions by name; they say where a run's values and the table go."""
    text = Path(__file__).with_name("captions.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)
    return {name: caption.strip() for name, caption in zip(parts[::2], parts[1::2], strict=True)}


def _captioned(
    name: str,
    run: Run,
    header: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    **values: Any,
) -> str:
    """A table with its caption, which shows the run's values and those given."""
    return _captions()[name].format(run=run, table=markdown_table(header, rows), **values)


def _listening(run: Run) -> str:
    first = next(iter(run["agreement"].values()))
    rows = [
        (_bold_default(name, run), number(found["concordance"], 2),
         interval_cell(found["interval_95"], 2), number(found["concordance_wide"], 2))
        for name, found in run["agreement"].items()
    ]  # fmt: skip
    header = ("model, domain", "pairs in order", "95 % interval", "pairs 0.40 MOS apart")
    return _captioned(
        "listening", run, header, rows, systems=len(run["systems"]), tests=len(first["tests"]),
        pairs=first["pairs"],
    )  # fmt: skip


def _ladder(run: Run) -> str:
    overall = run["overall"]
    rows = [
        (_bold_default(name, run),
         *(f"{of[name]['srcc']:.2f} / {of[name]['below_clean']:.2f}" for of in overall.values()))
        for name in next(iter(overall.values()))
    ]  # fmt: skip
    kinds = ", ".join(next(iter(run["kinds"].values())))
    return _captioned("ladder", run, ("model, domain", *overall), rows, kinds=kinds)


def _order(run: Run) -> str:
    rows = []
    for name, means in run["means"].items():
        held = [verdict["holds"] for verdict in run["order"][name].values()]
        scores = (number(mean["mean"], 2) for mean in means.values())
        rows.append((_bold_default(name, run), *scores, f"{sum(held)} of {len(held)}"))
    readers, pairs = (next(iter(run[key].values())) for key in ("means", "order"))
    return _captioned(
        "order", run, ("model, domain", *readers, "right"), rows, pairs="; ".join(pairs),
        sentences=len(run["sentences"]),
    )  # fmt: skip


def _ranking(run: Run) -> str:
    kinds = run["degradations"]
    rows = []
    for measure in next(iter(kinds.values())):
        found = [by_measure[measure] for by_measure in kinds.values()]
        cells = (f"{f['per_clip']:.2f}{'*' * f['mean_is_monotone']}" for f in found)
        rows.append((measure, *cells, f"{np.mean([f['per_clip'] for f in found]):.2f}"))
    return _captioned("uncertainty_ranking", run, ("measure", *kinds, "mean"), rows)


def _bold_default(name: str, run: Run) -> str:
    return f"**{name}**" if name in run["defaults"] else name


def _drift(run: Run) -> str:
    rows = [
        (bundle["name"], name, f"{variant['bytes'] / bundle['variants']['fp32']['bytes']:.2f}",
         *_drift_cells(variant["declared_drift"]))
        for bundle in run["bundles"]
        for name, variant in bundle["variants"].items()
        if name != "fp32"
    ]  # fmt: skip
    header = ("model", "variant", "size", "mean drift", "p95", "largest", "SRCC", "clips",
              "mean by kind of speech")  # fmt: skip
    weights = WEIGHTS[run["bundles"][0]["name"]]
    return _captioned("drift", run, header, rows, weights=weights)


def _drift_cells(drift: Run) -> tuple[str, ...]:
    what, suffix, unit = next(kind for kind in _DRIFTS if f"{kind[0]}_mean_{kind[1]}" in drift)
    mean, p95, largest = (f"{drift[f'{what}_{n}_{suffix}']:.4f}" for n in ("mean", "p95", "max"))
    kinds = ", ".join(
        f"{name} {folder[f'{what}_mean_{suffix}']:.4f}"
        for name, folder in drift["by_folder"].items()
    )
    return f"{mean} {unit}", p95, largest, f"{drift['srcc']:.4f}", str(drift["n_clips"]), kinds


def drift_cell(drift: Run) -> str:
    """Mean drift of a declared drift, with its unit."""
    return _drift_cells(drift)[0]


def _distilled(run: Run) -> str:
    return _captioned("distilled", run)


def _mixed_precision(run: Run) -> str:
    return "\n\n".join(
        _trade_off(run, variant, found)
        for variant, found in run["variants"].items()
        if "trade_off" in found
    )


def _trade_off(run: Run, variant: str, found: Run) -> str:
    blocks = {row["block"] for row in found["sensitivity"]}
    rows = []
    for point in found["trade_off"]:
        drift, kept = point["drift"], point["left_float"]
        n_parts = sum(name not in blocks for name in kept)
        whole = str(len(kept) - n_parts)
        count = f"{whole} and {n_parts} parts" if n_parts else whole
        if kept == found["left_float"]:
            count = f"**{count}** (chosen)"
        rows.append(
            (count, f"{point['share_of_work']:.0%}", f"{drift['mos_mean_abs']:.3f} MOS",
             f"{drift['mos_max_abs']:.3f}", f"{drift['srcc']:.3f}",
             f"{point['bytes'] / run['fp32_bytes']:.3f}")
        )  # fmt: skip
    worst = ", ".join(
        f"`{row['block']}` {row['drift']['mos_mean_abs']:.3f}"
        for row in found["sensitivity"][:_WORST]
    )
    header = ("blocks in FP32", "MACs in FP32", "mean drift", "largest", "SRCC", "size")
    return _captioned(
        "mixed_precision", run, header, rows, variant=variant, worst=worst,
        blocks=len(found["sensitivity"]), clips=len(run["evaluation_clips"]),
    )  # fmt: skip


def _bench(run: Run) -> str:
    """A report of `mosrt bench`: drift, latency, throughput, start and memory by configuration."""
    latency = run.get("latency", [])
    many = len(run["settings"]["threads"]) > 1 or len(run["bundles"]) > 1
    references = {bundle["reference"] for bundle in run["bundles"]}
    parity = {r["contestant"]: r for r in run["parity"] if r.get("against") in references}
    starts = {row["contestant"]: row for row in run.get("cold_start", [])}
    has_torch = any("torch" in row for row in latency)
    rows = []
    for row in latency:
        if row["clip_s"] != 5.0:
            continue
        name, _, count = row["contestant"].rpartition(" x")
        drift = parity.get(name)
        label = f"{name}, {count} threads"
        if drift is not None and not many:
            label = f"{drift['variant']}, {drift['provider']}"
        p50, p95 = (row["quantiles"][key]["ms"] for key in ("p50", "p95"))
        is_first = row["contestant"] == row["first"]
        rows.append(
            (label, *_parity_cells(drift), milliseconds(p50), milliseconds(p95, like=p50),
             "1" if is_first else _inverse(row["ratio_to_first"]),
             *[_inverse(row.get("ratio_to_torch"))] * has_torch,
             _throughput(run, row["contestant"]), *_start_cells(starts.get(row["contestant"])))
        )  # fmt: skip
    header = ("variant, provider", "mean drift", "largest", "SRCC", "p50", "p95", "speed-up",
              *["speed-up over torch"] * has_torch, "clips/s", "fresh process, two scores",
              "peak memory")  # fmt: skip
    shown = _captioned(
        "bench", run, header, rows, clips=len(run["audio"]),
        weights=WEIGHTS.get(run["bundles"][0]["name"], _STANDIN_WEIGHTS),
    )  # fmt: skip
    return "\n\n".join([shown, *_not_measured(run)])


def _parity_cells(row: Run | None) -> tuple[str, str, str]:
    if row is None:
        return "-", "-", "-"
    if row["is_reference"]:
        return "reference", "", ""
    if row.get("mae") is None:
        return "-", "-", "- (FAILS)"
    unit = "" if row["scale"] == 1.0 else " relative"
    mean, largest = row["mae"] / row["scale"], row["max_abs"] / row["scale"]
    rank = number(row["srcc"], 4)
    return f"{_small(mean)}{unit}", _small(largest), f"{rank}{'' if row['passed'] else ' (FAILS)'}"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}" if value < 5e-4 else f"{value:.4f}"


def milliseconds(value: float, *, like: float | None = None) -> str:
    """A time in ms, with a decimal if it, or the time that it stands beside, is below 100."""
    return f"{value:.{0 if (value if like is None else like) >= 100 else 1}f} ms"


def _throughput(run: Run, configuration: str) -> str:
    """The highest throughput, and how it is reached."""
    rows = [row for row in run.get("throughput", []) if row["contestant"] == configuration]
    if not rows:
        return "-"
    best = max(rows, key=lambda row: row["clips_per_s"])
    rate = best["clips_per_s"]
    how = f"batch {best['count']}" if best["kind"] == "batch" else f"{best['count']} callers"
    return f"{rate:.{2 if rate < 10 else 0}f} ({how})"


def _start_cells(row: Run | None) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MB"
    if row["device_peak_mb"] is not None:
        peak += f", GPU {row['device_peak_mb']:.0f} MB"
    return f"{row['process_ms'] / 1e3:.2f} s", peak


def _not_measured(run: Run) -> list[str]:
    """What this machine cannot run or report."""
    skipped = "; ".join(
        f"{row['variant']} on {row['provider']} ({row['problems'][0]})"
        for row in run["parity"]
        if row["passed"] is None
    )
    missing = ", ".join(dict.fromkeys(note.partition(":")[0] for note in run["notes"]))
    return [
        *([f"Left out: {skipped}."] if skipped else []),
        *(f"Not measured: {row['contestant']}, {row['what']} ({row['reason']})."
          for row in run.get("not_measured", [])),
        *([f"Not available on this machine: {missing}."] if missing else []),
    ]  # fmt: skip


def _embedded(run: Run) -> str:
    timings = dict(run["timings"])
    process = timings.pop(run["process"])
    rows = [
        (f"**{name}**" if name == run["model"] else name, f"{times['median_ms']:.1f} ms",
         f"{interval_cell(times['interval_95_ms'], 1)} ms")
        for name, times in timings.items()
    ]  # fmt: skip
    header = ("model", "median CPU time", "95 % interval")
    return _captioned("embedded", run, header, rows, process_s=process["median_ms"] / 1e3)


def _front_end(run: Run) -> str:
    faster = run["faster_than_librosa"]
    rows = [
        (name, f"{times['median_ms']:.0f} ms", f"{interval_cell(times['interval_95_ms'], 0)} ms",
         _speed_up(faster[name]) if name in faster else "1")
        for name, times in run["timings"].items()
    ]  # fmt: skip
    header = ("front end", "median", "95 % interval", "speed-up")
    return _captioned("front_end", run, header, rows)


def _uncertainty(run: Run) -> str:
    rows = []
    for length_s, found in run["lengths_s"].items():
        timing, peak = (found[key].get("torch") for key in ("timings", "peak_mb"))
        rows.append(
            (f"{length_s} s", "-" if timing is None else f"{timing['median_ms']:.0f} ms",
             f"{found['timings']['mosrt']['median_ms']:.0f} ms", _speed_up(found.get("faster")),
             "-" if peak is None else f"{peak:.0f} MB", f"{found['peak_mb']['mosrt']:.0f} MB")
        )  # fmt: skip
    header = ("clip", "eager torch", "mosrt", "speed-up", "peak memory, torch",
              "peak memory, mosrt")  # fmt: skip
    layouts = " and ".join(run["layouts"])
    return _captioned("uncertainty_speed", run, header, rows, layouts=layouts)


def _long_recording(run: Run) -> str:
    rows = [
        (f"`{name}`", ", ".join(model["layouts"]), f"{model['peak_mb']:.0f} MB")
        for name, model in run["models"].items()
    ]
    return _captioned("long_recording", run, ("model", "layouts", "peak memory"), rows)


def _architectures(run: Run) -> str:
    rows = [
        (other["machine"]["note"], name, variant, "yes" if found["repeats"] else "NO",
         f"{found['drift_from_fp32_there']:.1e}", f"{found['largest_difference']:.1e}",
         bundle["auto"])
        for other in run["others"]
        for name, bundle in other["bundles"].items()
        for variant, found in bundle["variants"].items()
    ]  # fmt: skip
    header = ("processor", "model", "variant", "repeats", "mean drift from FP32 there",
              "largest difference from x86-64", "`--variant auto`")  # fmt: skip
    return _captioned("architectures", run, header, rows)


def _faults_fuzz(run: Run) -> str:
    rows = [
        (found["target"], f"{found['inputs']:,}", f"{found['refused']:,}",
         *(str(len(found[key])) for key in ("crashes", "hangs", "unhandled")))
        for found in run["targets"]
    ]  # fmt: skip
    header = ("what is read", "inputs", "refused", "crashes", "hangs", "unhandled errors")
    total = sum(found["inputs"] for found in run["targets"])
    return _captioned("faults_fuzz", run, header, rows, total=f"{total:,}")


def _faults_kill(run: Run) -> str:
    rows = [
        (f"`mosrt {found['command']}`",
         *(str(found[key]) for key in ("changes", "old", "new")),
         *(str(len(found[key])) for key in ("half", "left_over")))
        for found in run["commands"]
    ]  # fmt: skip
    header = ("command", "changes of files", "old", "new", "half", "left over")
    return _captioned("faults_kill", run, header, rows)


def _speed_up(figure: Run | None) -> str:
    """How many times as fast, with the interval; a dash where it was not measured."""
    if figure is None:
        return "-"
    return f"**{figure['ratio']:.2f}** ({interval_cell(figure['interval_95'], 2)})"


def _inverse(ratio: Run | None) -> str:
    """The speed-up of a ratio of times."""
    if ratio is None:
        return "-"
    low, high = ratio["interval_95"]
    return _speed_up({"ratio": 1 / ratio["ratio"], "interval_95": (1 / high, 1 / low)})


SECTIONS: Final[tuple[tuple[str, str, Callable[[Run], str]], ...]] = (
    ("listening", "Agreement with listeners", _listening),
    ("ladder", "Scores and the severity of degradations", _ladder),
    ("order", "Order of recordings and synthesisers", _order),
    ("uncertainty_ranking", "Uncertainty and the severity of degradations", _ranking),
    ("drift", "Drift of the variants of the embedded models", _drift),
    ("distilled", "What utmosv2-distilled is", _distilled),
    ("bench_utmosv2", "Drift of the variants of utmosv2-distilled", _drift),
    ("calibration_utmosv2", "Mixed precision of int8-cpu", _mixed_precision),
    ("calibration_utmosv2_trt", "Mixed precision of int8-trt", _mixed_precision),
    ("bench_*", "Speed of the variants of {models}", _bench),
    ("embedded", "CPU time of a short clip", _embedded),
    ("front_end", "NumPy front end against librosa", _front_end),
    ("uncertainty_speed", "wav2vec v1 against torch, by length", _uncertainty),
    ("long_recording", "Memory of a long recording", _long_recording),
    ("architectures", "Scores on other processors", _architectures),
    ("faults_fuzz", "Hostile inputs", _faults_fuzz),
    ("faults_kill", "Commands killed while they write", _faults_kill),
)
"""Name or pattern of the JSON files, heading, and what renders them, in the order of the page."""


def section(name: str, run: Run) -> str:
    """The text that RESULTS.md has for a result, without its heading.

    Args:
        name: What `SECTIONS` calls the JSON file.
        run: The result.
    """
    return {pattern: text_of for pattern, _, text_of in SECTIONS}[name](run)
