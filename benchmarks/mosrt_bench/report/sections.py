"""Turn a report into tables of text cells.

Terminal, Markdown and HTML show the same tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Section", "interval_cell", "number", "sections", "view_study_title"]

_STAGES: Final = ("decode", "resample", "front_end", "model", "rest")
# Providers that copy the audio to another device.
_COPYING: Final = ("cuda", "tensorrt", "tensorrt-ep", "dml", "coreml", "torch-cuda",
                   "torch-cuda-compiled")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A table of the report.

    Attributes:
        key: The entry of the report that it shows.
        title: The heading.
        header: Names of the columns.
        rows: Cells, as text.
        notes: Sentences below the table.
    """

    key: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def sections(report: Mapping[str, Any]) -> list[Section]:
    """All tables that have rows, the most important first."""
    made = [
        _parity(report),
        _worst(report),
        _labels(report),
        _latency(report),
        _stages(report),
        _by_length(report),
        _throughput(report),
        _cold_start(report),
        _energy(report),
        _peers(report),
        *_view_studies(report),
        _not_measured(report),
    ]
    return [section for section in made if section.rows]


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def small(value: float | None) -> str:
    """A number that may be tiny, or a dash where there is none."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.4f}"


def interval_cell(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """An interval, or a dash where there is none."""
    if bounds is None:
        return "-"
    return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


def _unique(notes: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))


def _parity(report: Mapping[str, Any]) -> Section:
    rows, notes = [], []
    for row in report.get("parity", []):
        verdict = {True: "pass", False: "FAIL", None: "not run"}[row["passed"]]
        # the reference is compared with itself, to show that it runs
        if row.get("against") == row["contestant"]:
            verdict = "reference" if row["passed"] else "FAIL"
        flips = row.get("flips")
        rows.append(
            (
                row["contestant"],
                row.get("against", "-"),
                verdict,
                small(row.get("mae")),
                small(row.get("p95_abs")),
                small(row.get("max_abs")),
                number(row.get("lcc"), 4),
                number(row.get("srcc"), 4),
                number(row.get("ktau"), 4),
                "-" if flips is None else f"{flips['flipped']} of {flips['pairs']}",
                str(row.get("n", "-")),
            )
        )
        notes += [f"{row['contestant']}: {problem}" for problem in row["problems"]]
        notes += [f"{row['contestant']}: {note}" for note in row["notes"]]
    return Section(
        key="parity",
        title="Parity: drift from the reference on these clips",
        header=("configuration", "against", "verdict", "MAE", "p95 |Δ|", "max |Δ|", "LCC", "SRCC",
                "KTAU", "close pairs flipped", "clips"),
        rows=tuple(rows),
        notes=_unique(notes),
    )  # fmt: skip


def _worst(report: Mapping[str, Any]) -> Section:
    rows = [
        (row["contestant"], worst["clip"], worst["domain"], number(worst["wanted"], 4),
         number(worst["found"], 4), f"{worst['difference']:+.1e}")
        for row in report.get("parity", [])
        for worst in row.get("worst", [])
        if worst["difference"]
    ]  # fmt: skip
    return Section(
        key="worst",
        title="Worst clips: the largest differences",
        header=("configuration", "clip", "domain", "reference", "score", "difference"),
        rows=tuple(rows),
    )


def _labels(report: Mapping[str, Any]) -> Section:
    rows, notes = [], []
    for row in report.get("labels", []):
        bounds = row["intervals"]
        rows.append(
            (
                row["contestant"],
                row["dataset"] or "all",
                row["level"],
                f"{row['zoom_percent']:g} %",
                str(row["n"]),
                number(row["mse"]),
                *(
                    number(row[name])
                    + (f" ({interval_cell(bounds[name], 2)})" if bounds[name] else "")
                    for name in ("lcc", "srcc", "ktau")
                ),
            )
        )
        if row["mse"] is None:
            notes.append(
                f"{row['contestant']}: its scores are not on the MOS scale, so there is no MSE"
            )
        notes += [
            f"{row['dataset'] or 'all'}, {row['level']}, best {row['zoom_percent']:g} %: {note}"
            for note in row["notes"]
        ]
    return Section(
        key="labels",
        title="Agreement with listeners: the VoiceMOS protocol",
        header=("configuration", "dataset", "level", "best systems", "n", "MSE", "LCC (95 %)",
                "SRCC (95 %)", "KTAU (95 %)"),
        rows=tuple(rows),
        notes=_unique(notes),
    )  # fmt: skip


def _latency(report: Mapping[str, Any]) -> Section:
    """The headline figures, for clips of 5 s."""
    found = [row for row in report.get("latency", []) if row["clip_s"] == 5.0]
    has_torch = any("torch" in row for row in found)
    rows, notes = [], []
    for row in found:
        quantiles = row["quantiles"]
        rows.append(
            (
                row["contestant"],
                number(quantiles["p50"]["ms"], 2),
                interval_cell(quantiles["p50"]["interval_95"], 2),
                *(number(quantiles[name]["ms"], 2) for name in ("p90", "p95", "p99")),
                "1" if row["contestant"] == row["first"] else _ratio(row["ratio_to_first"]),
                *([_ratio(row.get("ratio_to_torch"))] * has_torch),
                str(row["runs"]),
            )
        )
        if not row["stable"]:
            rounds = f"{row['warm_up']} round{'' if row['warm_up'] == 1 else 's'}"
            notes.append(f"{row['contestant']}: times had not stabilised after {rounds} of warm-up")
    torch = ["relative to torch (95 %)"] * has_torch
    return Section(
        key="latency",
        title="Latency of a clip of 5 s, from the file's bytes to the score, in ms",
        header=("configuration", "p50", "95 %", "p90", "p95", "p99", "relative to the first (95 %)",
                *torch, "runs"),
        rows=tuple(rows),
        notes=_unique(notes),
    )  # fmt: skip


def _ratio(figure: Mapping[str, Any] | None) -> str:
    """A ratio of times with its interval, or a dash where there is none."""
    if figure is None:
        return "-"
    return f"{figure['ratio']:.3f} ({interval_cell(figure['interval_95'])})"


def _stages(report: Mapping[str, Any]) -> Section:
    headlines = [row for row in report.get("latency", []) if row["clip_s"] == 5.0]
    copying = any(row["contestant"].rsplit(" ", 2)[1] in _COPYING for row in headlines)
    rows = [
        (row["contestant"], *(number(row["stages_ms"].get(name), 2) for name in _STAGES))
        for row in headlines
    ]
    return Section(
        key="stages",
        title="Stages of a clip of 5 s, medians in ms",
        header=("configuration", *(name.replace("_", " ") for name in _STAGES)),
        rows=tuple(rows),
        notes=("on a GPU, model includes the copies to it and back",) if copying else (),
    )


def _by_length(report: Mapping[str, Any]) -> Section:
    rows = [
        (row["contestant"], f"{row['clip_s']:g}", number(row["quantiles"]["p50"]["ms"], 2),
         number(row["quantiles"]["p95"]["ms"], 2), number(row["real_time_factor"], 4),
         interval_cell(row["real_time_factor_95"], 4), str(row["runs"]))
        for row in report.get("latency", [])
    ]  # fmt: skip
    return Section(
        key="length",
        title="Latency by length",
        header=(
            "configuration",
            "clip, s",
            "p50, ms",
            "p95, ms",
            "real-time factor",
            "95 %",
            "runs",
        ),
        rows=tuple(rows),
    )


def _throughput(report: Mapping[str, Any]) -> Section:
    found = report.get("throughput", [])
    has_torch = any("torch" in row for row in found)
    rows = [
        (row["contestant"], row["kind"], str(row["count"]), number(row["clips_per_s"], 2),
         interval_cell(row["clips_per_s_95"], 2), number(row["audio_s_per_s"], 1),
         *([_ratio(row.get("ratio_to_torch"))] * has_torch), str(row["runs"]))
        for row in found
    ]  # fmt: skip
    torch = ["relative to torch (95 %)"] * has_torch
    return Section(
        key="throughput",
        title="Throughput, clips of 5 s",
        header=("configuration", "of", "count", "clips per s", "95 %", "seconds of audio per s",
                *torch, "runs"),
        rows=tuple(rows),
    )  # fmt: skip


def _not_measured(report: Mapping[str, Any]) -> Section:
    rows = [
        (row["contestant"], row["what"], row["reason"]) for row in report.get("not_measured", [])
    ]
    if report.get("finished") is False:
        rows.append(("-", "the rest", "the run was interrupted"))
    return Section(
        key="not_measured",
        title="Not measured",
        header=("configuration", "step", "reason"),
        rows=tuple(rows),
    )


def _cold_start(report: Mapping[str, Any]) -> Section:
    found = report.get("cold_start", [])
    columns = {
        "process, ms": "process_ms", "import, ms": "import_ms", "load, ms": "load_ms",
        "first score, ms": "first_score_ms", "second score, ms": "second_score_ms",
        "peak, MB": "peak_mb", "device peak, MB": "device_peak_mb",
    }  # fmt: skip
    if all(row["device_peak_mb"] is None for row in found):
        del columns["device peak, MB"]
    rows = [
        (row["contestant"], *(number(row[name], 0) for name in columns.values()), str(row["runs"]))
        for row in found
    ]
    return Section(
        key="cold_start",
        title="Cold start and peak memory of a fresh process",
        header=("configuration", *columns, "runs"),
        rows=tuple(rows),
    )


def _energy(report: Mapping[str, Any]) -> Section:
    rows = [
        (row["contestant"], row["part"], number(row["joules"]), number(row["watts"], 1),
         str(row["runs"]))
        for row in report.get("energy", [])
    ]  # fmt: skip
    return Section(
        key="energy",
        title="Energy per clip of 5 s, measured for the whole device, other programs included",
        header=("configuration", "device", "J per score", "W", "runs"),
        rows=tuple(rows),
    )


def _peers(report: Mapping[str, Any]) -> Section:
    rows = []
    for row in report.get("peers", []):
        scored = [value for value in row["scores"].values() if value is not None]
        mean = sum(scored) / len(scored) if scored else None
        rows.append((row["peer"], number(mean), str(len(scored)), number(row["ms"], 1)))
    return Section(
        key="peers",
        title="Published models on the same clips, one thread, front end included",
        header=("model", "mean score", "clips", "p50, ms"),
        rows=tuple(rows),
    )


def view_study_title(study: Mapping[str, Any]) -> str:
    """The heading of a study of the number of views."""
    return f"Number of views of {study['model']}: {study['clips']} clips, {study['seeds']} seeds"


def _view_studies(report: Mapping[str, Any]) -> list[Section]:
    made = []
    for study in report.get("estimator", []):
        reference = study["reference"]
        rows = [
            (
                "reference:SEED, 1 view",
                "0",
                number(reference["sd"]),
                "-",
                number(reference["ms"], 1),
            )
        ]
        rows += [
            (f"grid, {row['views']} views", f"{row['bias']:+.3f}", number(row["sd"]),
             number(row["half_width"]), number(row["ms"], 1))
            for row in study["grid"]
        ]  # fmt: skip
        target = f"an interval of at most ±{study['wanted_half_width']:g} MOS on half of the clips"
        views = study["recommended_views"]
        advice = (
            f"recommended: {views} views, the smallest number that gives {target}; they cost "
            f"{study['grid'][views - 1]['ms']:.1f} ms, one view {study['grid'][0]['ms']:.1f} ms"
            if views
            else f"recommended: none; even {len(study['grid'])} views do not give {target}"
        )
        made.append(
            Section(
                key="estimator",
                title=view_study_title(study),
                header=("estimator", "bias", "sd", "half-width", "ms"),
                rows=tuple(rows),
                notes=(
                    advice,
                    "bias and sd are those of the difference from the mean over seeds, which is "
                    f"itself known to ±{reference['target_sd']:.3f}",
                ),
            )
        )
    return made
