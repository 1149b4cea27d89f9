"""A whole bench, and a small fusion model as a checkpoint and as the bundle made from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mosrt_bench.bench.request import Request
from mosrt_bench.bench.run import Bench
from mosrt_bench.clips import AudioFile
from tests.conftest import made_once


def run_bench(request: Request) -> tuple[dict[str, Any], list[AudioFile]]:
    """The report of a bench, and its recordings."""
    bench = Bench(request)
    bench.run()
    return bench.report, bench.clips


@dataclass(frozen=True)
class Fusion:
    """A bundle of the family that torch's librosa front end is for, and its checkpoint."""

    bundle: Path
    checkpoint: Path


@pytest.fixture(scope="session")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> Fusion:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from click.testing import CliRunner

    from mosrt_export.cli.export import export
    from tests.export.conftest import toml
    from tests.standins.utmosv2 import SMALL, small_model

    def make(folder: Path) -> None:
        folder.mkdir()
        torch.save(small_model("fusion").state_dict(), folder / "small.pth")
        (folder / "small.toml").write_text(toml(SMALL))
        arguments = ["utmosv2", folder / "small.pth"]
        arguments += ["--config", folder / "small.toml", "--output", folder / "small"]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        result = CliRunner().invoke(export, [*map(str, arguments)])
        torch.set_num_threads(threads)
        assert result.exit_code == 0, result.output

    folder = made_once(tmp_path_factory, "bench-fusion", make)
    return Fusion(folder / "small", folder / "small.pth")
