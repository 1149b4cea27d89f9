"""The command `mosrt`: its own subcommands, and those that other packages bring."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import NoReturn

import click

from . import __version__
from .cli_calibrate import calibrate_mos
from .cli_info import info
from .cli_score import score

__all__ = ["main"]

_GROUP = "mosrt.commands"


class _Commands(click.Group):
    """A group that also finds commands by entry point; a broken one explains itself when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group=_GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        for entry_point in entry_points(group=_GROUP, name=cmd_name):
            return _load(entry_point)
        return None


def _load(entry_point: EntryPoint) -> click.Command:
    try:
        loaded = entry_point.load()
    except ImportError as exc:
        return _broken(entry_point.name, str(exc))
    if not isinstance(loaded, click.Command):
        return _broken(entry_point.name, f"{entry_point.value} is no command")
    return loaded


def _broken(name: str, reason: str) -> click.Command:
    def explain() -> NoReturn:
        raise click.ClickException(f"mosrt {name} cannot be loaded: {reason}")

    return click.Command(
        name,
        callback=explain,
        short_help=f"(cannot be loaded: {reason})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mosrt")
def main() -> None:
    r"""Judge speech quality anywhere: the same score every time, without torch.

    \b
    mosrt score speech.wav --model utmosv2     score recordings
    mosrt info utmosv2                         what a model is, and what this machine can do
    mosrt export utmosv2 --fold 0 --out utmosv2    make a model, on a workstation
    """


main.add_command(score)
main.add_command(info)
main.add_command(calibrate_mos)
