"""Turn a report into tables of text cells, which terminal, Markdown and HTML show alike.

`tables.json` has the title of each table, and for each column the value that it shows: the key in a
row, "a.b" for one within another, and after a colon its format. A column that is "optional" is left
out where it has no value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

__all__ = ["Row", "Section", "interval_cell", "number", "sections"]

Row = Mapping[str, Any]
"""A report, or an object of one."""

# Providers that copy the audio to another device.
_COPYING: Final = ("cuda", "tensorrt", "tensorrt-ep", "dml", "coreml", "torch-cuda",
                   "torch-cuda-compiled")  # fmt: skip
_NONE: Final = "-"


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
    tables = json.loads((files(__package__) / "tables.json").read_text(encoding="utf-8"))
    parity, labels, latency = (report.get(key, []) for key in ("parity", "labels", "latency"))
    headlines = [row for row in latency if row["clip_s"] == 5.0]
    missing = [*report.get("not_measured", [])]
    if report.get("finished") is False:
        missing.append({"what": "the rest", "reason": "the run was interrupted"})
    copying = any(row["contestant"].rsplit(" ", 2)[1] in _COPYING for row in headlines)
    contents: dict[str, list[tuple[list[Row], Iterable[str]]]] = {
        "parity": [(list(map(_parity_row, parity)), _parity_notes(parity))],
        "worst": [(list(_worst_rows(parity)), ())],
        "labels": [(list(map(_label_row, labels)), _label_notes(labels))],
        "latency": [(list(map(_latency_row, headlines)), _latency_notes(headlines))],
        "stages": [(headlines, ["on a GPU, model includes the copies to it and back"] * copying)],
        "length": [(latency, ())],
        "estimator": [(_study_rows(s), _study_notes(s)) for s in report.get("estimator", [])],
        "not_measured": [(missing, ())],
    }
    return [
        _section(key, table, rows, notes)
        for key, table in tables.items()
        for rows, notes in contents.get(key, [(report.get(key, []), ())])
        if rows
    ]


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return _NONE if value is None else f"{value:.{digits}f}"


def interval_cell(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """An interval, or a dash where there is none."""
    return _cell(bounds, f".{digits}f")


def _section(key: str, table: Row, rows: Sequence[Row], notes: Iterable[str]) -> Section:
    columns = {
        name: [_shown(row, made_of) for row in rows] for name, made_of in table["columns"].items()
    }
    if set(columns.get(table.get("optional"), ())) == {_NONE}:
        del columns[table["optional"]]
    return Section(
        key=key,
        title=table["title"].format(**rows[0]),
        header=tuple(columns),
        rows=tuple(zip(*columns.values(), strict=True)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _shown(row: Row, made_of: str) -> str:
    """What a row has for a column, by the column's entry in `tables.json`."""
    keys, _, spec = made_of.partition(":")
    value: Any = row
    for key in keys.split("."):
        value = value.get(key)
    return _cell(value, spec)


def _cell(value: Any, spec: str = "") -> str:
    """A value of a report as text: a number, an interval, or a ratio with its interval.

    Args:
        value: The value; None becomes a dash.
        spec: Its format, of numbers with three decimals if left out; "small" for numbers that may
            be tiny.
    """
    if value is None:
        return _NONE
    if isinstance(value, Mapping):
        return f"{value['ratio']:.3f} ({_cell(value['interval_95'])})"
    if isinstance(value, list | tuple):
        return " to ".join(_cell(bound, spec) for bound in value)
    if spec == "small":
        return "0" if value == 0 else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.4f}"
    return format(value, spec or (".3f" if isinstance(value, float) else ""))


def _parity_row(row: Row) -> Row:
    verdict = {True: "pass", False: "FAIL", None: "not run"}[row["passed"]]
    # the reference is compared with itself, to show that it runs
    if row["passed"] and row.get("against") == row["contestant"]:
        verdict = "reference"
    flips = row.get("flips")
    flipped = None if flips is None else f"{flips['flipped']} of {flips['pairs']}"
    return {**row, "verdict": verdict, "flipped": flipped}


def _parity_notes(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        yield from (f"{row['contestant']}: {text}" for text in (*row["problems"], *row["notes"]))


def _worst_rows(parity: Sequence[Row]) -> Iterator[Row]:
    for row in parity:
        for worst in row.get("worst", []):
            if worst["difference"]:
                yield {"contestant": row["contestant"], **worst}


def _label_row(row: Row) -> Row:
    def correlation(name: str) -> str:
        bounds = row["intervals"][name]
        return number(row[name]) + (f" ({interval_cell(bounds, 2)})" if bounds else "")

    best = f"{row['zoom_percent']:g} %"
    dataset = row["dataset"] or "all"
    correlations = {name: correlation(name) for name in ("lcc", "srcc", "ktau")}
    return {**row, "best": best, "dataset": dataset, **correlations}


def _label_notes(rows: Sequence[Row]) -> Iterator[str]:
    for row in map(_label_row, rows):
        if row["mse"] is None:
            yield f"{row['contestant']}: its scores are not on the MOS scale, so there is no MSE"
        part = f"{row['dataset']}, {row['level']}, best {row['best']}"
        yield from (f"{part}: {note}" for note in row["notes"])


def _latency_row(row: Row) -> Row:
    return {**row, "ratio_to_first": 1} if row["contestant"] == row["first"] else row


def _latency_notes(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if not row["stable"]:
            yield (
                f"{row['contestant']}: times had not stabilised after {row['warm_up']} "
                f"round{'' if row['warm_up'] == 1 else 's'} of warm-up"
            )


def _study_rows(study: Row) -> list[Row]:
    def row(of: Row) -> Row:
        views = of.get("views")
        return {
            **study,
            **of,
            "estimator": f"grid, {views} views" if views else "reference:SEED, 1 view",
            "bias": f"{of['bias']:+.3f}" if views else "0",
        }

    return [row(of) for of in (study["reference"], *study["grid"])]


def _study_notes(study: Row) -> Iterator[str]:
    grid, views = study["grid"], study["recommended_views"]
    target = f"an interval of at most ±{study['wanted_half_width']:g} MOS on half of the clips"
    if views:
        yield (
            f"recommended: {views} views, the smallest number that gives {target}; they cost "
            f"{grid[views - 1]['ms']:.1f} ms, one view {grid[0]['ms']:.1f} ms"
        )
    else:
        yield f"recommended: none; even {len(grid)} views do not give {target}"
    yield (
        "bias and sd are those of the difference from the mean over seeds, which is itself known "
        f"to ±{study['reference']['target_sd']:.3f}"
    )
