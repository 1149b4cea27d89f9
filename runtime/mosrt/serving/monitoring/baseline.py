"""Reads and writes the scores that live traffic is compared with.

Two kinds of JSON file serve as a baseline: what `mosrt gate --update` records, whose scores are
those of all traffic, and what `Monitor.save_baseline` writes, with scores for each series.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mosrt.errors import BaselineError
from mosrt.host.files import replacing

__all__ = ["ALL", "LEAST_SCORES", "Baseline"]

ALL: Final = "all"
"""Name of the series of all traffic."""
LEAST_SCORES: Final = 20
"""Scores that a baseline needs at least."""
_GATE: Final = "mosrt gate baseline"
_MONITOR: Final = "mosrt monitor baseline"
_SCHEMA_VERSION: Final = 1
_SETUP: Final = ("model", "bundle_sha256", "variant", "provider", "domain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Scores by series, and what determined them.

    Attributes:
        model: Name of the model.
        bundle_sha256: SHA-256 of the bundle's manifest.
        variant: Precision variant.
        provider: Execution provider.
        domain: Data domain.
        views: Views per clip; None for the model's choice.
        series: Scores, finite MOS, by the name of a series: "all", or "LABEL=VALUE".
    """

    model: str
    bundle_sha256: str
    variant: str
    provider: str
    domain: str
    views: int | None
    series: Mapping[str, Sequence[float]]

    @classmethod
    def read(cls, file: Path) -> Baseline:
        """Reads a file of either kind.

        Raises:
            BaselineError: It is missing, damaged, of another schema version, or too small.
        """
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else exc
            raise BaselineError(
                f"{file}: cannot be read ({why}); record it with `mosrt gate --update`"
            ) from exc
        kind = found.get("kind") if isinstance(found, dict) else None
        if kind not in (_GATE, _MONITOR):
            raise BaselineError(f"{file}: no baseline of `mosrt gate` or of a monitor")
        if found.get("schema_version") != _SCHEMA_VERSION:
            raise BaselineError(
                f"{file}: schema version {found.get('schema_version')}, but this mosrt reads "
                f"version {_SCHEMA_VERSION}; record it again"
            )
        try:
            series = _gate_series(found["clips"]) if kind == _GATE else found["series"]
            series = {str(name): [float(mos) for mos in scores] for name, scores in series.items()}
            setup = {name: str(found[name]) for name in _SETUP}
            views = found["views"] and int(found["views"])
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise BaselineError(f"{file}: damaged ({exc!r}); record it again") from exc
        for name, scores in series.items():
            if len(scores) < LEAST_SCORES or not all(map(math.isfinite, scores)):
                raise BaselineError(
                    f"{file}: {name} has {len(scores)} scores; record {LEAST_SCORES} or more, all "
                    "of them finite"
                )
        return cls(**setup, views=views, series=series)

    def write(self, file: Path) -> None:
        """Writes the file, complete or not at all."""
        values = {"kind": _MONITOR, "schema_version": _SCHEMA_VERSION, **asdict(self)}
        with replacing(file) as part:
            part.write_text(json.dumps(values, allow_nan=False) + "\n", encoding="utf-8")

    def check(self, file: Path, other: Baseline) -> None:
        """Checks that scores compare with these.

        Args:
            file: Where this baseline was read from, for messages.
            other: What determines the new scores.

        Raises:
            BaselineError: Something differs.
        """
        for name in _SETUP:
            old, value = getattr(self, name), getattr(other, name)
            if old != value:
                raise BaselineError(
                    f"{file}: recorded with {name.replace('_', ' ')} {old}, but the monitor has "
                    f"{value}; use the recorded one, or record it again"
                )


def _gate_series(clips: Mapping[str, Any]) -> dict[str, list[float]]:
    """Scores of a gate, in an order that has nothing to do with the clips."""
    names = sorted(clips, key=lambda name: hashlib.sha256(name.encode(errors="replace")).digest())
    return {ALL: [clips[name]["score"] for name in names]}
