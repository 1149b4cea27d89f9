"""Exceptions of `mosrt bench`, `mosrt gate` and `mosrt adapt`.

MosrtError
├── BenchError (ValueError)       what is asked for, or a file that is given, cannot be used
└── WorkerError (RuntimeError)    a configuration failed, or its process ended
    └── WorkerTimeoutError        it did not answer in time
"""

from __future__ import annotations

from mosrt.errors import MosrtError

__all__ = ["BenchError", "WorkerError", "WorkerTimeoutError"]


class BenchError(MosrtError, ValueError):
    """A bench cannot be run as asked, or a gate cannot decide; the message says what to change."""


class WorkerError(MosrtError, RuntimeError):
    """A configuration could not do what it was asked; the message says why."""


class WorkerTimeoutError(WorkerError):
    """A configuration did not answer in time, and its process was ended."""
