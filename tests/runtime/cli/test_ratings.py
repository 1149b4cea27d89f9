from pathlib import Path

import click
import pytest

from mosrt.cli.ratings import Rating, read_ratings


def test_a_csv_of_means(tmp_path: Path) -> None:
    file = tmp_path / "mos.csv"
    file.write_text('\ufeffsystem,path,mos\nA,"x, y.wav",3.5\n,z.wav,2\n', encoding="utf-8")
    assert read_ratings(file) == [
        Rating(path="x, y.wav", mos=3.5, system="A"), Rating(path="z.wav", mos=2.0)
    ]  # fmt: skip


def test_lines_of_several_listeners_are_averaged(tmp_path: Path) -> None:
    file = tmp_path / "mos.csv"
    file.write_text("path,mos,system,listener\na,1,s,x\nb,5,s,x\na,2,s,y\n")
    assert read_ratings(file) == [
        Rating(path="a", mos=1.5, system="s"), Rating(path="b", mos=5, system="s")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,score\na,1\n", "no column mos and path; the first line must be path,mos"),
        ("path,mos\na,good\n", "line 2, column mos: 'good' is not a number"),
        ("path,mos\na,nan\n", "line 2, column mos: 'nan'"),
        ("path,mos\na\n", "line 2: it has not as many cells"),
        ("path,mos\n,3\n", "line 2, column path: it is empty"),
        ("path,mos,system\na,1,s\na,2,t\n", "line 3: a has another system, speaker or dataset"),
        ("path,mos\n", "no ratings below the first line"),
        ("", "no column mos and path"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mos.csv"
    file.write_text(text)
    with pytest.raises(click.UsageError, match=message):
        read_ratings(file)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "mos.csv"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(click.UsageError, match="save it as CSV in UTF-8"):
        read_ratings(file)
