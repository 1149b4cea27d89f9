"""Runs a target on inputs in processes of its own, with limits of memory and time.

An input is made from the target's name, a seed and its number, so a crash or a hang is found again
by its number. What fails otherwise is written down by the process itself.
"""

import dataclasses
import json
import mmap
import multiprocessing
import os
import random
import resource
import struct
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CORPUS", "Report", "fuzz"]

CORPUS = Path(__file__).parent / "corpus"
_HANG_S = 180.0
_MEMORY_BYTES = 6 << 30
_STATE = struct.Struct("qqqq")  # number of the input at work, accepted, refused, process id
_MAX_FINDINGS = 20


@dataclass
class Report:
    """What came of one target.

    Attributes:
        target: The target's name.
        seed: Seed of the inputs.
        accepted: Inputs that were used.
        refused: Inputs that were refused with an error of their own.
        crashes: Numbers of the inputs at which the process ended, with its exit status.
        hangs: Numbers of the inputs that took more than three minutes.
        unhandled: Numbers of inputs that raised what they should not, with the traceback.
        printed: The beginning of what was printed past Python.
        seconds: How long it took.
    """

    target: str
    seed: int
    accepted: int = 0
    refused: int = 0
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    unhandled: list[str] = field(default_factory=list)
    printed: str = ""
    seconds: float = 0.0

    @property
    def inputs(self) -> int:
        """Inputs that were tried."""
        return self.accepted + self.refused + len(self.crashes + self.hangs + self.unhandled)

    @property
    def findings(self) -> list[str]:
        """Everything that should not have been."""
        return [*self.crashes, *self.hangs, *self.unhandled]

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        return {**dataclasses.asdict(self), "inputs": self.inputs}


def fuzz(target: str, *, count: int, seconds: float, seed: int = 0) -> Report:
    """Runs the corpus and then `count` new inputs of a target, for at most about `seconds`."""
    report = Report(target, seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state, findings, printed = folder / "state", folder / "findings", folder / "printed"
        state.write_bytes(bytes(_STATE.size))
        findings.touch()
        next_input = -len(_corpus(target))
        while next_input < count and time.monotonic() - began < seconds:
            limits = (next_input, count, began + seconds)
            next_input = _watched(target, seed, limits, folder, report)
        report.unhandled += findings.read_text().splitlines()
        report.printed = printed.read_text(errors="replace")[:2000]
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _watched(
    target: str, seed: int, limits: tuple[int, int, float], folder: Path, report: Report
) -> int:
    """Runs one process until it ends, crashes or hangs; the number of the next input."""
    state = folder / "state"
    state.write_bytes(_STATE.pack(limits[0], 0, 0, 0))
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(target, seed, limits, folder)
    )
    process.start()
    at, since = limits[0], time.monotonic()
    while process.is_alive():
        process.join(0.05)
        now = int(_STATE.unpack(state.read_bytes())[0])
        if now != at:
            at, since = now, time.monotonic()
        elif time.monotonic() - since > _HANG_S:
            process.kill()
            process.join()
            report.hangs.append(f"{at}")
            break
    else:
        if process.exitcode:
            report.crashes.append(f"{at}: exit status {process.exitcode}")
    at, accepted, refused, _ = _STATE.unpack(state.read_bytes())
    report.accepted += accepted
    report.refused += refused
    if len(report.crashes + report.hangs) > _MAX_FINDINGS:
        return limits[1]
    return int(at) + 1


def _work(target: str, seed: int, limits: tuple[int, int, float], folder: Path) -> None:
    from .targets import TARGETS

    output = os.open(folder / "printed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["MOSRT_CACHE"] = str(folder / "no-cache")
    own = Path(tempfile.mkdtemp(dir=folder))
    made = TARGETS[target](own)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    kept = _corpus(target)
    accepted = refused = n_findings = 0
    with (folder / "state").open("r+b") as file, mmap.mmap(file.fileno(), 0) as state:
        for i in range(*limits[:2]):
            state[:] = _STATE.pack(i, accepted, refused, os.getpid())
            if i >= 0:
                data = made.make(random.Random(f"{target} {seed} {i}"))
                if time.monotonic() > limits[2]:
                    break
            else:
                data = kept[i + len(kept)].read_bytes()
            try:
                if made.run(data):
                    accepted += 1
                else:
                    refused += 1
            except Exception:  # noqa: BLE001 - whatever it is, it is a finding
                told = traceback.format_exc(limit=-6)
                with (folder / "findings").open("a") as findings:
                    findings.write(json.dumps(f"{i}: {told}") + "\n")
                n_findings += 1
                if n_findings >= _MAX_FINDINGS:
                    break
        state[:] = _STATE.pack(limits[1], accepted, refused, os.getpid())


def _corpus(target: str) -> list[Path]:
    """What once failed, oldest name first."""
    return sorted((CORPUS / target).glob("*"))
