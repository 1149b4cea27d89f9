"""The command line with odd names, encodings, descriptors, disks and outputs."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from mosrt.cli.terminal import json_text, printable

from .machines import CLIP, MOSRT, modes_count, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX names and shells")

NAMES = [b"=1+1.wav", b"+x.wav", b"@x.wav", b"a\nb.wav", b"\x1b[31mred.wav", b"\xff\xfe.wav",
         "é.wav".encode(), b"\rover.wav", "\u202egpj.wav".encode(), b"\xc2\x9b2J.wav"]  # fmt: skip
RAW = (b"\x1b", b"\r", b"\xc2\x9b", "\u202e".encode())
ENCODINGS: list[dict[str, str | None]] = [
    {},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of clips with odd names."""
    folder = tmp_path / "odd"
    folder.mkdir()
    samples, rate_hz = soundfile.read(CLIP, frames=8_000)
    clip = tmp_path / "short.wav"
    soundfile.write(clip, samples, rate_hz)
    for name in NAMES:
        shutil.copy(clip, folder / os.fsdecode(name))
    return folder


@pytest.mark.parametrize("variables", ENCODINGS)
@pytest.mark.parametrize("kind", ["table", "json"])
def test_odd_names_arrive_as_text(odd: Path, kind: str, variables: dict[str, str | None]) -> None:
    target = odd.parent / "out"
    streams_only = "PYTHONIOENCODING" in variables
    for options in ((), ("-o", target))[: 1 if streams_only else 2]:
        done = run("score", ".", "--format", kind, *options, cwd=odd, variables=variables)
        assert done.returncode == 0, done.stderr
        text = target.read_bytes() if options else done.stdout
        assert not [mark for mark in RAW if mark in text + done.stderr]
        if kind == "json":
            paths = [os.fsencode(record["path"]) for record in json.loads(text)]
            assert variables.get("LC_ALL") or sorted(paths) == sorted(NAMES)
        else:
            assert len(text.splitlines()) == 1 + len(NAMES)


def test_spreadsheets_find_no_formula(odd: Path) -> None:
    table = run("score", ".", "--format", "csv", "-m", "nano-uncertainty", cwd=odd).stdout
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    assert {"'=1+1.wav", "'+x.wav", "'@x.wav", "'\\rover.wav", "a\\nb.wav"} <= {
        row["path"] for row in rows
    }
    assert all(float(row["uncertainty"]) > 0 for row in rows)  # numbers stay numbers


def test_errors_are_one_line_of_text() -> None:
    for arguments in (
        ("score", "a\x1b[2J\nb", "--on-bad-audio", "error"),
        ("score", "-\x1bz"),
        ("\x1b]0;x",),
        ("info", "./\x1b[2J\n"),
        ("score", "x", "-m", "\x1b\n./y"),
    ):
        done = run(*arguments)
        assert done.returncode in {1, 2, 3}
        assert b"\x1b" not in done.stderr
        assert b"\\x1b" in done.stderr


def test_model_cards_and_manifests_are_text(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "b")
    (tmp_path / "b" / "model-card.md").write_bytes(b"# A\r\n\x1b]0;owned\x07\xc2\x9b31m\n")
    text = run("info", tmp_path / "b").stdout
    assert b"# A\n\\x1b]0;owned\\x07\\x9b31m\n" in text
    shown = run("info", tmp_path / "b", "--format", "json").stdout
    assert not {0x1B, 0x07, 0x9B} & set(shown.decode().encode("latin-1", "replace"))
    assert json.loads(shown)["model_card"].endswith("\x1b]0;owned\x07\x9b31m\n")


def test_escapes() -> None:
    assert printable("a\tb\x7f\ud800é…") == "a\\tb\\x7f\\ud800é…"
    assert printable("\u061c\u200b\ufeff") == "\\u061c\\u200b\\ufeff"
    value = {"a": "\x9b\u202e\udcff\n\u061c\u2060"}
    assert json.loads(json_text(value)) == value
    assert json_text(value).isprintable()


