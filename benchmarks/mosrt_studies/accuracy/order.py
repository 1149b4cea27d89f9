"""Do scores put speech synthesisers in the order that any listener would?

    python -m mosrt_studies.accuracy.order --speech SPEECH --teachers TEACHERS \
        --out benchmarks/results/order.json

flite's statistical voices slt and rms, its diphones at 16 kHz (kal16) and at 8 kHz (kal), and the
formants of espeak-ng read the same sentences; held-out recordings say sentences of their own. All
is heard at one level. Intervals resample sentences, the same for both voices where both read them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

from mosrt.cli.command import exit_on_error
from mosrt_bench.machine import describe
from mosrt_bench.output import save, table
from mosrt_export.nano.data.sentences import sentences
from mosrt_export.nano.data.voices import VoiceError, missing_programs, speak, synthetic_voices
from mosrt_studies.accuracy.peers import Judge, Peers, bundle_option, teachers_option

from .heldout import Speech, levelled, utterances

__all__ = ["ORDER", "READERS", "RECORDINGS", "difference", "mean", "verdicts"]

FloatArray = npt.NDArray[np.float64]

RECORDINGS: Final = "recordings"
READERS: Final = ("flite slt", "flite rms", "flite kal16", "flite kal", "espeak-ng en-us")
ORDER: Final = (
    (RECORDINGS, "flite slt"),
    (RECORDINGS, "flite rms"),
    ("flite slt", "flite kal16"),
    ("flite rms", "flite kal16"),
    ("flite kal16", "flite kal"),
    ("flite slt", "espeak-ng en-us"),
    ("flite rms", "espeak-ng en-us"),
)
"""(better, worse): what listeners agree on."""

_RATE_HZ: Final = 16_000
_SHORTEST_S: Final = 2.0
_DRAWS: Final = 2000


def mean(scores: FloatArray) -> dict[str, Any]:
    """The mean of scores (clips,) with a 95 % bootstrap interval."""
    return _interval(scores.mean(), scores[_drawn(len(scores), 0)].mean(axis=1))


def difference(better: FloatArray, worse: FloatArray, *, paired: bool) -> dict[str, Any]:
    """How much higher the mean of `better` is than that of `worse`, with a 95 % interval.

    Args:
        better: (clips,) scores.
        worse: (clips,) scores.
        paired: Whether clips of one place in the row say the same sentence; their numbers are then
            equal.
    """
    if paired:
        drawn = (better - worse)[_drawn(len(better), 0)].mean(axis=1)
    else:
        drawn = better[_drawn(len(better), 0)].mean(axis=1)
        drawn = drawn - worse[_drawn(len(worse), 1)].mean(axis=1)
    return {**_interval(better.mean() - worse.mean(), drawn), "paired": paired}


def verdicts(scores: Mapping[str, FloatArray]) -> dict[str, dict[str, Any]]:
    """Each pair of `ORDER` for one scorer, whose scores (clips,) come by reader.

    Returns:
        By "BETTER > WORSE" the difference of means, its interval, whether it is above 0 ("holds")
        and whether all its interval is ("clear").
    """
    found = {}
    for better, worse in ORDER:
        figure = difference(scores[better], scores[worse], paired=better != RECORDINGS)
        figure["holds"] = figure["mean"] > 0
        figure["clear"] = figure["interval_95"][0] > 0
        found[f"{better} > {worse}"] = figure
    return found


def _drawn(count: int, stream: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(stream).integers(0, count, (_DRAWS, count))


def _interval(value: float, drawn: FloatArray) -> dict[str, Any]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {
        "mean": round(float(value), 4),
        "interval_95": [round(float(low), 4), round(float(high), 4)],
    }


def readings(texts: Sequence[str]) -> dict[str, list[Speech]]:
    """Every reader's reading of every sentence.

    Raises:
        VoiceError: A reader is not installed.
    """
    voices = {voice.name: voice for voice in synthetic_voices() if voice.name in READERS}
    for name, cure in missing_programs(list(voices.values())).items():
        raise VoiceError(f"{name} is missing: {cure}")
    return {
        name: [Speech(name, levelled(speak(voices[name], text))) for text in texts]
        for name in READERS
    }


def judged(
    speech: Mapping[str, Sequence[Speech]], judge: Judge
) -> dict[str, dict[str, FloatArray]]:
    """By scorer and reader, the scores (clips,) of speech by reader."""
    rows: dict[str, dict[str, list[float]]] = {}
    length = sum(len(clips) for clips in speech.values())
    with click.progressbar(length=length, file=sys.stderr, label="clips") as bar:
        for reader, clips in speech.items():
            for clip in clips:
                for name, figure in judge(clip.waveform, _RATE_HZ).items():
                    rows.setdefault(name, {}).setdefault(reader, []).append(figure)
                bar.update(1)
    return {
        name: {reader: np.array(scores) for reader, scores in by_reader.items()}
        for name, by_reader in rows.items()
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
@bundle_option
@teachers_option
@click.option(
    "--sentences",
    "count",
    default=24,
    show_default=True,
    type=click.IntRange(min=20),
    help="Sentences for the synthesisers, and as many recordings.",
)
@click.option("--seed", default=1002, show_default=True, help="Of the sentences.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    speech: Path, bundles: tuple[str, ...], teachers: Path | None, count: int, seed: int, out: Path
) -> None:
    """Tell whether scores order recordings, flite and espeak-ng as listeners do."""
    peers = Peers(bundles, teachers)
    texts = sentences("en", count, np.random.default_rng(seed))
    recordings = utterances(speech, count, shortest_s=_SHORTEST_S)
    scores = judged({RECORDINGS: recordings, **readings(texts)}, peers)
    order = {name: verdicts(by_reader) for name, by_reader in scores.items()}
    means = {
        name: {reader: mean(values) for reader, values in by_reader.items()}
        for name, by_reader in scores.items()
    }
    run = {
        "question": "are synthesisers scored in the order that listeners put them in",
        "command": "python -m mosrt_studies.accuracy.order --speech … --teachers … "
        f"--sentences {count} --seed {seed}",
        "sentences": texts,
        "machine": describe(),
        "defaults": list(peers.defaults),
        "means": means,
        "order": order,
        "scores": {
            name: {reader: np.round(values, 4).tolist() for reader, values in by_reader.items()}
            for name, by_reader in scores.items()
        },
    }
    save(run, out)
    rows = [
        [
            name + (" *" if name in peers.defaults else ""),
            *(f"{figure['mean']:.2f}" for figure in by_reader.values()),
            f"{sum(v['holds'] for v in order[name].values())} of {len(ORDER)}",
        ]
        for name, by_reader in means.items()
    ]
    click.echo(table(["scorer", RECORDINGS, *READERS, "hold"], rows))
    for name, by_pair in order.items():
        for pair, figure in by_pair.items():
            if not figure["clear"]:
                low, high = figure["interval_95"]
                what = "not clear" if figure["holds"] else "does not hold"
                click.echo(
                    f"{name}: {pair} {what}: {figure['mean']:+.2f} ({low:+.2f} to {high:+.2f})"
                )


if __name__ == "__main__":
    main()
