"""Exit statuses, one-line errors, missing extras and options that all commands share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from mosrt.errors import (
    CalibrationError,
    DomainError,
    MeasureError,
    MosrtError,
    PlanError,
    missing_extra,
)
from mosrt.host.cpu import MAX_THREADS

from .terminal import printable, terminal

__all__ = [
    "COUNT", "EXTRAS", "STDOUT", "THREADS", "CommandError", "CommandGroup", "ExitStatus",
    "FiniteRange", "exit_on_error", "exit_statuses", "keep_inputs", "model_option", "output_option",
    "require_extra",
]  # fmt: skip

_F = TypeVar("_F", bound=Callable[..., Any])

_EXPORT: Final = frozenset({
    "distillmos", "huggingface_hub", "onnx", "onnx_ir", "onnxscript", "timm", "tomli", "torch",
    "transformers",
})  # fmt: skip
EXTRAS: Final = {
    "bench": frozenset({"jinja2", "librosa", "psutil", "scipy", "threadpoolctl"}),
    "calibrate": frozenset({"matplotlib", "onnx"}),
    "export": _EXPORT,
    "openvino": frozenset({"openvino"}),
    "plot": frozenset({"matplotlib"}),
    "serve": frozenset(
        {
            "prometheus_client",
            "python_multipart",
            "starlette",
            "uvicorn",
            "websockets",
        }
    ),
    "train": _EXPORT | {"librosa", "pesq", "pkg_resources", "pyworld", "scipy"},
}
"""Top-level modules that each extra installs."""


class FiniteRange(click.FloatRange):
    """A range of finite numbers; click's own lets nan pass, and inf where there is no maximum."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Reads the number and fails unless it is finite and in the range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


COUNT: Final = click.IntRange(1, 1_000_000)
"""The type of an option that counts clips, runs or the like."""
STDOUT: Final = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
"""Names of standard output. Opening it by name would truncate what others have written to it."""
THREADS: Final = click.IntRange(1, MAX_THREADS)
"""The type of an option that gives a number of threads."""


class ExitStatus(IntEnum):
    """The exit status of every command."""

    DONE = 0
    NO = 1
    """Done, and the answer is no: a file was not scored, a gate failed, a limit was exceeded."""
    USAGE = 2
    UNUSABLE = 3
    """A model, provider or file cannot be used."""
    INTERRUPTED = 130


class CommandError(click.ClickException):
    """Ends a command with a one-line message on standard error.

    Args:
        message: What went wrong, and what to do about it.
        status: The exit status.
    """

    def __init__(self, message: str, status: ExitStatus = ExitStatus.UNUSABLE) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]  # click sets it per class


