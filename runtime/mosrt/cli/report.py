"""Writes scores row by row, in the formats of `mosrt score`."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final

import numpy as np

from mosrt.score import Score

from .terminal import json_text, printable

__all__ = ["FORMATS", "STDIN", "open_report", "summary"]

STDIN: Final = "-"
FORMATS: Final = ("table", "json", "jsonl", "csv")
_CSV_FIELDS: Final = (
    "path", "domain", "mos", "low", "high", "n_views", "duration_s", "flags",
    "model", "variant", "provider",
)  # fmt: skip


Add = Callable[[str, Score], None]
"""Writes the score of the recording at a path; what is written is always complete as it stands."""


@contextmanager
def open_report(
    kind: str,
    stream: IO[str],
    *,
    paths: Sequence[str],
    domains: Sequence[str],
    timings: bool,
    measures: Sequence[str] = (),
) -> Iterator[Add]:
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
    if kind == "table":
        yield _table(stream, paths, domains, measures)
    elif kind == "csv":
        yield _csv(stream, measures)
    elif kind == "jsonl":
        yield lambda path, score: _write(stream, _json(path, score, stream, timings) + "\n")
    else:  # an array, each object on a line of its own
        before = "[\n"

        def add(path: str, score: Score) -> None:
            nonlocal before
            _write(stream, before + _json(path, score, stream, timings))
            before = ",\n"

        try:
            yield add
        finally:
            stream.write("[]\n" if before == "[\n" else "\n]\n")


def _write(stream: IO[str], text: str) -> None:
    stream.write(text)
    stream.flush()


def _record(path: str, score: Score) -> dict[str, Any]:
    values = score.to_dict()
    del values["domains"]  # each domain that is asked for has a row of its own
    return {"path": path, **values}


def _json(path: str, score: Score, stream: IO[str], timings: bool) -> str:
    values = _record(path, score)
    if not timings:
        del values["timings_ms"]
    return json_text(values, stream)


def _csv(stream: IO[str], measures: Sequence[str]) -> Add:
    writer = csv.DictWriter(
        stream, [*_CSV_FIELDS, *measures], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()

    def add(path: str, score: Score) -> None:
        row = _record(path, score)
        row |= {**row["measures"], "flags": " ".join(score.flags)}
        writer.writerow({key: _cell(value) for key, value in row.items()})

    return add


def _table(
    stream: IO[str], paths: Sequence[str], domains: Sequence[str], measures: Sequence[str]
) -> Add:
    """Columns as wide as the longest path and domain; a dash where there is no number."""
    measure = next(iter(measures), "")
    path_width = max(len(printable(path)) for path in [*paths, "path"])
    domain_width = max(map(len, [*domains, "domain"]))

    def row(*cells: str) -> None:
        path, domain, mos, interval, value, views, flags = cells
        column = f"{value:>{len(measure)}}  " if measure else ""
        line = (
            f"{printable(path):<{path_width}}  {domain:<{domain_width}}  {mos:>6}  "
            f"{interval:>16}  {column}{views:>5}  {flags}"
        )
        _write(stream, line.rstrip() + "\n")

    def add(path: str, score: Score) -> None:
        interval = "-"
        if math.isfinite(score.low):
            interval = f"{score.low:.3f} … {score.high:.3f}"
        value = _number(score.measures[measure]) if measure else ""
        flags = " ".join(score.flags)
        row(path, score.domain, _number(score.mos), interval, value, str(score.n_views), flags)

    row("path", "domain", "mos", "95 % interval", measure, "views", "flags")
    return add


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
