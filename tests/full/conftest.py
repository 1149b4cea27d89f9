"""A full-size stand-in checkpoint and the bundle exported from it, once for all tests here."""

import resource
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.conftest import made_once
from tests.standins.utmosv2 import fusion_state_dict

CHECKPOINT = "fold0_s42_best_model.pth"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.full)


@dataclass(frozen=True)
class Export:
    """An export that was run as a process of its own."""

    checkpoint: Path
    bundle: Path
    peak_bytes: int
    stderr: str


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    directory = made_once(tmp_path_factory, "utmosv2", _export)
    peak_kib = int((directory / "peak_kib").read_text())
    progress = (directory / "stderr").read_text()
    return Export(directory / CHECKPOINT, directory / "bundle", peak_kib * 1024, progress)


def _export(directory: Path) -> None:
    directory.mkdir()
    torch.save(fusion_state_dict(), directory / CHECKPOINT)
    command = [
        sys.executable, "-c", "from mosrt.cli.main import main; main()",
        "export", "utmosv2", str(directory / CHECKPOINT),
        "--output", str(directory / "bundle"),
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    # The largest child so far: this one, unless a larger one came before.
    peak_kib = max(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, before)
    (directory / "peak_kib").write_text(str(peak_kib))
    (directory / "stderr").write_text(run.stderr)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    root = Path(__file__).parents[2]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "-o",
            str(directory),
            str(root),
        ],
        check=True,
        capture_output=True,
    )
    (built,) = directory.glob("*.whl")
    assert zipfile.is_zipfile(built)
    return built
