"""Runs the command."""

from .cli import nano

nano(prog_name="python -m mosrt_export.nano")
