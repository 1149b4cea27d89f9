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
    "front_end": ("NumPy front end against librosa", _front_end),
    "uncertainty_speed": ("wav2vec v1 against torch, by length", _uncertainty),
    "long_recording": ("Memory of a long recording", _long_recording),
    "architectures": ("Scores on other processors", _architectures),
}
"""Heading and renderer by the name of the JSON file."""
