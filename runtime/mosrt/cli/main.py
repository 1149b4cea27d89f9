"""The command `mosrt`: its own subcommands, and those that other packages bring."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from .fit_mos import fit_mos
from .info import info
from .score import score

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

__all__ = ["main"]

_GROUP = "mosrt.commands"
_ALIASES = {"calibrate": "quantize", "calibrate-mos": "fit-mos"}  # names of 0.1.0.dev, hidden


class _Commands(click.Group):
    """A group that also finds commands by entry point; a broken one explains itself when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_entry_points().names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = _ALIASES.get(cmd_name, cmd_name)
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        for entry_point in _entry_points().select(name=cmd_name):
            return _load(entry_point)
        return None


def _entry_points() -> EntryPoints:
    # Importing this would lengthen the start of the commands that need no entry points.
    from importlib.metadata import entry_points  # noqa: PLC0415

    return entry_points(group=_GROUP)


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
@click.version_option(package_name="mosrt", prog_name="mosrt")
def main() -> None:
    """Judge speech quality anywhere: the same score every time, without torch.

    \b
    mosrt score speech.wav                         score recordings
    mosrt info                                     what the model is, and what it is for
    mosrt info --list                              the models that come with mosrt
    mosrt export utmosv2 --fold 0 --out utmosv2    make a model, on a workstation
    mosrt bench --audio clips/                     parity and speed on this machine
    mosrt gate clips/ --baseline gate.json         fail if a set of clips sounds worse
    """  # noqa: D301 - click's mark for lines to leave alone is the character \b


main.add_command(score)
main.add_command(info)
main.add_command(fit_mos)
