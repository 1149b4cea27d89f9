"""A target is old or new, never half, whenever a process is killed; leftovers are cleaned."""

import os
import random
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mosrt.host.files import recover_directory, replacing, replacing_directory
from tests.conftest import HANG_S

LOOP = """
import itertools, sys
from pathlib import Path
from mosrt.host.files import replacing, replacing_directory
target = Path(sys.argv[1])
print("ready", flush=True)
for number in itertools.count():
    if sys.argv[2] == "directory":
        with replacing_directory(target) as part:
            for name in "abc":
                (part / name).write_text(str(number) * 1000)
    else:
        with replacing(target) as part:
            part.write_text(str(number) * 1000)
"""
WITHOUT_EXCHANGE = """
import ctypes, os, sys
from pathlib import Path
from mosrt.host import files
ctypes.CDLL = lambda *_, **__: object()
rename, calls = Path.rename, []
def dying(self, target):
    calls.append(target)
    if len(calls) == 3:  # refused, then the old one is put aside, then the new one takes its place
        os.kill(os.getpid(), 9)
    return rename(self, target)
Path.rename = dying
with files.replacing_directory(Path(sys.argv[1])) as part:
    (part / "a").write_text("new")
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="the exchange is Linux's")


def texts(target: Path, kind: str) -> set[str]:
    files = [target / name for name in "abc"] if kind == "directory" else [target]
    return {file.read_text() for file in files}


@linux
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_killed_at_any_moment(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "directory":
        with replacing_directory(target) as part:
            for name in "abc":
                (part / name).write_text("old")
    else:
        target.write_text("old")
    moments = random.Random(0)
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, target, kind], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            until = time.monotonic() + moments.uniform(0.0, 0.03)
            while time.monotonic() < until:
                assert target.exists()
            process.kill()
        (text,) = texts(target, kind)
        assert text == "old" or text == text[: len(text) // 1000] * 1000 != ""
    done = subprocess.run(
        [sys.executable, "-c", LOOP.replace("itertools.count()", "[1]"), target, kind]
    )
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be killed like this")
def test_without_an_exchange_the_next_run_recovers(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").write_text("old")
    subprocess.run([sys.executable, "-c", WITHOUT_EXCHANGE, target], check=False)
    assert not target.exists()
    recover_directory(target)
    assert (target / "a").read_text() == "old"
    subprocess.run([sys.executable, "-c", WITHOUT_EXCHANGE, target], check=False)
    with pytest.raises(ZeroDivisionError), replacing_directory(target):
        raise ZeroDivisionError
    assert (target / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_living_process_makes_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "one") as one, replacing_directory(tmp_path / "two") as two:
        one.write_text("1")
        code = LOOP.replace("itertools.count()", "[1]")
        subprocess.run([sys.executable, "-c", code, tmp_path / "three", "file"], check=True)
        assert one.exists()
        assert two.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")

    def interrupted() -> None:
        with replacing(target) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_mode_and_links_stay(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to("deep/target")
    with replacing(link) as part:
        assert stat.S_IMODE(part.stat().st_mode) & 0o077 == 0  # nobody else reads it meanwhile
        part.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    with replacing_directory(folder) as part:
        (part / "a").touch()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with replacing(pipe) as part, part.open("w") as stream:
        stream.write("rows")
    reader.join(HANG_S)
    assert read == ["rows"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "a\nb", "…"])
def test_every_name_that_a_file_may_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    for _ in range(2):
        with replacing(tmp_path / name) as part:
            part.write_text("1")
        with replacing_directory(tmp_path / "folder" / name) as part:
            (part / "a").touch()
    assert [path.name for path in tmp_path.glob("[!f]*")] == [name]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [name]


def test_a_directory_takes_no_files_place(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    with pytest.raises(OSError, match="target"), replacing_directory(target):
        pass
    assert target.read_text() == "old"
