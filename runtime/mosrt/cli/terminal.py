"""Writes to standard output and error so that nothing but text arrives, and no failure is lost."""

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
# What moves the cursor, changes the direction of text or ends a line, and halves of characters,
# which stand for bytes of names that are no UTF-8.
_OTHERS: Final = "\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL: Final = re.compile(f"[\x00-\x1f{_OTHERS}]")
_CONTROL_BUT_LAYOUT: Final = re.compile(f"[\x00-\x08\x0b-\x1f{_OTHERS}]")
_NOT_IN_JSON: Final = re.compile(f"[{_OTHERS}]")
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
    """A text stream that escapes control characters but newlines and tabs.

    Args:
        plain: The stream that does not.
        essential: Whether it is an error if something cannot be written.

    Attributes:
        plain: The stream that does not.
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
        with self._named():
            super().write(_CONTROL_BUT_LAYOUT.sub(_escaped, text))
        return len(text)

    def flush(self) -> None:
        with self._named():
            super().flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if self._essential:
                raise OSError(exc.errno, exc.strerror, "standard output") from exc


class _Closed(io.RawIOBase):
    """What stands for a standard output that is closed: nothing can be written to it.

    Attributes:
        given_up: Whether what is written vanishes, as the error is known by now.
    """

    given_up = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.given_up:
            return len(data)
        raise OSError(errno.EBADF, "it is closed; write to a file with --output")


@contextmanager
def terminal() -> Iterator[None]:
    """Runs a command with safe standard streams, and with an orderly end at SIGTERM and SIGHUP.

    Control characters are escaped, and so is what the encoding lacks. Closed descriptors lead
    nowhere, so that no file gets their numbers. What cannot be written ends the process with status
    3 and one line, and a signal with 128 and its number, after files have been tidied up.
    """
    codecs.register_error("mosrt", _replaced)
    plain = sys.stdin, sys.stdout, sys.stderr
    with suppress(OSError):
        while (opened := os.open(os.devnull, os.O_RDWR)) < 3:
            pass
        os.close(opened)
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.BytesIO())
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Closed()), "utf-8")
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
    """Writes what is buffered; False if that fails, and then nothing more is written."""
    whole = True
    for output in outputs:
        try:
            output.flush()
        except (OSError, ValueError) as exc:
            whole = False
            if not reported and not isinstance(exc, BrokenPipeError):
                reason = getattr(exc, "strerror", None) or exc
                sys.stderr.write(f"Error: standard output: {reason}\n")
            raw = getattr(output.buffer, "raw", None)
            if isinstance(raw, _Closed):
                raw.given_up = True
                output.flush()
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output.fileno())
                os.close(nowhere)
                output.flush()
    return whole


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Makes SystemExit of signals that end the process, unless they are handled or ignored."""
    handled = {}
    if threading.current_thread() is threading.main_thread():
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                handled[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Escapes what an encoding lacks; the ellipsis of tables is three dots."""
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] == "\u2026":
        return "...", error.start + 1
    return codecs.backslashreplace_errors(error)
