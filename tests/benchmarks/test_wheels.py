import hashlib
import zipfile
from pathlib import Path

import pytest

from mosrt_bench.wheels import LIST, PiecesError, install, join, main, split


def wheel(folder: Path, name: str = "hello") -> Path:
    """A wheel that pip takes, of one module, whose text does not compress to nothing."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "WORD = 'hello'\n" + "# filled\n" * 200)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    return path


def test_pieces_make_the_wheel_again_and_pip_installs_it(tmp_path: Path) -> None:
    whole = wheel(tmp_path)
    pieces = tmp_path / "pieces"
    split([whole], pieces, 500)
    sizes = [path.stat().st_size for path in sorted(pieces.glob("*.whl.*"))]
    assert len(sizes) >= 3
    assert set(sizes[:-1]) == {500}
    assert sum(sizes) == whole.stat().st_size
    digest = hashlib.sha256(whole.read_bytes()).hexdigest()
    assert (pieces / LIST).read_text() == f"{digest}  {whole.name}\n"
    assert install(pieces, tmp_path / "site") == [whole.name]
    assert (tmp_path / "site" / "hello.py").read_text().startswith("WORD = 'hello'")


def test_the_list_grows_and_a_wheel_split_anew_leaves_no_old_pieces(tmp_path: Path) -> None:
    pieces = tmp_path / "pieces"
    first, second = wheel(tmp_path), wheel(tmp_path, "other")
    split([first], pieces, 300)
    split([first, second], pieces, 10_000)
    assert [path.name for path in sorted(pieces.glob("*.whl.*"))] == [
        f"{first.name}.000",
        f"{second.name}.000",
    ]
    (tmp_path / "out").mkdir()
    assert [path.name for path in join(pieces, tmp_path / "out")] == [first.name, second.name]


@pytest.mark.parametrize("lost", ["first", "middle", "last", "damaged", "list"])
def test_what_is_not_whole_is_not_installed(tmp_path: Path, lost: str) -> None:
    pieces = tmp_path / "pieces"
    split([wheel(tmp_path)], pieces, 500)
    parts = sorted(pieces.glob("*.whl.*"))
    if lost == "damaged":
        parts[1].write_bytes(b"?" * 500)
    else:
        chosen = {"first": parts[0], "middle": parts[1], "last": parts[-1], "list": pieces / LIST}
        chosen[lost].unlink()
    ran: list[list[str]] = []
    with pytest.raises(PiecesError, match="list" if lost == "list" else "pieces"):
        install(pieces, tmp_path / "site", ran.append)
    assert ran == []


def test_the_list_names_wheels_of_the_folder_only(tmp_path: Path) -> None:
    (tmp_path / LIST).write_text(f"{'0' * 64}  ../elsewhere.whl\n")
    with pytest.raises(PiecesError, match=r"elsewhere\.whl"):
        join(tmp_path, tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, pieces = wheel(tmp_path), tmp_path / "pieces"
    main(["split", str(whole), "--out", str(pieces), "--part-mb", "1"])
    (pieces / f"{whole.name}.000").unlink()
    with pytest.raises(SystemExit, match="Error: "):
        main(["install", str(pieces), "--target", str(tmp_path / "site")])
    assert capsys.readouterr().out == ""
