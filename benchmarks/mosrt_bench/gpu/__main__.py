"""Everything about a GPU in one run within minutes, and one JSON file of it.

    python -m mosrt_bench.gpu --bundle utmosv2 --checkpoint fold0.pth \
        --audio tests/data/flite_slt_16k_mono.wav --out benchmarks/results/gpu.json

Rows: eager torch and torch.compile with a librosa front end, ONNX Runtime's CUDA provider with I/O
binding, and TensorRT's own engines, in every precision that the bundles have. Each is loaded in a
process of its own, held to FP32 on the CPU, timed clip by clip in turn with eager FP16 torch, and
then in growing batches, again in turn with torch. What cannot be measured becomes a row that says
why; nothing is estimated, and nothing falls back to the CPU. Exit status: 0, or 1 if a row's scores
differ by more than its precision allows or it ran elsewhere than asked.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, get_args

import click
import numpy as np

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.cli.command import exit_on_error
from mosrt.errors import ProviderError
from mosrt.host.cpu import usable_cores
from mosrt.host.files import sha256_of
from mosrt_bench.bench.latency import Budget
from mosrt_bench.machine import describe
from mosrt_bench.output import finite, save
from mosrt_bench.variants import clips_of
from mosrt_bench.worker.device import describe_gpu, used_bytes_reader
from mosrt_bench.worker.process import Conversation, WorkerProcess
from mosrt_bench.worker.worker import RATE_HZ

from .contest import Contest, Found
from .measurement import Effort
from .report import terminal
from .rows import Device, Row, plan_rows
from .targets import judge_targets

__all__ = ["main"]

_FULL: Final = Effort(
    latency=Budget(runs=50, seconds=6.0, warm_up_runs=20),
    rate_s=1.5,
    sizes=(1, 2, 4, 8, 16, 32),
)
_QUICK: Final = Effort(
    latency=Budget(runs=5, seconds=1.0, warm_up_runs=1), rate_s=0.05, sizes=(1, 2)
)


@click.command()
@exit_on_error()
@click.option(
    "--bundle", "bundles", required=True, multiple=True, help="Fusion bundle; may be repeated."
)
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the first bundle was made from, for torch. [default: weights drawn from a seed]",
)
@click.option(
    "--audio",
    required=True,
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Speech that clips of 4 s are cut from; may be repeated.",
)
@click.option("--clips", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--device", type=click.Choice(get_args(Device)), default="cuda", show_default=True)
@click.option(
    "--minutes",
    default=9.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Time for all of it; the least important rows are last and are dropped.",
)
@click.option("--only", multiple=True, metavar="TEXT", help="Only rows with TEXT in their names.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("--weights", default="stand-in, untrained", show_default=True, help="Of the bundles.")
@click.option("--quick", is_flag=True, help="Few repetitions: to see that it runs.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    bundles: tuple[str, ...],
    checkpoint: Path | None,
    audio: tuple[Path, ...],
    clips: int,
    device: Device,
    minutes: float,
    only: tuple[str, ...],
    threads: int | None,
    weights: str,
    quick: bool,
    out: Path,
) -> None:
    """Measure every way to run fusion bundles on a GPU, beside eager torch."""
    rows = [row for row in plan_rows(bundles, device) if _wanted(row, only)]
    if not rows:
        raise click.UsageError(f"no row's name has {' or '.join(only)} in it")
    used_bytes, no_memory = None, "this is a run on the CPU"
    if device == "cuda":
        try:
            used_bytes = used_bytes_reader()
        except ProviderError as exc:
            no_memory = str(exc)
    manifests = {reference: Bundle.open(find_bundle(reference)).manifest for reference in bundles}
    baseline = next((row for row in rows if row.is_baseline), None)
    run: dict[str, Any] = {
        "question": "waveform in memory to score, one view of a 4 s clip, on a GPU",
        "command": "python -m mosrt_bench.gpu " + shlex.join(_shown(sys.argv[1:])),
        "device": device,
        "gpu": describe_gpu() if device == "cuda" else None,
        "quick": quick,
        "weights": weights,
        "baseline": None if baseline is None else baseline.name,
        "checkpoint": _origin(checkpoint, next((row.bundle for row in rows if row.is_torch), None)),
        "clips": clips,
        "device_memory": "most in use during the row, over before it"
        if used_bytes is not None
        else f"unmeasured: {no_memory}",
        "machine": describe(),
    }
    by_name = {row.name: row for row in rows}

    def keep(found: Found) -> None:
        run["rows"] = found
        run["targets"] = judge_targets(found, by_name, counts=device == "cuda" and not quick)
        save(finite(run), out)

    with TemporaryDirectory() as temporary:
        file = Path(temporary, "clips.npy")
        cut = clips_of(audio, clips)
        np.save(file, cut)

        def launch(row: Row) -> Conversation:
            return WorkerProcess(
                {
                    "provider": row.provider,
                    "variant": row.variant,
                    "device": row.device,
                    "compiled": row.compiled,
                    "bundle": row.bundle,
                    "checkpoint": None if checkpoint is None else str(checkpoint),
                    "threads": threads or usable_cores(),
                    "clips": str(file),
                }
            )

        Contest(
            rows,
            launch=launch,
            effort=_QUICK if quick else _FULL,
            minutes=minutes,
            clip_s=cut.shape[1] / RATE_HZ,
            default_domain={
                reference: manifest.domains.index(manifest.default_domain)
                for reference, manifest in manifests.items()
                if manifest.uncertainty is None
            },
            used_bytes=used_bytes,
            keep=keep,
            say=lambda text: click.echo(text, err=True),
        ).run()
    click.echo(terminal(finite(run)))
    if any(found["status"] == "failed" for found in run["rows"].values()):
        sys.exit(1)


def _wanted(row: Row, only: tuple[str, ...]) -> bool:
    return not only or any(text in row.name for text in only)


def _shown(arguments: list[str]) -> list[str]:
    """The command line with files' names for their paths."""
    return [Path(text).name if "/" in text else text for text in arguments]


def _origin(checkpoint: Path | None, bundle: str | None) -> dict[str, Any]:
    """What torch's weights are, and whether the bundle that torch's model is like has the same."""
    if checkpoint is None or bundle is None:
        return {"weights": "drawn from a seed, untrained", "same_as_bundle": False}
    digest = sha256_of(checkpoint)
    provenance = Bundle.open(find_bundle(bundle)).manifest.provenance
    known = {entry.get("sha256") for entry in provenance.get("checkpoints", [])}
    return {"sha256": digest, "same_as_bundle": digest in known}


if __name__ == "__main__":
    main()
