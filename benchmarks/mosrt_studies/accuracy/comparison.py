"""How well do the models follow listeners, degradations and common sense, all in one run?

    mosrt export dnsmos TEACHERS/dnsmos_p808.onnx -o dnsmos-p808
    mosrt export dnsmos TEACHERS/dnsmos_p835.onnx -o dnsmos-p835
    mosrt quantize distillmos --audio clips/ -o distillmos
    python -m mosrt_studies.accuracy.comparison -m nano -m distillmos -m ./distillmos@fp16 \
        -m ./distillmos@int8-cpu -m ./dnsmos-p808 -m ./dnsmos-p835 --teachers TEACHERS \
        --systems SYSTEMS --speech SPEECH --extra SPEAKER -o benchmarks/results/accuracy.json

Every model scores the same clips: listening tests (`listening`), ladders of degradations
(`ladder`), recordings and synthesisers (`order`), and clips changed in ways that no listener would
rate (`invariance`). Choosing a model by a listening test makes the result optimistic, so the file
counts how often each folder of systems was evaluated: a run adds one to what the file that it
replaces says.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click

from mosrt.cli.command import exit_on_error, output_option
from mosrt_studies.publish import publish

from . import invariance, ladder, listening, order
from .heldout import Speech, clips_in, recorded_clips, unseen_clips
from .scorers import Scorers, scorers_options

__all__ = ["PARTS", "groups_of_clips", "looks_before"]

PARTS: Final = ("listening", "ladder", "order", "invariance")
_FOLDER: Final = click.Path(exists=True, file_okay=False, path_type=Path)


def looks_before(output: Path) -> Counter[str]:
    """How often each folder of systems was evaluated, by the file of an earlier run.

    Raises:
        click.UsageError: The file is something else.
    """
    if not output.exists():
        return Counter()
    try:
        return Counter(json.loads(output.read_text(encoding="utf-8"))["looks"])
    except (ValueError, KeyError, TypeError) as exc:
        raise click.UsageError(f"{output}: not the result of this study; delete it") from exc


def groups_of_clips(
    speech: Path, extra: tuple[Path, ...], count: int, seed: int
) -> dict[str, list[Speech]]:
    """Clean clips of 5 s that no embedded model was trained on, `count` of each group.

    Raises:
        VoiceError: There are too few recordings, or a voice is not installed.
    """
    groups = {
        "held-out recordings": recorded_clips(speech, count),
        "unseen synthetic voices": unseen_clips(count, seed),
    }
    if extra:
        groups["unseen speakers"] = clips_in(extra, count)
    return groups


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS,
              show_default="all", help="What to evaluate; may be repeated.")  # fmt: skip
@click.option("--systems", "folders", multiple=True, type=_FOLDER, metavar="DIR",
              help="Folder with systems.tsv and the clips of the systems; may be "
              "repeated.")  # fmt: skip
@click.option("--speech", type=_FOLDER, metavar="DIR",
              help="The recordings that the embedded models were trained on; the held-out part "
              "is used.")  # fmt: skip
@click.option("--extra", multiple=True, type=_FOLDER, metavar="DIR",
              help="Folder of recordings of one speaker outside the training data; may be "
              "repeated.")  # fmt: skip
@exit_on_error()
@scorers_options
@click.option("--clips", default=10, show_default=True, type=click.IntRange(min=2),
              help="Clean clips per group, for ladders and invariances.")  # fmt: skip
@click.option("--sentences", "count", default=24, show_default=True, type=click.IntRange(min=20),
              help="Number of sentences for the synthesisers, and of recordings.")  # fmt: skip
@click.option("--seed", default=1001, show_default=True, help="Seed of text and degradations.")
@output_option("JSON file to write.", required=True)
def main(
    parts: tuple[str, ...], folders: tuple[Path, ...], speech: Path | None,
    extra: tuple[Path, ...], scorers: Scorers, clips: int, count: int, seed: int, output: Path,
) -> None:  # fmt: skip
    """Evaluate models on listening tests, degradations, synthesisers and invariances."""
    looks = looks_before(output)
    found: dict[str, Any] = {}
    if "listening" in parts:
        if not folders:
            raise click.UsageError("listening tests need --systems, a folder with systems.tsv")
        looks.update(folder.name for folder in folders)
        found["listening"] = listening.measure(folders, scorers)
    if {"ladder", "order", "invariance"} & set(parts):
        if speech is None:
            raise click.UsageError("ladder, order and invariance need --speech; see --part")
        if "order" in parts:
            found["order"] = order.measure(speech, count, seed + 1, scorers)
        if {"ladder", "invariance"} & set(parts):
            groups = groups_of_clips(speech, extra, clips, seed)
            if "ladder" in parts:
                found["ladder"] = ladder.measure(groups, scorers, seed)
            if "invariance" in parts:
                members = [clip for group in groups.values() for clip in group]
                found["invariance"] = invariance.measure(members, scorers)
    publish(
        "accuracy.comparison",
        output,
        question="do scores follow listeners, degradations and nothing else",
        threads=1,
        parts=list(found),
        looks=looks,
        defaults=scorers.defaults,
        cpu_ms=scorers.cpu_ms,
        **found,
    )


if __name__ == "__main__":
    main()
