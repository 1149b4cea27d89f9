"""A bundle to damage, and fixtures of the tests of the runtime."""

import shutil
from pathlib import Path

import pytest

from tests.runtime.conftest import backend, machine

__all__ = ["backend", "copy", "machine"]


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))
