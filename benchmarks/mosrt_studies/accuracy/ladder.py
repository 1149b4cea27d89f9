"""Does a score fall when speech gets worse, and only then?

    python -m mosrt_studies.accuracy.ladder --speech SPEECH --teachers TEACHERS \
        --out benchmarks/results/ladder.json

Clips of 5 s of held-out recordings and of voices never trained on go down ladders of
degradations: the clean clip, then ever more of one kind, everything random being the same on all
rungs. SRCC is the rank correlation of severity and score on one clip's ladder, clean included and
the sign turned, averaged over clips: 1 where every step down lowers the score. Pooled SRCC ranks
all clips of a kind together, so that a good voice must not hide damage. The last figure is the
share of degraded clips that score below their own clean version.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
import scipy.stats

from mosrt.cli.command import exit_on_error
from mosrt_bench.machine import describe
from mosrt_bench.output import save, table
from mosrt_export.nano.data.degradations import DEGRADATIONS, Degradation
from mosrt_export.nano.data.resyntheses import RESYNTHESES
from mosrt_studies.accuracy.peers import Judge, Peers, bundle_option, teachers_option

from .heldout import Speech, clips_in, levelled, recorded_clips, unseen_clips

__all__ = ["KINDS", "climb", "falling", "rungs", "summary"]

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]

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
_RATE_HZ: Final = 16_000
_MEASURES: Final = ("srcc", "srcc_pooled", "below_clean")


def rungs(
    clean: Float32Array, degradation: Degradation, severities: Sequence[float], seed: Sequence[int]
) -> list[Float32Array]:
    """A clip (samples,) degraded to each severity, from the same random state, at its own level."""
    return [
        levelled(degradation(clean, severity, np.random.default_rng(list(seed))))
        for severity in severities
    ]


def climb(
    clips: Sequence[Speech],
    judge: Judge,
    *,
    kinds: Mapping[str, Degradation] = KINDS,
    severities: Sequence[float] = SEVERITIES,
    seed: int,
    label: str,
) -> dict[str, dict[str, FloatArray]]:
    """Every scorer's scores on every ladder.

    Returns:
        By kind and scorer, (clips, 1 + severities), the clean clip first.
    """
    rows: dict[str, dict[str, list[list[float]]]] = {kind: {} for kind in kinds}
    length = len(clips) * len(kinds)
    with click.progressbar(length=length, file=sys.stderr, label=label) as bar:
        for number, clip in enumerate(clips):
            clean = judge(clip.waveform, _RATE_HZ)
            for i, (kind, degradation) in enumerate(kinds.items()):
                steps = rungs(clip.waveform, degradation, severities, (seed, number, i))
                judged = [clean, *(judge(step, _RATE_HZ) for step in steps)]
                for name in clean:
                    rows[kind].setdefault(name, []).append([scores[name] for scores in judged])
                bar.update(1)
    return {
        kind: {name: np.array(scores) for name, scores in by_name.items()}
        for kind, by_name in rows.items()
    }


def falling(severities: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Spearman's rank correlation of severity and score, sign turned; 0 if the score never moves.

    Args:
        severities: (values,), at least two of them different.
        scores: (values,).
    """
    if np.ptp(np.asarray(scores)) == 0:
        return 0.0
    return -float(scipy.stats.spearmanr(severities, scores)[0])


def summary(scores: FloatArray, severities: Sequence[float]) -> dict[str, Any]:
    """What the ladders of one kind say of one scorer.

    Args:
        scores: (clips, 1 + severities), the clean clip first.
        severities: Of the rungs, without the clean one.
    """
    levels = np.array([0.0, *severities])
    return {
        "srcc": round(float(np.mean([falling(levels, row) for row in scores])), 4),
        "srcc_pooled": round(falling(np.tile(levels, len(scores)), scores.ravel()), 4),
        "below_clean": round(float(np.mean(scores[:, 1:] < scores[:, :1])), 4),
        "mean_scores": [round(float(mean), 4) for mean in scores.mean(axis=0)],
    }


def overall(kinds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """The means over kinds, by scorer, of what `summary` says by kind and scorer."""
    return {
        name: {
            measure: round(
                float(np.mean([by_name[name][measure] for by_name in kinds.values()])), 4
            )
            for measure in _MEASURES
        }
        for name in next(iter(kinds.values()))
    }


@click.command()
@exit_on_error()
@click.option(
    "--speech",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the recordings that the embedded models were trained on; what was held out "
    "is used.",
)
@click.option(
    "--extra",
    "extra",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of recordings of one speaker never trained on; may be repeated.",
)
@bundle_option
@teachers_option
@click.option(
    "--clips", default=20, show_default=True, type=click.IntRange(min=2), help="Per group."
)
@click.option("--seed", default=1001, show_default=True, help="Of text and degradations.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    speech: Path,
    extra: tuple[Path, ...],
    bundles: tuple[str, ...],
    teachers: Path | None,
    clips: int,
    seed: int,
    out: Path,
) -> None:
    """Tell whether scores fall as speech gets worse."""
    peers = Peers(bundles, teachers)
    groups = {
        "held-out recordings": recorded_clips(speech, clips),
        "unseen synthetic voices": unseen_clips(clips, seed),
    }
    if extra:
        groups["unseen speakers"] = clips_in(extra, clips)
    scores = {
        group: climb(members, peers, seed=seed, label=group) for group, members in groups.items()
    }
    kinds = {
        group: {
            kind: {name: summary(rows, SEVERITIES) for name, rows in by_name.items()}
            for kind, by_name in by_kind.items()
        }
        for group, by_kind in scores.items()
    }
    run = {
        "question": "do scores fall with the severity of a degradation",
        "command": "python -m mosrt_studies.accuracy.ladder --speech … --teachers … "
        f"{'--extra … ' * len(extra)}--clips {clips} --seed {seed}",
        "severities": list(SEVERITIES),
        "machine": describe(),
        "defaults": list(peers.defaults),
        "voices": {group: [clip.voice for clip in members] for group, members in groups.items()},
        "overall": {group: overall(by_kind) for group, by_kind in kinds.items()},
        "kinds": kinds,
        "scores": {
            group: {
                kind: {name: np.round(rows, 4).tolist() for name, rows in by_name.items()}
                for kind, by_name in by_kind.items()
            }
            for group, by_kind in scores.items()
        },
    }
    save(run, out)
    for group, by_kind in kinds.items():
        click.echo(f"\n{group}, {clips} clips: SRCC / share below clean")
        means = overall(by_kind)
        rows = [
            [
                name + (" *" if name in peers.defaults else ""),
                f"{means[name]['srcc']:.2f}/{means[name]['below_clean']:.2f}",
                f"{means[name]['srcc_pooled']:.2f}",
                *(
                    f"{by_name[name]['srcc']:.2f}/{by_name[name]['below_clean']:.2f}"
                    for by_name in by_kind.values()
                ),
            ]
            for name in means
        ]
        click.echo(table(["scorer", "all kinds", "pooled SRCC", *by_kind], rows))


if __name__ == "__main__":
    main()
