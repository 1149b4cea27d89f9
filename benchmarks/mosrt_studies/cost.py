"""What does a score cost: CPU time, memory, time to the first score, and space on disk?

    python -m mosrt_studies.cost -m nano -m distillmos -m ./distillmos@int8-cpu -m ./dnsmos-p808 \
        -m ./dnsmos-p835 --teachers TEACHERS --audio CLIP.wav --wheel mosrt.whl \
        -o benchmarks/results/cost.json

Every model scores a clip of 5 s on one thread, in turn, front end included; CPU time is that of the
whole process. Then fresh processes, again in turn, load one model and score the clip once: the time
from the start of the process to the score, the CPU time up to then, and the peak of memory.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import soundfile
import soxr

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.cli.command import exit_on_error, output_option
from mosrt_bench.bench.timing import clip_of
from mosrt_bench.stats.bootstrap import interval_95
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ
from mosrt_studies.accuracy.scorers import (
    PEERS,
    ScorerError,
    Scorers,
    model_and_variant,
    scorers_options,
)
from mosrt_studies.publish import publish

__all__ = ["Process", "fresh_process", "timings"]

CLIP_S: Final = 5.0
_WARM_UP: Final = 3
_LONGEST_S: Final = 600.0
_PROGRAM: Final = """
import json, resource, sys, time
file, variant, clip = sys.argv[1:]
{program}
ended = time.time()
used = resource.getrusage(resource.RUSAGE_SELF)
from mosrt_bench.worker.worker import peak_mb
print(json.dumps([ended, used.ru_utime + used.ru_stime, peak_mb()]))
"""
_OF_MOSRT: Final = """
import mosrt
scorer = mosrt.load(file, variant=variant, provider="cpu", threads=1)
scorer.score_file(clip)
"""
_OF_TORCH: Final = """
import soundfile, torch
torch.set_num_threads(1)
samples = torch.from_numpy(soundfile.read(clip, dtype="float32")[0])
{model}
with torch.inference_mode():
    model({inputs})
"""
_OF_PRO: Final = _OF_TORCH.format(
    model="""
model = torch.jit.load(file, map_location="cpu").eval()
spectrum = torch.stft(samples.repeat(2), 320, 160, window=torch.hann_window(320),
                      return_complex=True).abs().clamp(1e-7, 1e7).log10().T
""",
    inputs="spectrum[None, None]",
)
_OF_PEERS: Final = {
    "Distill-MOS in torch": _OF_TORCH.format(
        model="""
