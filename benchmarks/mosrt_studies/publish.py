"""Write the result of a study as JSON, and show its section of RESULTS.md."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from mosrt_bench.bench.request import shown
from mosrt_bench.machine import describe
from mosrt_bench.output import save
from mosrt_studies.figures.render import section

__all__ = ["json_ready", "publish"]


def publish(study: str, output: Path, *, question: str, **results: Any) -> None:
    """Adds the question, the command and the machine to the results of a study, and writes them.

    Args:
        study: Module of the study below `mosrt_studies`; its last name is that of the template.
        output: JSON file to write.
        question: What was asked.
        **results: Made `json_ready`.
    """
    command = shlex.join(["python", "-m", f"mosrt_studies.{study}", *shown(sys.argv[1:])])
    run = {"question": question, "command": command, "machine": describe(), **json_ready(results)}
    save(run, output)
    click.echo(section(study.rpartition(".")[2], run))


def json_ready(value: Any) -> Any:
    """The value with arrays as lists, numbers of four digits, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, float):
        return round(float(value), 4) if math.isfinite(value) else None
    return value
