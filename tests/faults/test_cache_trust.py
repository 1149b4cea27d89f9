"""A cache gives what it would give without one, whatever lies in it and whoever owns it."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from mosrt.backends.engine_file import EngineFiles, EngineKey, Target
from mosrt.host.cache import Cache
from mosrt.host.files import sha256_of
from tests.standins.resealed import resealed

GRAPH = "model.fold0.fp32.onnx"
needs_users = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners of files")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory; no model is too small for it, and no file to be remembered."""
    monkeypatch.setattr("mosrt.backends.ort.WORTH_CACHING_BYTES", 0)
    monkeypatch.setattr("mosrt.host.cache.WORTH_REMEMBERING_BYTES", 0)
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mos(speech: npt.NDArray[np.float32]) -> Callable[[Path], float]:
    def scored(bundle: Path) -> float:
        with mosrt.load(bundle, provider="cpu", threads=1) as scorer:
            return scorer.score(speech, 16_000, views=1).mos

    return scored


def damage(file: Path, *, offset: int = -100) -> None:
    """Flips a bit in place; the size and the time of the last change stay as they were."""
    status = file.stat()
    data = bytearray(file.read_bytes())
    data[offset] ^= 0x10
    with file.open("r+b") as stream:
        stream.write(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def settle() -> None:
    """Lets the clock of the file system tick, so that hashes of files are remembered."""
    time.sleep(0.06)


def test_damaged_weights_do_not_poison(
    tiny: Path, copy: Path, kept: Path, mos: Callable[[Path], float]
) -> None:
    good = (copy / GRAPH).read_bytes()
    damage(copy / GRAPH)
    with pytest.raises(mosrt.BundleError, match="SHA-256"):
        mos(copy)
    assert len(list(kept.glob("*/entry.json"))) == 1  # of the other network
    right = mos(tiny)
    (copy / GRAPH).write_bytes(good)
    assert mos(copy) == right
    settle()
    mos(copy)
    damage(copy / GRAPH)  # after the good one's hash was remembered
    with pytest.raises(mosrt.BundleError, match="SHA-256"):
        mos(copy)


def test_a_bundle_that_claims_anothers_hashes(
    tiny: Path, copy: Path, kept: Path, mos: Callable[[Path], float]
) -> None:
    right = mos(tiny)
    shutil.rmtree(kept)
    shutil.copy(copy / "model.fold1.fp32.onnx", copy / GRAPH)  # other weights of the same size
    with pytest.raises(mosrt.BundleError, match="SHA-256"):
        mos(copy)
    assert mos(tiny) == right
    assert mos(resealed(copy)) != right
    assert mos(tiny) == right


@pytest.mark.full
@pytest.mark.parametrize("settled", [True, False])
def test_a_damaged_entry_is_made_again(
    tiny: Path, kept: Path, mos: Callable[[Path], float], settled: bool
) -> None:
    right = mos(tiny)
    if settled:
        settle()
        assert mos(tiny) == right
    files = [file for file in kept.rglob("*") if file.is_file()]
    assert len(files) > 4
    for file in files:
        for offset in (0, file.stat().st_size // 2):
            damage(file, offset=offset)
            assert mos(tiny) == right, file
    assert all(sha == sha256_of(entry.parent / name)
               for entry in kept.glob("*/entry.json")
               for name, (_, sha) in json.loads(entry.read_text())["files"].items())  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"files": 1}', "[[], 1, 2]", "\xff", "[" * 9999]
)
def test_descriptions_and_notes_that_are_none(
    tiny: Path, kept: Path, mos: Callable[[Path], float], text: str
) -> None:
    right = mos(tiny)
    settle()
    mos(tiny)
    for file in [*kept.glob("*/entry.json"), *kept.glob("hashes/*")]:
        file.write_text(text, encoding="latin-1")
    assert mos(tiny) == right


@pytest.mark.parametrize("kind", ["file", "link", "loop", "directory"])
def test_an_entry_that_is_something_else(
    tiny: Path, kept: Path, mos: Callable[[Path], float], kind: str, tmp_path: Path
) -> None:
    right = mos(tiny)
    for place in (*kept.glob("*/entry.json"), *kept.glob("*/optimised.onnx"), *kept.iterdir()):
        if not place.exists():
            continue
        if place.is_dir():
            place.rename(tmp_path / f"moved-{place.name}")
        else:
            place.unlink()
        if kind == "file":
            place.touch()
        elif kind == "link":
            place.symlink_to(tmp_path)
        elif kind == "loop":
            place.symlink_to(place.name)
        else:
            place.mkdir()
        assert mos(tiny) == right, place


