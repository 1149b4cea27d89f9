"""Workers that are processes: they share no interpreter lock, and one that crashes harms no other.

The processes are forked from one that is started afresh and loads the handler; see `server`. So
they inherit neither threads nor locks of the program that uses them, and need no `if __name__ ==
"__main__"` in it.
"""

from __future__ import annotations

import logging
import os
import pickle
import selectors
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from mosrt.errors import ProviderError

from .base import Handler, Reply
from .messages import receive, send

__all__ = ["ProcessWorkers", "processes_work_here"]

_LOG = logging.getLogger(__name__)
# Tasks that a worker has at most: the one that it works on, and the next, so that it does not wait
# for this process in between.
_DEPTH: Final = 2
# A task that its worker does not survive is tried this often.
_TRIES: Final = 2
_BUFFER_BYTES: Final = 1 << 20
_START: Final = (
    "import sys; sys.path[:] = {path!r}; "
    "from mosrt.host.workers.server import main; main({descriptor})"
)


def processes_work_here() -> bool:
    """Whether this program can start Python, and this system can fork it."""
    frozen = getattr(sys, "frozen", False) or not sys.executable
    return sys.platform == "linux" and not frozen and "python" in os.path.basename(sys.executable)  # noqa: PTH119


@dataclass(slots=True, eq=False)
class _Worker:
    socket: socket.socket
    alive: bool = False  # it has said so
    # Key, task, and how often it was begun.
    tasks: deque[tuple[Hashable, Any, int]] = field(default_factory=deque)


class ProcessWorkers:
    """Calls a handler in processes; see `Workers`. They start in the background.

    Args:
        handler: What is called for each task. It is pickled, and loaded once for all workers.
        count: Number of workers.
        warm_up: A task that is done once before the workers are forked, so that what its first call
            sets up is shared; None for none.
        core: Part of a core that each worker may use, up to 1.
        nice: Niceness of the workers.
    """

    def __init__(
        self,
        handler: Handler,
        count: int,
        *,
        warm_up: Any = None,
        core: float = 1.0,
        nice: int | None = None,
    ) -> None:
        self.count = count
        self.failed: Exception | None = None
        self._start_message = (pickle.dumps(handler), warm_up, {"core": core, "nice": nice})
        self._workers: list[_Worker] = []
        self._again: deque[tuple[Hashable, Any, int]] = deque()
        self._ready: list[Reply] = []
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        _ALIVE.add(self)
        self._start()

    @property
    def started(self) -> bool:
        """Whether there is a worker."""
        return any(one.alive for one in self._workers)

    def free(self) -> int:
        """See `Workers.free`."""
        return sum(_DEPTH - len(one.tasks) for one in self._workers if one.alive)

    def send(self, key: Hashable, task: Any) -> None:
        """See `Workers.send`."""
        self._send((key, task, 0))

    def poll(self, timeout_s: float | None) -> list[Reply]:
        """See `Workers.poll`."""
        if self._ready:
            timeout_s = 0
        for event, _ in self._selector.select(timeout_s):
            if event.data is None:
                with suppress(BlockingIOError):
                    self._woken.recv(4096)
            elif isinstance(event.data, _Worker):
                self._read(event.data)
            else:
                self._read_control()
        while self._again and self.free():
            self._send(self._again.popleft())
        replies, self._ready = self._ready, []
        return replies

    def wake(self) -> None:
        """See `Workers.wake`."""
        with suppress(BlockingIOError, OSError):
            self._waker.send(b"w")

    def close(self) -> None:
        """See `Workers.close`."""
        self.forget()
        self._end_server()

    def forget(self) -> None:
        """Closes all sockets; the processes end when no process has them any more."""
        self._selector.close()
        for worker in self._workers:
            worker.socket.close()
        for end in (self._waker, self._woken, self._control):
            end.close()

    def _start(self) -> None:
        """Starts the process that loads the handler; workers follow when it says that it has."""
        self._served = False
        self._control, theirs = socket.socketpair()
        with theirs:
            code = _START.format(path=sys.path, descriptor=theirs.fileno())
            try:
                self._server = subprocess.Popen(  # noqa: S603 - this Python, and code of this module
                    [sys.executable, "-c", code],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
                send(self._control, self._start_message)
            except OSError as exc:
                self.failed = exc
                return
        self._end_server = weakref.finalize(self, _end, self._control, self._server, os.getpid())
        self._selector.register(self._control, selectors.EVENT_READ, self._control)

    def _read_control(self) -> None:
        """The process that loads says that it has loaded, or why it cannot, or has ended."""
        error: Exception | None = None
        try:
            error = receive(self._control)
            if error is None:
                self._served = True
                while len(self._workers) < self.count:
                    self._fork()
                return
        except (EOFError, OSError):
            error = ProviderError("the process that starts workers ended; see its messages above")
        self._selector.unregister(self._control)
        self._end_server()
        if not self._served:
            self.failed = error
        elif len(self._workers) < self.count:
            self._start()

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            try:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        worker = _Worker(ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _send(self, entry: tuple[Hashable, Any, int]) -> None:
        alive = (one for one in self._workers if one.alive)
        worker = min(alive, key=lambda one: len(one.tasks))
        worker.tasks.append(entry)
        try:
            send(worker.socket, (_directory(), entry[1]))
        except OSError:  # it was dead before, and not of this task
            self._again.append(worker.tasks.pop())
            self._lost(worker)

    def _read(self, worker: _Worker) -> None:
        if worker not in self._workers:
            return
        try:
            if not worker.alive:
                worker.alive = receive(worker.socket) is None
                return
            value, error, busy_s, lines = receive(worker.socket)
        except (EOFError, OSError):
            self._lost(worker)
            return
        except Exception as exc:  # noqa: BLE001 - a result that cannot be unpickled is an error
            value, error, busy_s, lines = None, exc, 0.0, []
        for name, level, text in lines:
            logging.getLogger(name).log(level, "%s", text)
        key, _, _ = worker.tasks.popleft()
        self._ready.append(Reply(key, value, error, busy_s))

    def _lost(self, worker: _Worker) -> None:
        """Replaces a worker that has died, and gives its tasks to others."""
        self._selector.unregister(worker.socket)
        worker.socket.close()
        self._workers.remove(worker)
        if worker.tasks:
            key, task, tries = worker.tasks.popleft()
            if tries + 1 < _TRIES:
                self._again.append((key, task, tries + 1))
            else:
                died = ProviderError(
                    f"{_TRIES} worker processes died at this task, one after another"
                )
                self._ready.append(Reply(key, None, died, 0.0))
        self._again.extend(worker.tasks)
        if worker.alive:
            _LOG.warning("a worker process died; another takes its place")
        if not self._end_server.alive:
            self._start()
        elif self._served:
            with suppress(OSError):  # the process that forks has died, too, as its socket will say
                self._fork()


def _directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - that of Path is slower
    except OSError:
        return ""


def _end(control: socket.socket, server: subprocess.Popen[bytes], process: int) -> None:
    """Ends the process that forks, by closing its socket, unless another process has started it."""
    control.close()
    if os.getpid() == process:
        server.wait()


# All of this process. A forked child closes what it has of them, or its parent's workers would
# never see their sockets closed.
_ALIVE: Final[weakref.WeakSet[ProcessWorkers]] = weakref.WeakSet()


def _forget_all() -> None:
    for workers in list(_ALIVE):
        workers.forget()
    _ALIVE.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
