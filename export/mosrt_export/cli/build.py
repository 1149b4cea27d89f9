"""`mosrt build`: builds TensorRT engines on the machine that runs them, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from mosrt.cli.command import (
    CommandError,
    ExitStatus,
    FiniteRange,
    exit_on_error,
    exit_statuses,
    output_option,
)

from .command import steps

if TYPE_CHECKING:
    from mosrt.backends.engine_file import EngineFiles
    from mosrt.backends.trt_module import TensorRt
    from mosrt.bundle.bundle import Bundle
    from mosrt_export.trt.engines import PlannedEngine

__all__ = ["build"]

_GIB: Final = 1 << 30


@click.command(
    short_help="Build TensorRT engines for this machine.",
    epilog=exit_statuses("an engine is missing, with --no-build"),
)
@click.argument("model", metavar="NAME|PATH")
@click.option("--variant", metavar="NAME", help="Variant to build. [default: fp32]")
@click.option(
    "--min-batch", type=click.IntRange(1, 1024), help="Fewest views per run. [default: 1]"
)
@click.option(
    "--opt-batch",
    type=click.IntRange(1, 1024),
    help="Views per run that the engine is tuned for and that scoring uses. 1 gives the lowest "
    "latency of one clip, more the highest throughput. [default: 4]",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    help="Most views per run, for which memory is reserved. [default: as --opt-batch]",
)
@click.option(
    "--max-seconds",
    type=FiniteRange(0, min_open=True),
    help="Longest chunk of audio, for models that score by their uncertainty. A lower value needs "
    "less memory; longer recordings cannot be scored then. [default: that of the model]",
)
@click.option(
    "--workspace-gib",
    type=FiniteRange(0, min_open=True),
    help="Scratch memory that an engine may use. [default: all of the GPU]",
)
@click.option(
    "--level",
    type=click.IntRange(0, 5),
    default=3,
    show_default=True,
    help="Builder optimisation level, from 0 (quick to build) to 5 (quick to run).",
)
@output_option(
    "Also write plain engines to this directory, for trtexec or C++.", metavar="DIR", directory=True
)
@click.option("--no-build", is_flag=True, help="Only check the engines in the cache.")
@exit_on_error()
def build(
    model: str,
    variant: str | None,
    output: Path | None,
    min_batch: int | None,
    opt_batch: int | None,
    max_batch: int | None,
    max_seconds: float | None,
    workspace_gib: float | None,
    level: int,
    no_build: bool,
) -> None:
    """Build TensorRT engines of a model for this machine.

    The model is the name of one that comes with mosrt, or the path of a bundle. An engine works
    with one GPU and one version of TensorRT, so it is built where it runs and kept in mosrt's cache
    (the variable MOSRT_CACHE names another folder). A valid engine in the cache is used again; a
    stale, truncated or foreign one is replaced. The command prints the path of each engine.

    \b
      mosrt build nano
      mosrt build ./utmosv2 --variant fp16 --opt-batch 1
      mosrt score clip.wav --model ./utmosv2 --variant fp16 --provider tensorrt

    It needs TensorRT, which JetPack includes on a Jetson. Elsewhere use `pip install tensorrt`, or
    `pip install tensorrt-rtx` for GeForce and RTX cards.
    """  # noqa: D301 - click reads the backspace
    from mosrt.backends.engine_file import EngineFiles  # noqa: PLC0415 - numpy and onnxruntime
    from mosrt.backends.trt_module import find_tensorrt  # noqa: PLC0415
    from mosrt.bundle.bundle import Bundle  # noqa: PLC0415
    from mosrt.bundle.embedded import find_bundle  # noqa: PLC0415
    from mosrt_export.trt.builder import BuildSettings  # noqa: PLC0415
    from mosrt_export.trt.engines import plan_engines, target_of  # noqa: PLC0415
    from mosrt_export.trt.shapes import size_ranges  # noqa: PLC0415

    bundle = Bundle.open(find_bundle(model))
    manifest = bundle.manifest
    default = "fp32" if "fp32" in manifest.variants else next(iter(manifest.variants))
    chosen = bundle.variant(variant or default)
    batch = _batch(min_batch, opt_batch, max_batch)
    ranges = size_ranges(manifest, batch=batch, max_seconds=max_seconds)
    workspace = None if workspace_gib is None else int(workspace_gib * _GIB)
    settings = BuildSettings(level=level, workspace_bytes=workspace)
    tensorrt = find_tensorrt()
    files = EngineFiles()
    with bundle.extracted(chosen) as directory:
        target = target_of(tensorrt)
        planned = plan_engines(
            manifest, chosen, directory, target=target, ranges=ranges, settings=settings
        )
        _provide(bundle, planned, tensorrt, files, no_build=no_build)
    if output is not None:
        _copy_out(planned, files, output)


def _batch(
    smallest: int | None, usual: int | None, largest: int | None
) -> tuple[int, int, int] | None:
    """Smallest, usual and largest batch; None if no option was given."""
    if smallest is usual is largest is None:
        return None
    usual = usual or max(smallest or 1, min(4, largest or 4))
    return smallest or 1, usual, largest or usual


def _provide(
    bundle: Bundle,
    planned: list[PlannedEngine],
    tensorrt: TensorRt,
    files: EngineFiles,
    *,
    no_build: bool,
) -> None:
    """Builds the engines that are missing in the cache, and prints the paths of all."""
    from mosrt_export.trt.builder import check_gpu  # noqa: PLC0415

    faults = [(engine, engine.fault(files)) for engine in planned]
    missing = [(engine, fault) for engine, fault in faults if fault is not None]
    if no_build and missing:
        engine, fault = missing[0]
        raise CommandError(
            f"{files.path(engine.key)}: no usable engine of {engine.name} for {engine.key.target}: "
            f"{fault}; leave --no-build out to build it",
            ExitStatus.NO,
        )
    if missing:
        target = missing[0][0].key.target
        if target.has_gpu:
            check_gpu(tensorrt, target.compute_capability)
        step = steps(1 + len(missing))
        with step("checking the bundle's files"):
            bundle.verify()
        for engine, fault in missing:
            with step(f"building {engine.name} with {tensorrt} ({fault})"):
                engine.build(tensorrt, files)
    for engine in planned:
        path = files.path(engine.key)
        click.echo(f"{path}: {engine.name}, {path.stat().st_size / 1e6:.1f} MB")


def _copy_out(planned: list[PlannedEngine], files: EngineFiles, out: Path) -> None:
    """Writes plain engines, without mosrt's header."""
    from mosrt.backends.engine_file import replacing_in_cache  # noqa: PLC0415

    for engine in planned:
        path = out / f"{engine.graph.stem}.engine"
        with (
            files.opened(files.path(engine.key)) as (_, content),
            replacing_in_cache(path, private=False) as stream,
        ):
            stream.write(content)
        click.echo(f"{path}: written")