@needs_users
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777])
def test_a_directory_that_others_can_write_to(
    tiny: Path, kept: Path, mos: Callable[[Path], float], mode: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    kept.mkdir()
    kept.chmod(mode)
    with caplog.at_level(logging.WARNING, "mosrt"):
        right = mos(tiny)
        assert mos(tiny) == right
    assert list(kept.iterdir()) == []
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"others can write to {kept} (mode {mode:o})" in warning
    kept.chmod(0o700)
    assert mos(tiny) == right
    assert len(list(kept.glob("*/entry.json"))) == 2


@needs_users
def test_a_directory_that_others_can_replace(
    tiny: Path, kept: Path, mos: Callable[[Path], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode, n_entries in ((0o777, 0), (0o1777, 2), (0o775, 2)):
        shared = kept.parent / f"{mode:o}"
        (shared / "deep").mkdir(parents=True)
        shared.chmod(mode)
        monkeypatch.setenv("MOSRT_CACHE", str(shared / "deep" / "cache"))
        mos(tiny)
        assert len(list(shared.rglob("entry.json"))) == n_entries, mode


@needs_users
def test_an_entry_of_pipes_and_devices_does_not_hang(
    tiny: Path, kept: Path, mos: Callable[[Path], float]
) -> None:
    right = mos(tiny)
    pipe, device = kept.glob("*/entry.json")
    pipe.unlink()
    os.mkfifo(pipe)
    device.unlink()
    device.symlink_to("/dev/zero")
    assert mos(tiny) == right


@needs_users
@pytest.mark.parametrize("what", ["entry", "file"])
def test_an_entry_that_others_can_write_to(
    tiny: Path, kept: Path, mos: Callable[[Path], float], what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    right = mos(tiny)
    place = next(kept.glob("*/optimised.onnx"))
    place = place.parent if what == "entry" else place
    place.chmod(0o777)
    with caplog.at_level(logging.WARNING, "mosrt"):
        assert mos(tiny) == right
    assert f"others can write to {place}" in caplog.text


@needs_root
@pytest.mark.parametrize("what", ["cache", "entry", "file"])
def test_another_owner(
    tiny: Path, kept: Path, mos: Callable[[Path], float], what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    right = mos(tiny)
    graph = next(kept.glob("*/optimised.onnx"))
    place = {"cache": kept, "entry": graph.parent, "file": graph}[what]
    os.chown(place, 12_345, 12_345)
    with caplog.at_level(logging.WARNING, "mosrt"):
        assert mos(tiny) == right
    assert f"{place} belongs to another user (number 12345)" in caplog.text


@needs_users
def test_a_cache_is_made_for_this_user_alone(
    tiny: Path, kept: Path, mos: Callable[[Path], float]
) -> None:
    before = os.umask(0)
    try:
        right = mos(tiny)
    finally:
        os.umask(before)
    for path in (kept, *kept.rglob("*")):
        assert path.stat().st_mode & 0o022 == 0, path
    assert mos(tiny) == right


@needs_users
def test_engines_that_others_can_write(tmp_path: Path) -> None:
    target = Target(module="tensorrt", version="10.3.0", compute_capability="8.7")
    key = EngineKey(graph="ab" * 32, target=target, profile={"x": ((1,), (1,), (1,))})
    files = EngineFiles(tmp_path / "engines")
    before = os.umask(0)
    try:
        path = files.write(key, b"engine", {})
        path.chmod(0o666)
        files.write(key, b"engine", {})  # which is for this user alone again
    finally:
        os.umask(before)
    assert files.find(key.graph, target) == path
    for place in (path, path.parent):
        mode = place.stat().st_mode
        place.chmod(0o777)
        with pytest.raises(mosrt.ProviderError, match="others can write to"):
            files.find(key.graph, target)
        place.chmod(mode)


def test_a_hash_is_remembered_while_the_file_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mosrt.host.cache.WORTH_REMEMBERING_BYTES", 0)
    file = tmp_path / "file"
    file.write_bytes(b"content of the file")
    settle()
    right = Cache(tmp_path / "cache").sha256_of(file)
    assert right == sha256_of(file)
    monkeypatch.setattr("mosrt.host.cache.sha256_of", lambda _: "read again")
    assert Cache(tmp_path / "cache").sha256_of(file) == right
    (tmp_path / "link").symlink_to(file)
    assert Cache(tmp_path / "cache").sha256_of(tmp_path / "link") == right
    changes: list[Callable[[], object]] = [
        lambda: damage(file, offset=3),
        lambda: file.write_bytes(b"content of another."),
        lambda: os.utime(file),
        lambda: (file.rename(tmp_path / "old"), shutil.copy2(tmp_path / "old", file)),
    ]
    for change in changes:
        change()
        assert Cache(tmp_path / "cache").sha256_of(file) == "read again"


def test_what_changes_while_an_entry_is_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"right")
    cache = Cache(tmp_path / "cache")

    def make(entry: Path) -> None:
        (entry / "made").write_bytes(file.read_bytes())
        file.write_bytes(b"wrong")

    files = {file: sha256_of(file)}
    loaded = cache.get(
        {}, {}, files=files, make=make, load=lambda entry: (entry / "made").read_bytes()
    )
    assert loaded is None
    assert not list(cache.directory.glob("*/entry.json"))
