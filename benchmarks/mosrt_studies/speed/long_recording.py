"""How much memory does an hour of speech take?

    mosrt export wav2vec wav2vec_large.pt -o large
    python -m mosrt_studies.speed.long_recording -m nano-uncertainty -m large \
        --speech SPEECH -o benchmarks/results/long_recording.json

The recording consists of all clips of a folder, repeated until it is long enough, and is scored
from its file. Each model has a process of its own, so that each peak is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import numpy as np
import soundfile

from mosrt.audio.recording import Recording
from mosrt.audio.sources import AUDIO_SUFFIXES, FileSource
from mosrt.bundle.bundle import Bundle, find_bundle
from mosrt.cli.command import exit_on_error, output_option
from mosrt_bench.machine import describe
from mosrt_bench.output import save
from mosrt_studies.figures.tables import section

LIMIT_MB: Final = 1500
_RATE_HZ: Final = 16_000
_PROGRAM: Final = """
import json, sys
import mosrt
from mosrt_bench.worker.worker import peak_mb
model, threads, file = sys.argv[1:]
with mosrt.load(model, threads=int(threads), provider="cpu") as scorer:
    loaded_mb = peak_mb()
    score = scorer.score_file(file)
print(json.dumps({"pieces": score.n_views, "loaded_mb": loaded_mb, "peak_mb": peak_mb(),
    "uncertainty": score.measures["uncertainty"]}))
"""


@click.command()
@click.option("--model", "-m", "references", required=True, multiple=True, metavar="NAME|PATH",
              help="Uncertainty model to measure; may be repeated.")  # fmt: skip
@click.option("--speech", required=True, metavar="DIR",
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder of clips, searched whole.")  # fmt: skip
@click.option("--minutes", default=60.0, show_default=True, help="Length of the recording.")
@click.option("--threads", default=2, show_default=True, help="Threads of each model.")
@output_option("JSON file to write.", required=True)
@exit_on_error()
def main(
    references: tuple[str, ...], speech: Path, minutes: float, threads: int, output: Path
) -> None:
    """Score one long recording with every model, and measure the peak memory of each."""
    clips = sorted(path for path in speech.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not clips:
        raise click.UsageError(f"{speech}: no audio files")
    models = {}
    with tempfile.TemporaryDirectory(prefix="mosrt-bench-") as directory:
        file = Path(directory, "long.flac")
        write_recording(clips, file, n_samples=round(60 * minutes * _RATE_HZ))
        for reference in references:
            bundle = Bundle.open(find_bundle(reference))
            if bundle.manifest.uncertainty is None:
                raise click.UsageError(f"{reference} is not an uncertainty model")
            command = [sys.executable, "-c", _PROGRAM, reference, str(threads), str(file)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout)
            models[bundle.manifest.name] = {
                "layouts": list(bundle.manifest.uncertainty.layouts),
                "model_mb": round(sum(f.bytes for f in bundle.variant("fp32").files) / 1e6, 1),
                **{name: round(value, 4) for name, value in found.items()},
            }
    result = {
        "question": "peak memory of scoring one long recording from a file, FP32",
        "command": "python -m mosrt_studies.speed.long_recording --model … --speech … "
        f"--minutes {minutes:g} --threads {threads}",
        "minutes": minutes,
        "threads": threads,
        "limit_mb": LIMIT_MB,
        "machine": describe(),
        "models": models,
    }
    save(result, output)
    click.echo(section("long_recording", result))


def write_recording(clips: Sequence[Path], file: Path, *, n_samples: int) -> None:
    """Writes audio files of any kind, one after the other, as mono FLAC at 16 kHz.

    They are repeated until there are `n_samples`.
    """
    missing = n_samples
    with soundfile.SoundFile(file, "w", _RATE_HZ, 1, subtype="PCM_16", format="FLAC") as sink:
        while missing:
            for clip in clips:
                recording = Recording(FileSource(clip), _RATE_HZ)
                (samples,) = recording.chunks([(0, min(recording.n_samples, missing))])
                sink.write(np.clip(samples, -1.0, 1.0))
                missing -= len(samples)
                if not missing:
                    break


if __name__ == "__main__":
    main()
