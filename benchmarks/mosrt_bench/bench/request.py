"""Hold what a bench is asked for, and how much time it may take."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from .timing import Effort

__all__ = [
    "LENGTHS_S",
    "NO_TIME",
    "TORCH",
    "TORCH_AUTO",
    "Request",
    "Session",
    "TimeBudget",
    "duration",
    "parse_duration",
    "shown",
]

NO_TIME: Final = "no time left"
LENGTHS_S: Final = (1.0, 3.0, 5.0, 10.0, 30.0)
TORCH_AUTO: Final = "auto"
TORCH: Final[Mapping[str, tuple[str, str]]] = {
    "cpu": ("fp32", "torch-cpu"),
    "cpu-compiled": ("fp32", "torch-cpu-compiled"),
    "cuda": ("fp32", "torch-cuda"),
    "cuda-fp16": ("fp16", "torch-cuda"),
    "cuda-compiled": ("fp32", "torch-cuda-compiled"),
    "cuda-fp16-compiled": ("fp16", "torch-cuda-compiled"),
}
"""Variant and provider of torch by its name on the command line."""

# What may stand before a path within an argument: an option's name.
_BEFORE_PATH: Final = re.compile(r"(--?[\w-]+=)?")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)")
_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
# Longest wait for one answer of a process, such as one that loads a model or builds an engine.
_ANSWER_S: Final = 600.0
# No single answer may use more of a run's time, so that one that hangs leaves time for others.
_ANSWER_SHARE: Final = 1 / 3
# A step is not begun with less of the run's time than this.
_LEAST_SHARE: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a bench is asked for.

    Attributes:
        bundles: Names or paths of models.
        variants: Names, or "all".
        providers: Names, or "all" for those of this machine.
        audio: Files or folders.
        labels: CSV of listeners' ratings, or None.
        references: Torch checkpoints, one per network of the only bundle.
        torch: Names of `TORCH` to time as well, or "auto": eager, on the devices of `providers`.
        threads: Numbers of threads.
        batches: Batch sizes, for throughput; may be none.
        callers: Numbers of concurrent callers, for throughput; may be none.
        lengths_s: Lengths of clips for latency, in seconds.
        plan: Crop plan of MOS models, such as "reference:0"; their default grid if None.
        views: Views per recording of MOS models; the plan's own number if None.
        effort: How long each timing is.
        starts: Fresh processes per configuration; 0 for none.
        isolate: Whether each configuration runs in a process of its own.
        budget_s: Time for the whole run, in seconds; None for no limit.
        view_study: Whether to study the number of views.
        seeds: Draws of that study.
        max_views: Most views of that study.
        half_width: Half-width of an interval that the study looks for, in MOS.
        speed: Whether to time anything.
        command: How it was called, for the report.
    """

    bundles: tuple[str, ...]
    variants: tuple[str, ...] = ("all",)
    providers: tuple[str, ...] = ("all",)
    audio: tuple[Path, ...] = ()
    labels: Path | None = None
    references: tuple[Path, ...] = ()
    torch: tuple[str, ...] = (TORCH_AUTO,)
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1, 4)
    callers: tuple[int, ...] = (1, 2, 4)
    lengths_s: tuple[float, ...] = LENGTHS_S
    plan: str | None = None
    views: int | None = None
    effort: Effort = field(default_factory=Effort)
    starts: int = 5
    isolate: bool = False
    budget_s: float | None = None
    view_study: bool = False
    seeds: int = 24
    max_views: int = 8
    half_width: float = 0.1
    speed: bool = True
    command: str = ""

    def settings(self) -> dict[str, Any]:
        """Every option but the command, JSON-ready; of paths their names alone."""
        settings = asdict(self)
        for name in ("audio", "references"):
            settings[name] = [path.name for path in settings[name]]
        settings["labels"] = None if self.labels is None else self.labels.name
        settings["bundles"] = shown(self.bundles)
        del settings["command"]
        return settings


class TimeBudget:
    """The time that a run may take.

    Args:
        total_s: In seconds; None for no limit.
        now: The clock, in seconds.
    """

    def __init__(self, total_s: float | None, *, now: Callable[[], float] = time.monotonic) -> None:
        self._total_s = math.inf if total_s is None else total_s
        self._now = now
        self._begun_s = now()

    @property
    def used_s(self) -> float:
        """Time since the run began."""
        return self._now() - self._begun_s

    @property
    def left_s(self) -> float:
        """Time left; infinite where there is no limit."""
        return self._total_s - self.used_s

    def exhausted(self) -> bool:
        """Whether too little is left to begin anything."""
        return self.left_s < _LEAST_SHARE * self._total_s

    def answer_s(self) -> float:
        """Longest time to wait for the next answer of a process."""
        return min(_ANSWER_S, _ANSWER_SHARE * self._total_s, self.left_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A run under way: what is asked for, the time left, and who is told.

    Attributes:
        request: What is asked for.
        budget: Time of the whole run.
        say: Told what is being done.
        keep: Called when the report has more.
    """

    request: Request
    budget: TimeBudget
    say: Callable[[str], None]
    keep: Callable[[], None]

    @property
    def limit_s(self) -> Callable[[], float] | None:
        """Gives the longest wait for a process's next answer; None if all run in this process."""
        return self.budget.answer_s if self.request.isolate else None


def duration(seconds: float) -> str:
    """A time to wait, rounded for people."""
    if seconds < 100:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "90s", "8m", "1.5h" or "1h30m".

    Raises:
        ValueError: It is something else, or no time at all.
    """
    parts = _DURATION.findall(text)
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise ValueError(f"{text!r} is not a duration such as 90s, 8m or 1h30m")
    return seconds


def shown(arguments: Sequence[str]) -> list[str]:
    """Arguments as a report shows them, since a report may be published.

    Paths that would tell where on the machine something lies, absolute ones and those that leave
    the folder, are reduced to their last name.
    """
    found = []
    for argument in arguments:
        match = _BEFORE_PATH.match(argument)
        before = "" if match is None else match[0]
        path = Path(argument[len(before) :])
        away = path.is_absolute() or ".." in path.parts or path.parts[:1] == ("~",)
        found.append(f"{before}./{path.name}" if away else argument)
    return found
