"""Processes: a contestant in a process of its own, which may hang or crash and harm nobody."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import Any, Final, Protocol

from mosrt.errors import MosrtError

__all__ = ["Conversation", "OutOfTimeError", "RefusedError", "WorkerProcess"]

_TAIL_LINES: Final = 3
_CLOSE_S: Final = 5.0


class RefusedError(MosrtError, RuntimeError):
    """A contestant cannot do what it was asked; the message says why."""


class OutOfTimeError(RefusedError):
    """A contestant did not answer in time, and was stopped."""


class Conversation(Protocol):
    """Someone who does what is asked, one thing after the other; see `gpu.worker`."""

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer.

        Raises:
            RefusedError: There is none.
            OutOfTimeError: There is none yet; the contestant cannot be asked again.
        """
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class WorkerProcess:
    """A process that runs `gpu.worker`.

    Args:
        options: What it is to be; see `gpu.worker.serve`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mosrt_bench.worker.worker", json.dumps(dict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """See `Conversation`."""
        if self._process.stdin is None:
            raise RuntimeError("the worker has no pipes")
        try:
            if timeout_s <= 0:  # a quick answer might be there all the same, or not
                raise queue.Empty
            self._process.stdin.write(json.dumps(dict(request)) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self._process.kill()
            raise OutOfTimeError(f"no time was left for it to {request['do']}") from None
        except OSError:
            line = ""
        if not line:
            self._process.wait()
            raise RefusedError(
                f"its process ended with status {self._process.returncode}: {self._tail()}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process, by force if it does not go by itself."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait(_CLOSE_S)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def _read(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put("")

    def _tail(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return " / ".join(lines[-_TAIL_LINES:]) or "it said nothing"
