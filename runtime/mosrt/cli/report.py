"""Writes scores row by row, in the formats of `mosrt score`."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final, Protocol

import numpy as np

from mosrt.score import Score

from .terminal import json_text, printable

__all__ = ["FORMATS", "STDIN", "Report", "open_report", "summary"]

STDIN: Final = "-"
FORMATS: Final = ("table", "json", "jsonl", "csv")
_CSV_FIELDS: Final = (
    "path", "domain", "mos", "low", "high", "n_views", "duration_s", "flags",
    "model", "variant", "provider",
)  # fmt: skip


class Report(Protocol):
    """Writes scores one by one; what is written is always complete as it stands."""

    def add(self, path: str, score: Score) -> None:
        """Writes the score of one recording."""
        ...


@contextmanager
def open_report(
    kind: str,
    stream: IO[str],
    *,
    paths: Sequence[str],
    domains: Sequence[str],
    timings: bool,
    measures: Sequence[str] = (),
) -> Iterator[Report]:
    """Opens a report on `stream`, and completes it when the block ends, also after an error.

    Args:
        kind: One of `FORMATS`.
        stream: Where to write.
        paths: All paths to come, for the column widths of a table.
        domains: All domains to come, likewise.
        timings: Whether JSON holds timings, which differ from run to run.
        measures: Names of the measures that every score has: columns of CSV, and the first of
            them a column of a table. JSON holds all measures of a score.
    """
    if kind == "json":
        report = _Json(stream, timings)
        try:
            yield report
        finally:
            report.end()
    elif kind == "jsonl":
        yield _JsonLines(stream, timings)
    elif kind == "csv":
        yield _Csv(stream, measures)
    else:
        yield _Table(stream, paths, domains, measures)


def record(path: str, score: Score, *, timings: bool) -> dict[str, Any]:
    """A score as a JSON object, the path first."""
    values = score.to_dict()
    del values["domains"]  # each domain that is asked for has a row of its own
    if not timings:
        del values["timings_ms"]
    return {"path": path, **values}


class _JsonLines:
    _before, _after = "", "\n"

    def __init__(self, stream: IO[str], timings: bool) -> None:
        self._stream = stream
        self._timings = timings

    def add(self, path: str, score: Score) -> None:
        text = json_text(record(path, score, timings=self._timings), self._stream)
        self._stream.write(self._before + text + self._after)
        self._stream.flush()


class _Json(_JsonLines):
    """One array; each object on its own line."""

    _before, _after = "[\n", ""

    def add(self, path: str, score: Score) -> None:
        super().add(path, score)
        self._before = ",\n"

    def end(self) -> None:
        self._stream.write("[]\n" if self._before == "[\n" else "\n]\n")


class _Csv:
    def __init__(self, stream: IO[str], measures: Sequence[str]) -> None:
        self._writer = csv.DictWriter(
            stream, [*_CSV_FIELDS, *measures], extrasaction="ignore", lineterminator="\n"
        )
        self._writer.writeheader()

    def add(self, path: str, score: Score) -> None:
        row = record(path, score, timings=False)
        row |= {**row["measures"], "flags": " ".join(score.flags)}
        self._writer.writerow({key: _cell(value) for key, value in row.items()})


class _Table:
    """Columns as wide as the longest path and domain; a dash where there is no number."""

    def __init__(
        self, stream: IO[str], paths: Sequence[str], domains: Sequence[str], measures: Sequence[str]
    ) -> None:
        self._stream = stream
        self._measure = measures[0] if measures else None
        self._path_width = max(len(printable(path)) for path in [*paths, "path"])
        self._domain_width = max(map(len, [*domains, "domain"]))
        self._row("path", "domain", "mos", "95 % interval", self._measure or "", "views", "flags")

    def add(self, path: str, score: Score) -> None:
        interval = "-"
        if math.isfinite(score.low):
            interval = f"{score.low:.3f} … {score.high:.3f}"
        mos = _number(score.mos)
        measure = "" if self._measure is None else _number(score.measures[self._measure])
        flags = " ".join(score.flags)
        self._row(path, score.domain, mos, interval, measure, str(score.n_views), flags)
        self._stream.flush()

    def _row(self, *cells: str) -> None:
        path, domain, mos, interval, measure, views, flags = cells
        column = "" if self._measure is None else f"{measure:>{len(self._measure)}}  "
        line = (
            f"{printable(path):<{self._path_width}}  {domain:<{self._domain_width}}  {mos:>6}  "
            f"{interval:>16}  {column}{views:>5}  {flags}"
        )
        self._stream.write(line.rstrip() + "\n")


def summary(scores: Sequence[Score]) -> str:
    """One line on the scores of one domain: count, mean, median, 5th and 95th percentile.

    For a model that gives no MOS, of the uncertainty.
    """
    values = np.array(
        [score.mos if score.domains else score.measures["uncertainty"] for score in scores]
    )
    scored = values[np.isfinite(values)]
    counts = f"{len(scored)} scored, {len(values) - len(scored)} failed"
    if not scored.size:
        return counts
    p5, median, p95 = np.percentile(scored, [5, 50, 95])
    return f"{counts}; mean {scored.mean():.3f}, median {median:.3f}, p5 {p5:.3f}, p95 {p95:.3f}"


def _cell(value: Any) -> Any:
    """A value for CSV: text on one line that no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    # A dash alone is standard input; the last four are wide forms of the first.
    formula = value.startswith(tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20"))
    return f"'{text}" if formula and value != STDIN else text


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
