"""gate, bench, fit-mos, quantize and export with odd names, and with outputs that are inputs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import DATA

from .machines import CLIP, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX names")

ODD = [os.fsdecode(name) for name in (b"\xff.wav", b"a\nb.wav", b"\x1b[31mr.wav")]
needs_bench = pytest.mark.skipif(find_spec("scipy") is None, reason="needs scipy")
needs_onnx = pytest.mark.skipif(find_spec("onnx") is None, reason="needs onnx")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in (*ODD, "plain.wav"):
        shutil.copy(CLIP, folder / name)
    return folder


@needs_bench
@pytest.mark.full
def test_gate(clips: Path) -> None:
    gate = ("gate", "clips", "--views", "2", "--baseline")
    at = clips.parent
    refused = run(*gate, "clips/plain.wav", "--update", cwd=at)
    assert refused.returncode == 2
    assert (clips / "plain.wav").read_bytes() == CLIP.read_bytes()
    assert run(*gate, "b.json", "--update", cwd=at).returncode == 0
    assert run(*gate, "b.json", "--update", cwd=at).returncode == 0  # again
    done = run(*gate, "b.json", "--json", "v.json", "--junit", "v.xml", cwd=at)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr + (at / "v.xml").read_bytes()
    recorded = json.loads((at / "b.json").read_text())
    assert all(name in json.dumps(recorded, ensure_ascii=False) for name in ("plain.wav", "\udcff"))
    printed = run(*gate, "b.json", "--json", "-", cwd=at)
    assert json.loads(printed.stdout)["passed"]
    assert b"mean" in printed.stderr
    assert not (at / "-").exists()
    full = run(*gate, "b.json", "--json", "/dev/full", cwd=at)
    assert (full.returncode, b"/dev/full: No space left" in full.stderr) == (3, True)
    for options in (("--json", "b.json"), ("--json", "x", "--junit", "./x")):
        assert run(*gate, "b.json", *options, cwd=at).returncode == 2


@needs_bench
def test_pipes_and_devices_are_no_clips(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("pipe", "/dev/zero"):
        done = run("gate", path, "--update", "--baseline", "b.json", cwd=tmp_path)
        assert (done.returncode, b"is a pipe or a device" in done.stderr) == (3, True)


@needs_bench
def test_bench(clips: Path) -> None:
    options = ("--no-speed", "--provider", "cpu", "--report", ODD[0])
    done = run("bench", "run", "--audio", "clips", *options, cwd=clips.parent)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    for name in ("report.json", "report.md", "report.html"):
        (clips.parent / ODD[0] / name).read_text(encoding="utf-8")


def test_fit_mos(tmp_path: Path) -> None:
    rows = [f"{path},{i}" for i, path in enumerate(sorted(DATA.iterdir()), 1)]
    (tmp_path / ODD[2]).write_text("\n".join(["path,mos", *rows]))
    fit = ("-m", "nano-uncertainty", "-o", "new", "--kind", "linear")
    done = run("fit-mos", tmp_path / ODD[2], *fit, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert manifest["uncertainty"]["mos_map"]["description"] == "\\x1b[31mr.wav"


@needs_onnx
def test_quantize(tmp_path: Path) -> None:
    folder = tmp_path / ODD[0]
    folder.mkdir()
    for i, clip in enumerate(sorted(DATA.iterdir())):
        shutil.copy(clip, folder / f"{ODD[i % 3]}{clip.suffix}")
    options = ("--variant", "fp16", "--clips", "4", "-o", "new", "--report", ODD[0][:-4])
    done = run("quantize", "nano", "--audio", folder, *options, "--max-drift", "9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    card = (tmp_path / "new" / "model-card.md").read_text(encoding="utf-8")
    assert "fp16" in card


@needs_onnx
def test_force_keeps_what_it_is_given(tiny: Path, tmp_path: Path) -> None:
    triton = ("export", "triton", "-o", "repository")
    shutil.copytree(tiny, tmp_path / "b")
    assert run(*triton, "./b", cwd=tmp_path).returncode == 0
    shutil.copytree(tiny, tmp_path / "repository" / "b")
    done = run(*triton, "./repository/b", "--force", cwd=tmp_path)
    assert done.returncode == 2
    assert b"has an input in it" in done.stderr
    assert (tmp_path / "repository" / "b" / "manifest.json").is_file()
    assert run(*triton, "./b", "--force", cwd=tmp_path).returncode == 0


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_force_keeps_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "b")
    shutil.copy(CLIP, tmp_path / "b" / "checkpoint.pt")
    for command in (("utmosv2",), ("wav2vec",)):
        done = run("export", *command, "b/checkpoint.pt", "-o", "b", "--force", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert (tmp_path / "b" / "checkpoint.pt").is_file()
