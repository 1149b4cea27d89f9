"""Run a configuration in a process of its own, which may hang, crash or run out of memory."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final, cast

from mosrt_bench.errors import WorkerError, WorkerTimeoutError

from .protocol import Configuration, LoadKind

__all__ = ["IsolatedRunner", "WorkerProcess"]

_MODULE: Final = "mosrt_bench.worker.worker"
_TAIL_LINES: Final = 3
_CLOSE_S: Final = 5.0


class WorkerProcess:
    """A Python process that answers requests; see `mosrt_bench.worker.protocol`.

    Args:
        options: What it is told on its command line, JSON-ready.
        module: The module that serves, run with the arguments `--worker OPTIONS`.
    """

    def __init__(self, options: Mapping[str, Any], module: str = _MODULE) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--worker", json.dumps(dict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        # both are pipes
        self._requests = cast(IO[str], self._process.stdin)
        self._lines = cast(IO[str], self._process.stdout)
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, request: Mapping[str, Any], limit_s: float | None = None) -> Any:
        """Sends a request and waits for its answer.

        Args:
            request: What to do, JSON-ready.
            limit_s: Longest time to wait; None for no limit.

        Raises:
            WorkerError: The request failed, or the process has ended.
            WorkerTimeoutError: There was no answer in time. The process is killed.
        """
        try:
            if limit_s is not None and limit_s <= 0:
                self._process.kill()
                raise WorkerTimeoutError("no time left")
            self._requests.write(json.dumps(dict(request)) + "\n")
            self._requests.flush()
            line = self._answers.get(timeout=limit_s)
        except queue.Empty:
            self._process.kill()
            raise WorkerTimeoutError(
                f"no answer to {request['do']!r} within {limit_s or 0.0:.0f} s"
            ) from None
        except OSError:
            line = ""
        if not line:
            self._process.wait()
            raise WorkerError(
                f"its process ended with status {self._process.returncode}: {self._tail()}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        """Ends the process, by force if it does not end by itself."""
        try:
            self._requests.close()
            self._process.wait(_CLOSE_S)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._lines.close()
        self._log.close()

    def _read(self) -> None:
        for line in self._lines:
            self._answers.put(line)
        self._answers.put("")

    def _tail(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return " / ".join(lines[-_TAIL_LINES:]) or "it wrote no message"


class IsolatedRunner:
    """A `Runner` in a process of its own.

    Args:
        configuration: What it loads.
        limit_s: Gives the longest time to wait for the next answer, in seconds.

    Raises:
        WorkerError: The configuration cannot be loaded.
    """

    def __init__(self, configuration: Configuration, limit_s: Callable[[], float]) -> None:
        self._limit_s = limit_s
        self._process = WorkerProcess(asdict(configuration))
        try:
            opened = self._ask("open")
        except BaseException:
            self._process.close()
            raise
        self.provider: str = opened["provider"]
        self.facts: dict[str, Any] = opened["facts"]

    def score(self, clip: Path) -> dict[str, Any]:
        """See `Runner.score`."""
        return dict(self._ask("score", clip=str(clip)))

    def time(self, clip: Path) -> dict[str, float]:
        """See `Runner.time`."""
        return dict(self._ask("time", clip=str(clip)))

    def run_many(self, clip: Path, kind: LoadKind, count: int, n_clips: int) -> float:
        """See `Runner.run_many`."""
        return float(self._ask("run_many", clip=str(clip), kind=kind, count=count, n_clips=n_clips))

    def nodes(self) -> dict[str, int] | None:
        """See `Runner.nodes`."""
        found: dict[str, int] | None = self._ask("nodes")
        return found

    def close(self) -> None:
        """Ends the process."""
        self._process.close()

    def _ask(self, do: str, **arguments: Any) -> Any:
        return self._process.ask({"do": do, **arguments}, self._limit_s())
