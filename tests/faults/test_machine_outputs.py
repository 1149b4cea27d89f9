"""Output files: what is replaced, what is written to in place, and what is left alone."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from mosrt.host.files import replacing
from tests.conftest import HANG_S

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


def write(path: Path, text: str = "new") -> None:
    with replacing(path) as part:
        part.write_text(text)


def fail_halfway(path: Path) -> None:
    with replacing(path) as part:
        part.write_text("half")
        raise OSError(28, "No space left on device")


def parts(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "out.csv"
    (tmp_path / "second").symlink_to("far/out.csv")
    link = tmp_path / "link"
    link.symlink_to("second")
    write(link)  # the target does not exist yet
    write(link, "newer")
    assert link.is_symlink()
    assert target.read_text() == "newer"
    assert parts(tmp_path) + parts(tmp_path / "far") == []


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        write(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_the_mode_is_kept(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "out.csv"
    file.write_text("old")
    file.chmod(mode)
    with replacing(file) as part:
        assert stat.S_IMODE(part.stat().st_mode) & 0o077 == 0
        part.write_text("new")
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_the_owner_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    file.touch(0o600)
    os.chown(file, 12345, 23456)
    write(file)
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 23456)


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    file.write_text("old")
    with pytest.raises(OSError, match="No space"):
        fail_halfway(file)
    assert file.read_text() == "old"
    assert parts(tmp_path) == []


def test_a_device_stays_a_device() -> None:
    write(Path("/dev/null"))
    assert Path("/dev/null").is_char_device()
    assert not list(Path("/dev").glob(".null*"))


def test_a_link_to_a_device(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    write(tmp_path / "null")
    assert (tmp_path / "null").is_symlink()
    assert Path("/dev/null").is_char_device()


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()), daemon=True)
    reader.start()
    write(fifo)
    reader.join(HANG_S)
    assert read == ["new"]
    assert fifo.is_fifo()


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs /dev/fd")
def test_an_open_file_is_not_cut_off(tmp_path: Path) -> None:
    """As `-o /dev/stdout` with standard output redirected to a file."""
    file = tmp_path / "out.txt"
    with file.open("w+") as stream:
        inode = file.stat().st_ino
        write(Path(f"/dev/fd/{stream.fileno()}"))
        assert file.stat().st_ino == inode
        assert stream.read() == "new"


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path / "no" / "out.csv")
    assert caught.value.filename == str(tmp_path / "no" / "out.csv")


def test_the_longest_name_fits(tmp_path: Path) -> None:
    file = tmp_path / ("é" * 127)  # 254 bytes in UTF-8
    write(file)
    assert file.read_text() == "new"


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.csv"))
    write(file)
    assert file.read_text() == "new"
