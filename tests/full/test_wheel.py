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
    assert tops == {"mosrt", "mosrt_export", "mosrt_bench"}
    assert {f"{top}/py.typed" for top in tops} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".so", ".pyd", ".onnx", ".pth"))]
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


def test_a_missing_extra_says_what_to_install(fresh: Path, tmp_path: Path) -> None:
    top = subprocess.run([fresh / "mosrt", "--help"], capture_output=True, text=True, check=True)
    assert "export" in top.stdout
    (tmp_path / "some.pth").touch()
    run = subprocess.run(
        [fresh / "mosrt", "export", "utmosv2", "--checkpoint", "some.pth", "--out", "out"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 1
    assert "pip install 'mosrt[export]'" in run.stderr
    assert not (tmp_path / "out").exists()
