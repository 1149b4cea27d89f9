"""Exceptions of the bench and of its worker processes.

MosrtError
└── BenchError                  a bench that cannot be run as asked
    └── WorkerError             a configuration failed, or its process ended
        └── WorkerTimeoutError  it did not answer in time
"""

from __future__ import annotations

from mosrt.errors import MosrtError

__all__ = ["BenchError", "WorkerError", "WorkerTimeoutError"]


class BenchError(MosrtError):
    """A bench cannot be run as asked; the message says what to change."""


class WorkerError(BenchError, RuntimeError):
    """A configuration could not do what it was asked; the message says why."""


class WorkerTimeoutError(WorkerError):
    """A configuration did not answer in time, and its process was ended."""
