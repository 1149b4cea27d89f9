"""The command `mosrt`: its own subcommands, and those that other packages bring."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NoReturn

import click

from .command import EXTRAS, CommandError, CommandGroup

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

__all__ = ["main"]

# By module. Importing them takes most of the time of a start.
_OWN: Final = {"fit-mos": "fit_mos", "info": "info", "score": "score", "serve": "serve"}
_GROUP: Final = "mosrt.commands"
# Names of 0.1.0.dev, which still work for one release and are not listed.
_ALIASES: Final = {"calibrate": "quantize", "calibrate-mos": "fit-mos"}
_EXTRA_OF: Final = {
    "adapt": "bench", "bench": "bench", "distill": "train", "export": "export", "gate": "bench",
    "quantize": "calibrate", "serve": "serve",
}  # fmt: skip


class _Commands(CommandGroup):
    """A group that also finds commands by entry point; a broken one explains itself when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click gives it
        return sorted({*_OWN, *_entry_points().names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        cmd_name = _ALIASES.get(cmd_name, cmd_name)
        if cmd_name in _OWN:
            module = importlib.import_module(f"mosrt.cli.{_OWN[cmd_name]}")
            command: click.Command = getattr(module, _OWN[cmd_name])
            return command
        return next(map(_load, _entry_points().select(name=cmd_name)), None)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None:
                lines.append((name, command.get_short_help_str(limit=100) + _missing(name)))
        with formatter.section("Commands"):
            formatter.write_dl(lines)


def _missing(name: str) -> str:
    """A note on the extra that a command still needs on this machine."""
    extra = _EXTRA_OF.get(name)
    # Only Python 3.10 needs tomli.
    if extra is None or all(find_spec(module) for module in EXTRAS[extra] - {"tomli"}):
        return ""
    return f" (needs the extra: pip install 'mosrt[{extra}]')"


def _entry_points() -> EntryPoints:
    # Importing this would lengthen the start of the commands that need no entry points.
    from importlib.metadata import entry_points  # noqa: PLC0415

    return entry_points(group=_GROUP)


def _load(entry_point: EntryPoint) -> click.Command:
    try:
        loaded = entry_point.load()
        if isinstance(loaded, click.Command):
            return loaded
        reason = f"{entry_point.value} is not a click command"
    except ImportError as exc:
        reason = str(exc)

    def explain() -> NoReturn:
        raise CommandError(f"mosrt {entry_point.name} cannot be loaded: {reason}")

    return click.Command(
        entry_point.name,
        callback=explain,
        short_help=f"(cannot be loaded: {reason})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command ends with status 0 when it is done, 1 when it is done and the answer is "
    "no, 2 after wrong usage, 3 when a model, provider or file cannot be used, 130 after Ctrl-C, "
    "143 after SIGTERM, and 129 after SIGHUP. `mosrt COMMAND --help` says what 1 means there.",
)
@click.version_option(package_name="mosrt", prog_name="mosrt")
def main() -> None:
    """Predict how listeners would rate recordings of speech, without torch.

    \b
    Score recordings with the model that comes with mosrt:
      mosrt score speech.wav
    Score a directory into a file that a spreadsheet opens:
      mosrt score clips/ -r --format csv -o scores.csv
    See what a model is and where it fails, and which models there are:
      mosrt info nano
      mosrt info --list
    Score recordings that other programs send over HTTP:
      mosrt serve -m nano
    Fail a CI job when new clips score worse than recorded ones:
      mosrt gate clips/ --baseline gate.json
    Turn a PyTorch checkpoint into a model, and make it smaller and faster:
      mosrt export utmosv2 --fold 0 -o utmosv2
      mosrt quantize utmosv2 --audio clips/
    """  # noqa: D301 - click's mark for lines to leave alone is the character \b
