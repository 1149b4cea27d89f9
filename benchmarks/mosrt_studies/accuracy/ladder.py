"""Do scores fall as speech is degraded more, and only then?

Clean clips go through ladders of degradations: the
clean clip, then increasing severity of one kind with the same random state. SRCC is the rank
correlation of severity and falling score on the ladder of one clip, averaged over clips: 1 where
every step lowers the score. Pooled SRCC ranks all clips of a kind together, so that a good voice
must not hide a degradation. The last figure is the share of degraded clips that score below their
own clean version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.stats

from mosrt._arrays import Float32Array, FloatArray
from mosrt_export.distill.data.degradations import DEGRADATIONS, Degradation
from mosrt_export.distill.data.resyntheses import RESYNTHESES
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ

from .heldout import Speech, levelled
from .scorers import ScoreClip, score_clips

__all__ = ["KINDS", "falling", "measure", "overall", "rungs", "score_ladders", "summary"]


KINDS: Final[Mapping[str, Degradation]] = {
    **{
        name: DEGRADATIONS[name]
        for name in (
            "white noise", "pink noise", "babble", "low-pass", "clipping", "MP3", "Opus",
            "dropouts", "reverberation",
        )
    },
    "Griffin-Lim": RESYNTHESES["Griffin-Lim"],
}  # fmt: skip
SEVERITIES: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
_CLEAN: Final = "clean"
_MEASURES: Final = ("srcc", "srcc_pooled", "below_clean")


def rungs(
    clean: Float32Array, degradation: Degradation, severities: Sequence[float], seed: Sequence[int]
) -> list[Float32Array]:
    """A clip (samples,) at each severity, from the same random state and at the clip's level."""
    return [
        levelled(degradation(clean, severity, np.random.default_rng(list(seed))))
        for severity in severities
    ]


def score_ladders(
    clips: Sequence[Speech],
    score: ScoreClip,
    *,
    kinds: Mapping[str, Degradation] = KINDS,
    severities: Sequence[float] = SEVERITIES,
    seed: int,
    label: str,
) -> dict[str, dict[str, FloatArray]]:
    """Scores every ladder with every model.

    Returns:
        (clips, 1 + severities) by kind and model, the clean clip first.
    """

    def rungs_of_all() -> Iterator[tuple[tuple[str, int], Float32Array, int]]:
        for number, clip in enumerate(clips):
            yield (_CLEAN, number), clip.waveform, SAMPLE_RATE_HZ
            for i, (kind, degradation) in enumerate(kinds.items()):
                for rung in rungs(clip.waveform, degradation, severities, (seed, number, i)):
                    yield (kind, number), rung, SAMPLE_RATE_HZ

    length = len(clips) * (1 + len(kinds) * len(severities))
    scores = score_clips(rungs_of_all(), score, length=length, label=label)
    return {
        kind: {
            name: np.array([[*of[_CLEAN, i], *of[kind, i]] for i in range(len(clips))])
            for name, of in scores.items()
        }
        for kind in kinds
    }


def falling(severities: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Minus Spearman's rank correlation of severity and score; 0 if all scores are equal."""
    if np.ptp(np.asarray(scores)) == 0:
        return 0.0
    return -float(scipy.stats.spearmanr(severities, scores)[0])


def summary(scores: FloatArray, severities: Sequence[float]) -> dict[str, Any]:
    """The results of one model on the ladders of one kind.

    Args:
        scores: (clips, 1 + severities), the clean clip first.
        severities: Severities, without that of the clean clip.
    """
    levels = np.array([0.0, *severities])
    return {
        "srcc": float(np.mean([falling(levels, row) for row in scores])),
        "srcc_pooled": falling(np.tile(levels, len(scores)), scores.ravel()),
        "below_clean": float(np.mean(scores[:, 1:] < scores[:, :1])),
        "mean_scores": scores.mean(axis=0),
    }


def overall(kinds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Means over kinds, by model, of summaries by kind and model."""
    return {
        name: {
            measure: float(np.mean([by_name[name][measure] for by_name in kinds.values()]))
            for measure in _MEASURES
        }
        for name in next(iter(kinds.values()))
    }


def measure(groups: Mapping[str, Sequence[Speech]], score: ScoreClip, seed: int) -> dict[str, Any]:
    """Scores the ladders of groups of clips.

    Args:
        groups: Clean clips by group.
        score: The models.
        seed: Seed of the degradations.
    """
    scores = {
        group: score_ladders(members, score, seed=seed, label=f"ladders of {group}")
        for group, members in groups.items()
    }
    kinds = {
        group: {
            kind: {name: summary(rows, SEVERITIES) for name, rows in by_name.items()}
            for kind, by_name in by_kind.items()
        }
        for group, by_kind in scores.items()
    }
    return {
        "severities": SEVERITIES,
        "voices": {group: [clip.voice for clip in members] for group, members in groups.items()},
        "overall": {group: overall(by_kind) for group, by_kind in kinds.items()},
        "kinds": kinds,
        "scores": scores,
    }