import distillmos
model = distillmos.ConvTransformerSQAModel().eval()
""",
        inputs="samples[None]",
    ),
    "DNSMOS Pro BVCC": _OF_PRO,
    "DNSMOS Pro NISQA": _OF_PRO,
}
"""What a fresh process runs for a published model, without any part of mosrt."""


class Process:
    """A model as a fresh process runs it.

    Args:
        name: Name of its default score.
        model: Name of the model.
        program: What loads it, and scores a clip.
        file: Its bundle or file.
        variant: Its variant; "" if it is no bundle.
        n_bytes: Size on disk.
    """

    def __init__(
        self, name: str, model: str, program: str, file: str, variant: str, n_bytes: int
    ) -> None:
        self.name, self.model, self.variant, self.n_bytes = name, model, variant, n_bytes
        self._arguments = (_PROGRAM.format(program=program), file, variant)

    def start(self, clip: Path) -> dict[str, float]:
        """Runs it once.

        Raises:
            ScorerError: It fails, or takes ten minutes.
        """
        began = time.time()
        try:
            done = subprocess.run(
                [sys.executable, "-c", *self._arguments, str(clip)],
                capture_output=True, text=True, check=True, timeout=_LONGEST_S,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        except subprocess.CalledProcessError as exc:
            lines = exc.stderr.strip().splitlines() or ["it wrote no message"]
            raise ScorerError(f"{self.name}: a fresh process failed: {lines[-1]}") from exc
        except subprocess.TimeoutExpired:
            raise ScorerError(f"{self.name}: a fresh process took {_LONGEST_S:g} s") from None
        ended, cpu_s, peak_mb = json.loads(done.stdout.splitlines()[-1])
        return {"first_score_s": ended - began, "cpu_s": cpu_s, "peak_mb": peak_mb}


def fresh_process(model: str, name: str, teachers: Path | None = None) -> Process:
    """How a fresh process runs a model.

    Args:
        model: NAME|PATH[@VARIANT], or the name of a published model.
        name: Name of its default score.
        teachers: Folder of the published models.

    Raises:
        BundleError: A bundle cannot be used.
    """
    if model in PEERS and teachers is not None:
        file = teachers / PEERS[model][0]
        n_bytes = file.stat().st_size if file.is_file() else _package_bytes("distillmos")
        return Process(name, model, _OF_PEERS[model], str(file), "", n_bytes)
    reference, variant = model_and_variant(model)
    bundle = Bundle.open(find_bundle(reference))
    variant = variant or "fp32"
    n_bytes = sum(file.bytes for file in bundle.variant(variant).files)
    return Process(name, bundle.manifest.name, _OF_MOSRT, reference, variant, n_bytes)


def _package_bytes(package: str) -> int:
    files = importlib.metadata.files(package) or ()
    return sum(file.size or 0 for file in files)


def timings(times_ms: Sequence[float]) -> dict[str, Any]:
    """Median CPU time, its interval, and all times after the warm-up, in ms."""
    kept = [round(each, 3) for each in times_ms[_WARM_UP:]]
    return {
        "median_ms": float(np.median(kept)),
        "interval_95_ms": interval_95(kept),
        "times_ms": kept,
    }


@click.command()
@click.option("--audio", required=True, metavar="FILE", help="Recording that the clip is cut from.",
              type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@click.option("--wheel", metavar="FILE", help="The wheel of mosrt, for its size.",
              type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@exit_on_error()
@scorers_options
@click.option("--rounds", default=51, show_default=True, type=click.IntRange(min=15),
              help="Rounds of scoring, after the warm-up.")  # fmt: skip
@click.option("--starts", default=5, show_default=True, type=click.IntRange(min=1),
              help="Fresh processes of each model.")  # fmt: skip
@output_option("JSON file to write.", required=True)
def main(
    audio: Path, wheel: Path | None, scorers: Scorers, rounds: int, starts: int, output: Path
) -> None:
    """Measure what a score of a 5 s clip costs."""
    data = clip_of(audio, CLIP_S)
    samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    waveform = soxr.resample(samples.mean(axis=1), rate_hz, SAMPLE_RATE_HZ).astype(np.float32)
    with click.progressbar(range(_WARM_UP + rounds), file=sys.stderr, label="CPU time") as bar:
        for _ in bar:
            scorers(waveform, SAMPLE_RATE_HZ)
    processes = [
        fresh_process(model, name, scorers.teachers)
        for model, name in zip(scorers.models, scorers.defaults, strict=True)
    ]
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="mosrt-cost-") as folder:
        clip = Path(folder, "clip.wav")
        soundfile.write(clip, waveform, SAMPLE_RATE_HZ)
        for process in processes:
            process.start(clip)  # reads the files once, and fills caches
        with click.progressbar(range(starts), file=sys.stderr, label="fresh processes") as bar:
            for _ in bar:
                for process in processes:
                    runs.setdefault(process.name, []).append(process.start(clip))
    publish(
        "cost",
        output,
        question="what a score of a 5 s clip costs on one thread",
        threads=1,
        defaults=scorers.defaults,
        wheel_bytes=None if wheel is None else wheel.stat().st_size,
        timings={name: timings(scorers.cpu_times_ms[name]) for name in scorers.defaults},
        processes={
            process.name: {
                "model": process.model,
                "variant": process.variant,
                "bytes": process.n_bytes,
                **{
                    key: float(np.median([run[key] for run in runs[process.name]]))
                    for key in ("first_score_s", "cpu_s", "peak_mb")
                },
                "runs": runs[process.name],
            }
            for process in processes
        },
    )


if __name__ == "__main__":
    main()
