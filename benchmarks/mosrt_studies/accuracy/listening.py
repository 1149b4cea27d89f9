"""Do scores put real TTS systems in the order of the listeners' ratings?

    python -m mosrt_studies.accuracy.listening --systems SYSTEMS --teachers TEACHERS --looks 1 \
        -o benchmarks/results/listening.json

SYSTEMS holds systems.tsv, with the columns set, system, mos and folder, and a folder of FLAC clips
per system. The score of a system is the mean over its clips. Concordance is the share of pairs of
systems of one listening test that scores put in the listeners' order, among pairs whose published
MOS differ by at least 0.15 (wide pairs: 0.40); equal scores count one half. Intervals resample the
clips of a test, the same clips for all its systems, because clips at the same position have the
same text. Choosing a model by this result makes it optimistic: --looks counts how often that was
done.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import scipy.stats
import soundfile

from mosrt._arrays import Float32Array, FloatArray
from mosrt.cli.command import exit_on_error, output_option
from mosrt.errors import MosrtError
from mosrt_bench.stats.bootstrap import percentile_interval, resample_indices
from mosrt_studies.publish import publish

from .scorers import ScoreClip, Scorers, score_clips, scorers_options

__all__ = ["ListeningTest", "System", "agreement", "by_test", "concordance", "read_systems"]


GAP: Final = 0.15
WIDE_GAP: Final = 0.40
_COLUMNS: Final = ("set", "system", "mos", "folder")
_RESAMPLES: Final = 1000


class ListeningError(MosrtError, ValueError):
    """A collection of systems cannot be used."""


@dataclass(frozen=True, slots=True)
class System:
    """A system of a listening test.

    Attributes:
        test: Name of the listening test.
        name: Name of the system.
        mos: Published mean opinion score.
        clips: Its clips, in the order of the sentences of the test.
    """

    test: str
    name: str
    mos: float
    clips: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class ListeningTest:
    """Published MOS (systems,) of a listening test, and the scores (systems, clips) of a model."""

    mos: FloatArray
    scores: FloatArray

    def resampled(self, rng: np.random.Generator) -> ListeningTest:
        """The test with its clips drawn with replacement, the same for all systems."""
        (indices,) = resample_indices(self.scores.shape[1], 1, rng=rng)
        return ListeningTest(self.mos, self.scores[:, indices])


def read_systems(folder: Path) -> list[System]:
    """Reads systems.tsv and lists the clips of each system.

    Raises:
        ListeningError: The list or clips are missing, or systems of a test differ in their number
            of clips.
    """
    path = folder / "systems.tsv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except OSError as exc:
        raise ListeningError(f"{path}: {exc.strerror}; pass --systems its folder") from exc
    systems = []
    for i, row in enumerate(rows, 2):
        test, name, mos, place = (row.get(column) or "" for column in _COLUMNS)
        clips = tuple(sorted((folder / place).glob("*.flac"))) if place else ()
        try:
            systems.append(System(test, name, float(mos), clips))
        except ValueError as exc:
            raise ListeningError(f"{path}, line {i}: needs {', '.join(_COLUMNS)}") from exc
        if not clips:
            raise ListeningError(f"{path}, line {i}: no FLAC clips in folder {place!r}")
    for test in {system.test for system in systems}:
        if len({len(system.clips) for system in systems if system.test == test}) > 1:
            raise ListeningError(f"{path}: systems of {test} differ in their number of clips")
    if not systems:
        raise ListeningError(f"{path}: no systems")
    return systems


def concordance(tests: Sequence[ListeningTest], gap: float = GAP) -> tuple[float, int]:
    """Share of pairs in the listeners' order, and the number of pairs."""
    points = []
    for test in tests:
        first, second = np.triu_indices(len(test.mos), k=1)
        rated = test.mos[first] - test.mos[second]
        means = test.scores.mean(axis=1)
        predicted = means[first] - means[second]
        counted = np.abs(rated) >= gap - 1e-9  # 4.10 - 3.95 is a little less than 0.15
        agreed = np.sign(predicted) * np.sign(rated)
        points.append((1 + agreed[counted]) / 2)
    all_points = np.concatenate(points)
    return (float(all_points.mean()) if len(all_points) else float("nan")), len(all_points)


