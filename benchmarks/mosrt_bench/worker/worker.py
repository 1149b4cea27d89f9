"""Open a configuration, and serve it to another process.

    python -m mosrt_bench.worker.worker --worker CONFIGURATION

answers the requests on standard input; see `mosrt_bench.worker.protocol`. CONFIGURATION is JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from .protocol import Configuration, Runner

__all__ = ["open_runner", "peak_mb", "serve"]

_MOST_CHARACTERS: Final = 600

Handler = Callable[[Mapping[str, Any]], Any]
"""Answers a request; the answer is JSON-ready."""


def open_runner(configuration: Configuration) -> Runner:
    """Loads a configuration.

    Raises:
        MosrtError: It cannot be run on this machine.
    """
    if configuration.is_torch:
        from .torch_runner import TorchRunner  # noqa: PLC0415 - each process imports its own engine

        return TorchRunner(configuration)
    from .mosrt_runner import MosrtRunner  # noqa: PLC0415

    return MosrtRunner(configuration)


def serve(handle: Handler) -> None:
    """Answers requests from standard input on standard output until there are no more.

    An exception becomes an answer with its text. What libraries print goes to standard error.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            try:
                answer = {"answer": handle(json.loads(line))}
            except Exception as exc:  # noqa: BLE001 - whatever a library raises is the reason
                answer = {"error": _reason(exc)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def peak_mb() -> float | None:
    """Peak resident memory of this program in MB of 1e6 bytes; None where nothing tells.

    It is the kernel's account, which a new program starts afresh. Where there is none it is
    getrusage's, which starts at the peak of the program that started this one.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        pass
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on macOS bytes
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def _session(configuration: Configuration) -> Handler:
    """Answers requests to one runner, which the request "open" loads."""
    runner: Runner | None = None

    def answer(request: Mapping[str, Any]) -> Any:
        nonlocal runner
        arguments = dict(request)
        do = arguments.pop("do")
        if do == "open":
            runner = open_runner(configuration)
            return {"provider": runner.provider, "facts": runner.facts}
        if runner is None:
            raise RuntimeError("the first request must be 'open'")
        if "clip" in arguments:
            arguments["clip"] = Path(arguments["clip"])
        return getattr(runner, do)(**arguments)

    return answer


def _reason(exc: Exception) -> str:
    text = " ".join(str(exc).split()) or "no message"
    from mosrt.errors import MosrtError  # noqa: PLC0415 - only an error needs it

    known = isinstance(exc, MosrtError)
    return (text if known else f"{type(exc).__name__}: {text}")[:_MOST_CHARACTERS]


if __name__ == "__main__":
    serve(_session(Configuration(**json.loads(sys.argv[2]))))
