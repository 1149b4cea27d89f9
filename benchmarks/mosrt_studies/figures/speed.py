"""Render what scoring costs in time and memory, for RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from mosrt_bench.report.writer import markdown_table

__all__ = ["SECTIONS"]

Run = Mapping[str, Any]


def _embedded(run: Run) -> list[str]:
    timings = dict(run["timings"])
    process = timings.pop(run["process"])
    rows = []
    for name, times in timings.items():
        low, high = times["interval_95_ms"]
        label = f"**{name}**" if name == run["model"] else name
        rows.append((label, f"{times['median_ms']:.1f} ms", f"{low:.1f} to {high:.1f} ms"))
    return [
        "What does a score of a 5 s clip cost in CPU time, front end included? Embedded weights; "
        "DNSMOS P.808 is the published model with its published front end, librosa's.",
        "",
        *markdown_table(("model", "median CPU time", "95 % interval"), rows),
        "",
        f"`mosrt score` of {run['files']} files in a fresh process takes "
        f"{process['median_ms'] / 1e3:.2f} s of wall-clock time and {run['peak_mb']:.0f} MB of "
        "memory at its peak.",
    ]


def _front_end(run: Run) -> list[str]:
    rows = [
        (name, *_timing(times), _speed_up(run["faster_than_librosa"].get(name)))
        for name, times in run["timings"].items()
    ]
    return [
        "How fast is the NumPy front end beside librosa and torch's resize? The table shows the "
        f"time for the {run['images']} spectrogram images of one UTMOSv2 view, dB and resize "
        "included. No weights are involved.",
        "",
        *markdown_table(("front end", "median", "95 % interval", "speed-up"), rows),
        "",
        f"The images differ by at most {run['largest_difference']:.1e} of their range; mosrt needs "
        f"{run['mosrt_peak_extra_memory_mb']:.0f} MB of extra memory at its peak.",
    ]


def _end_to_end(run: Run) -> list[str]:
    rows = []
    for name, times in run["timings"].items():
        is_mosrt = name == "mosrt"
        peak = f"{run['peak_mb'][name]:.0f} MB"
        if is_mosrt:
            peak += f" ({run['peak_ratio']:.2f} of torch's)"
        speed_up = _speed_up(run["faster"] if is_mosrt else None)
        rows.append((name, *_timing(times), speed_up, peak))
    return [
        "How fast is UTMOSv2 in mosrt beside eager torch with librosa, from the waveform in memory "
        f"to the score? One view of a {run['clip_s']:.1f} s clip, FP32, plan `{run['plan']}`. "
        f"{run['weights'].capitalize()} weights, which prove parity and speed only.",
        "",
        *markdown_table(("configuration", "median", "95 % interval", "speed-up", "peak memory"),
                        rows),
    ]  # fmt: skip


def _variants(run: Run) -> list[str]:
    torch_mb = run["rows"][run["reference"]]["peak_mb"]
    rows = []
    for name, row in run["rows"].items():
        share = "" if row["faster"] is None else f" ({row['peak_mb'] / torch_mb:.2f} of torch's)"
        rows.append(
            (
                name,
                *(f"{row[f'{p}_ms']:.0f} ms" for p in ("p50", "p95", "p99")),
                _speed_up(row["faster"]),
                f"{row['clips_per_s']:.2f}",
                f"{row['cold_start_s']:.2f} s",
                f"{row['peak_mb']:.0f} MB{share}",
                f"{row['floors']:.1f}",
            )
        )
    peaks = ", ".join(f"{peak:.0f} in {kind}" for kind, peak in run["peaks_gflops"].items())
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in run["variant_bytes"].items())
    return [
        "How fast are the variants of UTMOSv2 beside eager torch with librosa? One view of a 4 s "
        f"clip in memory, {run['clips']} clips; throughput is that of {run['workers']} processes. "
        f"{run['weights'].capitalize()} weights.",
        "",
        *markdown_table(
            ("configuration", "p50", "p95", "p99", "speed-up", "clips/s", "cold start",
             "peak memory", "p50 / lower bound"), rows,
        ),
        "",
        f"The lower bound is the time that {run['gflop']:g} GFLOP take at the machine's peak rate "
        f"in large matrix products (GFLOP/s: {peaks}). Size of the networks: {sizes}.",
    ]  # fmt: skip


def _uncertainty(run: Run) -> list[str]:
    rows = []
    for length_s, found in run["lengths_s"].items():
        timings, peak_mb = found["timings"], found["peak_mb"]
        rows.append(
            (
                f"{length_s} s",
                f"{timings['torch']['median_ms']:.0f} ms" if "torch" in timings else "-",
                f"{timings['mosrt']['median_ms']:.0f} ms",
                _speed_up(found["faster"]) if "faster" in found else "-",
                f"{peak_mb['torch']:.0f} MB" if "torch" in peak_mb else "-",
                f"{peak_mb['mosrt']:.0f} MB",
            )
        )
    return [
        "How fast is wav2vec v1 of the published size in mosrt beside eager torch, and how does "
        f"the time grow with the length of the clip? Layout {' and '.join(run['layouts'])}, FP32. "
        f"Time grows with length to the power of {run['growth_exponent']:.2f}. Stand-in weights, "
        "which prove parity and speed only.",
        "",
        *markdown_table(
            ("clip", "eager torch", "mosrt", "speed-up", "peak memory, torch",
             "peak memory, mosrt"), rows,
        ),
    ]  # fmt: skip


def _long_recording(run: Run) -> list[str]:
    rows = [
        (f"`{name}`", ", ".join(model["layouts"]), f"{model['peak_mb']:.0f} MB")
        for name, model in run["models"].items()
    ]
    return [
        f"How much memory does a recording of {run['minutes']:g} minutes take, scored from its "
        f"file in FP32? The limit is {run['limit_mb']} MB. Embedded weights.",
        "",
        *markdown_table(("model", "layouts", "peak memory"), rows),
    ]


def _architectures(run: Run) -> list[str]:
    rows = [
        (
            other["machine"]["note"],
            name,
            variant,
            "yes" if found["repeats"] else "NO",
            f"{found['drift_from_fp32_there']:.1e}",
            f"{found['largest_difference']:.1e}",
            bundle["auto"],
        )
        for other in run["others"]
        for name, bundle in other["bundles"].items()
        for variant, found in bundle["variants"].items()
    ]
    return [
        "Do variants load on other processors, repeat themselves bit by bit, and give the scores "
        f"of this x86-64 machine? {run['clips']} clips under an emulator; nothing was timed. "
        "Embedded weights.",
        "",
        *markdown_table(
            ("processor", "model", "variant", "repeats", "mean drift from FP32 there",
             "largest difference from x86-64", "`--variant auto`"), rows,
        ),
    ]  # fmt: skip


def _gpu(run: Run) -> list[str]:
    rows = [
        (
            row["name"],
            f"{row['latency']['quantiles']['p50']['ms']:.0f} ms",
            *(f"{row['latency']['stages_ms'][stage]:.0f} ms" for stage in ("front_end", "model")),
            f"{row['parity']['max_abs_mos']:.0e} MOS",
        )
        for row in run["rows"].values()
        if "latency" in row
    ]
    return [
        f"One run on an {run['gpu'].partition(',')[0]} ended before most of its configurations "
        "were measured, torch among them, so this is no comparison. FP16 did not run: ONNX Runtime "
        "could not set cuDNN up for the grouped convolution of the waveform encoder. One view of a "
        "4 s clip. Stand-in weights.",
        "",
        *markdown_table(
            ("configuration", "p50", "front end", "networks", "largest difference from the CPU"),
            rows,
        ),
    ]


def _timing(times: Mapping[str, Any]) -> tuple[str, str]:
    low, high = times["interval_95_ms"]
    return f"{times['median_ms']:.0f} ms", f"{low:.0f} to {high:.0f} ms"


def _speed_up(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "1"
    low, high = figure["interval_95"]
    return f"**{figure['ratio']:.2f}** ({low:.2f} to {high:.2f})"


SECTIONS: Final[Mapping[str, tuple[str, Callable[[Run], list[str]]]]] = {
    "embedded": ("CPU time of a short clip", _embedded),
    "variants": ("UTMOSv2 variants against torch", _variants),
    "end_to_end_reference": ("UTMOSv2 against torch, as the public code predicts", _end_to_end),
    "end_to_end_grid": ("UTMOSv2 against torch, as mosrt predicts", _end_to_end),
    "front_end": ("NumPy front end against librosa", _front_end),
    "uncertainty_speed": ("wav2vec v1 against torch, by length", _uncertainty),
    "long_recording": ("Memory of a long recording", _long_recording),
    "architectures": ("Scores on other processors", _architectures),
    "gpu_partial": ("UTMOSv2 on a GPU", _gpu),
}
"""Heading and renderer by the name of the JSON file."""
