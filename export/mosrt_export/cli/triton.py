"""`mosrt export triton`: bundles to model repositories for Triton, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mosrt.cli.command import exit_statuses, output_option

from .progress import exporting

__all__ = ["triton"]


@click.command(
    short_help="Write a model repository for Triton Inference Server.",
    epilog=exit_statuses(),
)
@click.argument("model", metavar="NAME|PATH")
@output_option("Folder to write.", metavar="DIR", directory=True, required=True)
@click.option("--variant", metavar="NAME", help="Variant to serve. [default: fp32]")
@click.option(
    "--engine",
    "engines",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="TensorRT engine to serve instead of the ONNX graph, a file that `mosrt build` prints. "
    "Repeat the option for each network.",
)
@click.option("--gpu/--cpu", default=True, show_default=True, help="Where the networks run.")
@click.option(
    "--instances",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Copies of each network that run in parallel, per GPU.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help="Most views per run. [default: 8, or the limit of engine or variant]",
)
@click.option("--force", is_flag=True, help="Replace an older repository at --output.")
def triton(
    model: str,
    *,
    output: Path,
    variant: str | None,
    engines: tuple[Path, ...],
    max_batch: int | None,
    force: bool,
    **serving: Any,
) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server.

    The model is the name of one that comes with mosrt, or the path of a bundle. The folder holds
    the models, a README.md that describes what clients do, and client.py, which scores recordings
    on the server. The server needs no Python.

    \b
      mosrt export triton nano --output repository
      mosrt export triton ./utmosv2 --variant fp16 --engine FILE --output repository
      tritonserver --model-repository=repository --disable-auto-complete-config
    """  # noqa: D301 - click reads the backspace
    if engines and not serving["gpu"]:
        raise click.UsageError("TensorRT engines run on GPUs; leave --cpu or --engine out")
    from mosrt.bundle.bundle import Bundle, find_bundle  # noqa: PLC0415
    from mosrt_export.triton.config import Serving  # noqa: PLC0415
    from mosrt_export.triton.repository import write_repository  # noqa: PLC0415

    with exporting():
        plan = write_repository(
            Bundle.open(find_bundle(model)),
            output,
            variant=variant,
            serving=Serving(**serving),
            engines=engines,
            max_batch=max_batch,
            force=force,
        )
    click.echo(f"{output}: written; models {', '.join(plan.configs)}")
