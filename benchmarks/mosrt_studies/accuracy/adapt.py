"""How well does a domain of `mosrt adapt` predict a listening test that it has not seen?

    python -m mosrt_studies.accuracy.adapt -m nano -m distillmos --systems SYSTEMS --looks 1 \
        -o benchmarks/results/adapt.json

SYSTEMS is as for `mosrt_studies.accuracy.listening`; the rating of a clip is the MOS of its system.
Each listening test is left out in turn. A domain is fitted to some clips of the others, drawn at
random, and predicts it: the mean squared error over clips, and the share of pairs of systems in the
listeners' order (see `listening`). "followed" is what a user gets who follows `mosrt adapt`: the
new domain where it is accepted, else the domain that was the default. Intervals resample whole
listening tests. Shuffled ratings, over clips or over systems, say how often a domain is accepted
that cannot be better. --looks counts how often these systems were evaluated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from mosrt._arrays import FloatArray, IntArray
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import Manifest
from mosrt.cli.command import COUNT, exit_on_error, output_option
from mosrt.cli.ratings import Rating
from mosrt_bench.adapt.adaptation import rated_clips
from mosrt_bench.adapt.fitting import RatedClips, fit_head
from mosrt_bench.adapt.validation import decide
from mosrt_bench.stats.bootstrap import percentile_interval, resample_indices
from mosrt_studies.publish import publish

from .listening import ListeningTest, System, concordance, read_systems

__all__ = ["RatedModel", "by_ratings", "shuffled"]

_N_RATINGS: Final = (5, 10, 20, 50)
_FEW: Final = 60
_RESAMPLES: Final = 1000
_NAME: Final = "adapted"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RatedModel:
    """The clips of listening tests, and what a model gives for them.

    Attributes:
        clips: The rated clips.
        manifest: What the model is.
        systems: The systems.
        system: Position of each clip's system, (clips,).
    """

    clips: RatedClips
    manifest: Manifest
    systems: Sequence[System]
    system: IntArray

    @classmethod
    def of(cls, bundle: Bundle, systems: Sequence[System]) -> RatedModel:
        """Runs a model on all clips."""
        rows = [(i, each, path) for i, each in enumerate(systems) for path in each.clips]
        ratings = [
            Rating(path=str(path.absolute()), mos=each.mos, system=f"{each.test}/{each.name}")
            for _, each, path in rows
        ]
        with click.progressbar(ratings, label=bundle.manifest.name) as bar:
            clips = rated_clips(bundle, Path(), bar, threads=None)
        return cls(clips, bundle.manifest, systems, np.array([i for i, _, _ in rows]))

    def part(self, chosen: IntArray, mos: FloatArray | None = None) -> RatedClips:
        """Some clips, with other ratings if `mos` (n,) is given."""
        ratings = [self.clips.ratings[i] for i in chosen]
        if mos is not None:
            pairs = zip(ratings, mos.tolist(), strict=True)
            ratings = [dataclasses.replace(each, mos=value) for each, value in pairs]
        outputs = {name: values[chosen] for name, values in self.clips.outputs.items()}
        return RatedClips(ratings, outputs, self.manifest)

    def judged(self, test: str, scores: FloatArray) -> FloatArray:
        """[squared error, clips, pairs in order, pairs] of scores (clips,) in a listening test."""
        systems = [i for i, each in enumerate(self.systems) if each.test == test]
        means = [[float(scores[self.system == i].mean())] for i in systems]
        mos = np.array([self.systems[i].mos for i in systems])
        share, pairs = concordance([ListeningTest(mos, np.array(means))])
        inside = np.isin(self.system, systems)
        errors = np.square(scores - self.clips.mos)[inside]
        right = share * pairs if pairs else 0.0
        return np.array([errors.sum(), len(errors), right, pairs])


def by_ratings(
    model: RatedModel, draws: int, n_ratings: Iterable[int] = _N_RATINGS
) -> dict[str, Any]:
    """Leaves each listening test out.

    Returns:
        "domains", the model's own by name; and by number of ratings "adapted", a domain that is
        fitted to them, "followed", and "accepted", the share of draws in which it is accepted.
    """
    tests = list(dict.fromkeys(each.test for each in model.systems))
    test_of = np.array([model.systems[i].test for i in model.system])
    default = model.clips.scores[model.manifest.default_domain]
    domains = {
        name: _summary([model.judged(test, scores) for test in tests])
        for name, scores in model.clips.scores.items()
    }
    curve: dict[str, Any] = {}
    for n in (*n_ratings, None):
        adapted, followed, accepted = [], [], []
        for number, test in enumerate(tests):
            others = np.flatnonzero(test_of != test)
            rows: list[list[FloatArray]] = [[], []]
            for draw in range(draws if n else 1):
                rng = np.random.default_rng([number, n or 0, draw])
                some = model.part(rng.permutation(others)[: n or len(others)])
                decision = decide(some, _NAME)[1]
                chosen = np.arange(len(some.mos))
                head = fit_head(some, chosen, order_of=decision["order_of"])
                scores = head(model.clips.outputs)
                accepted.append(not decision["reasons"])
                rows[0].append(model.judged(test, scores))
                rows[1].append(model.judged(test, scores if accepted[-1] else default))
            adapted.append(np.mean(rows[0], axis=0))
            followed.append(np.mean(rows[1], axis=0))
        curve[str(n or "all")] = {
            "adapted": _summary(adapted),
            "followed": _summary(followed),
            "accepted": float(np.mean(accepted)),
        }
    return {"domains": domains, "by_ratings": curve}


def _summary(tests: Sequence[FloatArray]) -> dict[str, Any]:
    """MSE and concordance over tests of `RatedModel.judged`, with intervals over tests."""
    rows = np.array(tests)
    drawn = rows[resample_indices(len(rows), _RESAMPLES)].sum(axis=1)
    total = rows.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return {
            "mse": float(total[0] / total[1]),
            "mse_interval": percentile_interval(drawn[:, 0] / drawn[:, 1]),
            "concordance": float(total[2] / total[3]),
            "concordance_interval": percentile_interval(drawn[:, 2] / drawn[:, 3]),
        }


def shuffled(model: RatedModel, trials: int) -> dict[str, dict[str, int]]:
    """How many of `trials` shuffled lists of ratings are accepted, by what is shuffled."""
    n = len(model.clips.mos)
    found: dict[str, dict[str, int]] = {}
    for size, label in ((min(_FEW, n), f"{min(_FEW, n)} clips"), (n, f"all {n} clips")):
        counts = {"clips": 0, "systems": 0}
        for trial in range(trials):
            rng = np.random.default_rng([size, trial])
            chosen = np.sort(rng.permutation(n)[:size])
            of_clips = rng.permutation(model.clips.mos[chosen])
            names, inverse = np.unique(model.system[chosen], return_inverse=True)
            of_systems = rng.permutation([model.systems[i].mos for i in names])[inverse]
            for kind, mos in (("clips", of_clips), ("systems", of_systems)):
                counts[kind] += not decide(model.part(chosen, mos), _NAME)[1]["reasons"]
        found[label] = {"trials": trials, **counts}
    return found


@click.command()
@click.option("--model", "-m", "models", required=True, multiple=True, metavar="NAME|PATH",
              help="Model to adapt; may be repeated.")  # fmt: skip
@click.option("--systems", "folder", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Folder with systems.tsv and the clips of the systems.")  # fmt: skip
@click.option("--looks", required=True, type=COUNT,
              help="How often these systems were evaluated, this run included.")  # fmt: skip
@click.option("--draws", type=COUNT, default=20, show_default=True,
              help="Random choices of ratings for each test that is left out.")  # fmt: skip
@click.option("--trials", type=COUNT, default=50, show_default=True,
              help="Shuffled lists of ratings of each kind.")  # fmt: skip
@output_option("JSON file to write.", required=True)
@exit_on_error()
def main(
    models: tuple[str, ...], folder: Path, looks: int, draws: int, trials: int, output: Path
) -> None:
    """Adapt models to listening tests, and predict one that was left out."""
    systems = read_systems(folder)
    results = {}
    for name in models:
        model = RatedModel.of(Bundle.open(find_bundle(name)), systems)
        results[model.manifest.name] = {
            "default_domain": model.manifest.default_domain,
            **by_ratings(model, draws),
            "shuffled": shuffled(model, trials),
        }
    publish(
        "accuracy.adapt",
        output,
        question="MSE and order of a listening test that was left out, by number of ratings",
        looks=looks,
        draws=draws,
        n_tests=len({each.test for each in systems}),
        n_systems=len(systems),
        n_clips=sum(len(each.clips) for each in systems),
        models=results,
    )


if __name__ == "__main__":
    main()
