"""`mosrt build`: TensorRT engines on the machine that runs them, without torch and onnx."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from mosrt.errors import MosrtError

from .progress import steps

if TYPE_CHECKING:
    from mosrt.backends.engine_file import EngineFiles
    from mosrt.backends.trt_module import TensorRt
    from mosrt.bundle.bundle import Bundle
    from mosrt_export.trt.engines import PlannedEngine

__all__ = ["build"]

_GIB: Final = 1 << 30


@click.command(
    short_help="Build TensorRT engines for this machine.",
    epilog="Exit code: 0 the engines are there, 1 they are not, 2 wrong usage.",
)
@click.argument("model", metavar="BUNDLE")
@click.option("--variant", metavar="NAME", help="Precision to build: fp32 if left out.")
@click.option("--min-batch", type=click.IntRange(1), help="Fewest views per run. [default: 1]")
@click.option(
    "--opt-batch",
    type=click.IntRange(1),
    help="Views per run that the engine is tuned for, and that scoring uses: 1 for the quickest "
    "single score, more for many clips. [default: 4]",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help="Most views per run, which memory is reserved for. [default: as --opt-batch]",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    help="Longest piece, for models that score by their uncertainty. Less needs less memory, and "
    "longer recordings cannot be scored. [default: what the model asks for]",
)
@click.option(
    "--workspace-gib",
    type=click.FloatRange(0, min_open=True),
    help="Scratch memory that an engine may use. [default: all there is]",
)
@click.option(
    "--level",
    type=click.IntRange(0, 5),
    default=3,
    show_default=True,
    help="How hard to look for fast kernels: 0 builds quickest, 5 longest.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Also leave plain engines there, for trtexec, Triton or C++.",
)
@click.option("--no-build", is_flag=True, help="Only say whether the engines in the cache will do.")
def build(**options: Any) -> None:
    """Build TensorRT engines of BUNDLE, the name or path of a model, for this machine.

    Engines hold for one GPU and one version of TensorRT, so they are built where they run and kept
    in mosrt's cache (the variable MOSRT_CACHE names another folder). One that is there and fits is
    used again; a stale, truncated or foreign one is built anew.

    \b
      mosrt build nano
      mosrt build ./utmosv2 --variant fp16 --opt-batch 1
      mosrt score clip.wav --model ./utmosv2 --variant fp16 --provider tensorrt

    It needs TensorRT: on a Jetson JetPack brings it, elsewhere `pip install tensorrt`, or `pip
    install tensorrt-rtx` for GeForce and RTX cards.
    """  # noqa: D301 - click reads the backspace
    try:
        _build(_Request(**options))
    except MosrtError as exc:
        raise click.ClickException(str(exc)) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The options of `mosrt build`, by the names click gives them."""

    model: str
    variant: str | None
    min_batch: int | None
    opt_batch: int | None
    max_batch: int | None
    max_seconds: float | None
    workspace_gib: float | None
    level: int
    out: Path | None
    no_build: bool

    @property
    def batch(self) -> tuple[int, int, int] | None:
        """Smallest, usual and largest batch; None if nothing was said."""
        if self.min_batch is self.opt_batch is self.max_batch is None:
            return None
        usual = self.opt_batch or max(self.min_batch or 1, min(4, self.max_batch or 4))
        return self.min_batch or 1, usual, self.max_batch or usual


def _build(request: _Request) -> None:
    from mosrt.backends.engine_file import EngineFiles  # noqa: PLC0415
    from mosrt.backends.trt_module import find_tensorrt  # noqa: PLC0415 - numpy and onnxruntime
    from mosrt.bundle.bundle import Bundle  # noqa: PLC0415
    from mosrt.bundle.embedded import find_bundle  # noqa: PLC0415
    from mosrt_export.trt.builder import BuildSettings  # noqa: PLC0415
    from mosrt_export.trt.engines import plan_engines, target_of  # noqa: PLC0415
    from mosrt_export.trt.shapes import size_ranges  # noqa: PLC0415

    opened = Bundle.open(find_bundle(request.model))
    variants = opened.manifest.variants
    name = request.variant or ("fp32" if "fp32" in variants else next(iter(variants)))
    variant = opened.variant(name)
    ranges = size_ranges(opened.manifest, batch=request.batch, max_seconds=request.max_seconds)
    workspace_gib = request.workspace_gib
    settings = BuildSettings(
        level=request.level,
        workspace_bytes=None if workspace_gib is None else int(workspace_gib * _GIB),
    )
    tensorrt = find_tensorrt()
    files = EngineFiles()
    with opened.extracted(variant) as directory:
        planned = plan_engines(
            opened.manifest,
            variant,
            directory,
            target=target_of(tensorrt),
            ranges=ranges,
            settings=settings,
        )
        _provide(opened, planned, tensorrt, files, no_build=request.no_build)
    if request.out is not None:
        _copy_out(planned, files, request.out)


def _provide(
    bundle: Bundle,
    planned: list[PlannedEngine],
    tensorrt: TensorRt,
    files: EngineFiles,
    *,
    no_build: bool,
) -> None:
    """Builds what is missing in the cache, and says what is there."""
    from mosrt_export.errors import EngineError  # noqa: PLC0415
    from mosrt_export.trt.smoke_test import check_gpu  # noqa: PLC0415

    faults = [(engine, engine.fault(files)) for engine in planned]
    missing = [(engine, fault) for engine, fault in faults if fault is not None]
    if no_build and missing:
        engine, fault = missing[0]
        raise EngineError(
            f"{files.path(engine.key)}: no engine of {engine.name} for {engine.key.target} that "
            f"will do: {fault}; build it by leaving --no-build out"
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
    """Writes engines without mosrt's header."""
    from mosrt.backends.engine_file import replacing_in_cache  # noqa: PLC0415

    for engine in planned:
        path = out / f"{engine.graph.stem}.engine"
        with (
            files.opened(files.path(engine.key)) as (_, content),
            replacing_in_cache(path) as stream,
        ):
            stream.write(content)
        click.echo(f"{path}: written")
