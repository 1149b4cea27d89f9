"""Exceptions of `mosrt bench` and `mosrt gate`.

MosrtError
├── BenchError (ValueError)       a bench that cannot be run as asked
├── GateError (ValueError)        a baseline that is missing or does not compare with the run
├── LabelError (ValueError)       a file of ratings that cannot be used
├── MetricError (ValueError)      lists of scores that cannot be compared
└── WorkerError (RuntimeError)    a configuration failed, or its process ended
    └── WorkerTimeoutError        it did not answer in time
"""

from __future__ import annotations

from mosrt.errors import MosrtError

__all__ = [
    "BenchError",
    "GateError",
    "LabelError",
    "MetricError",
    "WorkerError",
    "WorkerTimeoutError",
]


class BenchError(MosrtError, ValueError):
    """A bench cannot be run as asked; the message says what to change."""


class GateError(MosrtError, ValueError):
    """A gate cannot decide: there is no baseline, or it does not compare with this run."""


class LabelError(MosrtError, ValueError):
    """A file of ratings cannot be used; the message names the line and says what to change."""


class MetricError(MosrtError, ValueError):
    """Lists of scores that cannot be compared."""


class WorkerError(MosrtError, RuntimeError):
    """A configuration could not do what it was asked; the message says why."""


class WorkerTimeoutError(WorkerError):
    """A configuration did not answer in time, and its process was ended."""
