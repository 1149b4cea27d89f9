"""Turn a report into tables of text cells.

Terminal, Markdown and HTML show the same tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Section", "interval_cell", "number", "sections", "view_study_title"]

Row = Mapping[str, Any]
"""A report, or an object of one."""
Columns = Mapping[str, str | tuple[str, int] | Callable[[Row], str]]
"""What a row has for each column: the value of a key, "a.b" for one within another, with a number
of decimals or the usual three, or what a function makes of the row."""

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


def sections(report: Row) -> list[Section]:
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
        *map(_view_study, report.get("estimator", [])),
        _not_measured(report),
    ]
    return [section for section in made if section.rows]


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval_cell(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """An interval, or a dash where there is none."""
    return "-" if bounds is None else f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


def _cell(value: Any, digits: int = 3) -> str:
    """A value of a report as text: a number, an interval, or a ratio with its interval."""
    if isinstance(value, Mapping):
        return f"{value['ratio']:.3f} ({interval_cell(value['interval_95'])})"
    if isinstance(value, list | tuple):
        return interval_cell(value, digits)
    return number(value, digits) if value is None or isinstance(value, float) else str(value)


def _section(
    key: str, title: str, rows: Sequence[Row], columns: Columns, notes: Iterable[str] = ()
) -> Section:
    def text(row: Row, made_of: str | tuple[str, int] | Callable[[Row], str]) -> str:
        if callable(made_of):
            return made_of(row)
        keys, *digits = (made_of,) if isinstance(made_of, str) else made_of
        value: Any = row
        for name in keys.split("."):
            value = value.get(name)
        return _cell(value, *digits)

    return Section(
        key=key,
        title=title,
        header=tuple(columns),
        rows=tuple(tuple(text(row, made_of) for made_of in columns.values()) for row in rows),
        notes=tuple(dict.fromkeys(notes)),
    )


def _small(name: str) -> Callable[[Row], str]:
    """A number that may be tiny."""

    def cell(row: Row) -> str:
        value = row.get(name)
        if value is None:
            return "-"
        return "0" if value == 0 else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.4f}"

    return cell


def _beside_torch(rows: Sequence[Row]) -> Columns:
    """The column of ratios to torch's times, where torch was timed."""
    timed = any("torch" in row for row in rows)
    return {"relative to torch (95 %)": "ratio_to_torch"} if timed else {}


def _parity(report: Row) -> Section:
    def verdict(row: Row) -> str:
        # the reference is compared with itself, to show that it runs
        if row["passed"] and row.get("against") == row["contestant"]:
            return "reference"
        return {True: "pass", False: "FAIL", None: "not run"}[row["passed"]]

    def flipped(row: Row) -> str:
        flips = row.get("flips")
        return "-" if flips is None else f"{flips['flipped']} of {flips['pairs']}"

    rows = report.get("parity", [])
    columns: Columns = {
        "configuration": "contestant", "against": "against", "verdict": verdict,
        "MAE": _small("mae"), "p95 |Δ|": _small("p95_abs"), "max |Δ|": _small("max_abs"),
        "LCC": ("lcc", 4), "SRCC": ("srcc", 4), "KTAU": ("ktau", 4),
        "close pairs flipped": flipped, "clips": "n",
    }  # fmt: skip
    notes = [f"{r['contestant']}: {text}" for r in rows for text in (*r["problems"], *r["notes"])]
    title = "Parity: drift from the reference on these clips"
    return _section("parity", title, rows, columns, notes)


def _worst(report: Row) -> Section:
    rows = [
        {"contestant": row["contestant"], **worst}
        for row in report.get("parity", [])
        for worst in row.get("worst", [])
        if worst["difference"]
    ]
    columns: Columns = {
        "configuration": "contestant", "clip": "clip", "domain": "domain",
        "reference": ("wanted", 4), "score": ("found", 4),
        "difference": lambda row: f"{row['difference']:+.1e}",
    }  # fmt: skip
    return _section("worst", "Worst clips: the largest differences", rows, columns)


