"""How fast is the NumPy front end beside librosa?

    python -m mosrt_studies.speed.front_end -m utmosv2 --audio clip.wav \
        -o benchmarks/results/front_end.json

Times the images of one view, dB and resize included: by librosa and torch's antialiased resize on
one thread, and by mosrt on one thread and on two, in turn.
"""

from __future__ import annotations

import sys
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile
import torch

from mosrt._arrays import Float32Array
from mosrt.bundle.bundle import Bundle, find_bundle
from mosrt.cli.command import exit_on_error, model_option, output_option
from mosrt.host.thread_pool import ThreadPool
from mosrt.mel.front_end import MelFrontEnd
from mosrt_bench.machine import describe
from mosrt_bench.output import save
from mosrt_bench.worker.torch_runner import librosa_image, torch_resize
from mosrt_studies.figures.tables import section

from .timing import interleave, ratio, timed, timing


@click.command()
@model_option("MOS model whose front end is measured", required=True)
@click.option("--audio", required=True, type=click.Path(exists=True),
              help="Mono clip at the rate of the model.")  # fmt: skip
@click.option("--rounds", default=31, show_default=True, help="Rounds that count.")
@output_option("JSON file to write.", required=True)
@exit_on_error()
def main(model: str, audio: str, rounds: int, output: Path) -> None:
    """Time the images of one view: librosa on one thread, mosrt on one and on two."""
    manifest = Bundle.open(find_bundle(model)).manifest
    spec, rate_hz = manifest.mel, manifest.sample_rate_hz
    if spec is None:
        raise click.UsageError(f"{model} has no spectrogram branch")
    waveform, file_rate_hz = soundfile.read(audio, dtype="float32")
    if waveform.ndim != 1 or file_rate_hz != rate_hz:
        raise click.UsageError(f"{audio} must be mono at {rate_hz} Hz")
    last = len(waveform) - spec.crop_samples
    crops = [
        waveform[s : s + spec.crop_samples] for s in np.linspace(0, last, spec.n_crops, dtype=int)
    ]
    front_end = MelFrontEnd(spec, rate_hz)

    def librosa_images(crop: Float32Array) -> Float32Array:
        images = (librosa_image(crop, window, spec, rate_hz) for window in spec.windows)
        return np.stack([torch_resize(image, spec, channels=1)[0] for image in images])

    def by_librosa() -> list[Any]:
        return [librosa_images(crop) for crop in crops]

    def by_mosrt() -> list[Any]:
        return [np.stack(list(front_end.images(crop).values())) for crop in crops]

    torch.set_num_threads(1)
    difference = max(np.abs(a - b).max() for a, b in zip(by_librosa(), by_mosrt(), strict=True))
    with closing(ThreadPool(2)) as pool:

        def by_two_threads() -> list[Any]:
            return pool.map(front_end.images, crops)

        configurations = {
            "librosa, 1 thread": timed(by_librosa, blas_threads=1),
            "mosrt, 1 thread": timed(by_mosrt, blas_threads=1),
            "mosrt, 2 threads": timed(by_two_threads),
        }
        with click.progressbar(length=rounds + 1, file=sys.stderr) as bar:
            times_ms = interleave(configurations, rounds=rounds, progress=bar.update)
    tracemalloc.start()
    by_mosrt()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    librosa_ms = times_ms["librosa, 1 thread"]
    faster = {n: ratio(librosa_ms, t) for n, t in times_ms.items() if not n.startswith("librosa")}
    result = {
        "question": "one view's images, dB and resize included",
        "images": spec.n_crops * len(spec.windows),
        "command": "python -m mosrt_studies.speed.front_end --model … "
        f"--audio {Path(audio).name} --rounds {rounds}",
        "machine": describe(),
        "largest_difference": float(difference),
        "mosrt_peak_extra_memory_mb": round(peak_bytes / 1e6, 1),
        "timings": {name: timing(times) for name, times in times_ms.items()},
        "faster_than_librosa": faster,
    }
    save(result, output)
    click.echo(section("front_end", result))


if __name__ == "__main__":
    main()
