"""The cache costs time only: no home directory, none that exists, none that can be written to."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mosrt.host.cache import cache_directory

from .machines import CLIP, STRANGER, modes_count, needs, run

HOMELESS = {"HOME": None, "XDG_CACHE_HOME": None, "MOSRT_CACHE": None}
SCORED = b'"mos": 2.89'


@needs(*STRANGER)
@pytest.mark.parametrize("model", ["nano", "nano-uncertainty"])
def test_a_user_without_a_home(model: str) -> None:
    done = run("score", CLIP, "-m", model, "--format", "json", before=STRANGER, variables=HOMELESS)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 1


@needs(*STRANGER)
def test_where_the_cache_of_a_user_without_a_home_is() -> None:
    done = run("info", "--machine", before=STRANGER, variables=HOMELESS)
    assert b"none (no home directory; MOSRT_CACHE can name one)" in done.stdout


@needs(*STRANGER)
def test_engines_need_a_cache() -> None:
    code = "from mosrt.backends.engine_file import EngineFiles; EngineFiles()"
    command = (sys.executable, "-c", code)
    done = run(before=STRANGER, variables=HOMELESS, command=command)
    assert b"ProviderError: engines need a cache: set MOSRT_CACHE" in done.stderr


@pytest.mark.parametrize("home", ["/nonexistent", "", "/dev/null", "/proc"])
def test_homes_that_are_none(home: str) -> None:
    variables = {**HOMELESS, "HOME": home}
    provider = "openvino-fp32" if find_spec("openvino") else "cpu"
    done = run("score", CLIP, "--format", "json", "--provider", provider, variables=variables)
    assert done.returncode == 0, done.stderr
    assert SCORED in done.stdout


@pytest.mark.parametrize("kind", ["unwritable", "file"])
def test_a_cache_that_cannot_be_written(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")  # which caches models of any size
    place = tmp_path / "cache"
    if kind == "file":
        place.touch()
    else:
        place.mkdir(0o500)
    before = modes_count() if kind == "unwritable" else ()
    variables = {**HOMELESS, "MOSRT_CACHE": str(place)}
    options = ("--format", "json", "--provider", "openvino-fp32")
    done = run("score", CLIP, *options, before=before, variables=variables)
    assert done.returncode == 0, done.stderr
    assert SCORED in done.stdout


def test_a_relative_place_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The XDG specification says so, and a cache would appear in every working directory."""
    if sys.platform != "linux":
        pytest.skip("XDG_CACHE_HOME is of Linux")
    monkeypatch.delenv("MOSRT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / ".cache" / "mosrt"


@pytest.mark.parametrize("home", ["", "relative", "/nonexistent"])
def test_such_a_home_is_none(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOSRT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    assert cache_directory() is None or sys.platform == "win32"
