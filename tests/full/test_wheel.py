import json
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.full.conftest import Export

BASE = {"numpy", "onnxruntime", "soundfile", "soxr", "click"}


def test_contents(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(
            archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
        )
        entry_points = archive.read(next(n for n in names if n.endswith("entry_points.txt")))
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"mosrt", "mosrt_export", "mosrt_calibration", "mosrt_bench"}
    assert {f"{top}/py.typed" for top in tops} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    embedded = [name for name in names if name.startswith("mosrt/models/")]
    others = set(names) - set(embedded)
    assert not [n for n in others if n.endswith((".so", ".pyd", ".onnx", ".onnx.data", ".pth"))]
    for model in ("distillmos", "nano", "nano-uncertainty"):
        listed = zipfile.Path(wheel, f"mosrt/models/{model}/manifest.json").read_text()
        manifest = json.loads(listed)
        graphs = [
            file["path"]
            for variant in manifest["variants"].values()
            for member in variant["members"]
            for file in (member["graph"], member["weights"])
            if file is not None
        ]
        wanted = {f"mosrt/models/{model}/{path}" for path in [*graphs, "model-card.md"]}
        assert wanted <= set(embedded)
    assert wheel.stat().st_size < 20e6
    requirements = metadata.get_all("Requires-Dist") or []
    base = {r.split(">")[0].strip() for r in requirements if "extra ==" not in r}
    assert base == BASE
    assert b"[mosrt.commands]" in entry_points
    assert metadata["License-Expression"] == "MIT"


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a new environment with nothing but the wheel and what it requires."""
    environment = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    commands = environment / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([commands / "pip", "install", "--quiet", str(wheel)], check=True)
    return commands


def test_a_fresh_install_scores_the_sample_clips(
    fresh: Path, exported: Export, clips: list[Path]
) -> None:
    """Full-size UTMOSv2 where torch was never installed; the same bytes twice."""
    installed = subprocess.run(
        [fresh / "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout.lower()
    for package in ("torch", "onnx==", "timm", "transformers", "tensorrt", "scipy", "librosa"):
        assert package not in installed
    command = list(
        map(str, [fresh / "mosrt", "score", *clips, "--model", exported.bundle, "--views", "1"])
    )
    runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout.splitlines()) == 1 + len(clips)


def test_the_embedded_model_scores_without_a_network(fresh: Path, clips: list[Path]) -> None:
    """Nothing named, nothing downloaded: any socket that is opened ends the process."""
    command = [
        fresh / "python", "-c",
        "import socket, sys\n"
        "def refuse(*args, **kwargs): sys.exit('a socket was opened')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from mosrt.cli.main import main\n"
        "main()",
        "score", "--format", "jsonl", *clips,
    ]  # fmt: skip
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    scores = [json.loads(line) for line in run.stdout.splitlines()]
    assert [score["model"] for score in scores] == ["distillmos"] * len(clips)


def test_a_missing_extra_says_what_to_install(fresh: Path, tmp_path: Path) -> None:
    top = subprocess.run([fresh / "mosrt", "--help"], capture_output=True, text=True, check=True)
    assert "export" in top.stdout
    (tmp_path / "some.pth").touch()
    run = subprocess.run(
        [fresh / "mosrt", "export", "utmosv2", "some.pth", "--output", "out"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 3
    assert "pip install 'mosrt[export]'" in run.stderr
    assert not (tmp_path / "out").exists()
    assert {"bench", "gate"} <= set(top.stdout.split())
    (tmp_path / "clip.wav").touch()
    for command in (
        ["bench", "run", "--audio", "clip.wav"],
        ["gate", "clip.wav", "--baseline", "b.json"],
    ):
        run = subprocess.run(
            [fresh / "mosrt", *command], capture_output=True, text=True, cwd=tmp_path
        )
        assert run.returncode == 3
        assert "pip install 'mosrt[bench]'" in run.stderr
