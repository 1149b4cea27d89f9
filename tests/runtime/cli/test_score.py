import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import soundfile
from click.testing import CliRunner, Result

import mosrt
from mosrt.audio.recording import Recording
from mosrt.bundle.embedded import DEFAULT_MODEL
from mosrt.cli.main import main
from tests.conftest import HANG_S


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)


def walk(command: click.Command, names: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [names]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found += walk(child, (*names, name))
    return found


@pytest.mark.parametrize("names", walk(main), ids=" ".join)
def test_every_command_has_help(names: tuple[str, ...]) -> None:
    result = run(*names, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")
    assert len(result.stdout.splitlines()) > 5
    assert "\\b" not in result.stdout  # the mark that keeps lines apart, taken literally


def test_table(tiny: Path, clips: list[Path]) -> None:
    result = run("score", clips[0].parent, "--model", tiny)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["path", "domain", "mos", "95", "%", "interval", "views", "flags"]
    assert [line.split()[0] for line in lines[1:]] == [str(clip) for clip in clips]
    with mosrt.load(tiny) as scorer:
        for line, clip in zip(lines[1:], clips, strict=True):
            assert line.split()[2] == f"{scorer.score_file(clip).mos:.3f}"
    assert f"south: {len(clips)} scored, 0 failed; mean" in result.stderr


def test_machine_formats_agree(tiny: Path, clips: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    arguments = ["score", clips[0], broken, "--model", tiny, "--domain", "all", "--views", 3]
    as_json, as_lines, as_csv = (
        run(*arguments, "--format", kind) for kind in ("json", "jsonl", "csv")
    )
    records = json.loads(as_json.stdout)
    assert records == [json.loads(line) for line in as_lines.stdout.splitlines()]
    rows = list(csv.DictReader(io.StringIO(as_csv.stdout)))
    assert [r["domain"] for r in records] == ["north", "south", "east"] * 2
    for record, row in zip(records, rows, strict=True):
        assert row["path"] == record["path"]
        assert (float(row["mos"]) if row["mos"] else None) == record["mos"]
        assert row["flags"].split() == record["flags"]
    assert [r["mos"] is None for r in records] == [False] * 3 + [True] * 3
    assert records[0]["n_views"] == 6
    for result in (as_json, as_lines, as_csv):
        assert result.exit_code == 1
        assert "broken.wav: cannot be scored" in result.stderr
        assert "1 scored, 1 failed" in result.stderr


def test_timings_only_on_request(tiny: Path, clips: list[Path]) -> None:
    arguments = ["score", clips[0], "-m", tiny, "--format", "jsonl"]
    assert "timings_ms" not in json.loads(run(*arguments).stdout)
    assert json.loads(run(*arguments, "--timings").stdout)["timings_ms"]["model"] > 0


def test_standard_input(tiny: Path, clips: list[Path]) -> None:
    piped = run("score", "-", "-m", tiny, "--format", "jsonl", stdin=clips[0].read_bytes())
    direct = run("score", clips[0], "-m", tiny, "--format", "jsonl")
    assert json.loads(piped.stdout)["mos"] == json.loads(direct.stdout)["mos"]
    assert run("score", "-", "-", "-m", tiny).exit_code == 2


def test_directories(tiny: Path, clips: list[Path], tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    shutil.copy(clips[0], deep / "clip.wav")
    (tmp_path / "notes.txt").touch()
    shallow = run("score", tmp_path, "-m", tiny)
    assert shallow.exit_code == 2
    assert "add --recursive" in shallow.stderr
    assert str(deep / "clip.wav") in run("score", tmp_path, "-m", tiny, "-r").stdout


def test_output_is_all_or_nothing(tiny: Path, clips: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "scores.csv"
    target.write_text("old")
    arguments = ["score", clips[0], "-m", tiny, "--format", "csv", "-o", target]
    assert run(*arguments, "--domain", "west").exit_code == 2
    assert target.read_text() == "old"
    result = run(*arguments)
    assert result.stdout == ""
    assert len(target.read_text().splitlines()) == 2
    assert list(tmp_path.iterdir()) == [target]
    missing = run("score", clips[0], "-m", tiny, "-o", tmp_path / "none" / "x")
    assert missing.exit_code == 3
    assert "cannot be written" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "PATHS"),
        (["clip.wav", "-m", "none"], 3, "no such bundle"),
        (["clip.wav", "-m", "{tiny}", "--variant", "int4"], 3, "it has: fp32"),
        (["clip.wav", "-m", "{tiny}", "--domain", "west"], 2, "north, south, east, all"),
        (["clip.wav", "-m", "{tiny}", "--plan", "spiral"], 2, "known: grid"),
        (["clip.wav", "-m", "{tiny}", "--plan", "paper", "--views", "2"], 2, "leave views out"),
        (["clip.wav", "-m", "{tiny}", "--views", "0"], 2, "1<=x<=10000"),
        (["clip.wav", "-m", "{tiny}", "--provider", "abacus"], 2, "abacus"),
        (["clip.wav", "-m", "{tiny}", "--on-bad-audio", "error"], 1, "No such file"),
        (["{clip}", "-m", "{tiny}", "--frames"], 2, "predicts MOS"),
        (["{clip}", "-m", "nano-uncertainty", "--views", "2"], 2, "leave plan and views out"),
    ],
)
def test_exit_statuses(
    tiny: Path, clips: list[Path], arguments: list[str], code: int, message: str
) -> None:
    result = run("score", *(a.format(tiny=tiny, clip=clips[0]) for a in arguments))
    assert result.exit_code == code
    assert message in result.stderr


def test_interruption_keeps_what_is_done(
    tiny: Path, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Recording] = []

    def interrupted(*arguments: Any, **options: Any) -> Recording:
        if len(opened) == 2:
            raise KeyboardInterrupt
        opened.append(Recording(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr("mosrt.mos.scorer.Recording", interrupted)
    target = tmp_path / "scores.json"
    # Worker processes would not be interrupted.
    result = run("score", *clips, "-m", tiny, "--format", "json", "-o", target, "--threads", 1)
    assert result.exit_code == 130
    assert f"interrupted; 2 of {len(clips)} files are done" in result.stderr
    assert len(json.loads(target.read_text())) == 2


def test_info(tiny: Path, tmp_path: Path) -> None:
    text = run("info", tiny, "--verify")
    assert text.exit_code == 0
    assert "north, south (default), east" in text.stdout
    assert "Random weights" in text.stdout
    assert "as it was exported" in text.stderr
    facts = json.loads(run("info", tiny, "--format", "json").stdout)
    assert facts["name"] == "tiny"
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    model = copy / "model.fold0.fp32.onnx"
    model.write_bytes(bytes(model.stat().st_size))
    assert run("info", copy).exit_code == 0
    damaged = run("info", copy, "--verify")
    assert damaged.exit_code == 3
    assert "SHA-256" in damaged.stderr


def test_info_of_the_machine() -> None:
    facts = json.loads(run("info", "--machine", "--format", "json").stdout)
    assert facts["mosrt"] == mosrt.__version__
    assert "cpu" in facts["providers"]
    assert facts["usable_cores"] >= 1
    for others in (["--verify"], ["--list"], ["nano"]):
        assert run("info", "--machine", *others).exit_code == 2


@pytest.fixture
def embedded(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of tiny as the only embedded model, of one network and one view per 5 s."""
    monkeypatch.setattr("mosrt.bundle.embedded.MODELS", tmp_path)
    monkeypatch.delenv("MOSRT_MODEL", raising=False)
    bundle = Path(shutil.copytree(tiny, tmp_path / DEFAULT_MODEL))
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["grid"] = {"view_every_s": 5.0, "min_views": 1, "max_views": 12}
    del manifest["variants"]["fp32"]["members"][1]
    path.write_text(json.dumps(manifest))
    return bundle


def test_score_without_a_model_uses_the_embedded_one(
    embedded: Path, tiny: Path, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["score", clips[0], "--format", "json"]
    by_default = run(*arguments)
    assert by_default.exit_code == 0
    assert by_default.stdout == run(*arguments, "-m", DEFAULT_MODEL).stdout
    assert by_default.stdout == run(*arguments, "-m", embedded).stdout
    monkeypatch.setenv("MOSRT_MODEL", str(tiny))
    by_environment = run(*arguments)
    assert by_environment.stdout == run(*arguments, "-m", tiny).stdout != by_default.stdout
    assert run(*arguments, "-m", DEFAULT_MODEL).stdout == by_default.stdout


def test_one_view_has_a_score_and_no_interval(embedded: Path, clips: list[Path]) -> None:
    short = next(clip for clip in clips if soundfile.info(clip).duration < 5)
    with mosrt.load(embedded) as scorer:
        score = scorer.score_file(short)
    line = run("score", short).stdout.splitlines()[1]
    assert line.split() == [str(short), "south", f"{score.mos:.3f}", "-", "1"]
    (record,) = json.loads(run("score", short, "--format", "json").stdout)
    assert (record["low"], record["high"], record["n_views"]) == (None, None, 1)
    (row,) = csv.DictReader(io.StringIO(run("score", short, "--format", "csv").stdout))
    assert (row["low"], row["high"], row["n_views"]) == ("", "", "1")


def test_info_of_embedded_models(embedded: Path) -> None:
    text = run("info")
    assert text.exit_code == 0
    assert text.stdout == run("info", DEFAULT_MODEL).stdout == run("info", embedded).stdout
    assert "one per 5 s, from 1 to 12" in text.stdout
    assert (embedded / "model-card.md").read_text().strip() in text.stdout
    facts = json.loads(run("info", "--format", "json").stdout)
    assert facts["model_card"] == (embedded / "model-card.md").read_text()
    assert facts["grid"]["view_every_s"] == 5.0
    card = "# nano\n\nScores speech\nof any kind. And more.\n\nNot music.\n"
    (embedded / "model-card.md").write_text(card)
    listed = run("info", "--list")
    assert listed.stdout == f"{DEFAULT_MODEL}  fusion, 0.0 MB; Scores speech of any kind\n"
    rows = json.loads(run("info", "--list", "--format", "json").stdout)
    assert list(rows) == [DEFAULT_MODEL]
    assert rows[DEFAULT_MODEL]["bytes"] == (embedded / "model.fold0.fp32.onnx").stat().st_size


def test_a_broken_installation(embedded: Path, clips: list[Path]) -> None:
    shutil.rmtree(embedded)
    for command in (["score", clips[0]], ["info"], ["info", "--verify"]):
        result = run(*command)
        assert result.exit_code == 3
        assert "the default model is missing; install mosrt again" in result.stderr
    assert run("info", "--list").stdout == "none  install mosrt again\n"


def test_help_names_the_embedded_models() -> None:
    text = "".join(run("score", "--help").stdout.split())
    assert f"({','.join(mosrt.available_models()) or 'nonehere'})" in text
    assert f"default:({DEFAULT_MODEL})" in text
    assert f"; {DEFAULT_MODEL} if left out." in " ".join(run("info", "--help").stdout.split())


def test_as_a_real_process(tiny: Path, clips: list[Path]) -> None:
    command = [
        sys.executable, "-c", "from mosrt.cli.main import main; main()",
        "score", *map(str, clips[:2]), "--format", "json",
    ]  # fmt: skip
    environment = {**os.environ, "MOSRT_MODEL": str(tiny)}
    runs = [
        subprocess.run(command, capture_output=True, env=environment, check=True) for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    assert all(math.isfinite(record["mos"]) for record in json.loads(runs[0].stdout))
    assert b"\r" not in runs[0].stderr  # no progress bar unless a person watches


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupting_a_real_process(tiny: Path, clips: list[Path]) -> None:
    # What a shell starts in the background ignores this signal, and so would its children.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [
        sys.executable, "-c", f"{heed}; from mosrt.cli.main import main; main()",
        "score", *map(str, clips * 300), "--format", "jsonl", "-m", str(tiny),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert b"files are done" in errors
    lines = (first + rest).splitlines()
    assert 1 <= len(lines) < len(clips * 300)
    assert all(json.loads(line)["model"] == "tiny" for line in lines)
