"""Whatever the files of a bundle are, opening it ends at once, with a score or a BundleError."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import mosrt
from mosrt import BundleError
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.writer import updated_bundle
from tests.conftest import HANG_S

from .bundles import GRAPH, edit, refused, score

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")


def zipped(bundle: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    target = bundle.with_name("bundle.zip")
    with zipfile.ZipFile(target, "w", method) as archive:
        for file in sorted(bundle.iterdir()):
            archive.write(file, file.name)
    return target


# A cache of the Hugging Face Hub


@pytest.fixture
def snapshot(tiny: Path, tmp_path: Path) -> Path:
    """A revision in a cache of the Hub, whose files are links."""
    repository = tmp_path / "hub" / "models--some--one"
    revision = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    revision.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny.iterdir())):
        shutil.copy(file, repository / "blobs" / f"{number:040x}")
        (revision / file.name).symlink_to(f"../../blobs/{number:040x}")
    return revision


def test_a_revision_in_the_cache_of_the_hub(snapshot: Path, tiny: Path, clips: list[Path]) -> None:
    assert score(snapshot, clips[0]).stdout == score(tiny, clips[0]).stdout != ""
    Bundle.open(snapshot).verify()
    assert Bundle.open(snapshot).model_card()


def test_a_link_to_a_revision(snapshot: Path, tmp_path: Path, clips: list[Path]) -> None:
    (tmp_path / "link").symlink_to(snapshot, target_is_directory=True)
    assert score(tmp_path / "link", clips[0]).exit_code == 0


@pytest.mark.parametrize(
    "target", ["{tmp}/secret", "../../../models--some--two/blobs/0", "/etc/hostname"]
)
@pytest.mark.parametrize("name", ["manifest.json", GRAPH, "model-card.md"])
def test_no_link_leaves_the_repository(
    snapshot: Path, tmp_path: Path, target: str, name: str
) -> None:
    for secret in (tmp_path / "secret", snapshot.parents[2] / "models--some--two/blobs/0"):
        secret.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(snapshot / name, secret)
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(target.replace("{tmp}", str(tmp_path)))
    with pytest.raises(BundleError, match="a link that leaves the bundle"):
        Bundle.open(snapshot).model_card()


def test_only_snapshots_have_links(snapshot: Path) -> None:
    elsewhere = snapshot.parents[1] / "elsewhere" / "0123abc"
    elsewhere.parent.mkdir()
    snapshot.rename(elsewhere)
    with pytest.raises(BundleError, match="a link that leaves the bundle"):
        Bundle.open(elsewhere)


# Zips


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_zips(copy: Path, clips: list[Path], method: int) -> None:
    whole = zipped(copy, method)
    assert score(whole, clips[0]).exit_code == 0
    with zipfile.ZipFile(whole) as archive:
        info = archive.getinfo(GRAPH)
        manifest = archive.getinfo("manifest.json")
    data = bytearray(whole.read_bytes())
    for first, size in ((info.header_offset, info.compress_size),
                        (manifest.header_offset, manifest.compress_size)):  # fmt: skip
        for offset in (60, 70, size // 2, size - 1):
            damaged = data.copy()
            damaged[first + offset] ^= 0x55
            whole.write_bytes(damaged)
            with pytest.raises(BundleError):
                mosrt.load(whole)


@pytest.mark.parametrize("offset", range(4, 30))
def test_each_byte_of_a_zips_headers(copy: Path, offset: int) -> None:
    whole = zipped(copy)
    data = whole.read_bytes()
    for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"):
        for bit in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            position = data.rindex(mark) + offset
            if position < len(damaged):
                damaged[position] ^= bit
                whole.write_bytes(damaged)
                try:
                    Bundle.open(whole).verify()
                except BundleError as exc:
                    assert "\n" not in str(exc)


def test_a_file_twice(copy: Path, clips: list[Path]) -> None:
    whole = zipped(copy)
    with zipfile.ZipFile(whole, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(GRAPH, (copy / GRAPH).read_bytes())
    refused(whole, clips[0], f"has '{GRAPH}' twice")


def test_a_zip_that_fills_a_disk(copy: Path, clips: list[Path]) -> None:
    size = 300 * 1024 * 1024
    edit(copy, lambda m: m["variants"]["fp32"]["members"][0]["graph"].update(bytes=size))
    (copy / GRAPH).unlink()
    whole = zipped(copy)
    with (
        zipfile.ZipFile(whole, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(GRAPH, "w") as member,
    ):
        for _ in range(300):
            member.write(bytes(1024 * 1024))
    refused(whole, clips[0], "unpack to")


def test_a_card_of_gigabytes(copy: Path, clips: list[Path]) -> None:
    (copy / "model-card.md").unlink()
    whole = zipped(copy)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("model-card.md", bytes(64 * 1024 * 1024))
    assert score(whole, clips[0]).exit_code == 0  # which needs no card
    with pytest.raises(BundleError, match="larger than"):
        Bundle.open(whole).model_card()
    with (copy / "model-card.md").open("wb") as card:
        card.truncate(2**40)
    with pytest.raises(BundleError, match="larger than"):
        Bundle.open(copy).model_card()
    with (copy / "manifest.json").open("r+b") as manifest:
        manifest.truncate(2**40)
    refused(copy, clips[0], "larger than")


def test_no_room_to_unpack(
    copy: Path, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = zipped(copy)
    usage = shutil._ntuple_diskusage(2**30, 2**30, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(whole, clips[0], "TMPDIR")
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    refused(whole, clips[0], "TMPDIR")


# What is neither a file nor a directory


Opened = tuple[str, str]
ODD_NAMES = ("", "manifest.json", GRAPH, "model-card.md")
ODD_KINDS = ("pipe", "loop", "device", "directory", "dangling")
# In a process of its own, which can be ended if it hangs.
OPEN_EACH = """
import json, sys
from mosrt import BundleError
from mosrt.bundle.bundle import Bundle
for bundle in sys.argv[1:]:
    try:
        said = Bundle.open(bundle).model_card() and ""
    except BundleError as exc:
        said = str(exc)
    print(json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module")
def opened(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Opened]:
    """Bundles in which a name is of another kind, or which are, and what opening them says."""
    folder = tmp_path_factory.mktemp("odd")
    cases = [(name, kind) for name in ODD_NAMES for kind in ODD_KINDS]
    for number, (name, kind) in enumerate(cases):
        copy = Path(shutil.copytree(tiny, folder / str(number)))
        path = copy / name
        if name:
            path.unlink()
        else:
            shutil.rmtree(path)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "directory":
            path.mkdir()
        else:
            path.symlink_to("nothing")
    bundles = [str(folder / str(number)) for number in range(len(cases))]
    command = [sys.executable, "-c", OPEN_EACH, *bundles]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    return dict(zip(cases, zip(bundles, answers, strict=True), strict=True))


@posix
@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("kind", ODD_KINDS)
def test_what_is_no_file(opened: dict[tuple[str, str], Opened], name: str, kind: str) -> None:
    bundle, said = opened[name, kind]
    if (name, kind) != ("model-card.md", "dangling"):  # which is a bundle without a card
        assert bundle in said
        assert "\n" not in said


def test_a_directory_of_the_right_size_as_graph(copy: Path, clips: list[Path]) -> None:
    (copy / GRAPH).unlink()
    (copy / GRAPH).mkdir()
    size = (copy / GRAPH).stat().st_size
    edit(copy, lambda m: m["variants"]["fp32"]["members"][0]["graph"].update(bytes=size))
    refused(copy, clips[0], "not a file")


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "nul\0byte", "\udcff"])
def test_names_that_no_file_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        mosrt.load(tmp_path / name)
    with pytest.raises(BundleError):
        mosrt.load(name)


def test_a_hostile_bundle_is_not_copied(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (copy / "extra").mkdir()
    hostile: list[Callable[[Path], object]] = [
        lambda path: path.symlink_to(tmp_path / "secret"),
        lambda path: path.symlink_to(tmp_path, target_is_directory=True),
        lambda path: path.symlink_to("..", target_is_directory=True),
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("nothing"),
    ]
    if hasattr(os, "mkfifo"):
        hostile.append(os.mkfifo)
    for number, make in enumerate(hostile):
        place = copy / "extra" / str(number)
        make(place)
        for out in (copy, tmp_path / "out"):
            with pytest.raises(BundleError), updated_bundle(copy, out):
                pass
        place.unlink()
    with updated_bundle(copy, copy):
        pass
    assert not (tmp_path / "out").exists()
