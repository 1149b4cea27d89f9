"""Lets a process be forked while engines are loaded that have threads of their own.

A child has a copy of its parent's memory, but only the thread that forked. When it destroys an
engine, at its end at the latest, the engine waits for ever for threads that do not exist. A lock
that another thread held stays locked.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakSet

__all__ = ["fork_waits", "keep_in_children"]

# After a run, the threads of an engine spin for at most 0.2 ms before they sleep.
_SETTLE_S: Final = 0.001


class _Engines:
    """The engines of this process, and the threads that use one."""

    def __init__(self) -> None:
        self.alive: WeakSet[Any] = WeakSet()
        self.users: Counter[int] = Counter()
        self.forks = 0
        self.changed = threading.Condition()


_ENGINES: Final = _Engines()


def keep_in_children(*engines: Any) -> None:
    """Keeps processes that are forked from this one from destroying these engines.

    The engines remain usable there: the thread that calls one does all of its work.
    """
    for engine in engines:
        _ENGINES.alive.add(engine)


@contextmanager
def fork_waits() -> Iterator[None]:
    """Makes a fork in another thread wait until the block ends, so that no lock is inherited."""
    engines, thread = _ENGINES, threading.get_ident()
    with engines.changed:
        engines.changed.wait_for(lambda: not engines.forks or engines.users[thread])
        engines.users[thread] += 1
    try:
        yield
    finally:
        with engines.changed:
            engines.users[thread] -= 1
            if not engines.users[thread]:
                del engines.users[thread]
            engines.changed.notify_all()


def _before_fork() -> None:
    engines, thread = _ENGINES, threading.get_ident()
    with engines.changed:
        engines.forks += 1
        engines.changed.wait_for(lambda: not set(engines.users) - {thread})
    if engines.alive:
        time.sleep(_SETTLE_S)
    engines.changed.acquire()


def _after_fork_in_parent() -> None:
    _ENGINES.forks -= 1
    _ENGINES.changed.notify_all()
    _ENGINES.changed.release()


def _after_fork_in_child() -> None:
    _ENGINES.users.clear()
    _ENGINES.forks = 0
    _ENGINES.changed = threading.Condition()
    for engine in _ENGINES.alive:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
