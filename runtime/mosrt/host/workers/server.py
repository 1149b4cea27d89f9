"""The process that loads a handler once, and forks a worker for each socket that it is given.

Workers share the memory of what was loaded. They have none of its threads: an engine that was
loaded for several threads gives in them, bit for bit, what it gives in the process that loaded it,
on the one thread that calls it.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import queue
import signal
import socket
import threading
import time
import warnings
from typing import Any

from .base import Handler, rest_after
from .messages import receive, send

__all__ = ["main"]


def main(descriptor: int) -> None:
    """Serves the process at the other end of a socket until that closes it.

    Args:
        descriptor: The socket's file descriptor.
    """
    # The other process decides when work ends; a terminal or service manager signals all at once.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended workers are not waited for
    control = socket.socket(fileno=descriptor)
    try:
        pickled, warm_up, options = receive(control)
        handler = pickle.loads(pickled)  # noqa: S301 - as in messages
        if warm_up is not None:
            handler(warm_up)
    except (EOFError, OSError):
        os._exit(0)
    except BaseException as exc:  # noqa: BLE001 - it is told where it can be handled
        send(control, exc)
        os._exit(1)
    try:
        send(control, None)
    except OSError:
        os._exit(0)
    gc.collect()
    gc.freeze()  # so that the collector writes to no memory that is shared
    while True:
        try:
            asked, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        except OSError:
            asked = b""
        if not asked:
            os._exit(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of forks with threads
            child = os.fork()
        if not child:
            control.close()
            _work(socket.socket(fileno=descriptors[0]), handler, **options)
        os.close(descriptors[0])


def _work(source: socket.socket, handler: Handler, *, core: float, nice: int | None) -> None:
    """Answers tasks until the socket is closed."""
    if nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    try:
        send(source, None)  # it lives
    except OSError:
        os._exit(0)
    log = _Log()
    logging.getLogger("mosrt").addHandler(log)
    logging.getLogger("mosrt").propagate = False
    tasks: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    # Tasks are received while another is worked on, so that the sender does not wait.
    threading.Thread(target=_receive_all, args=(source, tasks), daemon=True).start()
    while True:
        directory, task = tasks.get()
        if directory != _directory():
            os.chdir(directory)
        started = time.monotonic()
        value, error = None, None
        try:
            value = handler(task)
        except BaseException as exc:  # noqa: BLE001 - it is the caller's
            error = exc
        busy_s = time.monotonic() - started
        lines, log.lines = log.lines, []
        try:
            try:
                send(source, (value, error, busy_s, lines))
            except (pickle.PicklingError, TypeError, AttributeError) as exc:
                failure = RuntimeError(f"{error or exc} (of a type that cannot be pickled)")
                send(source, (None, failure, busy_s, lines))
        except OSError:
            os._exit(0)
        rest_after(busy_s, core)


def _receive_all(source: socket.socket, tasks: queue.SimpleQueue[tuple[str, Any]]) -> None:
    try:
        while True:
            tasks.put(receive(source))
    except (EOFError, OSError):
        os._exit(0)  # nobody waits for the task that is being worked on


def _directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - that of Path is slower
    except OSError:
        return ""


class _Log(logging.Handler):
    """Keeps what is logged, for the process that sent the task."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.name, record.levelno, record.getMessage()))
