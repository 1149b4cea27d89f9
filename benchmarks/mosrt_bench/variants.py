"""How fast, how small and how quick to start is each variant on this machine's CPU?

    python -m mosrt_bench.variants --bundle utmosv2 --checkpoint fold0.pth --audio speech/ \
        --out benchmarks/results/variants.json

Rows are variants of a fusion bundle on ONNX Runtime and OpenVINO, and eager torch with a librosa
front end, its weights drawn from a seed where no checkpoint is given. Latency: waveform in memory
to score, every row on every clip in turn. Cold start: a fresh process's start to its first score,
with what the cache holds from an earlier one; peak memory is of such a process. Throughput:
processes that share the cores, a row at a time. A row that the bundle or the machine cannot run is
left out and named. A run that is ended leaves what it measured beside OUT, as .unfinished.json.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

from mosrt.backends import present_providers
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.manifest import Manifest
from mosrt.cli.command import exit_on_error
from mosrt.host.cpu import CpuFeatures
from mosrt_export.nano.data.voices import read
from mosrt_studies.speed.timing import interleave, ratio, timing

from .end_to_end import Worker
from .machine import describe
from .matmul_peak import peaks_gflops
from .output import save, table
from .variants_worker import BASELINE, RATE_HZ

__all__ = ["ROWS", "clips_of", "left_out", "row_name"]

Float32Array = npt.NDArray[np.float32]

# Variant, provider, and the numbers that most of the arithmetic is done in.
ROWS: Final = (
    ("fp32", "cpu", "fp32"),
    ("fp16", "cpu", "fp32"),
    ("int8-cpu", "cpu", "int8"),
    ("fp32", "openvino-fp32", "fp32"),
    ("fp32", "openvino-bf16", "bf16"),
    ("int8-cpu", "openvino-fp32", "int8"),
    ("int8-cpu", "openvino-bf16", "int8"),
)
_CLIP_S: Final = 4.0
_BASELINE_LIBRARIES: Final = ("torch", "librosa", "timm", "transformers")
_MODULE: Final = "mosrt_bench.variants_worker"


def row_name(variant: str, provider: str) -> str:
    """What a row is called: "int8-cpu, openvino-bf16"."""
    return f"{variant}, {provider}"


def left_out(manifest: Manifest, cpu: CpuFeatures, providers: Sequence[str]) -> dict[str, str]:
    """Why a row cannot be run here, by the row's name; rows that can be are not in it."""
    reasons = {}
    for variant, provider, _ in ROWS:
        if variant not in manifest.variants:
            reason = f"the bundle has no {variant}"
        elif provider not in providers:
            reason = "openvino is not installed"
        elif provider == "openvino-bf16" and cpu.bf16 is None:
            reason = "the CPU has no bfloat16 arithmetic"
        else:
            continue
        reasons[row_name(variant, provider)] = reason
    return reasons


def clips_of(paths: Sequence[Path], n_clips: int) -> Float32Array:
    """Clips of 4 s at 16 kHz, evenly spaced over recordings that follow each other.

    Args:
        paths: Files, in order; when too short they are repeated.
        n_clips: How many.

    Returns:
        (n_clips, 64000) float32.
    """
    n_samples = round(_CLIP_S * RATE_HZ)
    waveform = np.concatenate([read(path) for path in paths])
    starts = np.linspace(0, max(len(waveform) - n_samples, 0), n_clips).astype(int)
    return np.stack([np.resize(waveform[start:], n_samples) for start in starts])


