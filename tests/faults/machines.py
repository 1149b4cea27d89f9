"""Runs mosrt as others find it: as another user, without capabilities, with odd descriptors."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DATA, HANG_S

CLIP = DATA / "flite_slt_16k_mono.wav"
MOSRT = (sys.executable, "-c", "from mosrt.cli.main import main; main()")
# A user who is in no list of users, and owns what this one owns.
STRANGER = ("unshare", "--user", "--map-user=54321")
# Root for whom the modes of files count.
NO_CAPABILITIES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


@functools.cache
def works(*before: str) -> bool:
    """Whether this system lets programs be run by `before`, such as strace."""
    if sys.platform != "linux" or shutil.which(before[0]) is None:
        return False
    return subprocess.run([*before, "true"], capture_output=True, timeout=HANG_S).returncode == 0


def needs(*before: str) -> pytest.MarkDecorator:
    """Skips a test where programs cannot be run by `before`."""
    return pytest.mark.skipif(not works(*before), reason=f"needs {before[0]}")


def modes_count() -> tuple[str, ...]:
    """What a command is run by so that modes of files count; skips the test if there is nothing."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs modes of files")
    if os.geteuid() != 0:
        return ()
    if not works(*NO_CAPABILITIES):
        pytest.skip("root ignores modes, and there is no setpriv")
    return NO_CAPABILITIES


def run(
    *arguments: str | bytes | Path,
    before: Sequence[str] = (),
    variables: Mapping[str, str | None] | None = None,
    command: Sequence[str] = MOSRT,
    **options: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Runs `mosrt` with arguments, and gives its status and what it wrote as bytes.

    Args:
        *arguments: The arguments.
        before: A program and its arguments that run it.
        variables: Environment variables to set, or with None to remove.
        command: The program, if it is not `mosrt`.
        **options: For `subprocess.run`.
    """
    environment = dict(os.environ)
    for name, value in (variables or {}).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    options = {"capture_output": True, "timeout": HANG_S, **options}
    return subprocess.run([*before, *command, *arguments], env=environment, **options)
