"""Request: what a bench is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from .latency import Budget

__all__ = ["LENGTHS_S", "Request", "shown"]

LENGTHS_S: Final = (1.0, 3.0, 5.0, 10.0, 30.0)
# What may stand before a path within an argument: an option's name, or a kind of peer.
_BEFORE_PATH: Final = re.compile(r"(--?[\w-]+=)?(onnx:)?")


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
        peers: ONNX files of DNSMOS models.
        threads: Numbers of threads.
        batches: Batch sizes, for throughput; may be none.
        callers: Numbers of concurrent callers, for throughput; may be none.
        lengths_s: Lengths of clips for latency, in seconds.
        budget: Of each timing.
        starts: Fresh processes per contestant; 0 for none.
        estimator: Whether to study the number of views.
        seeds: Draws of that study.
        max_views: Most views of that study.
        half_width: Interval wanted of it.
        speed: Whether to time anything.
        command: How it was called, for the report.
    """

    bundles: tuple[str, ...]
    variants: tuple[str, ...] = ("all",)
    providers: tuple[str, ...] = ("all",)
    audio: tuple[Path, ...] = ()
    labels: Path | None = None
    references: tuple[Path, ...] = ()
    peers: tuple[Path, ...] = ()
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1, 4)
    callers: tuple[int, ...] = (1, 2, 4)
    lengths_s: tuple[float, ...] = LENGTHS_S
    budget: Budget = field(default_factory=Budget)
    starts: int = 5
    estimator: bool = False
    seeds: int = 24
    max_views: int = 8
    half_width: float = 0.1
    speed: bool = True
    command: str = ""

    def settings(self) -> dict[str, Any]:
        """All of it but the command, JSON-ready; of paths their names alone."""
        settings = asdict(self)
        for name in ("audio", "references", "peers"):
            settings[name] = [path.name for path in settings[name]]
        settings["labels"] = None if self.labels is None else self.labels.name
        settings["bundles"] = shown(self.bundles)
        del settings["command"]
        return settings


def shown(arguments: Sequence[str]) -> list[str]:
    """Arguments as a report shows them, which may be published.

    Of paths that say where on the machine something is, absolute ones and those that leave the
    folder, the last name alone is left.
    """
    found = []
    for argument in arguments:
        match = _BEFORE_PATH.match(argument)
        before = "" if match is None else match[0]
        path = Path(argument[len(before) :])
        away = path.is_absolute() or ".." in path.parts or path.parts[:1] == ("~",)
        found.append(f"{before}./{path.name}" if away else argument)
    return found