def _labels(report: Row) -> Section:
    def correlation(name: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            bounds = row["intervals"][name]
            return number(row[name]) + (f" ({interval_cell(bounds, 2)})" if bounds else "")

        return cell

    def dataset(row: Row) -> str:
        return row["dataset"] or "all"

    def best(row: Row) -> str:
        return f"{row['zoom_percent']:g} %"

    rows, notes = report.get("labels", []), []
    for row in rows:
        if row["mse"] is None:
            notes.append(
                f"{row['contestant']}: its scores are not on the MOS scale, so there is no MSE"
            )
        part = f"{dataset(row)}, {row['level']}, best {best(row)}"
        notes += [f"{part}: {note}" for note in row["notes"]]
    columns: Columns = {
        "configuration": "contestant", "dataset": dataset, "level": "level", "best systems": best,
        "n": "n", "MSE": "mse", "LCC (95 %)": correlation("lcc"),
        "SRCC (95 %)": correlation("srcc"), "KTAU (95 %)": correlation("ktau"),
    }  # fmt: skip
    title = "Agreement with listeners: the VoiceMOS protocol"
    return _section("labels", title, rows, columns, notes)


def _headlines(report: Row) -> list[Row]:
    return [row for row in report.get("latency", []) if row["clip_s"] == 5.0]


def _latency(report: Row) -> Section:
    """The headline figures, for clips of 5 s."""

    def beside_first(row: Row) -> str:
        return "1" if row["contestant"] == row["first"] else _cell(row["ratio_to_first"])

    rows = _headlines(report)
    columns: Columns = {
        "configuration": "contestant", "p50": ("quantiles.p50.ms", 2),
        "95 %": ("quantiles.p50.interval_95", 2), "p90": ("quantiles.p90.ms", 2),
        "p95": ("quantiles.p95.ms", 2), "p99": ("quantiles.p99.ms", 2),
        "relative to the first (95 %)": beside_first, **_beside_torch(rows), "runs": "runs",
    }  # fmt: skip
    notes = [
        f"{row['contestant']}: times had not stabilised after {row['warm_up']} "
        f"round{'' if row['warm_up'] == 1 else 's'} of warm-up"
        for row in rows
        if not row["stable"]
    ]
    title = "Latency of a clip of 5 s, from the file's bytes to the score, in ms"
    return _section("latency", title, rows, columns, notes)


def _stages(report: Row) -> Section:
    rows = _headlines(report)
    copying = any(row["contestant"].rsplit(" ", 2)[1] in _COPYING for row in rows)
    columns = {name.replace("_", " "): (f"stages_ms.{name}", 2) for name in _STAGES}
    notes = ["on a GPU, model includes the copies to it and back"] * copying
    title = "Stages of a clip of 5 s, medians in ms"
    return _section("stages", title, rows, {"configuration": "contestant", **columns}, notes)


def _by_length(report: Row) -> Section:
    columns: Columns = {
        "configuration": "contestant", "clip, s": lambda row: f"{row['clip_s']:g}",
        "p50, ms": ("quantiles.p50.ms", 2), "p95, ms": ("quantiles.p95.ms", 2),
        "real-time factor": ("real_time_factor", 4), "95 %": ("real_time_factor_95", 4),
        "runs": "runs",
    }  # fmt: skip
    return _section("length", "Latency by length", report.get("latency", []), columns)


def _throughput(report: Row) -> Section:
    rows = report.get("throughput", [])
    columns: Columns = {
        "configuration": "contestant", "of": "kind", "count": "count",
        "clips per s": ("clips_per_s", 2), "95 %": ("clips_per_s_95", 2),
        "seconds of audio per s": ("audio_s_per_s", 1), **_beside_torch(rows), "runs": "runs",
    }  # fmt: skip
    return _section("throughput", "Throughput, clips of 5 s", rows, columns)


def _not_measured(report: Row) -> Section:
    rows = list(report.get("not_measured", []))
    if report.get("finished") is False:
        rows.append({"what": "the rest", "reason": "the run was interrupted"})
    columns = {"configuration": "contestant", "step": "what", "reason": "reason"}
    return _section("not_measured", "Not measured", rows, columns)


def _cold_start(report: Row) -> Section:
    rows = report.get("cold_start", [])
    columns: dict[str, str | tuple[str, int] | Callable[[Row], str]] = {
        "configuration": "contestant", "process, ms": ("process_ms", 0),
        "import, ms": ("import_ms", 0), "load, ms": ("load_ms", 0),
        "first score, ms": ("first_score_ms", 0), "second score, ms": ("second_score_ms", 0),
        "peak, MB": ("peak_mb", 0), "device peak, MB": ("device_peak_mb", 0), "runs": "runs",
    }  # fmt: skip
    if all(row["device_peak_mb"] is None for row in rows):
        del columns["device peak, MB"]
    title = "Cold start and peak memory of a fresh process"
    return _section("cold_start", title, rows, columns)


def _energy(report: Row) -> Section:
    columns: Columns = {
        "configuration": "contestant", "device": "part", "J per score": "joules",
        "W": ("watts", 1), "runs": "runs",
    }  # fmt: skip
    title = "Energy per clip of 5 s, measured for the whole device, other programs included"
    return _section("energy", title, report.get("energy", []), columns)


def _peers(report: Row) -> Section:
    rows = []
    for row in report.get("peers", []):
        scored = [value for value in row["scores"].values() if value is not None]
        mean = sum(scored) / len(scored) if scored else None
        rows.append({**row, "mean": mean, "clips": len(scored)})
    columns: Columns = {
        "model": "peer", "mean score": "mean", "clips": "clips", "p50, ms": ("ms", 1)
    }  # fmt: skip
    title = "Published models on the same clips, one thread, front end included"
    return _section("peers", title, rows, columns)


def view_study_title(study: Row) -> str:
    """The heading of a study of the number of views."""
    return f"Number of views of {study['model']}: {study['clips']} clips, {study['seeds']} seeds"


def _view_study(study: Row) -> Section:
    reference, grid, views = study["reference"], study["grid"], study["recommended_views"]
    target = f"an interval of at most ±{study['wanted_half_width']:g} MOS on half of the clips"
    advice = f"recommended: none; even {len(grid)} views do not give {target}"
    if views:
        advice = (
            f"recommended: {views} views, the smallest number that gives {target}; they cost "
            f"{grid[views - 1]['ms']:.1f} ms, one view {grid[0]['ms']:.1f} ms"
        )
    notes = [
        advice,
        "bias and sd are those of the difference from the mean over seeds, which is itself known "
        f"to ±{reference['target_sd']:.3f}",
    ]
    columns: Columns = {
        "estimator": lambda row: f"grid, {row['views']} views" if "views" in row else (
            "reference:SEED, 1 view"
        ),
        "bias": lambda row: f"{row['bias']:+.3f}" if "bias" in row else "0",
        "sd": "sd", "half-width": "half_width", "ms": ("ms", 1),
    }  # fmt: skip
    return _section("estimator", view_study_title(study), [reference, *grid], columns, notes)
