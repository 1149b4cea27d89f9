"""A whole bench, and a small fusion model as a checkpoint and as the bundle made from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mosrt_bench.bench.request import Request
from mosrt_bench.bench.run import Bench
from mosrt_bench.clips import AudioFile


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
    from tests.export.conftest import inputs_once, small_once

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    exported = small_once(tmp_path_factory, "fusion")
    torch.set_num_threads(threads)
    assert exported.result.exit_code == 0, exported.result.output
    return Fusion(exported.bundle, inputs_once(tmp_path_factory) / "fusion.pth")
