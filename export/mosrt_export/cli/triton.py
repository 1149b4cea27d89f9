"""`mosrt export triton`: a bundle as a model repository for Triton, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .progress import extra_needed

__all__ = ["triton"]

_PATH = click.Path(path_type=Path)


@click.command(
    short_help="Make a model repository for Triton Inference Server.",
    epilog="Exit code: 0 written, 1 refused (nothing is written), 2 wrong usage.",
)
@click.argument("model", metavar="BUNDLE")
@click.option("--out", required=True, type=_PATH, metavar="REPO", help="Folder to make.")
@click.option("--variant", metavar="NAME", help="Precision to serve: fp32 if left out.")
@click.option(
    "--engine",
    "engines",
    type=_PATH,
    multiple=True,
    metavar="FILE",
    help="Serve this TensorRT engine, a file that `mosrt build` prints, and not the ONNX graph. "
    "Give it again for each network.",
)
@click.option("--gpu/--cpu", default=True, show_default=True, help="What runs the networks.")
@click.option(
    "--instances",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Copies of each network that run side by side, per GPU.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help="Most views per run. [default: 8, or what engine and variant allow]",
)
@click.option("--force", is_flag=True, help="Replace an older repository at --out.")
def triton(
    model: str,
    *,
    out: Path,
    variant: str | None,
    engines: tuple[Path, ...],
    max_batch: int | None,
    force: bool,
    **serving: Any,
) -> None:
    """Make a model repository for NVIDIA's Triton of BUNDLE, the name or path of a model.

    The server needs no Python. What clients do beside asking it stands in the folder's README.md,
    and client.py there does it.

    \b
      mosrt export triton nano --out repository
      mosrt export triton ./utmosv2 --variant fp16 --engine FILE --out repository
      tritonserver --model-repository=repository --disable-auto-complete-config
    """  # noqa: D301 - click reads the backspace
    if engines and not serving["gpu"]:
        raise click.UsageError("TensorRT engines run on GPUs; leave --cpu or --engine out")
    from mosrt.bundle.bundle import Bundle  # noqa: PLC0415 - numpy and onnxruntime
    from mosrt.bundle.embedded import find_bundle  # noqa: PLC0415
    from mosrt.errors import MosrtError  # noqa: PLC0415
    from mosrt_export.triton.config import Serving  # noqa: PLC0415
    from mosrt_export.triton.repository import write_repository  # noqa: PLC0415

    with extra_needed():
        try:
            plan = write_repository(
                Bundle.open(find_bundle(model)),
                out,
                variant=variant,
                serving=Serving(**serving),
                engines=engines,
                max_batch=max_batch,
                force=force,
            )
        except MosrtError as exc:
            raise click.ClickException(str(exc)) from exc
    click.echo(f"{out}: written; models {', '.join(plan.configs)}")
