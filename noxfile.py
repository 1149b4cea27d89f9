"""What must hold before a change is done; `nox` runs all of it, each session in an environment.

check   lint, types and every test, full-size models included, with everything installed
lowest  the runtime's tests with the oldest versions that pyproject.toml allows, without torch
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import nox

nox.options.sessions = ["check", "lowest"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.4.15"

PROJECT = nox.project.load_toml("pyproject.toml")
LOWEST_PYTHON = "3.10"
# A file stays with one process, since its tests share what they export.
IN_TWO = ("-n", "2", "--dist", "loadfile", "--durations", "15")


def _interpreter(version: str) -> str:
    """A working Python of `version`, from the path or from pyenv; else the one that runs nox."""
    candidates = [[f"python{version}"]]
    if shutil.which("pyenv"):
        latest = subprocess.run(["pyenv", "latest", version], capture_output=True, text=True)
        prefix = subprocess.run(
            ["pyenv", "prefix", latest.stdout.strip()], capture_output=True, text=True
        )
        candidates.append([f"{prefix.stdout.strip()}/bin/python"])
    for candidate in candidates:
        try:
            probe = subprocess.run([*candidate, "--version"], capture_output=True, text=True)
        except OSError:
            continue
        if probe.stdout.startswith(f"Python {version}."):
            return candidate[0]
    return sys.executable


@nox.session
def check(session: nox.Session) -> None:
    """Lint, types and tests."""
    # What is imported is compiled then; of torch and its like that is a small part.
    session.install("--no-compile", "-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("pytest", *IN_TWO, *session.posargs)


@nox.session(python=_interpreter(LOWEST_PYTHON))
def lowest(session: nox.Session) -> None:
    """The runtime with the oldest versions it allows, as on JetPack 6."""
    pinned = [re.sub(">=", "==", requirement) for requirement in PROJECT["project"]["dependencies"]]
    session.install(*pinned)
    session.install("--no-deps", ".")
    session.install(
        "hypothesis",
        "librosa",
        "matplotlib",
        "pillow",
        "psutil",
        "pytest",
        "pytest-xdist",
        "scipy",
        "threadpoolctl",
    )
    # Again, since what tests bring along may have asked for newer ones.
    session.install(*pinned)
    session.run("pytest", "tests/runtime", "-m", "not full", *IN_TWO, *session.posargs)
