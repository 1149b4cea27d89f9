"""Workers that call one function for many tasks: processes where they help, else threads."""

from __future__ import annotations

from .base import Handler, Reply, Workers
from .processes import ProcessWorkers, processes_work_here
from .threads import ThreadWorkers

__all__ = ["Handler", "ProcessWorkers", "Reply", "ThreadWorkers", "Workers", "processes_work_here"]
