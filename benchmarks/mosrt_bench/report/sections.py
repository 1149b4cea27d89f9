"""The report's tables: which there are, and their cells as text.

The terminal, Markdown and the page show the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Section", "between", "estimator_title", "figure", "sections"]

_STAGES: Final = ("decode", "resample", "front_end", "model", "rest")
# Providers that run elsewhere than where the audio is.
_COPYING: Final = ("cuda", "tensorrt", "tensorrt-ep", "dml", "coreml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A table of the report.

    Attributes:
        key: The report's entry that it shows.
        title: Its heading.
        header: Names of the columns.
        rows: Cells, as text.
        notes: Sentences below it.
    """

    key: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def sections(report: Mapping[str, Any]) -> list[Section]:
    """The report's tables that have rows, in the order to read them."""
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
        *_estimators(report),
    ]
    return [section for section in made if section.rows]


def figure(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def small(value: float | None) -> str:
    """A number that may be tiny."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.4f}"


def between(bounds: Sequence[float] | None, digits: int = 3) -> str:
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
        # A row that is the reference itself only says that it is.
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
                figure(row.get("lcc"), 4),
                figure(row.get("srcc"), 4),
                figure(row.get("ktau"), 4),
                "-" if flips is None else f"{flips['flipped']} of {flips['pairs']}",
                str(row.get("n", "-")),
            )
        )
        notes += [f"{row['contestant']}: {problem}" for problem in row["problems"]]
        notes += [f"{row['contestant']}: {note}" for note in row["notes"]]
    return Section(
        key="parity",
        title="Parity: drift from the reference on these clips",
        header=("contestant", "against", "verdict", "MAE", "p95 |Δ|", "max |Δ|", "LCC", "SRCC",
                "KTAU", "close pairs flipped", "clips"),
        rows=tuple(rows),
        notes=_unique(notes),
    )  # fmt: skip


def _worst(report: Mapping[str, Any]) -> Section:
    rows = [
        (row["contestant"], worst["clip"], worst["domain"], figure(worst["wanted"], 4),
         figure(worst["found"], 4), f"{worst['difference']:+.1e}")
        for row in report.get("parity", [])
        for worst in row.get("worst", [])
        if worst["difference"]
    ]  # fmt: skip
    return Section(
        key="worst",
        title="Worst clips: where a contestant differs most",
        header=("contestant", "clip", "domain", "reference", "contestant's", "difference"),
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
                figure(row["mse"]),
                *(
                    figure(row[name]) + (f" ({between(bounds[name], 2)})" if bounds[name] else "")
                    for name in ("lcc", "srcc", "ktau")
                ),
            )
        )
        if row["mse"] is None:
            notes.append(f"{row['contestant']}: scores on a scale of their own, so there is no MSE")
        notes += [
            f"{row['dataset'] or 'all'}, {row['level']}, best {row['zoom_percent']:g} %: {note}"
            for note in row["notes"]
        ]
    return Section(
        key="labels",
        title="Listeners: the VoiceMOS protocol",
        header=("contestant", "dataset", "level", "best systems", "n", "MSE", "LCC (95 %)",
                "SRCC (95 %)", "KTAU (95 %)"),
        rows=tuple(rows),
        notes=_unique(notes),
    )  # fmt: skip


def _latency(report: Mapping[str, Any]) -> Section:
    """The headline: clips of 5 s."""
    rows, notes = [], []
    for row in report.get("latency", []):
        if row["clip_s"] != 5.0:
            continue
        quantiles = row["quantiles"]
        ratio = row["ratio_to_first"]
        rows.append(
            (
                row["contestant"],
                figure(quantiles["p50"]["ms"], 2),
                between(quantiles["p50"]["interval_95"], 2),
                *(figure(quantiles[name]["ms"], 2) for name in ("p90", "p95", "p99")),
                "1" if row["contestant"] == row["first"] else
                f"{ratio['ratio']:.3f} ({between(ratio['interval_95'])})",
                str(row["runs"]),
            )
        )  # fmt: skip
        if not row["stable"]:
            rounds = f"{row['warm_up']} round{'' if row['warm_up'] == 1 else 's'}"
            notes.append(f"{row['contestant']}: times had not settled after {rounds} of warm-up")
    return Section(
        key="latency",
        title="Latency of a clip of 5 s, from the file's bytes to the score, in ms",
        header=("contestant", "p50", "95 %", "p90", "p95", "p99", "relative to the first (95 %)",
                "runs"),
        rows=tuple(rows),
        notes=_unique(notes),
    )  # fmt: skip


def _stages(report: Mapping[str, Any]) -> Section:
    headlines = [row for row in report.get("latency", []) if row["clip_s"] == 5.0]
    copying = any(row["contestant"].rsplit(" ", 2)[1] in _COPYING for row in headlines)
    rows = [
        (row["contestant"], *(figure(row["stages_ms"].get(name), 2) for name in _STAGES))
        for row in headlines
    ]
    return Section(
        key="stages",
        title="Stages of a clip of 5 s, medians in ms",
        header=("contestant", *(name.replace("_", " ") for name in _STAGES)),
        rows=tuple(rows),
        notes=("on a GPU, model includes the copies to it and back",) if copying else (),
    )


def _by_length(report: Mapping[str, Any]) -> Section:
    rows = [
        (row["contestant"], f"{row['clip_s']:g}", figure(row["quantiles"]["p50"]["ms"], 2),
         figure(row["quantiles"]["p95"]["ms"], 2), figure(row["real_time_factor"], 4),
         between(row["real_time_factor_95"], 4), str(row["runs"]))
        for row in report.get("latency", [])
    ]  # fmt: skip
    return Section(
        key="length",
        title="Latency by length",
        header=("contestant", "clip, s", "p50, ms", "p95, ms", "real-time factor", "95 %", "runs"),
        rows=tuple(rows),
    )


def _throughput(report: Mapping[str, Any]) -> Section:
    rows = [
        (row["contestant"], row["kind"], str(row["count"]), figure(row["clips_per_s"], 2),
         between(row["clips_per_s_95"], 2), figure(row["audio_s_per_s"], 1), str(row["runs"]))
        for row in report.get("throughput", [])
    ]  # fmt: skip
    return Section(
        key="throughput",
        title="Throughput, clips of 5 s",
        header=("contestant", "of", "count", "clips per s", "95 %", "seconds of audio per s",
                "runs"),
        rows=tuple(rows),
    )  # fmt: skip


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
        (row["contestant"], *(figure(row[name], 0) for name in columns.values()), str(row["runs"]))
        for row in found
    ]
    return Section(
        key="cold_start",
        title="Cold start of a fresh process, and its peak memory",
        header=("contestant", *columns, "runs"),
        rows=tuple(rows),
    )


def _energy(report: Mapping[str, Any]) -> Section:
    rows = [
        (row["contestant"], row["part"], figure(row["joules"]), figure(row["watts"], 1),
         str(row["runs"]))
        for row in report.get("energy", [])
    ]  # fmt: skip
    return Section(
        key="energy",
        title="Energy of a clip of 5 s, of the whole part, other programs included",
        header=("contestant", "part", "J per score", "W", "runs"),
        rows=tuple(rows),
    )


def _peers(report: Mapping[str, Any]) -> Section:
    rows = []
    for row in report.get("peers", []):
        scored = [value for value in row["scores"].values() if value is not None]
        mean = sum(scored) / len(scored) if scored else None
        rows.append((row["peer"], figure(mean), str(len(scored)), figure(row["ms"], 1)))
    return Section(
        key="peers",
        title="Published peers on the same clips, one thread, front end included",
        header=("peer", "mean score", "clips", "p50, ms"),
        rows=tuple(rows),
    )


def estimator_title(study: Mapping[str, Any]) -> str:
    """The heading of an estimator study."""
    return f"Estimators of {study['model']}: {study['clips']} clips, {study['seeds']} seeds"


def _estimators(report: Mapping[str, Any]) -> list[Section]:
    made = []
    for study in report.get("estimator", []):
        reference = study["reference"]
        rows = [
            (
                "reference:SEED, 1 view",
                "0",
                figure(reference["sd"]),
                "-",
                figure(reference["ms"], 1),
            )
        ]
        rows += [
            (f"grid, {row['views']} views", f"{row['bias']:+.3f}", figure(row["sd"]),
             figure(row["half_width"]), figure(row["ms"], 1))
            for row in study["grid"]
        ]  # fmt: skip
        wanted = f"an interval of ±{study['wanted_half_width']:g} MOS"
        enough = study["recommended_views"]
        advice = (
            f"recommended: {enough} views, the fewest with {wanted} or less on half of the clips; "
            f"they cost {study['grid'][enough - 1]['ms']:.1f} ms, one view "
            f"{study['grid'][0]['ms']:.1f} ms"
            if enough
            else f"recommended: none; even {len(study['grid'])} views give no half of the clips "
            f"{wanted}"
        )
        made.append(
            Section(
                key="estimator",
                title=estimator_title(study),
                header=("estimator", "bias", "sd", "half-width", "ms"),
                rows=tuple(rows),
                notes=(
                    advice,
                    "bias and sd are of the difference from the mean over seeds, which itself is "
                    f"known to ±{reference['target_sd']:.3f}",
                ),
            )
        )
    return made