def agreement(tests: Mapping[str, ListeningTest], resamples: int = _RESAMPLES) -> dict[str, Any]:
    """Agreement of a model with listeners: all tests together, with an interval, and each alone.

    Raises:
        ListeningError: No pair of systems differs enough.
    """
    share, n_pairs = concordance(list(tests.values()))
    if not n_pairs:
        raise ListeningError(f"no two systems of one listening test differ by {GAP} MOS")
    rng = np.random.default_rng(0)  # the same resamples for every model
    drawn = [
        concordance([test.resampled(rng) for test in tests.values()])[0] for _ in range(resamples)
    ]
    low, high = percentile_interval(np.array(drawn)) or (share, share)
    wide, n_wide = concordance(list(tests.values()), WIDE_GAP)
    return {
        "concordance": share,
        "interval_95": [low, high],
        "pairs": n_pairs,
        "concordance_wide": wide,
        "pairs_wide": n_wide,
        "tests": {name: _alone(test) for name, test in tests.items()},
    }


def _alone(test: ListeningTest) -> dict[str, Any]:
    share, n_pairs = concordance([test])
    srcc = scipy.stats.spearmanr(test.mos, test.scores.mean(axis=1))[0]
    return {"concordance": share, "pairs": n_pairs, "srcc": float(srcc)}


def score_systems(systems: Sequence[System], score: ScoreClip) -> dict[str, list[list[float]]]:
    """Scores of all clips: by model, a list per system."""

    def clips() -> Iterator[tuple[int, Float32Array, int]]:
        for i, system in enumerate(systems):
            for clip in system.clips:
                samples, rate_hz = soundfile.read(clip, dtype="float32", always_2d=True)
                yield i, samples.mean(axis=1), rate_hz

    length = sum(len(system.clips) for system in systems)
    scores = score_clips(clips(), score, length=length, label="clips")
    return {name: list(by_system.values()) for name, by_system in scores.items()}


def by_test(
    systems: Sequence[System], scores: Sequence[Sequence[float]]
) -> dict[str, ListeningTest]:
    """The scores of one model, a list per system, as listening tests by name."""
    tests = {}
    for name in dict.fromkeys(system.test for system in systems):
        members = [i for i, system in enumerate(systems) if system.test == name]
        mos = np.array([systems[i].mos for i in members])
        tests[name] = ListeningTest(mos, np.array([scores[i] for i in members], np.float64))
    return tests


@click.command()
@click.option("--systems", "folder", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Folder with systems.tsv and the clips of the systems.")  # fmt: skip
@exit_on_error()
@scorers_options
@click.option("--looks", required=True, type=click.IntRange(min=1),
              help="How often these systems were evaluated to choose a model, this run "
              "included.")  # fmt: skip
@output_option("JSON file to write.", required=True)
def main(folder: Path, scorers: Scorers, looks: int, output: Path) -> None:
    """Measure how well models order TTS systems that listeners have rated."""
    systems = read_systems(folder)
    scores = score_systems(systems, scorers)
    publish(
        "accuracy.listening",
        output,
        question="share of pairs of TTS systems in the listeners' order",
        threads=1,
        looks=looks,
        defaults=scorers.defaults,
        systems=[
            {"test": s.test, "system": s.name, "mos": s.mos, "clips": len(s.clips)} for s in systems
        ],
        cpu_ms=scorers.cpu_ms,
        agreement={name: agreement(by_test(systems, rows)) for name, rows in scores.items()},
        scores=scores,
    )


if __name__ == "__main__":
    main()
