"""What does it cost to decode and resample a clip, compared with scoring it?

    python -m mosrt_studies.serving.reading --audio speech.wav -o reading.json

The clip is encoded in each format. CPU time is that of one thread, in turns over all formats.
"""

from __future__ import annotations

import io
import statistics
import time
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import soundfile
import soxr

import mosrt
from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource
from mosrt.cli.command import exit_on_error, output_option
from mosrt_bench.machine import describe
from mosrt_bench.output import save
from mosrt_studies.publish import json_ready

__all__ = ["encoded", "main"]

# Format, subtype, sampling rate, channels.
KINDS: Final = {
    "wav 16 kHz": ("WAV", "PCM_16", 16_000, 1),
    "wav 24 kHz": ("WAV", "PCM_16", 24_000, 1),
    "wav 48 kHz stereo": ("WAV", "PCM_16", 48_000, 2),
    "flac 24 kHz": ("FLAC", "PCM_16", 24_000, 1),
    "flac 48 kHz stereo": ("FLAC", "PCM_16", 48_000, 2),
    "mp3 24 kHz": ("MP3", "MPEG_LAYER_III", 24_000, 1),
    "mp3 48 kHz stereo": ("MP3", "MPEG_LAYER_III", 48_000, 2),
    "ogg opus 48 kHz": ("OGG", "OPUS", 48_000, 1),
    "ogg vorbis 48 kHz stereo": ("OGG", "VORBIS", 48_000, 2),
}


def encoded(samples: Any, rate_hz: int, kind: str) -> bytes:
    """A waveform (samples,) as a file of a kind."""
    format_, subtype, wanted_hz, channels = KINDS[kind]
    resampled = soxr.resample(samples, rate_hz, wanted_hz)
    file = io.BytesIO()
    stacked = np.stack([resampled] * channels, axis=1)
    soundfile.write(file, stacked, wanted_hz, format=format_, subtype=subtype)
    return file.getvalue()


def _cpu_ms(function: Any) -> float:
    started = time.thread_time()
    function()
    return 1e3 * (time.thread_time() - started)


@click.command()
@click.option("--model", "-m", default="nano", show_default=True, metavar="NAME|PATH")
@click.option("--audio", required=True, metavar="FILE",
              type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@click.option("--seconds", default=4.5, show_default=True, help="Length of the clip.")
@click.option("--rounds", default=30, show_default=True)
@output_option("JSON file to write.", required=True)
def main(model: str, audio: Path, seconds: float, rounds: int, output: Path) -> None:
    """Measure what reading costs, by format."""
    samples, rate_hz = soundfile.read(audio, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    mono = np.resize(mono, round(seconds * rate_hz))
    files = {kind: encoded(mono, rate_hz, kind) for kind in KINDS}
    reading: dict[str, list[float]] = {kind: [] for kind in files}
    total: dict[str, list[float]] = {kind: [] for kind in files}
    with mosrt.load(model, threads=1, provider="cpu", on_bad_audio="nan") as scorer:
        model_hz = scorer.manifest.sample_rate_hz
        for turn in range(rounds + 1):
            for kind, data in files.items():
                read_ms = _cpu_ms(lambda data=data: Recording(FileSource(data), model_hz))
                total_ms = _cpu_ms(lambda data=data: scorer.score_file(data))
                if turn:  # the first turn allocates
                    reading[kind].append(read_ms)
                    total[kind].append(total_ms)
    result = {
        kind: {
            "reading_ms": statistics.median(reading[kind]),
            "total_ms": statistics.median(total[kind]),
            "part": statistics.median(reading[kind]) / statistics.median(total[kind]),
        }
        for kind in files
    }
    for kind, values in result.items():
        click.echo(f"{kind:26s} {json_ready(values)}")
    save({"machine": describe(), "model": model, "kinds": json_ready(result)}, output)


if __name__ == "__main__":
    with exit_on_error():
        main()
