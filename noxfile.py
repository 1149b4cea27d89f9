"""What must hold before a change is merged. `nox` runs the first three sessions.

lowest   the runtime's tests with the oldest versions that pyproject.toml allows, without torch
docs     the documentation site; warnings are errors
check    lint, types, import contracts and every test, full-size models included
runtime  the runtime's tests on one Python version, with the newest versions and without torch
wheel    the wheel and the source distribution, in dist/
faults   hostile inputs (`-- fuzz`) or kills at random moments (`-- kill`), for as long as you like

Arguments after -- go to pytest: `nox -s check -- -m "not full"` leaves out what takes minutes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import nox

nox.options.sessions = ["lowest", "docs", "check"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.4.15"

PROJECT = nox.project.load_toml("pyproject.toml")
LOWEST_PYTHON = "3.10"
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
# A file stays with one process, since its tests share what they export.
IN_TWO = ("-n", "2", "--dist", "loadfile", "--durations", "15")
# What the runtime's tests use beside the runtime.
RUNTIME_TESTS = (
    "fastapi",
    "gunicorn",
    "httpx",
    "hypothesis",
    "jinja2",
    "librosa",
    "matplotlib",
    "onnx",
    "openapi-spec-validator",
    "opentelemetry-sdk",
    "openvino",
    "pillow",
    "prometheus-client",
    "psutil",
    "pytest",
    "pytest-xdist",
    "python-multipart",
    "pyyaml",
    "requests",
    "scipy",
    "starlette",
    "threadpoolctl",
    "uvicorn",
    "websockets",
)


def _interpreter(version: str) -> str:
    """Finds Python `version` on the path or with pyenv; else gives the one that runs nox."""
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


def _runtime_tests(session: nox.Session, *options: str) -> None:
    # The fuzzer and the kills need torch and onnx.
    tests = ("tests/runtime", "tests/faults", "--ignore-glob", "*/faults/*/*", "-m", "not full")
    session.run("pytest", *tests, *IN_TWO, *options, *session.posargs)


@nox.session
def check(session: nox.Session) -> None:
    """Lint, types, import contracts and tests."""
    # What is imported is compiled then; of torch and its like that is a small part.
    session.install("--no-compile", "-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("pytest", *IN_TWO, *session.posargs)


@nox.session(python=_interpreter(LOWEST_PYTHON))
def lowest(session: nox.Session) -> None:
    """The runtime with the oldest versions it allows, as on JetPack 6."""
    pinned = [re.sub(">=", "==", requirement) for requirement in PROJECT["project"]["dependencies"]]
    session.install(*pinned)
    session.install("--no-deps", ".")
    # The oldest ONNX Runtime's quantiser needs that onnx, and newer SciPy refuses the oldest NumPy.
    session.install(*RUNTIME_TESTS, "onnx<1.17", "scipy<1.17")
    # Again, since what tests bring along may have asked for newer ones.
    session.install(*pinned)
    # That quantiser uses what onnx deprecates. soundfile writes no MP3 of chosen bit rates then.
    _runtime_tests(
        session,
        "-W",
        "ignore:`mapping.TENSOR_TYPE:DeprecationWarning",
        "--ignore-glob",
        "*/test_audio_*.py",
    )


@nox.session(python=PYTHONS)
def runtime(session: nox.Session) -> None:
    """The runtime's tests without torch."""
    session.install(".", *RUNTIME_TESTS)
    _runtime_tests(session)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, in site/."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def wheel(session: nox.Session) -> None:
    """The wheel and the source distribution."""
    session.install("build")
    session.run("python", "-m", "build", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Hostile inputs or kills for as long as you like: `nox -s faults -- fuzz --minutes 60`."""
    session.install("--no-compile", "-e", ".[dev]")
    kind, *options = session.posargs or ["fuzz"]
    session.run("python", "-m", f"tests.faults.{kind}", *options)
