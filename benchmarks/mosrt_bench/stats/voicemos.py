"""Measure predictions against listeners' ratings by the VoiceMOS protocol.

Utterance level compares clips; system level compares the mean of each system's clips. Track 1 of
the VoiceMOS Challenge 2024 (arXiv 2409.07001) also zooms in on the systems that listeners rate
best: the top 50, 25, 12 and 6 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mosrt._arrays import FloatArray
from mosrt.cli.ratings import Rating

from .metrics import METRICS, agreement, intervals

__all__ = ["ZOOMS", "Slice", "protocol", "slices"]


ZOOMS: Final = (100.0, 50.0, 25.0, 12.0, 6.0)
_NAMES: Final = tuple(name for name in METRICS if name != "mae")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The ratings behind one row of the challenge's table.

    Attributes:
        dataset: The listening test.
        level: "utterance" or "system".
        zoom_percent: Share of the systems that it covers, those that listeners rate best.
        systems: Number of those systems; 0 if the ratings name none.
        units: The ratings of each clip or of each system; a unit counts by its mean.
    """

    dataset: str
    level: str
    zoom_percent: float
    systems: int
    units: tuple[tuple[Rating, ...], ...]

    def rated(self) -> FloatArray:
        """The listeners' mean of each unit, (units,)."""
        return np.array([_mean_mos(unit) for unit in self.units])

    def predicted(self, scores: Mapping[str, float]) -> FloatArray:
        """The mean of the predictions of each unit, (units,), from scores by path."""
        return np.array([np.mean([scores[r.path] for r in unit]) for unit in self.units])


def protocol(
    ratings: Sequence[Rating],
    predicted: Mapping[str, float],
    *,
    on_scale: bool = True,
    resamples: int = 500,
) -> list[dict[str, Any]]:
    """The challenge's table: a row per listening test, level and zoom.

    Intervals are bootstrap intervals over clips or over systems, whichever the level compares.

    Args:
        ratings: The listeners' ratings.
        predicted: Scores by path; ratings without a score are left out, and a note counts them.
        on_scale: Whether scores are on the listeners' scale; if not, MSE is None.
        resamples: Resamples of the bootstrap.

    Returns:
        Rows with "dataset", "level" ("utterance" or "system"), "zoom_percent", "n", "systems", the
        metrics, "intervals" by metric and "notes".
    """
    scored = [r for r in ratings if math.isfinite(predicted.get(r.path, math.nan))]
    lost = {}
    for dataset in dict.fromkeys(rating.dataset for rating in ratings):
        n, n_scored = (sum(r.dataset == dataset for r in each) for each in (ratings, scored))
        lost[dataset] = [f"{n - n_scored} of {n} rated clips have no score"] * (n_scored < n)
    rows = []
    for part in slices(scored):
        x, y = part.predicted(predicted), part.rated()
        found, bounds = agreement(x, y), intervals(x, y, _NAMES, resamples=resamples)
        if not on_scale:
            found["mse"] = bounds["mse"] = None
        notes = [*lost[part.dataset], *found["notes"]]
        alone = sum(len(unit) == 1 for unit in part.units)
        if part.level == "system" and alone:
            notes.append(f"{alone} of {part.systems} systems have only one clip")
        rows.append(
            {
                "dataset": part.dataset,
                "zoom_percent": part.zoom_percent,
                "systems": part.systems,
                "level": part.level,
                **{name: found[name] for name in ("n", *_NAMES)},
                "intervals": bounds,
                "notes": notes,
            }
        )
    return rows


def slices(ratings: Sequence[Rating]) -> Iterator[Slice]:
    """The rows of the challenge's table; at system level only if every clip names its system."""
    for dataset in dict.fromkeys(rating.dataset for rating in ratings):
        of_set = [rating for rating in ratings if rating.dataset == dataset]
        systems = _systems(of_set)
        for zoom in ZOOMS if systems else ZOOMS[:1]:
            best = systems[: max(1, round(len(systems) * zoom / 100))]
            chosen = [rating for members in best for rating in members] or of_set
            levels = {"utterance": tuple((rating,) for rating in chosen), "system": best}
            for level, units in levels.items():
                if units:
                    yield Slice(
                        dataset=dataset, level=level, zoom_percent=zoom, systems=len(best),
                        units=units,
                    )  # fmt: skip


def _systems(ratings: Sequence[Rating]) -> tuple[tuple[Rating, ...], ...]:
    """Ratings by system, the best rated first; empty unless every clip names its system."""
    systems: dict[str, list[Rating]] = {}
    for rating in ratings:
        if rating.system is None:
            return ()
        systems.setdefault(rating.system, []).append(rating)
    ranked = sorted(systems.items(), key=lambda item: (-_mean_mos(item[1]), item[0]))
    return tuple(tuple(members) for _, members in ranked)


def _mean_mos(ratings: Sequence[Rating]) -> float:
    return float(np.mean([rating.mos for rating in ratings]))
