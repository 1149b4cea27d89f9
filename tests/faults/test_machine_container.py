"""A newcomer's container: no root, a read-only root file system, no home, one core, 512 MB."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import DATA

from .machines import CLIP, STRANGER, needs, run, works

READ_ONLY = ("sh", "-c", 'mount --make-rprivate / && mount -o remount,bind,ro / && exec "$@"', "sh")
OWN_MOUNTS = ("unshare", "--mount", *READ_ONLY)
OWN_USER = ("unshare", "--user", "--map-root-user", "--mount", *READ_ONLY)
CORE = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
LIMITS = ("prlimit", f"--as={512 << 20}", "taskset", "--cpu-list", str(CORE))
HOMELESS = {
    "HOME": None,
    "XDG_CACHE_HOME": None,
    "MOSRT_CACHE": None,
    "PYTHONDONTWRITEBYTECODE": "1",
}
TRACED = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"


def container() -> tuple[str, ...]:
    """What runs a program in such a container; skips the test where the kernel forbids it."""
    for mounts in (OWN_MOUNTS, OWN_USER):
        before = (*mounts, *STRANGER, *LIMITS)
        if works(*before):
            return before
    pytest.skip("needs unshare, prlimit and taskset, and a kernel that allows mounts")


@pytest.mark.parametrize("model", ["nano", "nano-uncertainty"])
def test_the_samples_are_scored(model: str) -> None:
    before = container()
    outside = run("score", DATA, "-m", model, "--format", "json", "--threads", "1")
    inside = run("score", DATA, "-m", model, "--format", "json", before=before, variables=HOMELESS)
    assert inside.returncode == 0, inside.stderr
    assert inside.stderr.splitlines()[-1].startswith(
        b"overall" if model == "nano" else b"zero-shot"
    )
    assert json.loads(inside.stdout) == json.loads(outside.stdout)


def test_it_is_such_a_container() -> None:
    code = (
        "import os, pathlib, pwd\n"
        "try: pwd.getpwuid(os.getuid())\n"
        "except KeyError: print('nobody')\n"
        "try: pathlib.Path('new').touch()\n"
        "except OSError as exc: print(exc.strerror)\n"
        "print(len(os.sched_getaffinity(0)))"
    )
    done = run(before=container(), command=(sys.executable, "-c", code))
    assert done.stdout == b"nobody\nRead-only file system\n1\n"


@needs("strace", "-f", "-e", "trace=openat")
@pytest.mark.parametrize(
    "options",
    [(), ("--provider", "openvino-fp32"), ("-m", "nano-uncertainty", "--plot", "plot.png")],
    ids=["plain", "openvino", "plot"],
)
def test_no_file_is_written_but_the_cache_and_the_output(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    module = {"--plot": "matplotlib", "--provider": "openvino"}.get(options[-2] if options else "")
    if module is not None and find_spec(module) is None:
        pytest.skip(f"needs {module}")
    for name in ("out", "cache", "home"):
        (tmp_path / name).mkdir()
    shutil.copy(CLIP, tmp_path / "clip.wav")
    log = tmp_path / "log"
    variables: dict[str, str | None] = {
        "HOME": str(tmp_path / "home"),
        "MOSRT_CACHE": str(tmp_path / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    before = ("strace", "-f", "-s", "4096", "-e", f"trace={TRACED}", "-o", str(log))
    done = run(
        "score", "../clip.wav", *options, "-o", "out.csv", "--format", "csv",
        before=before, variables=variables, cwd=tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    paths = written(log, tmp_path / "out")
    assert str(tmp_path / "out" / "out.csv") in paths
    allowed = (str(tmp_path / "out"), str(tmp_path / "cache"), "/dev/null", "/dev/tty")
    assert [path for path in paths if not path.startswith(allowed)] == []
    assert list((tmp_path / "home").iterdir()) == []


def written(log: Path, folder: Path) -> list[str]:
    """Paths that a trace of strace shows to be written, made or renamed; relative to `folder`."""
    paths = []
    for line in log.read_text().splitlines():
        call, _, result = line.rpartition(" = ")
        if result.startswith("-1") or not call:
            continue
        if "open" in call.split("(")[0] and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", call):
            continue
        paths += [os.path.normpath(folder / name) for name in re.findall(r'"([^"]*)"', call)]
    return paths
