"""How much memory does an hour of speech take?

    python -m mosrt_studies.long_recording -m nano-uncertainty --speech SPEECH \
        -o benchmarks/results/long_recording.json

The recording consists of all clips of a folder, repeated until it is long enough, and is scored
from its file. Each model has a process of its own, so that each peak is its own.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import soundfile

from mosrt.audio.sources import AUDIO_SUFFIXES
from mosrt.cli.command import exit_on_error, output_option
from mosrt.host.files import files_below
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ, read
from mosrt_studies.publish import publish

__all__ = ["write_recording"]

LIMIT_MB: Final = 1500
_PROGRAM: Final = """
import json, sys
import mosrt
from mosrt_bench.worker.worker import peak_mb
model, threads, file = sys.argv[1:]
with mosrt.load(model, threads=int(threads), provider="cpu") as scorer:
    loaded_mb = peak_mb()
    views = scorer.score_file(file).n_views
    print(json.dumps({"model": scorer.manifest.name, "views": views, "loaded_mb": loaded_mb,
        "peak_mb": peak_mb()}))
"""


def write_recording(clips: Sequence[Path], file: Path, *, n_samples: int) -> None:
    """Writes audio files of any kind, one after the other and repeated, as FLAC at 16 kHz."""
    with soundfile.SoundFile(file, "w", SAMPLE_RATE_HZ, 1, subtype="PCM_16", format="FLAC") as sink:
        for clip in itertools.cycle(clips):
            sink.write(read(clip)[: n_samples - sink.frames])
            if sink.frames == n_samples:
                break


@click.command()
@click.option("--model", "-m", "models", required=True, multiple=True, metavar="NAME|PATH",
              help="Model to measure; may be repeated.")  # fmt: skip
@click.option("--speech", required=True, metavar="DIR",
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder of clips, searched whole.")  # fmt: skip
@click.option("--minutes", default=60.0, show_default=True, help="Length of the recording.")
@click.option("--threads", default=2, show_default=True, help="Threads of each model.")
@output_option("JSON file to write.", required=True)
@exit_on_error()
def main(models: tuple[str, ...], speech: Path, minutes: float, threads: int, output: Path) -> None:
    """Score one long recording with every model, and measure the peak memory of each."""
    clips = [path for path in files_below(speech) if path.suffix.lower() in AUDIO_SUFFIXES]
    if not clips:
        raise click.UsageError(f"{speech}: no audio files")
    measured = []
    with tempfile.TemporaryDirectory(prefix="mosrt-bench-") as directory:
        file = Path(directory, "long.flac")
        write_recording(clips, file, n_samples=round(60 * minutes * SAMPLE_RATE_HZ))
        for model in models:
            command = [sys.executable, "-c", _PROGRAM, model, str(threads), str(file)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            measured.append(json.loads(done.stdout))
    publish(
        "long_recording",
        output,
        question="peak memory of scoring one long recording from a file, FP32",
        minutes=minutes,
        threads=threads,
        limit_mb=LIMIT_MB,
        models=measured,
    )


if __name__ == "__main__":
    main()
