"""Chooses the best of several recordings."""

from __future__ import annotations

import math
import os
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from mosrt.errors import MeasureError
from mosrt.score import Score
from mosrt.scorer import AudioFile, Item

__all__ = ["Best", "Candidate", "Choice", "item_of", "window"]

Candidate = npt.ArrayLike | AudioFile
"""A waveform at the common sampling rate, or an audio file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best of several recordings.

    Attributes:
        index: Its place among the candidates, from 0.
        score: Its score. `mos` is nan only if no candidate could be scored.
        scores: The scores of all candidates in order; None for those after the one that was good
            enough.
    """

    index: int
    score: Score
    scores: tuple[Score | None, ...]


class Choice:
    """Collects scores in order until one is good enough.

    Of a model that gives no MOS, the least uncertain recording is the best.

    Args:
        at_least: The MOS that is good enough; None to compare all.

    Raises:
        ValueError: `at_least` is nan.
    """

    def __init__(self, at_least: float | None) -> None:
        if at_least is not None and math.isnan(at_least):
            raise ValueError("at_least must be a MOS, not nan")
        self._at_least = at_least
        self._scores: list[Score] = []

    def add(self, score: Score) -> bool:
        """Adds the next score; whether it is good enough to stop.

        Raises:
            MeasureError: The model gives no MOS.
        """
        self._scores.append(score)
        if self._at_least is None:
            return False
        if score.measures and math.isnan(score.mos) and score.n_views:
            raise MeasureError(
                f"{score.model} gives no MOS to compare with at_least; leave it out, or fit a map "
                "with `mosrt fit-mos`"
            )
        return score.mos >= self._at_least

    def best(self, candidates: object, taken: int) -> Best:
        """The best so far: the first good enough, or else the first of the best.

        Args:
            candidates: All of them.
            taken: How many were taken from a generator.

        Raises:
            ValueError: There are none.
        """
        if not self._scores:
            raise ValueError("candidates must be at least one recording")
        last = len(self._scores) - 1
        if self._at_least is not None and self._scores[last].mos >= self._at_least:
            index = last
        else:
            index = max(range(last + 1), key=lambda i: (_goodness(self._scores[i]), -i))
        total = len(candidates) if isinstance(candidates, Sized) else taken
        rest = (None,) * (total - len(self._scores))
        return Best(index=index, score=self._scores[index], scores=(*self._scores, *rest))


def _goodness(score: Score) -> float:
    value = score.mos
    if math.isnan(value):
        value = -next(iter(score.measures.values()), math.nan)
    return -math.inf if math.isnan(value) else value


def item_of(candidate: Any, sample_rate: float) -> Item:
    """A candidate as a scorer takes it."""
    is_file = isinstance(candidate, str | os.PathLike | bytes | bytearray | memoryview)
    if is_file or hasattr(candidate, "read"):
        item: Item = candidate
        return item
    return candidate, sample_rate


def window(candidates: object, at_least: float | None, workers: int) -> int:
    """How many candidates to score at once.

    Candidates that are made one by one, as by a generator, may be expensive: then none is made
    before the one before it is known not to be good enough.
    """
    if isinstance(candidates, str | os.PathLike | bytes | bytearray | memoryview):
        raise TypeError("candidates must be several recordings; use score_file for one")
    return workers if at_least is None or isinstance(candidates, Sized) else 1