def exit_statuses(no: str | None = None) -> str:
    """The exit statuses of a command, for the epilog of its help.

    Args:
        no: When the command ends with status 1; None if it never does.
    """
    answer = "" if no is None else f"1 {no}, "
    return (
        f"Exit status: 0 done, {answer}2 wrong usage, 3 a model, provider or file cannot be "
        "used, 130 interrupted."
    )


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turns expected errors and Ctrl-C into one line and an exit status.

    The group `mosrt` does this for all of its commands. It also works as a decorator.

    Raises:
        CommandError: In place of a `MosrtError`, an OSError or a MemoryError. The status is USAGE
            for a wrong domain, plan or measure, NO where no map from uncertainty to MOS fits, and
            UNUSABLE for all others.
        click.exceptions.Exit: In place of KeyboardInterrupt, and of BrokenPipeError, when the
            reader of standard output has ended.
    """
    try:
        yield
    except click.ClickException as exc:
        exc.message = printable(exc.message)  # type: ignore[misc]  # click sets it per class
        raise
    except MosrtError as exc:
        usage = isinstance(exc, (DomainError, MeasureError, PlanError))
        status = ExitStatus.USAGE if usage else ExitStatus.UNUSABLE
        if isinstance(exc, CalibrationError):
            status = ExitStatus.NO
        raise CommandError(printable(str(exc)), status) from exc
    except BrokenPipeError:
        raise click.exceptions.Exit(ExitStatus.UNUSABLE) from None
    except OSError as exc:
        place = "" if exc.filename is None else f"{os.fsdecode(exc.filename)}: "
        raise CommandError(printable(f"{place}{exc.strerror or exc}")) from exc
    except MemoryError as exc:
        raise CommandError("there is not enough memory for this") from exc
    except (KeyboardInterrupt, ImportError) as exc:
        # Modules that are being imported make an ImportError of what a signal raises.
        cause: BaseException | None = exc
        while isinstance(cause, ImportError):
            cause = cause.__cause__
        if isinstance(cause, SystemExit):
            raise cause from None
        if not isinstance(cause, KeyboardInterrupt):
            raise
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(ExitStatus.INTERRUPTED) from None


class CommandGroup(click.Group):
    """A group whose commands run in `terminal` and `exit_on_error`."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Parses the arguments and runs the command."""
        with terminal():
            return super().main(*args, **options)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parses the arguments."""
        with exit_on_error():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        with exit_on_error():
            return super().invoke(ctx)


def keep_inputs(outputs: Iterable[Path | None], inputs: Iterable[str | Path]) -> None:
    """Refuses outputs that would overwrite an input, also through links.

    Args:
        outputs: Files and directories that will be written; None is left out.
        inputs: Files and directories that are read; "-" is standard input. Only new files may be
            written below a directory that is read.

    Raises:
        click.UsageError: An output is an input, or two outputs are one.
    """
    named = [output for output in outputs if output is not None]
    if not named:
        return
    inputs = [path for path in inputs if "\0" not in str(path)]  # which cannot be read
    read, written = set[tuple[int, int]](), set[Path]()
    for path in inputs:
        with suppress(OSError):
            found = os.fstat(0) if path == "-" else Path(path).stat()
            read.add((found.st_dev, found.st_ino))
    for output in named:
        real = Path(os.path.realpath(output))
        if real in written:
            raise click.UsageError(f"{output}: two outputs have this name; choose another")
        written.add(real)
        if real.is_dir() and any(real in Path(os.path.realpath(path)).parents for path in inputs):
            raise click.UsageError(f"{output}: has an input in it; choose another --output")
        for place in (real, *real.parents) if real.is_file() or real.is_dir() else ():
            with suppress(OSError):
                found = place.stat()
                if (found.st_dev, found.st_ino) in read:
                    raise click.UsageError(f"{output}: is an input, too; choose another output")


@contextmanager
def require_extra(*extras: str) -> Iterator[None]:
    """Turns a missing module of some extras into advice on what to install.

    Args:
        *extras: Keys of `EXTRAS`; the first that has the module is named.

    Raises:
        CommandError: In place of the ImportError of a module that an extra installs.
    """
    try:
        yield
    except ImportError as exc:
        module = (exc.name or "").split(".")[0]
        for extra in extras:
            if module in EXTRAS[extra]:
                raise CommandError(missing_extra("this command", extra, module)) from exc
        raise


def model_option(
    purpose: str = "Model to score with", *, required: bool = False
) -> Callable[[_F], _F]:
    """The option `-m/--model`, which passes `model: str | None`.

    Args:
        purpose: What the model is for, as the beginning of the help.
        required: Whether it must be given. Where it need not be, the environment variable
            MOSRT_MODEL gives another default than the embedded one.
    """
    from mosrt.bundle.embedded import DEFAULT_MODEL, embedded_models  # noqa: PLC0415 - slow

    names = ", ".join(embedded_models()) or "none here"
    defaults: dict[str, Any] = {"required": True}
    if not required:
        defaults = {"envvar": "MOSRT_MODEL", "show_envvar": True, "show_default": DEFAULT_MODEL}
    return click.option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help=f"{purpose}: the name of one that comes with mosrt ({names}), or the path of a "
        "bundle.",
        **defaults,
    )


def output_option(
    text: str, *, metavar: str = "FILE", directory: bool = False, required: bool = False
) -> Callable[[_F], _F]:
    """The option `-o/--output`, which passes `output: Path`, or None if it is left out or "-".

    Args:
        text: The help.
        metavar: What stands for the value in the help.
        directory: Whether it names a directory instead of a file.
        required: Whether it must be given.
    """

    def parse(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Path | None:
        if value is not None and not directory and value.split("/")[-1] in ("", ".", ".."):
            raise click.BadParameter(f"{value!r} is no name of a file")
        if value not in STDOUT:
            return None if value is None else Path(value)
        if directory or required:
            raise click.BadParameter("this needs a name; standard output cannot hold it")
        return None

    return click.option(
        "--output",
        "-o",
        type=click.Path(file_okay=not directory, dir_okay=directory),
        callback=parse,
        metavar=metavar,
        required=required,
        help=text,
    )
