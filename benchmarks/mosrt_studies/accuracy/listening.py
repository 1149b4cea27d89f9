"""Do scores order real TTS systems as listeners did?

    python -m mosrt_studies.accuracy.listening --systems SYSTEMS --teachers TEACHERS --looks 1 \
        --out benchmarks/results/listening.json

SYSTEMS holds systems.tsv, with the columns set, system, mos and folder, and a folder of FLAC clips
per system. A system's score is the mean over its clips. Concordance is the share of pairs of
systems of one listening test that scores put in the listeners' order, among pairs whose published
MOS differ by at least 0.15 (wide pairs: 0.40); equal scores count one half. Intervals resample the
clips of a test, the same for all its systems, since clips of one place in the order say the same.
Who tunes a model by such a set wears it out: --looks says how often it has been looked at.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
import scipy.stats
import soundfile

from mosrt.cli.command import exit_on_error
from mosrt.errors import MosrtError
from mosrt_bench.machine import describe
from mosrt_bench.output import save, table
from mosrt_studies.accuracy.peers import Judge, Peers, bundle_option, teachers_option

__all__ = ["ListeningTest", "System", "agreement", "concordance", "read_systems"]

FloatArray = npt.NDArray[np.float64]

GAP: Final = 0.15
WIDE_GAP: Final = 0.40
_COLUMNS: Final = ("set", "system", "mos", "folder")
_DRAWS: Final = 1000


class ListeningError(MosrtError):
    """A collection of systems that cannot be used."""


@dataclass(frozen=True, slots=True)
class System:
    """A system of a listening test.

    Attributes:
        test: Name of the listening test.
        name: Of the system.
        mos: Published mean opinion score.
        clips: Its clips, in the order of the test's sentences.
    """

    test: str
    name: str
    mos: float
    clips: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class ListeningTest:
    """One listening test as one scorer sees it.

    Attributes:
        mos: (systems,) published.
        scores: (systems, clips) of the scorer.
    """

    mos: FloatArray
    scores: FloatArray

    def drawn(self, rng: np.random.Generator) -> ListeningTest:
        """The test with as many clips, drawn with replacement, the same for all systems."""
        n_clips = self.scores.shape[1]
        return ListeningTest(self.mos, self.scores[:, rng.integers(0, n_clips, n_clips)])


def read_systems(folder: Path) -> list[System]:
    """The systems that a folder's systems.tsv lists.

    Raises:
        ListeningError: The list or clips are missing, or systems of a test differ in their number.
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
    """Share of pairs in the listeners' order, and the number of pairs that it is a share of."""
    points = []
    for test in tests:
        first, second = np.triu_indices(len(test.mos), k=1)
        heard = test.mos[first] - test.mos[second]
        means = test.scores.mean(axis=1)
        predicted = means[first] - means[second]
        counted = np.abs(heard) >= gap - 1e-9  # 4.10 - 3.95 is a little less than 0.15
        agreed = np.sign(predicted) * np.sign(heard)
        points.append((1 + agreed[counted]) / 2)
    all_points = np.concatenate(points)
    return (float(all_points.mean()) if len(all_points) else float("nan")), len(all_points)


