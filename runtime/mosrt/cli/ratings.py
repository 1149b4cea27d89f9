"""Reads listeners' ratings of recordings from a CSV file."""

from __future__ import annotations

import csv
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np

__all__ = ["Rating", "read_ratings"]

_MOST: Final = sys.float_info.max
_LABELS: Final = ("system", "speaker", "dataset")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """The listeners' rating of one clip.

    Attributes:
        path: The clip, as written in the file of ratings.
        mos: Mean opinion score.
        system: The system that made the clip; None if the file does not say.
        speaker: Who speaks; None if the file does not say.
        dataset: The listening test; "" if the file does not say.
    """

    path: str
    mos: float
    system: str | None = None
    speaker: str | None = None
    dataset: str = ""


def read_ratings(file: Path, scale: tuple[float, float] | None = None) -> list[Rating]:
    """Reads a CSV file with the columns path and mos, and optionally system, speaker and dataset.

    Lines with the same path, such as those of several listeners, become one rating, their mean.
    Other columns are ignored.

    Args:
        file: The file.
        scale: The least and the most that a rating may be; by default any number.

    Raises:
        click.UsageError: The file or a line cannot be used.
    """
    lines: dict[str, list[float]] = {}
    labels: dict[str, dict[str, str | None]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if missing := {"path", "mos"} - set(reader.fieldnames or ()):
                raise click.UsageError(
                    f"{file}: no column {' and '.join(sorted(missing))}; the first line must be "
                    "path,mos and may add system, speaker, dataset and listener"
                )
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise click.UsageError(
                        f"{where}: it has not as many cells as the first line; quote commas"
                    )
                try:
                    mos = float(row["mos"])
                except ValueError:
                    mos = math.nan
                low, high = scale or (-_MOST, _MOST)
                if not low <= mos <= high:
                    wanted = "a number" if scale is None else f"a number from {low:g} to {high:g}"
                    raise click.UsageError(
                        f"{where}, column mos: {row['mos']!r} is not {wanted}; correct the line or "
                        "remove it"
                    )
                if not (path := row["path"]):
                    raise click.UsageError(f"{where}, column path: it is empty; name the recording")
                found = {name: row.get(name) or None for name in _LABELS}
                if labels.setdefault(path, found) != found:
                    raise click.UsageError(
                        f"{where}: {path} has another system, speaker or dataset above; give it one"
                    )
                lines.setdefault(path, []).append(mos)
    except (OSError, csv.Error, UnicodeDecodeError) as exc:
        raise click.UsageError(f"{file}: cannot be read ({exc}); save it as CSV in UTF-8") from exc
    if not lines:
        raise click.UsageError(f"{file}: no ratings below the first line")
    return [
        Rating(
            path=path,
            mos=float(np.mean(mos)),
            system=labels[path]["system"],
            speaker=labels[path]["speaker"],
            dataset=labels[path]["dataset"] or "",
        )
        for path, mos in lines.items()
    ]
