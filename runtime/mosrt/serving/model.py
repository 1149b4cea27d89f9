"""The model of a pool: what it is, and how long it takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mosrt.scorer import Item, Request, Scorer

from .stats import ServiceTimes

__all__ = ["ModelInfo", "duration_s", "measure", "noise_task"]

_LENGTHS_S: Final = (1.0, 5.0)
# A second recording is measured only if the first takes no longer than this.
_SLOW_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The model of a pool.

    Attributes:
        name: Name of the model.
        digest: SHA-256 in hex of the bundle's manifest.json, which has the hashes of all its files.
        variant: Precision variant.
        provider: What runs the model.
        sample_rate_hz: Rate that recordings are resampled to.
        domains: Data domains that it can score for.
        default_domain: The one that it scores for by default.
        measures: Further results that each score has; () for a model that predicts MOS.
    """

    name: str
    digest: str
    variant: str
    provider: str
    sample_rate_hz: int
    domains: tuple[str, ...]
    default_domain: str
    measures: tuple[str, ...]

    @classmethod
    def of(cls, scorer: Scorer) -> ModelInfo:
        """The model of a scorer."""
        return cls(
            name=scorer.manifest.name,
            digest=scorer.digest,
            variant=scorer.variant,
            provider=scorer.provider,
            sample_rate_hz=scorer.manifest.sample_rate_hz,
            domains=scorer.domains,
            default_domain=scorer.manifest.default_domain,
            measures=scorer.measures,
        )


def duration_s(item: Item) -> float | None:
    """Length of a waveform in seconds; None for files, and for what is no waveform."""
    if not isinstance(item, tuple) or not isinstance(item[0], np.ndarray) or not item[0].ndim:
        return None
    try:
        return float(item[0].shape[-1]) / float(item[1])
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def noise_task(scorer: Scorer, length_s: float = _LENGTHS_S[0]) -> Any:
    """A recording to score before there are others: noise."""
    rate_hz = scorer.manifest.sample_rate_hz
    noise = np.random.default_rng(0).normal(0, 0.1, round(length_s * rate_hz))
    return (noise.astype(np.float32), rate_hz), (scorer.manifest.default_domain,), Request()


def measure(scorer: Scorer, times: ServiceTimes) -> None:
    """Measures how long recordings take, and lets the engine allocate its memory."""
    for length_s in _LENGTHS_S:
        for _ in range(2):  # the first run allocates
            started = time.monotonic()
            scorer.score_task(noise_task(scorer, length_s))
            took_s = time.monotonic() - started
            if took_s > _SLOW_S:
                break
        times.add(took_s, length_s)
        if took_s > _SLOW_S:
            return