def shell(
    script: str, *arguments: str | Path, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Runs a shell script in which "$@" is mosrt with arguments."""
    return run(*MOSRT, *arguments, command=("sh", "-c", script, "sh"), **options)


@pytest.mark.parametrize(
    ("script", "arguments", "status", "message"),
    [
        ('"$@" >&-', ("score", CLIP), 3, b"standard output: it is closed"),
        ('"$@" >&-', ("info",), 3, b"standard output: it is closed"),
        ('"$@" <&-', ("score", "-"), 3, b"standard input is closed"),
        ('"$@" 2>&-', ("score", CLIP), 0, b""),
        ('"$@" <&- >&- 2>&-', ("score", CLIP), 3, b""),
        ('"$@" <&- >&- 2>&-', ("score", CLIP, "-o", "out"), 0, b""),
        ('"$@" >/dev/full', ("score", CLIP), 3, b"standard output: No space left on device"),
        ('"$@" >/dev/full', ("info", "--list"), 3, b"standard output: No space left on device"),
        ('"$@" >/dev/full', ("--help",), 3, b"standard output: No space left on device"),
        ('"$@" 2>/dev/full', ("score", CLIP), 0, b""),
        ('"$@" -o /dev/full', ("score", CLIP), 3, b"/dev/full: cannot be written (No space"),
        ('ulimit -f 0; "$@" -o new | cat', ("score", CLIP), 0, b"new: cannot be written (File too"),
    ],
)
def test_descriptors_and_disks(
    script: str, arguments: tuple[str, ...], status: int, message: bytes, tmp_path: Path
) -> None:
    if "/dev/full" in script and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    done = shell(script, *arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert done.stderr.count(b"Error") == bool(message)
    assert b"Traceback" not in done.stderr
    if "out" in arguments:
        assert CLIP.name in (tmp_path / "out").read_text()


def test_a_reader_that_wants_no_more(tmp_path: Path) -> None:
    clips = [CLIP] * 20
    done = shell('{ "$@"; echo $? >status; } | head -n 1', "score", *clips, cwd=tmp_path)
    assert done.stdout.startswith(b"path")
    assert (tmp_path / "status").read_text() == "3\n"
    assert b"Error" not in done.stderr
    assert b"Exception" not in done.stderr


def test_standard_output_by_name(tmp_path: Path) -> None:
    plain = run("score", CLIP).stdout
    assert run("score", CLIP, "-o", "-", cwd=tmp_path).stdout == plain
    done = shell(
        '{ echo before; "$@"; } >both; cat both', "score", CLIP, "-o", "/dev/stdout", cwd=tmp_path
    )
    assert done.stdout == b"before\n" + plain
    (tmp_path / "both").unlink()
    assert run("score", "").returncode == 2
    assert list(tmp_path.iterdir()) == []
    for command in (("fit-mos", CLIP, "-m", "x"), ("export", "triton", "nano")):
        done = run(*command, "-o", "-", cwd=tmp_path)
        assert done.returncode == 2
        assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_an_input_is_never_an_output(tmp_path: Path) -> None:
    clip = tmp_path / "a.wav"
    shutil.copy(CLIP, clip)
    (tmp_path / "hard.wav").hardlink_to(clip)
    (tmp_path / "soft.csv").symlink_to("a.wav")
    for output in ("a.wav", "./a.wav", "hard.wav", "soft.csv"):
        for paths in (("a.wav",), (".",), ("-",)):
            with clip.open("rb") as stdin:
                done = run("score", *paths, "-o", output, cwd=tmp_path, stdin=stdin)
            assert done.returncode == 2, (output, paths)
            assert b"is an input, too" in done.stderr
    assert (
        run("score", "a.wav", "--plot", "a.wav", "-m", "nano-uncertainty", cwd=tmp_path).returncode
        == 2
    )
    both = run("score", "a.wav", "--plot", "x", "-o", "x", "-m", "nano-uncertainty", cwd=tmp_path)
    assert b"two outputs" in both.stderr
    assert clip.read_bytes() == CLIP.read_bytes()


def test_a_file_of_the_model_is_never_an_output(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "b")
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    done = run("score", CLIP, "-m", "./b", "-o", "b/manifest.json", cwd=tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"path,mos\na.wav\n", b"line 2: it has not as many cells"),
        (b"path,mos\na.wav,3,4\n", b"line 2: it has not as many cells"),
        (b'path,mos\n"a.wav,3\nb.wav,4\n', b"save it as CSV in UTF-8"),
        (b'path,mos\n"a"b.wav,3\n', b"save it as CSV in UTF-8"),
        (b"path,mos\n\xff.wav,3\n", b"save it as CSV in UTF-8"),
        (b"path;mos\na.wav;3\n", b"no column mos and path"),
        (b"path,mos\n,3\n", b"line 2, column path: it is empty"),
        (b"path,mos\na.wav,inf\n", b"line 2, column mos: 'inf' is not a number"),
    ],
)
def test_ratings_that_cannot_be_used(text: bytes, message: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(text)
    done = run("fit-mos", "r.csv", "-m", "nano-uncertainty", "-o", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_a_rated_path_with_a_nul(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"path,mos\na\0.wav,3\n")
    done = run("fit-mos", "r.csv", "-m", "nano-uncertainty", "-o", "new", cwd=tmp_path)
    assert done.returncode in (1, 2)  # the csv module of Python 3.10 refuses the file
    assert b"Traceback" not in done.stderr


def test_folders(tmp_path: Path) -> None:
    """Each recording once, whatever links there are; what is passed over is said."""
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "up").symlink_to("../..")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "loop").symlink_to("loop")
    away = tmp_path.parent / f"{tmp_path.name}-away"
    away.mkdir()
    shutil.copy(CLIP, away / "far.WAVE")
    (tmp_path / "link").symlink_to(away)
    for name in ("a/one.wav", "a/deep/two.wav", "a/._one.wav"):
        shutil.copy(CLIP, tmp_path / name)
    for name in ("notes.txt", "a/x.m4a", "a/y.m4a", "README"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "gone.wav").symlink_to("nowhere.wav")
    done = run("score", ".", "-r", "--format", "jsonl", cwd=tmp_path)
    paths = [json.loads(line)["path"] for line in done.stdout.splitlines()]
    assert paths == ["a/deep/two.wav", "a/one.wav", "gone.wav", "link/far.WAVE"]
    assert done.returncode == 1  # a link that leads nowhere is no recording
    assert b"passed over 5 files: 2 " in done.stderr
    assert b"1 .txt" in done.stderr


def test_one_bad_path_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    paths = (tmp_path / "closed" / "x.wav", "n" * 256, CLIP)
    done = run("score", *paths, "--format", "jsonl", before=modes_count())
    assert (done.returncode, b"1 scored, 2 failed" in done.stderr) == (1, True)


def test_a_folder_is_no_name_of_a_file(tmp_path: Path) -> None:
    for name in ("", "new/", "new/."):
        done = run("score", CLIP, "-o", name, cwd=tmp_path)
        assert (done.returncode, b"is no name of a file" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_unreadable_folders_are_said(tmp_path: Path) -> None:
    before = modes_count()
    shutil.copy(CLIP, tmp_path / "one.wav")
    (tmp_path / "secret").mkdir(0o000)
    done = run("score", ".", "-r", before=before, cwd=tmp_path)
    assert done.returncode == 1
    assert b"warning: secret: cannot be read: Permission denied" in done.stderr
    assert b"1 scored, 0 failed" in done.stderr
    alone = run("score", "secret", "-r", before=before, cwd=tmp_path)
    assert alone.returncode == 3
    (tmp_path / "one.wav").chmod(0)
    file = run("score", "one.wav", CLIP, before=before, cwd=tmp_path)
    assert file.returncode == 1
    assert b"1 scored, 1 failed" in file.stderr
