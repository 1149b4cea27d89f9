import os
import sys
from pathlib import Path

import pytest

from mosrt.host.cache import Cache, cache_directory


class Engine:
    """Makes and loads entries of one file, and counts."""

    def __init__(self, cache: Cache, version: int = 1) -> None:
        self.cache = cache
        self.version = version
        self.made = 0
        self.refuses = b""

    def get(self, name: str = "graph") -> bytes | None:
        return self.cache.get(
            {"name": name}, {"version": self.version}, files={}, make=self._make, load=self._load
        )

    def _make(self, entry: Path) -> None:
        assert list(entry.iterdir()) == []
        self.made += 1
        (entry / "blob").write_bytes(b"%d" % self.version)

    def _load(self, entry: Path) -> bytes:
        blob = (entry / "blob").read_bytes()
        if blob == self.refuses:
            raise RuntimeError("no such engine")
        return blob


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(Cache(tmp_path / "deep" / "cache"))


def blobs(engine: Engine) -> list[Path]:
    return sorted(engine.cache.directory.rglob("blob"))


def test_made_once(engine: Engine) -> None:
    assert [engine.get(), engine.get()] == [b"1", b"1"]
    assert engine.made == 1
    assert Engine(engine.cache).get() == b"1"
    other = Engine(engine.cache)
    other.get("other")
    assert other.made == 1
    assert len(blobs(engine)) == 2
    assert len(list(engine.cache.directory.iterdir())) == 2  # and nothing half made


def test_stale_is_replaced(engine: Engine) -> None:
    engine.get()
    newer = Engine(engine.cache, version=2)
    assert newer.get() == b"2"
    assert newer.made == 1
    assert len(blobs(engine)) == 1


@pytest.mark.parametrize("damage", ["truncated", "changed", "gone", "more", "description"])
def test_damaged_is_replaced(engine: Engine, damage: str) -> None:
    engine.get()
    (blob,) = blobs(engine)
    if damage == "truncated":
        blob.write_bytes(b"")
    elif damage == "changed":  # in place, with the size and the time that it had
        status = blob.stat()
        blob.write_bytes(b"X")
        os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif damage == "gone":
        blob.unlink()
    elif damage == "more":
        (blob.parent / "other").touch(0o600)
    else:
        (blob.parent / "entry.json").write_text("{")
    assert engine.get() == b"1"
    assert engine.made == 2
    assert [path.name for path in sorted(blob.parent.iterdir())] == ["blob", "entry.json"]


def test_what_does_not_load_is_made_again_once(engine: Engine) -> None:
    engine.get()
    engine.refuses = b"1"
    assert engine.get() is None
    assert engine.made == 2
    assert blobs(engine) == []


def test_a_failing_engine_leaves_nothing(engine: Engine) -> None:
    def full_disk(_: Path) -> None:
        raise RuntimeError("no space left")

    assert engine.cache.get({}, {}, files={}, make=full_disk, load=Path.read_bytes) is None
    assert list(engine.cache.directory.iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"  # which root, too, cannot make a directory in
    file.touch()
    assert Engine(Cache(file / "cache")).get() is None


def test_a_read_only_cache_still_serves(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.get()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert engine.get() == b"1"
    assert engine.made == 1
    assert engine.get("other") is None


def test_another_process_may_be_first(engine: Engine) -> None:
    rival = Engine(engine.cache)
    make = engine._make

    def late(entry: Path) -> None:
        make(entry)
        rival.get()

    engine._make = late  # type: ignore[method-assign]
    assert engine.get() == b"1"
    assert (engine.made, rival.made) == (1, 1)
    assert len(list(engine.cache.directory.iterdir())) == 1


def test_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("MOSRT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_directory() == tmp_path / "Library/Caches/mosrt"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == tmp_path / ".cache/mosrt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg/mosrt"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_directory() == tmp_path / "local/mosrt/Cache"
