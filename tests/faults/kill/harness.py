"""Ends commands by SIGKILL at random moments, and looks at what is left.

Commands run in processes forked from a server that has imported everything, so that a moment costs
the command's own work and no more. A third of the moments are just before a change of a file or
directory, a third up to 10 ms after it began, and a third anywhere in the command's run.
"""

import contextlib
import faulthandler
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from .commands import COMMANDS, WritingCommand

__all__ = ["Moments", "Outcome", "kill_at_random_moments"]

LIMIT_S = 900.0
_CHANGES = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
)
# What commands import when they run; a name that is gone costs time, nothing else.
_PRELOADED = (
    "mosrt_bench.gate.baseline",
    "mosrt_bench.gate.decision",
    "mosrt_calibration.quantize",
    "mosrt_export.triton.repository",
    "mosrt_export.uncertainty.wav2vec.exporter",
)
_BY_NAME = {command.name: command for command in COMMANDS}


@dataclass(frozen=True)
class Moments:
    """When a process is killed: at the change number `change`, or `after_s` from its start."""

    change: int | None
    after_s: float


@dataclass
class Outcome:
    """What was found of one command.

    Attributes:
        command: The command's name.
        changes: Changes of files and directories in one run of it.
        old: Moments that left the old target.
        new: Moments that left a complete new one.
        half: What was wrong at each other moment.
        left_over: Names that the next run did not remove.
    """

    command: str
    changes: int = 0
    old: int = 0
    new: int = 0
    half: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)


def kill_at_random_moments(
    command: WritingCommand, folder: Path, *, moments: int, seed: int = 0
) -> Outcome:
    """Kills `command` at random moments, each in a workspace of its own below `folder`."""
    template = folder / "template"
    template.mkdir(parents=True)
    command.prepare(template)
    old = _contents(template / command.target)
    clean = _workspace(template, folder / "clean")
    began = time.monotonic()
    ended, changes = _run(command, clean)
    duration_s = time.monotonic() - began
    assert ended == 0, (clean / "log.txt").read_text()
    command.check(clean / command.target)
    expected = _names(clean)
    outcome = Outcome(command.name, changes)
    rng = random.Random(f"{seed} {command.name}")
    for i in range(moments):
        moment = (
            Moments(rng.randrange(changes), 0.0 if i % 3 == 0 else rng.uniform(0, 0.01))
            if i % 3 < 2
            else Moments(None, rng.uniform(0, duration_s))
        )
        workspace = _workspace(template, folder / str(i))
        _run(command, workspace, moment)
        target = workspace / command.target
        if _contents(target) == old:
            outcome.old += 1
        else:
            try:
                command.check(target)
                outcome.new += 1
            except Exception as exc:  # noqa: BLE001 - whatever is wrong with it is the finding
                outcome.half.append(f"{moment}: {type(exc).__name__}: {exc}")
        ended, _ = _run(command, workspace)
        if ended != 0:
            log = (workspace / "log.txt").read_text()[-2000:]
            outcome.half.append(f"{moment}: the next run ended with {ended}: {log}")
        outcome.left_over += sorted(_names(workspace) - expected)
        shutil.rmtree(workspace)
    return outcome


def _workspace(template: Path, workspace: Path) -> Path:
    shutil.copytree(template, workspace)
    return workspace


def _contents(target: Path) -> dict[str, str] | None:
    """Digests of a file, or of all below a directory; None if there is neither."""
    if not target.exists():
        return None
    files = [target] if target.is_file() else sorted(p for p in target.rglob("*") if p.is_file())
    return {
        file.relative_to(target).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def _names(workspace: Path) -> set[str]:
    return {path.relative_to(workspace).as_posix() for path in workspace.rglob("*")}


def _run(
    command: WritingCommand, workspace: Path, moment: Moments | None = None
) -> tuple[int | None, int]:
    """The exit status of a run, negative for a signal, and its number of changes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_PRELOADED])
    changes: Any = context.Value("q", 0)
    process: BaseProcess = context.Process(
        target=_in_child, args=(command.name, workspace, moment, changes)
    )
    process.start()
    if moment is not None and moment.change is None:
        process.join(moment.after_s)
        process.kill()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"mosrt {command.name} did not end in {LIMIT_S} s")
    return process.exitcode, changes.value


def _in_child(name: str, workspace: Path, moment: Moments | None, changes: Any) -> None:
    os.chdir(workspace)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(LIMIT_S - 10, exit=True)  # to the log, if it hangs
    os.environ["MOSRT_CACHE"] = str(workspace / "cache")
    os.environ["TMPDIR"] = str(workspace / "tmp")
    # Python would try the folder with a file of its own, which a kill would leave.
    tempfile.tempdir = str(workspace / "tmp")
    (workspace / "tmp").mkdir(exist_ok=True)
    # Only what is below the workspace counts.
    root = str(workspace)

    def count(event: str, args: tuple[Any, ...]) -> None:
        if event not in _CHANGES and not (event == "open" and _writes(args)):
            return
        with contextlib.suppress(TypeError, ValueError):
            if not str(Path(os.fsdecode(args[0])).absolute()).startswith(root):
                return
        if moment is not None and changes.value == moment.change:
            if moment.after_s:
                threading.Timer(moment.after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        changes.value += 1

    sys.addaudithook(count)
    from mosrt.cli.main import main

    main([*_BY_NAME[name].arguments], prog_name="mosrt")


def _writes(args: tuple[Any, ...]) -> bool:
    flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