def agreement(tests: Mapping[str, ListeningTest], draws: int = _DRAWS) -> dict[str, Any]:
    """How a scorer agrees with listeners: all tests together, with an interval, and each alone.

    Raises:
        ListeningError: No pair of systems differs enough.
    """
    share, n_pairs = concordance(list(tests.values()))
    if not n_pairs:
        raise ListeningError(f"no two systems of one listening test differ by {GAP} MOS")
    rng = np.random.default_rng(0)  # the same draws for every scorer
    drawn = [concordance([test.drawn(rng) for test in tests.values()])[0] for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    wide, n_wide = concordance(list(tests.values()), WIDE_GAP)
    return {
        "concordance": round(share, 4),
        "interval_95": [round(float(low), 4), round(float(high), 4)],
        "pairs": n_pairs,
        "concordance_wide": None if not n_wide else round(wide, 4),
        "pairs_wide": n_wide,
        "tests": {name: _alone(test) for name, test in tests.items()},
    }


def _alone(test: ListeningTest) -> dict[str, Any]:
    share, n_pairs = concordance([test])
    srcc = scipy.stats.spearmanr(test.mos, test.scores.mean(axis=1))[0]
    return {
        "concordance": None if not n_pairs else round(share, 4),
        "pairs": n_pairs,
        "srcc": round(float(srcc), 4) if np.isfinite(srcc) else None,
    }


def judged(systems: Sequence[System], judge: Judge) -> dict[str, list[list[float]]]:
    """Every scorer's scores of every system's clips: by scorer, a list per system."""
    scores: dict[str, list[list[float]]] = {}
    n_clips = sum(len(system.clips) for system in systems)
    with click.progressbar(length=n_clips, file=sys.stderr, label="clips") as bar:
        for i, clip in ((i, clip) for i, system in enumerate(systems) for clip in system.clips):
            samples, rate_hz = soundfile.read(clip, dtype="float32", always_2d=True)
            for name, figure in judge(samples.mean(axis=1), rate_hz).items():
                rows = scores.setdefault(name, [[] for _ in systems])
                rows[i].append(figure)
            bar.update(1)
    return scores


def by_test(
    systems: Sequence[System], scores: Sequence[Sequence[float]]
) -> dict[str, ListeningTest]:
    """One scorer's scores, a list per system, as listening tests by name."""
    tests = {}
    for name in dict.fromkeys(system.test for system in systems):
        members = [
            (system.mos, row)
            for system, row in zip(systems, scores, strict=True)
            if system.test == name
        ]
        tests[name] = ListeningTest(
            np.array([mos for mos, _ in members]), np.array([row for _, row in members], np.float64)
        )
    return tests


@click.command()
@exit_on_error()
@click.option(
    "--systems",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder with systems.tsv and the systems' clips.",
)
@bundle_option
@teachers_option
@click.option(
    "--looks",
    required=True,
    type=click.IntRange(min=1),
    help="How often these systems have been looked at while choosing a model, this run included.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    folder: Path, bundles: tuple[str, ...], teachers: Path | None, looks: int, out: Path
) -> None:
    """Tell how well models order TTS systems that listeners have judged."""
    systems = read_systems(folder)
    peers = Peers(bundles, teachers)
    scores = judged(systems, peers)
    agreements = {name: agreement(by_test(systems, rows)) for name, rows in scores.items()}
    run = {
        "question": "share of pairs of TTS systems in the listeners' order",
        "command": "python -m mosrt_studies.accuracy.listening "
        f"--systems … --teachers … --looks {looks}",
        "looks": looks,
        "machine": describe(),
        "defaults": list(peers.defaults),
        "systems": [
            {"test": s.test, "system": s.name, "mos": s.mos, "clips": len(s.clips)} for s in systems
        ],
        "agreement": agreements,
        "scores": {
            name: [[round(figure, 4) for figure in row] for row in rows]
            for name, rows in scores.items()
        },
    }
    save(run, out)
    tests = list(dict.fromkeys(system.test for system in systems))
    pairs = next(iter(agreements.values()))["pairs"]
    rows = [
        [
            name + (" *" if name in peers.defaults else ""),
            f"{a['concordance']:.3f}",
            "{:.3f} to {:.3f}".format(*a["interval_95"]),
            _text(a["concordance_wide"]),
            *(
                f"{_text(a['tests'][test]['concordance'])} ({_text(a['tests'][test]['srcc'])})"
                for test in tests
            ),
        ]
        for name, a in agreements.items()
    ]
    header = ["scorer", "concordance", "95 %", "wide", *(f"{test} (SRCC)" for test in tests)]
    click.echo(table(header, rows))
    click.echo(f"{len(systems)} systems, {pairs} pairs; * default; looks so far: {looks}")


def _text(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"


if __name__ == "__main__":
    main()
