"""Escapes what is unsafe in standard output and error, and reports what cannot be written."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Final, TextIO

__all__ = ["bar_stream", "json_text", "printable", "terminal"]

_STATUS_UNUSABLE: Final = 3
# Characters that are invisible, move the cursor, change the direction of text or end a line; and
# surrogates, which stand for bytes of names that are not UTF-8.
_UNSAFE: Final = "\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
_CONTROL: Final = re.compile(f"[\x00-\x1f{_UNSAFE}]")
_CONTROL_BUT_LAYOUT: Final = re.compile(f"[\x00-\x08\x0b-\x1f{_UNSAFE}]")
_NOT_IN_JSON: Final = re.compile(f"[{_UNSAFE}]")
_CLOSED: Final = "it is closed; write to a file with --output"
_SIGNALS: Final = ("SIGTERM", "SIGHUP")


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def printable(text: str) -> str:
    """One line of text in which control characters are escaped, as in a Python string."""
    return _CONTROL.sub(_escaped, text)


def json_text(value: Any, stream: IO[str] | None = None, **options: Any) -> str:
    """`json.dumps` without raw control characters, and only ASCII where `stream` needs that."""
    encoding = (getattr(stream, "encoding", None) or "utf-8").lower()
    text = json.dumps(value, ensure_ascii=not encoding.startswith("utf"), **options)
    return _NOT_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def bar_stream() -> TextIO:
    """Standard error for progress bars, which move the cursor."""
    stream: TextIO = getattr(sys.stderr, "plain", sys.stderr)
    return stream


class _Printable(io.TextIOWrapper):
    """A text stream that escapes control characters except newlines and tabs.

    Args:
        plain: The stream to write to.
        essential: Whether a failure to write is raised; else it is ignored.

    Attributes:
        plain: The stream that is written to, which escapes nothing.
    """

    def __init__(self, plain: Any, *, essential: bool) -> None:
        super().__init__(
            plain.buffer,
            encoding=plain.encoding,
            errors="mosrt",
            line_buffering=getattr(plain, "line_buffering", False),
        )
        self.plain = plain
        self._essential = essential

    def write(self, text: str) -> int:
        with self._named_failures():
            super().write(_CONTROL_BUT_LAYOUT.sub(_escaped, text))
        return len(text)

    def flush(self) -> None:
        with self._named_failures():
            super().flush()

    @contextmanager
    def _named_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if self._essential:
                reason = _CLOSED if exc.errno == errno.EBADF else exc.strerror
                raise OSError(exc.errno, reason, "standard output") from exc


@contextmanager
def terminal() -> Iterator[None]:
    """Runs a command with safe standard streams, and ends it in an orderly way after a signal.

    Control characters, and characters that the encoding lacks, are escaped. Closed descriptors are
    opened on the null device, so that no other file gets their numbers. If something cannot be
    written, the process ends with one line and status 3. After SIGTERM or SIGHUP, temporary
    files are removed, and the status is 128 plus the number of the signal.
    """
    codecs.register_error("mosrt", _escape_unencodable)
    plain = sys.stdin, sys.stdout, sys.stderr
    with suppress(OSError):
        while (opened := os.open(os.devnull, os.O_RDWR)) < 3:
            pass
        os.close(opened)
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.BytesIO())
    if sys.stdout is None:
        unwritable = os.open(os.devnull, os.O_RDONLY)
        sys.stdout = open(unwritable, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    outputs = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "buffer") and not isinstance(stream, _Printable):
            outputs.append(_Printable(stream, essential=name == "stdout"))
            setattr(sys, name, outputs[-1])
    try:
        with _orderly_end():
            yield
    except SystemExit as exc:
        reported = exc.code not in {None, 0, 1}
        if not _flushed(outputs, reported=reported) and not reported:
            raise SystemExit(_STATUS_UNUSABLE) from None
        raise
    finally:
        _flushed(outputs, reported=True)
        for output in outputs:
            with suppress(OSError, ValueError):
                output.detach()
        sys.stdin, sys.stdout, sys.stderr = plain


def _flushed(outputs: list[_Printable], *, reported: bool) -> bool:
    """Writes what is buffered. If that fails, returns False, and writes nothing from then on."""
    whole = True
    for output in outputs:
        try:
            output.flush()
        except (OSError, ValueError) as exc:
            whole = False
            if not reported and not isinstance(exc, BrokenPipeError):
                reason = getattr(exc, "strerror", None) or exc
                sys.stderr.write(f"Error: standard output: {reason}\n")
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output.fileno())
                os.close(nowhere)
                output.flush()
    return whole


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Raises SystemExit at SIGTERM and SIGHUP, unless the program handles or ignores them."""
    handled = {}
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                handled[number] = signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def _escape_unencodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Escapes what an encoding lacks; the ellipsis of tables is three dots."""
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] == "\u2026":
        return "...", error.start + 1
    return codecs.backslashreplace_errors(error)