def _no_baseline(manifest: Manifest) -> str | None:
    """Why torch cannot be run beside a bundle, or None if it can."""
    missing = [name for name in _BASELINE_LIBRARIES if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if manifest.family != "fusion" or "config" not in manifest.provenance:
        return "the bundle does not say which torch model it was made from"
    return None


class _Contest:
    """The rows that can be run here, and what each costs."""

    def __init__(
        self,
        bundle: str,
        checkpoint: str | None,
        clips: Path,
        n_clips: int,
        threads: int,
        skipped: Sequence[str],
    ) -> None:
        manifest = Bundle.open(bundle).manifest
        self.left_out = left_out(manifest, CpuFeatures.read(), present_providers())
        self.same_weights = checkpoint is not None
        common = {"bundle": bundle, "clips": str(clips)}
        self._threads = threads
        self._n_clips = n_clips
        self._options: dict[str, dict[str, Any]] = {}
        reason = _no_baseline(manifest)
        if reason is None:
            self._options[BASELINE] = {**common, "checkpoint": checkpoint}
        else:
            self.left_out[BASELINE] = reason
        for variant, provider, _ in ROWS:
            name = row_name(variant, provider)
            if name not in self.left_out:
                self._options[name] = {**common, "variant": variant, "provider": provider}
        for name in skipped:
            if self._options.pop(name, None) is not None:
                self.left_out[name] = "not asked for"
        self.names = list(self._options)

    def reference_of_scores(self) -> str:
        """The first row that has the weights that the others have."""
        own = [name for name in self.names if name != BASELINE]
        return self.names[0] if self.same_weights or not own else own[0]

    def _worker(self, name: str, threads: int) -> Worker:
        return Worker(name, {**self._options[name], "threads": threads}, _MODULE)

    def cold(self, name: str) -> dict[str, float]:
        """A fresh process from its start to its first score: {"ms", "mos", "peak_mb"}."""
        started = time.perf_counter()
        with self._worker(name, self._threads) as worker:
            worker.ask("0")
            answer = worker.answer()
            return {**answer, "ms": 1e3 * (time.perf_counter() - started)}

    def latencies(
        self, progress: Callable[[int], None], keep: Callable[[dict[str, Any]], None]
    ) -> tuple[dict[str, list[float]], Any]:
        """Times in ms and scores of every clip by row; rows take turns on each clip.

        Args:
            progress: Told of every turn.
            keep: Given all times so far at every turn, those of warming up among them.
        """
        scores: dict[str, list[float]] = {name: [] for name in self.names}
        so_far: dict[str, list[float]] = {name: [] for name in self.names}
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(self._worker(name, self._threads)) for name in self.names
            }

            def score(name: str) -> Callable[[], float]:
                def once() -> float:
                    workers[name].ask(str(len(scores[name]) % self._n_clips))
                    answer = workers[name].answer()
                    scores[name].append(answer["mos"])
                    so_far[name].append(round(answer["ms"], 3))
                    return answer["ms"]

                return once

            def turn(count: int) -> None:
                progress(count)
                keep({"times_ms_with_warm_up": so_far})

            contestants = {name: score(name) for name in self.names}
            # A whole turn over the clips brings back the first: 2 warm up.
            times = interleave(contestants, rounds=self._n_clips, warm_up=2, progress=turn)
        return times, {name: values[: self._n_clips] for name, values in scores.items()}

    def throughput(self, name: str, n_workers: int, n_each: int) -> float:
        """Clips per second of processes that share the threads out."""
        with ExitStack() as stack:
            workers = [
                stack.enter_context(self._worker(name, max(1, self._threads // n_workers)))
                for _ in range(n_workers)
            ]
            for worker in workers:
                worker.ask("0")
            for worker in workers:
                worker.answer()
            started = time.perf_counter()
            for i, worker in enumerate(workers):
                worker.ask(str(i % self._n_clips), n_each)
            for worker in workers:
                for _ in range(n_each):
                    worker.answer()
            return n_workers * n_each / (time.perf_counter() - started)


@click.command()
@exit_on_error()
@click.option("--bundle", required=True, help="Fusion bundle with the variants.")
@click.option(
    "--checkpoint", help="What it was made from, for torch. [default: weights drawn from a seed]"
)
@click.option(
    "--audio",
    required=True,
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Speech that clips are cut from; may be repeated.",
)
@click.option("--clips", default=100, show_default=True, type=click.IntRange(min=15))
@click.option("--skip", "skipped", multiple=True, help="A row to leave out; may be repeated.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--starts", default=5, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--gflop", default=280.0, show_default=True, help="1e9 operations of one view's networks."
)
@click.option("--weights", default="stand-in", show_default=True, help="What the weights are.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    bundle: str,
    checkpoint: str | None,
    audio: tuple[Path, ...],
    clips: int,
    skipped: tuple[str, ...],
    threads: int,
    workers: int,
    starts: int,
    gflop: float,
    weights: str,
    out: Path,
) -> None:
    """Time a fusion bundle's variants, one view of a 4 s clip, beside eager torch."""
    peaks = peaks_gflops(threads=threads)
    with TemporaryDirectory() as temporary:
        file = Path(temporary, "clips.npy")
        np.save(file, clips_of(audio, clips))
        contest = _Contest(bundle, checkpoint, file, clips, threads, skipped)
        if not contest.names:
            raise click.UsageError(f"nothing to run: {contest.left_out}")
        cold: dict[str, list[dict[str, float]]] = {name: [] for name in contest.names}
        unfinished = out.with_suffix(".unfinished.json")
        started_on = describe()

        def keep(more: dict[str, Any]) -> None:
            save({"machine": started_on, "threads": threads, "cold": cold, **more}, unfinished)

        with _bar(starts + 1, "cold starts") as bar:
            for start in range(starts + 1):
                for name in contest.names:
                    answer = contest.cold(name)
                    if start:  # the first filled the cache
                        cold[name].append(answer)
                keep({})
                bar.update(1)
        with _bar(clips + 2, "clips") as bar:
            times_ms, scores = contest.latencies(bar.update, keep)
        rates = {}
        with _bar(len(contest.names), "throughput") as bar:
            for name in contest.names:
                rates[name] = contest.throughput(name, workers, max(1, clips // 10))
                bar.update(1)
    manifest = Bundle.open(bundle).manifest
    sizes = {
        name: sum(file.bytes for file in variant.files)
        for name, variant in manifest.variants.items()
    }
    reference = contest.names[0]
    reference_of_scores = contest.reference_of_scores()
    rows_skipped = "".join(f"--skip '{name}' " for name in skipped)
    floors_ms = {kind: 1e3 * gflop / peak for kind, peak in peaks.items()}
    kinds = {row_name(variant, provider): kind for variant, provider, kind in ROWS}
    rows = {
        name: {
            "p50_ms": _quantile(times_ms[name], 50),
            "p95_ms": _quantile(times_ms[name], 95),
            "p99_ms": _quantile(times_ms[name], 99),
            "faster": None if name == reference else ratio(times_ms[reference], times_ms[name]),
            "cold_start_s": round(_median(cold[name], "ms") / 1e3, 3),
            "peak_mb": round(_median(cold[name], "peak_mb"), 1),
            "clips_per_s": round(rates[name], 3),
            "floors": round(_quantile(times_ms[name], 50) / floors_ms[kinds.get(name, "fp32")], 2),
            "mean_difference": None
            if name == BASELINE and not contest.same_weights
            else round(
                float(np.mean(np.abs(np.subtract(scores[name], scores[reference_of_scores])))), 5
            ),
        }
        for name in contest.names
    }
    run: dict[str, Any] = {
        "question": "waveform in memory to score, one view of a 4 s clip, by variant",
        "command": f"python -m mosrt_bench.variants --bundle … "
        f"{'' if checkpoint is None else '--checkpoint … '}--audio … --clips {clips} "
        f"{rows_skipped}--threads {threads} --workers {workers} --starts {starts} "
        f"--gflop {gflop:g}",
        "weights": weights,
        "clips": clips,
        "threads": threads,
        "workers": workers,
        "machine": describe(),
        "gflop": gflop,
        "peaks_gflops": {kind: round(peak, 1) for kind, peak in peaks.items()},
        "reference": reference,
        "reference_of_scores": reference_of_scores,
        "scores": {name: [round(value, 6) for value in values] for name, values in scores.items()},
        "left_out": contest.left_out,
        "variant_bytes": sizes,
        "rows": rows,
        "timings": {name: timing(times) for name, times in times_ms.items()},
    }
    save(run, out)
    unfinished.unlink()
    click.echo(_report(run))


def _bar(length: int, label: str) -> Any:
    return click.progressbar(length=length, file=sys.stderr, label=label)


def _quantile(values: Sequence[float], percent: int) -> float:
    return round(float(np.percentile(values, percent)), 3)


def _median(answers: Sequence[dict[str, float]], name: str) -> float:
    return float(np.median([answer[name] for answer in answers]))


def _report(run: dict[str, Any]) -> str:
    header = ["", "p50 ms", "p95 ms", "faster", "cold s", "peak MB", "clips/s", "floors"]
    lines = [
        [
            name,
            f"{row['p50_ms']:.0f}",
            f"{row['p95_ms']:.0f}",
            "1" if row["faster"] is None else f"{row['faster']['ratio']:.2f}",
            f"{row['cold_start_s']:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{row['clips_per_s']:.2f}",
            f"{row['floors']:.1f}",
        ]
        for name, row in run["rows"].items()
    ]
    missing = [f"left out: {name}: {reason}" for name, reason in run["left_out"].items()]
    return "\n".join([table(header, lines), *missing])


if __name__ == "__main__":
    main()
