"""Do scores put real TTS systems in the order of the listeners' ratings?

A folder of systems holds systems.tsv, with the columns set, system, mos and folder, perhaps also
language and kind, and a folder of FLAC clips per system. The score of a system is the mean over its
clips. Concordance is the share of pairs of systems of one listening test that scores put in the
listeners' order, among pairs whose published MOS differ by at least 0.15 (wide pairs: 0.40); equal
scores count one half. There are two intervals: one resamples the clips of a test, the same clips
for all its systems, because clips at the same position have the same text, and the other resamples
tests, which differ more.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.stats
import soundfile

from mosrt._arrays import Float32Array, FloatArray
from mosrt.errors import MosrtError
from mosrt_bench.stats.bootstrap import percentile_interval, resample_indices

from .scorers import ScoreClip, score_clips

__all__ = [
    "ListeningTest",
    "System",
    "agreement",
    "by_test",
    "concordance",
    "measure",
    "parts",
    "read_systems",
]


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
        language: Language of the test; "" if not known.
        kind: What is rated, such as "tts"; "" if not known.
    """

    test: str
    name: str
    mos: float
    clips: tuple[Path, ...]
    language: str = ""
    kind: str = ""


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
            more = {key: row.get(key) or "" for key in ("language", "kind")}
            systems.append(System(test, name, float(mos), clips, **more))
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
    each = np.array([concordance([test]) for test in tests.values()])
    each[:, 0] = np.where(each[:, 1], each[:, 0] * each[:, 1], 0)  # pairs in order
    sums = each[resample_indices(len(each), resamples, rng=0)].sum(axis=1)
    shares = sums[sums[:, 1] > 0]
    bounds = percentile_interval(shares[:, 0] / shares[:, 1]) or (share, share)
    return {
        "concordance": share,
        "interval_95": [low, high],
        "interval_95_tests": list(bounds),
        "pairs": n_pairs,
        "concordance_wide": wide,
        "pairs_wide": n_wide,
        "tests": {name: _alone(test) for name, test in tests.items()},
    }


def _alone(test: ListeningTest) -> dict[str, Any]:
    share, n_pairs = concordance([test])
    srcc = scipy.stats.spearmanr(test.mos, test.scores.mean(axis=1))[0]
    return {"concordance": share, "pairs": n_pairs, "srcc": float(srcc)}


def score_systems(
    systems: Sequence[System], score: ScoreClip, *, label: str
) -> dict[str, list[list[float]]]:
    """Scores of all clips: by model, a list per system."""

    def clips() -> Iterator[tuple[int, Float32Array, int]]:
        for i, system in enumerate(systems):
            for clip in system.clips:
                samples, rate_hz = soundfile.read(clip, dtype="float32", always_2d=True)
                yield i, samples.mean(axis=1), rate_hz

    length = sum(len(system.clips) for system in systems)
    scores = score_clips(clips(), score, length=length, label=label)
    return {name: list(by_system.values()) for name, by_system in scores.items()}


def by_test(
    systems: Sequence[System], scores: Sequence[Sequence[float]], part: str | None = None
) -> dict[str, ListeningTest]:
    """The scores of one model, a list per system, as listening tests by name.

    Args:
        systems: The systems.
        scores: The scores of each.
        part: Only systems of this language or kind.
    """
    tests = {}
    chosen = [i for i, s in enumerate(systems) if part in (None, s.language, s.kind)]
    for name in dict.fromkeys(systems[i].test for i in chosen):
        members = [i for i in chosen if systems[i].test == name]
        mos = np.array([systems[i].mos for i in members])
        tests[name] = ListeningTest(mos, np.array([scores[i] for i in members], np.float64))
    return tests


def measure(folders: Sequence[Path], score: ScoreClip) -> dict[str, Any]:
    """Scores the systems of several folders, and compares the scores with the listeners' ratings.

    Raises:
        ListeningError: A folder's list or clips are missing, or no two systems differ enough.
    """
    found = {}
    for folder in folders:
        systems = read_systems(folder)
        scores = score_systems(systems, score, label=folder.name)
        found[folder.name] = {
            "systems": [
                {"test": s.test, "system": s.name, "mos": s.mos, "language": s.language,
                 "kind": s.kind, "clips": len(s.clips)} for s in systems
            ],
            "agreement": {
                name: agreement(by_test(systems, rows)) for name, rows in scores.items()
            },
            "parts": {
                part: {
                    name: agreement(by_test(systems, rows, part)) for name, rows in scores.items()
                }
                for part in parts(systems)
            },
            "scores": scores,
        }  # fmt: skip
    return found


def parts(systems: Sequence[System]) -> list[str]:
    """Languages and kinds of tests, where there are several, that have pairs to compare."""
    found = []
    for names in ({s.language for s in systems}, {s.kind for s in systems}):
        for name in sorted(names - {""}) if len(names) > 1 else ():
            tests = by_test(systems, [[0.0] * len(s.clips) for s in systems], name)
            if concordance(list(tests.values()))[1]:
                found.append(name)
    return found
