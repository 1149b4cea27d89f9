"""Worker: a contestant's side of the conversation, a line of JSON for every line of JSON.

What it can be asked, by "do":

start       load the model and score once: {"load_s", "first_call_ms", "facts"}
judge       score every clip for every domain: {"mos": [[…], …]}
score       score one clip, "clip": {"total": ms, and stages}
rate        score batches of "size" by two callers for "seconds": {"clips_per_s", "mos": […]}
placement   {"nodes": {provider: number}}, or None where there is nothing to tell
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mosrt.crops import PlanRule

__all__ = ["ONE_VIEW", "RATE_HZ", "Runner", "Worker", "serve"]

Float32Array = npt.NDArray[np.float32]

RATE_HZ: Final = 16_000
ONE_VIEW: Final = PlanRule(kind="grid", views=1)
# While one batch is on the device, the front end of the other's is worked on.
_CALLERS: Final = 2
_ERROR_CHARACTERS: Final = 600


class Runner(Protocol):
    """A loaded model."""

    facts: dict[str, Any]

    def judge(self, clip: Float32Array) -> list[float]:
        """MOS of one view of a clip for every domain."""
        ...

    def score(self, clip: Float32Array) -> dict[str, float]:
        """Scores one view of a clip, and tells how long the stages took in ms."""
        ...

    def score_batch(self, clips: Sequence[Float32Array]) -> list[float]:
        """MOS of one view of each clip for the default domain, all in one run of the networks.

        May be called by two threads at once.
        """
        ...

    def placement(self) -> dict[str, int] | None:
        """How many nodes each provider runs, if there are such things."""
        ...


class Worker:
    """Answers requests.

    Args:
        options: "provider", "variant", "device", "compiled", "bundle", "checkpoint", "threads",
            and "clips", a file of clips (clips, samples) at 16 kHz.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._clips: Float32Array = np.load(options["clips"])
        self._runner: Runner | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            RuntimeError: It was not told to start.
        """
        what = request["do"]
        if what == "start":
            return self._start()
        runner = self._runner
        if runner is None:
            raise RuntimeError("the contestant was not started")
        if what == "judge":
            return {"mos": [runner.judge(clip) for clip in self._clips]}
        if what == "score":
            clip = self._clips[request["clip"] % len(self._clips)]
            started = time.perf_counter()
            stages = runner.score(clip)
            return {**stages, "total": 1e3 * (time.perf_counter() - started)}
        if what == "rate":
            return self._rate(runner, request["size"], request["seconds"])
        return {"nodes": runner.placement()}

    def _start(self) -> dict[str, Any]:
        started = time.perf_counter()
        self._runner = _open(self._options)
        loaded = time.perf_counter()
        self._runner.score(self._clips[0])
        return {
            "load_s": round(loaded - started - self._runner.facts.get("build_s", 0.0), 3),
            "first_call_ms": round(1e3 * (time.perf_counter() - loaded), 3),
            "facts": self._runner.facts,
        }

    def _rate(self, runner: Runner, size: int, seconds: float) -> dict[str, Any]:
        batch = [self._clips[i % len(self._clips)] for i in range(size)]
        # Alone, once: buffers are allocated and kernels chosen for this size.
        mos = runner.score_batch(batch)

        def work(_: int) -> int:
            n_done = 0
            while time.perf_counter() - started < seconds:
                runner.score_batch(batch)
                n_done += size
            return n_done

        with ThreadPoolExecutor(_CALLERS) as pool:
            list(pool.map(runner.score_batch, [batch] * _CALLERS))
            started = time.perf_counter()
            n_clips = sum(pool.map(work, range(_CALLERS)))
            elapsed_s = time.perf_counter() - started
        return {"clips_per_s": n_clips / elapsed_s, "mos": mos}


def serve(options: Mapping[str, Any]) -> None:
    """Answers lines of standard input on standard output till there are no more."""
    # Libraries that print must not come between the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        worker = Worker(options)
        for line in sys.stdin:
            try:
                answer = worker.answer(json.loads(line))
            except Exception as exc:  # noqa: BLE001 - whatever a library raises is the reason
                text = " ".join(f"{type(exc).__name__}: {exc}".split())
                answer = {"error": text[:_ERROR_CHARACTERS]}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _open(options: Mapping[str, Any]) -> Runner:
    if options["provider"] == "torch":
        from .torch_runner import TorchRunner  # noqa: PLC0415 - each worker imports its own half

        return TorchRunner(
            options["bundle"],
            options["checkpoint"],
            device=options["device"],
            half=options["variant"] == "fp16",
            compiled=options["compiled"],
            threads=options["threads"],
        )
    from .mosrt_runner import MosrtRunner  # noqa: PLC0415

    return MosrtRunner(
        options["bundle"],
        options["variant"],
        options["provider"],
        threads=options["threads"],
    )


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
