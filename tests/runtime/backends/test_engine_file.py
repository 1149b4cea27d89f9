import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mosrt
from mosrt.backends.engine_file import EngineFiles, EngineKey, Target, replacing_in_cache
from mosrt.bundle.manifest import File, Member

TARGET = Target(module="tensorrt", version="10.3.0", compute_capability="8.7")
KEY = EngineKey(graph="ab" * 32, target=TARGET, profile={"x": ((1, 2), (4, 2), (8, 2))})


def test_round_trip(tmp_path: Path) -> None:
    files = EngineFiles(tmp_path / "new" / "folder")
    content = bytes(range(256)) * 5000
    path = files.write(KEY, content, {"level": 3})
    assert path == files.path(KEY) == files.find(KEY.graph, TARGET)
    assert files.fault(path, KEY.graph, TARGET) is None
    with files.opened(path) as (header, engine):
        assert header.key == KEY
        assert header.facts == {"level": 3}
        assert engine == content
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    # The second line is JSON for whoever wants to know.
    assert json.loads(path.read_bytes().splitlines()[1])["compute_capability"] == "8.7"


def test_shapes_make_another_file(tmp_path: Path) -> None:
    files = EngineFiles(tmp_path)
    other = EngineKey(graph=KEY.graph, target=TARGET, profile={"x": ((1, 2), (4, 2), (9, 2))})
    assert files.path(KEY) != files.path(other)
    wide = files.write(other, b"wide", {})
    wide.replace(files.path(KEY))
    assert files.fault(files.path(KEY), KEY.graph, TARGET) == ("its name does not match its header")


def test_weights_count_as_much_as_the_graph() -> None:
    graph, one, two = (File(path=name, sha256=name * 64, bytes=1) for name in "abc")
    plain = Member(name="m", graph=graph).sha256
    digests = {Member(name="m", graph=graph, weights=each).sha256 for each in (one, two)}
    assert len({plain, *digests}) == 3


def test_the_cache_is_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path))
    assert EngineFiles().directory == tmp_path / "engines"


def test_what_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    @contextmanager
    def stops() -> Iterator[None]:
        with replacing_in_cache(path) as stream:
            stream.write(b"half")
            yield

    with pytest.raises(KeyboardInterrupt), stops():
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file where the folder should be")
    with pytest.raises(mosrt.ProviderError, match="set MOSRT_CACHE"):
        EngineFiles(tmp_path / "engines").write(KEY, b"", {})


@pytest.mark.parametrize("line", [b"", b"[]\n", b"{}\n", b'{"profile": 3}\n', b"\xff\n"])
def test_a_damaged_header(tmp_path: Path, line: bytes) -> None:
    files = EngineFiles(tmp_path)
    path = files.path(KEY)
    path.write_bytes(b"mosrt engine 1\n" + line + b"engine")
    assert files.fault(path, KEY.graph, TARGET) == "its header is damaged"
