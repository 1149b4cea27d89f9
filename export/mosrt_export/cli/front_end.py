"""`--frontend`, an option of the commands that export MOS models."""

from __future__ import annotations

from typing import Final

import click

__all__ = ["front_end_option"]

# Those of mosrt.bundle.front_end_spec, which would bring numpy and onnxruntime along.
_FRONT_ENDS: Final = ("numpy", "graph")

front_end_option: Final = click.option(
    "--frontend",
    "front_end",
    type=click.Choice(_FRONT_ENDS),
    default="numpy",
    show_default=True,
    help="What turns audio into what the networks read: the runtime, in NumPy, or the graph "
    "itself, which then takes crops of audio. That suits a GPU, and programs in other languages.",
)
