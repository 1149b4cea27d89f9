"""How fast is the NumPy front end beside librosa?

    python -m mosrt_studies.speed.front_end --bundle utmosv2 --out benchmarks/results/front_end.json

One view's images of synthetic speech, dB and resize included, made by librosa and torch's
antialiased resize on one thread, and by mosrt on one thread and on two, in turn.
"""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile
import threadpoolctl
import torch

from mosrt.bundle.bundle import Bundle
from mosrt.host.thread_pool import ThreadPool
from mosrt.mel.front_end import MelFrontEnd
from mosrt_bench.machine import describe
from mosrt_bench.worker.torch_runner import librosa_image, torch_resize

from .timing import interleave, ratio, timing


@click.command()
@click.option("--bundle", required=True, help="Bundle whose front end is measured.")
@click.option("--audio", required=True, type=click.Path(exists=True), help="A clip at its rate.")
@click.option("--rounds", default=31, show_default=True, help="Counted rounds.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
def main(bundle: str, audio: str, rounds: int, out: Path) -> None:
    """Time one view's images: librosa on one thread, mosrt on one and on two."""
    manifest = Bundle.open(bundle).manifest
    spec, rate_hz = manifest.mel, manifest.sample_rate_hz
    if spec is None:
        raise click.UsageError(f"{bundle} has no spectrogram branch")
    waveform, file_rate_hz = soundfile.read(audio, dtype="float32")
    if waveform.ndim != 1 or file_rate_hz != rate_hz:
        raise click.UsageError(f"{audio} must be mono at {rate_hz} Hz")
    last = len(waveform) - spec.crop_samples
    crops = [
        waveform[s : s + spec.crop_samples] for s in np.linspace(0, last, spec.n_crops, dtype=int)
    ]
    front_end = MelFrontEnd(spec, rate_hz)

    def by_librosa() -> list[Any]:
        return [
            np.stack(
                [
                    torch_resize(librosa_image(crop, window, spec, rate_hz), spec, channels=1)[0]
                    for window in spec.windows
                ]
            )
            for crop in crops
        ]

    def by_mosrt() -> list[Any]:
        return [np.stack(list(front_end.images(crop).values())) for crop in crops]

    torch.set_num_threads(1)
    difference = max(np.abs(a - b).max() for a, b in zip(by_librosa(), by_mosrt(), strict=True))
    with closing(ThreadPool(2)) as pool:

        def by_two_threads() -> list[Any]:
            return pool.map(front_end.images, crops)

        contestants = {
            "librosa, 1 thread": _timed(by_librosa, blas_threads=1),
            "mosrt, 1 thread": _timed(by_mosrt, blas_threads=1),
            "mosrt, 2 threads": _timed(by_two_threads),
        }
        with click.progressbar(length=rounds + 1, file=sys.stderr) as bar:
            times_ms = interleave(contestants, rounds=rounds, progress=bar.update)
    tracemalloc.start()
    by_mosrt()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    librosa_ms = times_ms["librosa, 1 thread"]
    timings = {name: timing(times) for name, times in times_ms.items()}
    faster = {name: ratio(librosa_ms, times) for name, times in times_ms.items()}
    del faster["librosa, 1 thread"]
    result = {
        "question": "one view's images, dB and resize included",
        "images": spec.n_crops * len(spec.windows),
        "command": "python -m mosrt_studies.speed.front_end --bundle … "
        f"--audio {Path(audio).name} --rounds {rounds}",
        "machine": describe(),
        "largest_difference": float(difference),
        "mosrt_peak_extra_memory_mb": round(peak_bytes / 1e6, 1),
        "timings": timings,
        "faster_than_librosa": faster,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, times in timings.items():
        click.echo(f"{name}: {times['median_ms']:.1f} ms {times['interval_95_ms']}")
    for name, figure in faster.items():
        click.echo(f"{name}: {figure['ratio']:.2f} times as fast {figure['interval_95']}")
    click.echo(f"largest difference {difference:.1e}, peak extra memory {peak_bytes / 1e6:.1f} MB")


def _timed(run: Callable[[], object], blas_threads: int | None = None) -> Callable[[], float]:
    """Times `run`, with BLAS held to a number of threads outside the time taken."""

    def once() -> float:
        with threadpoolctl.threadpool_limits(blas_threads):
            started = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - started)

    return once


if __name__ == "__main__":
    main()
