"""The contest: all rows measured one after the other within a time, and kept as they are done."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from mosrt.errors import MosrtError
from mosrt_bench.worker.device import MemoryPeak, UsedBytes
from mosrt_bench.worker.process import Conversation, RefusedError

from .measurement import Effort, Judgement, Opponent, judge, latency, place, throughput
from .rows import Row

__all__ = ["Contest", "Found"]

Found = dict[str, dict[str, Any]]
"""What was found out, by row; "status" is measured, failed, unmeasured or dropped."""

Launch = Callable[[Row], Conversation]

# Less of the time than this is not enough for a row.
_LEAST_SHARE: Final = 0.05
# More is for none: one that hangs must not take the others' time.
_LARGEST_SHARE: Final = 1 / 3


class Contest:
    """Measures rows.

    Args:
        rows: The most important first; the first of all is the baseline if it is torch's.
        launch: Starts a contestant.
        effort: How long to measure.
        minutes: Time for all of it; what does not fit is dropped from the end.
        clip_s: Length of the clips.
        default_domain: By bundle, the index of the domain that batches are scored for.
        used_bytes: Reads the device's memory, or None where there is none to read.
        keep: Called with all that was found whenever there is more.
        say: Told what is being done.
        now: The clock, in seconds.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        launch: Launch,
        effort: Effort,
        minutes: float,
        clip_s: float,
        default_domain: Mapping[str, int],
        used_bytes: UsedBytes | None,
        keep: Callable[[Found], None],
        say: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = rows
        self._launch = launch
        self._effort = effort
        self._clip_s = clip_s
        self._default_domain = default_domain
        self._used_bytes = used_bytes
        self._keep = keep
        self._say = say
        self._now = now
        self._total_s = 60 * minutes
        self._deadline = now() + self._total_s
        self._baseline: Opponent | None = None
        self._references: dict[tuple[bool, str], Judgement | str] = {}
        self.found: Found = {
            row.name: {
                **dataclasses.asdict(row),
                "status": "unmeasured",
                "reason": row.missing or "the run was ended before it",
            }
            for row in rows
        }

    def run(self) -> Found:
        """Measures all that there is time for."""
        self._keep(self.found)
        with ExitStack() as stack:
            for row in self._rows:
                if row.missing is not None:
                    continue
                found = self.found[row.name]
                if self._left_s() < _LEAST_SHARE * self._total_s:
                    found["status"] = "dropped"
                    found["reason"] = f"the {self._total_s / 60:g} minutes were used up"
                else:
                    self._say(row.name)
                    self._measure(row, found, stack)
                self._keep(self.found)
        return self.found

    def _left_s(self) -> float:
        return self._deadline - self._now()

    def _measure(self, row: Row, found: dict[str, Any], stack: ExitStack) -> None:
        """Fills in what is found out of a row; what fails ends it, and what was found stays.

        Args:
            row: The row.
            found: Where that goes.
            stack: Ends the baseline, which is needed to the last.
        """
        limit = min(self._deadline, self._now() + _LARGEST_SHARE * self._total_s)
        with ExitStack() as own_stack:
            try:
                wanted = self._reference(row)
                memory = own_stack.enter_context(self._watched())
                conversation = self._launch(row)
                (stack if row.is_baseline else own_stack).callback(conversation.close)
                own = Opponent(conversation=conversation, left_s=lambda: limit - self._now())
                problems = self._ask(row, own, wanted, found, memory)
            except MosrtError as exc:
                found["reason"] = str(exc)
                return
        found["status"] = "failed" if problems else "measured"
        found["reason"] = "; ".join(problems) or None
        if row.is_baseline:
            best = found["throughput"]["best_batch"]
            self._baseline = dataclasses.replace(own, best_size=best, left_s=self._left_s)

    def _ask(
        self,
        row: Row,
        own: Opponent,
        wanted: Judgement,
        found: dict[str, Any],
        memory: MemoryPeak | None,
    ) -> list[str]:
        """Asks everything of a row; tells what is wrong with it."""
        found |= own.ask("start")
        found["parity"] = judge(own, wanted, row.variant)
        found["latency"] = latency(own, self._baseline, self._effort, self._clip_s)
        domain = self._default_domain[row.bundle or ""]
        found["throughput"] = throughput(
            own,
            self._baseline,
            self._effort,
            [scores[domain] for scores in wanted],
            row.variant,
        )
        if memory is not None:
            # Before another session is made to look at where nodes ran.
            found["peak_device_mb"] = memory.peak_mb
        problem, note = place(own, row, found["facts"].get("provider"))
        found["notes"] = [] if note is None else [note]
        problems = [] if problem is None else [problem]
        for where, parity in (
            ("single scores", found["parity"]),
            ("batches", found["throughput"]["parity"]),
        ):
            if not parity["passed"]:
                problems.append(
                    f"{where} differ by {parity['max_abs_mos']:.3g} MOS from FP32 on the CPU, and "
                    f"{parity['tolerance_mos']:g} is allowed"
                )
        return problems

    def _reference(self, row: Row) -> Judgement:
        """FP32 on the CPU: the same bundle's, or torch's.

        Raises:
            RefusedError: There is none.
        """
        key = (row.is_torch, row.bundle or "")
        if key not in self._references:
            self._references[key] = self._judged(row)
        reference = self._references[key]
        if isinstance(reference, str):
            raise RefusedError(f"no FP32 reference on the CPU: {reference}")
        return reference

    def _judged(self, row: Row) -> Judgement | str:
        reference = dataclasses.replace(
            row,
            device="cpu",
            provider=row.provider if row.is_torch else "cpu",
            variant="fp32",
            compiled=False,
        )
        own = Opponent(conversation=self._launch(reference), left_s=self._left_s)
        try:
            own.ask("start")
            found: Judgement = own.ask("judge")["mos"]
        except MosrtError as exc:
            return str(exc)
        finally:
            own.conversation.close()
        return found

    @contextmanager
    def _watched(self) -> Iterator[MemoryPeak | None]:
        if self._used_bytes is None:
            yield None
            return
        with MemoryPeak(self._used_bytes) as memory:
            yield memory
